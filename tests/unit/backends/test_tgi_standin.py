"""The stand-in for TGI itself: the shapes and words that the tests of the other side rely on, from TGI's sources."""

import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.standin.faults import REQUEST_FAULTS, START_FAULTS, Fault
from tests.standin.generation import Limits, validate
from tests.standin.launcher import FAULTS, read_faults
from tests.standin.models import FakeModel
from tests.standin.server import ServerThread, StandIn
from tgi_launcher.metrics import parse_metrics

pytestmark = pytest.mark.server

TEXT = FakeModel.ANSWER
LIMITS = Limits(max_input_tokens=100, max_total_tokens=1100)
NO_PROPERTIES = "grammar is not valid: Grammar must have a 'properties' field"
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
# As TGI, it takes what it does not hold.
RECURSIVE = {"type": "object", "properties": {"below": {"type": "array", "items": {"$ref": "#"}}}}
BOUNDED = {"name": {"type": "integer", "minimum": 0, "maximum": 150}}
UNBOUNDED = {"name": {"type": "integer"}}


class GrammarModel(FakeModel):
    """Notes the grammar that it is given."""

    def __init__(self):
        super().__init__()
        self.takes_grammars = True
        self.seen = []

    def make_grammar(self, *, schema=None, regex=None):
        if "unknown" in str(schema) or regex == "(":
            raise ValueError("unknown construct")
        return ("regex", regex) if schema is None else ("schema", schema)

    def steps(self, prompt, sampling):
        self.seen.append(sampling.grammar)
        return super().steps(prompt, sampling)


@pytest.fixture(scope="module")
def server():
    with ServerThread(GrammarModel(), LIMITS) as server:
        yield server


def ask(server, path, body=None, **headers):
    """Status and text of an answer."""
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, {"Content-Type": "application/json", **headers})  # noqa: S310
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def generate(server, path="/generate", inputs="Hi", **parameters):
    status, text = ask(server, path, {"inputs": inputs, "parameters": {"max_new_tokens": 4, **parameters}})
    return status, text


def frames(text):
    return [json.loads(event.removeprefix("data:")) for event in text.split("\n\n") if event]


# Answers


def test_info_has_the_fields_of_tgi_3_and_no_others(server):
    info = json.loads(ask(server, "/info")[1])
    assert set(info) == {
        "model_id", "model_sha", "model_pipeline_tag", "max_concurrent_requests", "max_best_of", "max_stop_sequences",
        "max_input_tokens", "max_total_tokens", "validation_workers", "max_client_batch_size", "router", "version",
        "sha", "docker_label",
    }  # fmt: skip


def test_an_answer_has_details_if_asked_for(server):
    assert json.loads(generate(server)[1]) == {"generated_text": TEXT.encode()[:4].decode()}
    details = json.loads(generate(server, details=True)[1])["details"]
    assert set(details) == {"finish_reason", "generated_tokens", "seed", "prefill", "tokens"}
    assert (details["finish_reason"], details["generated_tokens"], details["seed"]) == ("length", 4, None)


def test_the_root_answers_with_a_list_that_begins_with_the_prompt(server):
    assert json.loads(generate(server, "/")[1])[0]["generated_text"].startswith("HiGr")
    assert json.loads(generate(server, "/", return_full_text=False)[1])[0]["generated_text"].startswith("Gr")


def test_a_stream_has_a_frame_per_token(server):
    status, text = generate(server, "/generate_stream", details=True, max_new_tokens=60)
    *others, last = frames(text)
    assert status == 200
    assert [frame["index"] for frame in (*others, last)] == list(range(1, len(others) + 2))
    assert {(frame["generated_text"], frame["details"]) for frame in others} == {(None, None)}
    assert others[2]["token"] == {"id": 195, "text": "", "logprob": -0.5, "special": False}, "half of a character"
    assert last["token"]["special"]
    assert last["generated_text"] == TEXT
    assert last["details"] == {"finish_reason": "eos_token", "generated_tokens": 28, "seed": None, "input_length": 2}


def test_a_stop_string_stays_and_the_first_that_is_complete_wins(server):
    for stop, text in ((["aus"], "Grüße aus"), (["aus dem", "u"], "Grüße au"), (["ß"], "Grüß")):
        answer = json.loads(generate(server, stop=stop, max_new_tokens=60, details=True)[1])
        assert (answer["generated_text"], answer["details"]["finish_reason"]) == (text, "stop_sequence")


def test_the_whole_may_have_less_text_than_its_tokens(server):
    server.set_faults("empty-end")
    *others, last = frames(generate(server, "/generate_stream", details=True, max_new_tokens=5)[1])
    server.set_faults()
    assert "".join(frame["token"]["text"] for frame in others) == "Grü"
    assert (last["generated_text"], last["details"]["finish_reason"]) == ("", "length")


async def test_beside_others_a_seed_can_count_for_nothing():
    seeds: list[int] = []

    class Seeds(FakeModel):
        def steps(self, prompt, sampling):
            seeds.append(sampling.seed)
            return super().steps(prompt, sampling)

    model = Seeds()
    valid = validate(model, LIMITS, "x", {"do_sample": True, "seed": 5, "max_new_tokens": 2}, is_stream=True)
    standin = StandIn(model, LIMITS)
    for fault in ({}, {"batch-seeds": Fault("batch-seeds")}):
        for standin.num_running in (1, 2):
            assert [frame.as_json(valid)["index"] async for frame in standin._run(valid, fault)] == [1, 2]
    assert seeds == [5, 5, 5, 7]


def test_every_switch_is_off_until_asked_for_and_has_a_test():
    names = {*START_FAULTS, *REQUEST_FAULTS, *FAULTS}
    assert not StandIn(FakeModel(), LIMITS).faults.take()
    assert read_faults("") == {}
    tests = Path(__file__).parents[2]
    texts = [path.read_text() for part in ("unit", "integration") for path in (tests / part).rglob("test_tgi*.py")]
    assert [name for name in names if not re.search(rf"[\"',]{name}[\"':,]", "\n".join(texts))] == []


# Errors


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"temperature": 0.0}, "`temperature` must be strictly positive"),
        ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
        ({"top_k": 0}, "`top_k` must be strictly positive"),
        ({"repetition_penalty": 0}, "`repetition_penalty` must be strictly positive"),
        ({"frequency_penalty": 3}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
        ({"stop": list("abcde")}, "`stop` supports up to 4 stop sequences. Given: 5"),
        ({"top_n_tokens": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
        ({"best_of": 3}, "`best_of` must be > 0 and <= 2. Given: 3"),
        ({"inputs": ""}, "`inputs` cannot be empty"),
        ({"inputs": "x" * 101}, "`inputs` must have less than 100 tokens. Given: 101"),
        (
            {"inputs": "x" * 99, "max_new_tokens": 1024},
            "`inputs` tokens + `max_new_tokens` must be <= 1100. Given: 99 `inputs` tokens and 1024 `max_new_tokens`",
        ),
    ],
)
def test_a_refusal_says_so_in_an_answer_or_a_frame(server, parameters, message):
    error = {"error": f"Input validation error: {message}", "error_type": "validation"}
    status, text = generate(server, **parameters)
    assert (status, json.loads(text)) == (422, error)
    if "best_of" not in parameters:
        status, text = generate(server, "/generate_stream", **parameters)
        assert (status, frames(text)) == (200, [error])


@pytest.mark.parametrize(
    ("body", "status"), [(b"{", 400), ({"inputs": 3}, 422), ({"inputs": "x", "parameters": {"seed": -1}}, 422)]
)
def test_what_the_web_framework_refuses_is_plain_text(server, body, status):
    answer = ask(server, "/generate", body)
    assert answer[0] == status
    assert answer[1].startswith("Failed to")


@pytest.mark.parametrize(
    ("fault", "status", "kind", "frame_kind"),
    [
        ("overloaded", 429, "overloaded", "overloaded"),
        ("generation", 424, "generation", "generation"),
        ("incomplete", 500, "incomplete_generation", "incomplete_generation_stream"),
    ],
)
def test_failures_have_their_status_and_type(server, fault, status, kind, frame_kind):
    server.set_faults(f"{fault}:times=2")
    answer = generate(server)
    assert (answer[0], json.loads(answer[1])["error_type"]) == (status, kind)
    answer = generate(server, "/generate_stream")
    assert (answer[0], frames(answer[1])[0]["error_type"]) == (200, frame_kind)


def test_a_key_is_asked_for_where_something_is_generated():
    with ServerThread(FakeModel(), LIMITS, api_key="sesame") as server:
        assert ask(server, "/generate", {"inputs": "x"}) == (401, "")
        assert ask(server, "/tokenize", {"inputs": "x"}) == (401, "")
        assert ask(server, "/tokenize", {"inputs": "x"}, Authorization="Bearer SESAME")[0] == 200
        assert [ask(server, path)[0] for path in ("/health", "/info", "/metrics", "/v1/models")] == [200] * 4


def test_an_unhealthy_server_says_503(server):
    server.set_faults("unhealthy")
    status, text = ask(server, "/health")
    server.set_faults()
    assert (status, json.loads(text)) == (503, {"error": "unhealthy", "error_type": "healthcheck"})


def test_a_router_without_its_shard_says_so(server):
    server.set_faults("dead-shard")
    answers = [generate(server), ask(server, "/health"), ask(server, "/info")]
    server.set_faults()
    assert [status for status, _ in answers] == [424, 503, 200]
    assert json.loads(answers[0][1])["error"] == "Request failed during generation: Server error: transport error"


def test_tokens_of_a_pass_can_travel_together():
    with ServerThread(FakeModel(speculate=2), LIMITS) as server:
        _, apart = generate(server, "/generate_stream", details=True, max_new_tokens=9)
        server.set_faults("one-packet")
        _, together = generate(server, "/generate_stream", details=True, max_new_tokens=9)
        assert together == apart
        # A frame per token, and the passes and what they skipped make up their number.
        assert [frame["index"] for frame in frames(together)] == list(range(1, 10))
        metrics = parse_metrics(ask(server, "/metrics")[1], time=0.0)
        passes, skipped = metrics.skipped_count, metrics.skipped_sum
        assert (passes, passes + skipped) == (2 * 4, 2 * 9)
        assert "tgi_batch_current_size 0" in ask(server, "/metrics")[1]


# Grammars


@pytest.mark.parametrize(
    ("grammar", "seen"),
    [
        ({"type": "json", "value": SCHEMA}, ("schema", SCHEMA)),
        ({"type": "json_object", "value": SCHEMA}, ("schema", SCHEMA)),
        ({"type": "json", "value": json.dumps(SCHEMA)}, ("schema", SCHEMA)),
        ({"type": "json_schema", "value": {"name": "person", "schema": SCHEMA}}, ("schema", SCHEMA)),
        ({"type": "json_schema", "value": {"schema": SCHEMA}}, ("schema", SCHEMA)),
        ({"type": "json", "value": RECURSIVE}, ("schema", RECURSIVE)),
        ({"type": "json", "value": {**SCHEMA, "properties": BOUNDED}}, ("schema", {**SCHEMA, "properties": UNBOUNDED})),
        ({"type": "regex", "value": "[0-9]+"}, ("regex", "[0-9]+")),
        (None, None),
    ],
)
def test_grammars_reach_the_model(server, grammar, seen):
    for path in ("/generate", "/generate_stream"):
        assert generate(server, path, grammar=grammar)[0] == 200
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "response_format": grammar}
    assert ask(server, "/v1/chat/completions", body)[0] == 200
    assert server.standin.model.seen[-3:] == [seen] * 3


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("json", "missing field `type`"),
        ({"type": "ebnf", "value": ""}, "unknown variant `ebnf`, expected one of `json`, `regex`, `json_schema`"),
        ({"type": "json"}, "missing field `value`"),
        ({"type": "regex", "value": {}}, "expected a string"),
        ({"type": "json_schema", "value": SCHEMA}, "missing field `schema`"),
        ({"type": "json_schema", "value": "{}"}, "expected struct JsonSchemaConfig"),
        # As OpenAI has it.
        ({"type": "json_schema", "json_schema": {"schema": SCHEMA}}, "missing field `value`"),
    ],
)
def test_grammars_of_another_shape_are_refused_in_plain_text(server, grammar, message):
    for path in ("/generate", "/generate_stream"):
        status, text = generate(server, path, grammar=grammar)
        assert status == 422
        assert text.startswith("Failed to deserialize the JSON body into the target type: ")
        assert grammar == "json" or message in text


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ({"type": "json", "value": {"type": "string"}}, NO_PROPERTIES),
        ({"type": "json_schema", "value": {"schema": {}}}, NO_PROPERTIES),
        ({"type": "json", "value": "{"}, "grammar is not valid: "),
        ({"type": "json", "value": 3}, "grammar is not supported"),
        ({"type": "json", "value": {"type": "text", "properties": {}}}, "grammar is not valid: \"text\""),
        ({"type": "json", "value": {"properties": []}}, "grammar is not valid: []"),
        ({"type": "json", "value": {"properties": {"a": {"type": "x"}}}}, "grammar is not valid: \"x\""),
        ({"type": "json_schema", "value": {"schema": 3}}, "grammar is not valid: 3"),
        ({"type": "json", "value": {"properties": {"unknown": {}}}}, "cannot compile regex from schema: unknown"),
    ],
)  # fmt: skip
def test_grammars_that_are_none_are_refused_as_tgi_does(server, grammar, message):
    status, text = generate(server, grammar=grammar)
    error = json.loads(text)
    assert (status, error["error_type"]) == (422, "validation")
    assert error["error"].startswith(f"Input validation error: {message}")
    assert frames(generate(server, "/generate_stream", grammar=grammar)[1]) == [error]


def test_a_broken_regex_is_noticed_by_the_model_process_only(server):
    status, text = generate(server, grammar={"type": "regex", "value": "("})
    assert (status, json.loads(text)["error_type"]) == (424, "generation")


def test_grammars_can_be_turned_off():
    grammar = {"type": "regex", "value": "a"}
    off = {"error": "Input validation error: grammar is not supported", "error_type": "validation"}
    with ServerThread(GrammarModel(), LIMITS, disable_grammar_support=True) as server:
        assert json.loads(generate(server, grammar=grammar)[1]) == off
    with ServerThread(FakeModel(), LIMITS) as server:
        assert json.loads(generate(server, grammar=grammar)[1]) == off, "a model whose answer is always the same"


def test_tools_and_a_grammar_exclude_each_other(server):
    body = {"messages": [], "tools": [{}], "response_format": {"type": "json", "value": SCHEMA}}
    status, text = ask(server, "/v1/chat/completions", body)
    assert (status, json.loads(text)["error_type"]) == (422, "tool_error")
