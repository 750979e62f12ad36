"""A real vLLM that speculates, against the engine in this process: the same greedy texts, tokens, ends and counts."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from langchain_specdec import ChatSpeculative, Grammar, LocalBackend, OpenAIBackend, SamplingParams
from langchain_specdec.completions.completion import Completion, CompletionRequest
from langchain_specdec.models.embedded import is_available, model_path
from tests.integration.test_llama_cpp_server import PROMPTS

VLLM = os.environ.get("VLLM") or shutil.which("vllm")
# The best two tokens, in nats, that another order of sums may make change places.
NEAR_TIE = 1e-3
START_SECONDS = 300.0

pytestmark = [
    *(pytest.mark.real_vllm, pytest.mark.process, pytest.mark.server, pytest.mark.slow, pytest.mark.embedded),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if "real_vllm" not in str(request.config.getoption("-m")):
        pytest.skip("starts a server, for minutes: make test-vllm, or pytest -m real_vllm")
    if VLLM is None:
        pytest.skip("no vllm on PATH, and VLLM names none")
    if not is_available():
        pytest.skip("no embedded model")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm") / "log"
    # Nothing of this environment's packages is meant for that of vLLM.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    arguments = [
        *(VLLM, "serve", str(model_path()), "--served-model-name", "embedded", "--host", "127.0.0.1"),
        *("--port", str(port), "--max-model-len", "2048", "--dtype", "float32", "--enforce-eager"),
        *("--speculative-config", '{"method":"ngram","num_speculative_tokens":4,"prompt_lookup_max":4}'),
        *("--per-request-spec-decode-metrics", "summary", "--enable-prompt-tokens-details"),
    ]
    with log.open("wb") as out:
        streams = {"stdout": out, "stderr": out, "stdin": subprocess.DEVNULL}
        process = subprocess.Popen(arguments, env=environment, **streams)  # type: ignore[call-overload]  # noqa: S603
    try:
        wait_for(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        end(process)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + START_SECONDS
    while not answers(url):
        said = log.read_text(errors="replace")[-3000:]
        assert process.poll() is None, f"vLLM did not start:\n{said}"
        assert time.monotonic() < deadline, f"vLLM is not ready after {START_SECONDS:g} seconds:\n{said}"
        time.sleep(1)


def answers(url: str) -> bool:
    """Whether the server is ready."""
    try:
        return httpx.get(f"{url}/health", timeout=5).is_success
    except httpx.HTTPError:
        return False


def end(process: subprocess.Popen[bytes]) -> None:
    """End the server and all its processes."""
    own = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.terminate()
    _, left = psutil.wait_procs(own, timeout=20)
    for one in left:
        one.kill()
    process.wait()


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
