"""What a server counts, under TGI's names and vLLM's."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.backends import lasting, make_drafting_backend
from tests.support.served import serving
from tgi_launcher.metrics import parse_metrics

pytestmark = pytest.mark.server


def series(client):
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        (s.name, *(v for k, v in sorted(s.labels.items()) if k not in ("engine", "model_name"))): s.value
        for family in families
        for s in family.samples
    }


@pytest.fixture(scope="module")
def backend():
    with lasting(make_drafting_backend()) as backend:
        yield backend


def test_figures_agree_with_what_clients_were_told(backend):
    with serving(backend) as client:
        assert series(client)[("tgi_request_count",)] == 0
        body = {"prompt": "abc", "max_tokens": 20, "ignore_eos": True, "temperature": 0}
        told = [client.post("/v1/completions", json=body).json() for _ in range(2)]
        parameters = {"max_new_tokens": 9, "details": True, "speculation_details": True}
        generated = client.post("/generate", json={"inputs": "abc", "parameters": parameters}).json()
        client.post("/generate", json={"inputs": "abc", "parameters": {"top_p": 2.0}})
        client.post("/v1/completions", json={"prompt": "abc", "n": 2})
        client.post("/tokenize", json={"inputs": "abc"})
        found = series(client)
        report = parse_metrics(client.get("/metrics").text, time=0.0)
    stats = [*(answer["specdec"]["speculation"] for answer in told), generated["details"]["speculation"]]
    written = 2 * 20 + generated["details"]["generated_tokens"]
    assert found[("tgi_request_count",)] == 5
    assert found[("tgi_request_success",)] == 3
    assert found[("tgi_request_failure", "validation")] == 2
    assert found[("tgi_request_generated_tokens_sum",)] == written
    assert found[("tgi_request_input_length_sum",)] == 9
    # Tokens delivered are the passes, and what each of them brought beyond one.
    assert found[("tgi_request_skipped_tokens_sum",)] + found[("tgi_request_skipped_tokens_count",)] == written
    assert found[("tgi_request_skipped_tokens_count",)] == sum(each["num_steps"] for each in stats)
    assert found[("vllm:spec_decode_num_draft_tokens_total",)] == sum(each["drafted_tokens"] for each in stats) > 0
    accepted = sum(each["accepted_tokens"] for each in stats)
    assert found[("vllm:spec_decode_num_accepted_tokens_total",)] == accepted > 0
    per_place = [v for (name, *_), v in found.items() if name == "vllm:spec_decode_num_accepted_tokens_per_pos_total"]
    assert sum(per_place) == accepted
    sources = {name[-1]: v for name, v in found.items() if name[0] == "specdec:accepted_tokens_by_source_total"}
    assert sources == {"draft_model": accepted}
    assert found[("vllm:spec_decode_num_drafts_total",)] == sum(each["drafted_per_position"][0] for each in stats)
    assert found[("vllm:generation_tokens_total",)] == written
    assert found[("vllm:time_to_first_token_seconds_count",)] == 3
    assert (report.num_requests, report.num_succeeded, report.generated_tokens) == (3, 3, written)


def test_vllms_figures_of_a_request(backend):
    with serving(backend) as client:
        body = {"prompt": "abc", "max_tokens": 20, "ignore_eos": True, "temperature": 0}
        answer = client.post("/v1/completions", json=body).json()
    told, own = answer["metrics"]["speculative_decoding"], answer["specdec"]["speculation"]
    assert told["num_draft_tokens"] == own["drafted_tokens"]
    assert told["num_accepted_draft_tokens"] == own["accepted_tokens"]
    assert told["num_spec_steps"] == sum(told["acceptance_histogram"])
    accepted = sum(count * number for count, number in enumerate(told["acceptance_histogram"]))
    assert accepted == own["accepted_tokens"]
    assert told["mean_acceptance_length"] == 1 + accepted / told["num_spec_steps"]
