"""A real vLLM that the launcher starts, against the engine in this process: the same greedy texts, ends and counts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from langchain_specdec import ChatSpeculative, Grammar, LocalBackend, OpenAIBackend, SamplingParams
from langchain_specdec.completions.completion import Completion, CompletionRequest
from langchain_specdec.models.embedded import is_available, model_path
from tests.integration.test_llama_cpp_server import PROMPTS
from tgi_launcher import EngineConfig, Method, Progress, Server, Stage, State, supervisor

VLLM = os.environ.get("VLLM") or shutil.which("vllm")
# The best two tokens, in nats, that another order of sums may make change places.
NEAR_TIE = 1e-3
START_SECONDS = 300.0

pytestmark = [
    *(pytest.mark.real_vllm, pytest.mark.process, pytest.mark.server, pytest.mark.slow, pytest.mark.embedded),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that the launcher has started; afterwards no process of it may be left."""
    if "real_vllm" not in str(request.config.getoption("-m")):
        pytest.skip("starts a server, for minutes: make test-vllm, or pytest -m real_vllm")
    if VLLM is None:
        pytest.skip("no vllm on PATH, and VLLM names none")
    if not is_available():
        pytest.skip("no embedded model")
    config = EngineConfig(
        engine="vllm",
        launcher_path=VLLM,
        model_id=str(model_path()),
        dtype="float32",
        max_total_tokens=2048,
        speculation_method=Method.NGRAM,
        speculate=4,
        extra_args=("--served-model-name", "embedded", "--enforce-eager", "--enable-prompt-tokens-details"),
        # Nothing of this environment's packages is meant for that of vLLM.
        env={"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        startup_timeout=START_SECONDS,
    )
    steps: list[Progress] = []
    with Server(config, on_progress=steps.append) as server:
        assert [step.stage for step in steps][-1] is Stage.READY
        assert Stage.SHARDS in [step.stage for step in steps]
        assert server._run is not None
        marker = server._run.process.marker
        assert len(supervisor.server_processes(marker)) > 1
        yield server
    assert server.state is State.STOPPED
    assert supervisor.server_processes(marker) == []


@pytest.fixture(scope="module")
def url(server: Server) -> str:
    return server.base_url


@pytest.fixture(scope="module")
def local() -> Iterator[LocalBackend]:
    backend = LocalBackend("embedded", max_length=1024)
    # Its thread runs from here on.
    backend.complete([CompletionRequest("a", SamplingParams(max_new_tokens=1))])
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def served(url: str) -> Iterator[OpenAIBackend]:
    # One at a time: rows of a batch are summed in another order.
    backend = OpenAIBackend(url, tokenizer=str(model_path()), max_concurrency=1)
    yield backend
    backend.close()


def told(completion: Completion) -> tuple[object, ...]:
    """What has to be the same."""
    finish = completion.finish
    ids = [token.id for token in completion.tokens]
    return completion.text, ids, finish.finish_reason, finish.prompt_tokens, finish.completion_tokens


def is_near_tie(ours: Completion, theirs: Completion) -> bool:
    """Whether the first token that differs was hardly better than the other one."""
    for one, other in zip(ours.tokens, theirs.tokens, strict=False):
        if one.id != other.id:
            best, second = sorted((one.top_logprobs or {}).values(), reverse=True)[:2]
            return best - second < NEAR_TIE
    return False


@pytest.mark.parametrize("stop", [(), (".", "\n\n")], ids=["", "stops"])
def test_greedy_texts_are_those_of_this_engine(local, served, stop):
    params = SamplingParams(max_new_tokens=40, logprobs=2, stop=stop)
    ours = local.complete([CompletionRequest(prompt, params) for prompt in PROMPTS])
    # vLLM drafts nothing where log probabilities are asked for of several tokens.
    plain = SamplingParams(max_new_tokens=40, stop=stop)
    theirs = served.complete([CompletionRequest(prompt, plain) for prompt in PROMPTS])
    differing = [
        (prompt, one.text, other.text)
        for prompt, one, other in zip(PROMPTS, ours, theirs, strict=True)
        if told(one) != told(other) and not is_near_tie(one, other)
    ]
    assert differing == []
    assert sum(completion.finish.speculation.accepted_tokens for completion in theirs) > 0


def test_scores_are_those_of_this_engine(local, served):
    request = CompletionRequest(PROMPTS[1], SamplingParams(max_new_tokens=8, logprobs=2))
    (ours,), (theirs,) = local.complete([request]), served.complete([request])
    assert [token.id for token in theirs.tokens] == [token.id for token in ours.tokens]
    for one, other in zip(ours.tokens, theirs.tokens, strict=True):
        assert other.logprob == pytest.approx(one.logprob, abs=1e-3)


def test_chats_and_forms(local, url):
    ask = "What is the capital of France?"
    here = ChatSpeculative(backend=local, max_tokens=20)
    with ChatSpeculative.from_server(url, tokenizer=str(model_path()), max_tokens=20) as there:
        assert there.invoke(ask).text == here.invoke(ask).text
        form = Grammar(regex="(Paris|Rome)!")
        assert there.invoke(ask, grammar=form).text == here.invoke(ask, grammar=form).text


def test_the_launcher_tells_what_speculation_is_worth(server, served):
    info = server.info()
    assert (info.model_id, info.max_total_tokens) == ("embedded", 2048)
    before = server.metrics()
    (completion,) = served.complete([CompletionRequest(PROMPTS[0], SamplingParams(max_new_tokens=40))])
    told, report = completion.finish.speculation, server.speculation(before)
    assert report.num_tokens == 40
    assert report.num_drafted == told.drafted_tokens > 0
    assert report.num_skipped == told.accepted_tokens > 0
    assert report.acceptance_rate == told.acceptance_rate
    assert report.is_active
