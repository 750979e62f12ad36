"""Servers of a real TGI, the same model in this process, and models over both clients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from langchain_specdec import LocalBackend, SamplingParams, SpeculativeLLM
from langchain_specdec.completions.completion import Completion, CompletionRequest
from tests.standin.clients import CLIENTS
from tests.support.real_tgi import ROUNDING, Servers, model_folder, why_not
from tgi_launcher import TGIServer

COUNTING = "1, 2, 3, 4, 5, 6,"
PROMPTS = [
    COUNTING,
    "The harbour of Lindau opened in 1856. The harbour of Lindau opened in",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "<|im_start|>user\nWrite a haiku about the sea.<|im_end|>\n<|im_start|>assistant\n",
]


def pytest_pycollect_makemodule(parent: pytest.Collector) -> None:
    """Leave out every module here, with the reason, where its tests cannot run or were not asked for."""
    if reason := why_not(parent.config.option.markexpr):
        pytest.skip(reason, allow_module_level=True)


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    servers = Servers()
    yield servers
    servers.close()


@pytest.fixture
def server(servers: Servers) -> TGIServer:
    """A server that drafts three tokens at a time by n-grams."""
    return servers.get(speculate=3)


@pytest.fixture
def plain_server(servers: Servers) -> TGIServer:
    """A server that does not speculate."""
    return servers.get(speculate=0)


@pytest.fixture(params=CLIENTS)
def llm(request: pytest.FixtureRequest, server: TGIServer) -> Iterator[SpeculativeLLM]:
    """Completions of the server that drafts, by either client."""
    with SpeculativeLLM.from_tgi(server.base_url, client=request.param, max_new_tokens=24) as llm:
        yield llm


@pytest.fixture(scope="session")
def local() -> Iterator[LocalBackend]:
    """The same model in this process, without speculation."""
    backend = LocalBackend(model_folder(), drafter="none", num_slots=len(PROMPTS), max_length=512, compile="off")
    backend.complete([CompletionRequest("x", SamplingParams(max_new_tokens=1))])
    yield backend
    backend.close()


@pytest.fixture(scope="session")
def expect_same_text(local: LocalBackend) -> Callable[[Any], None]:
    """Checks greedy texts of a server: the model's own, up to a token that rounding may have chosen."""
    params = SamplingParams(max_new_tokens=24, logprobs=5)
    requests = [CompletionRequest(prompt, params) for prompt in PROMPTS]
    expected = local.complete(requests)

    def check(backend: Any) -> None:
        lengths = []
        for prompt, mine in zip(PROMPTS, expected, strict=True):
            # One at a time: batch mates change how sums are rounded.
            (theirs,) = backend.complete([CompletionRequest(prompt, params)])
            lengths.append(_compare(mine, theirs))
        assert max(lengths) >= 10, f"equal tokens at the beginning: {lengths}"

    return check


def _compare(mine: Completion, theirs: Completion) -> int:
    """Number of equal tokens at the beginning. Fails if the first other token was not nearly as probable."""
    number = 0
    for one, other in zip(mine.tokens, theirs.tokens, strict=False):
        if one.id != other.id:
            assert one.top_logprobs is not None
            assert one.logprob is not None
            gap = one.logprob - one.top_logprobs.get(other.id, -math.inf)
            assert gap < ROUNDING, f"token {number} is {other.text!r}, and {one.text!r} is {gap:.2f} nats likelier"
            break
        number += 1
    return number
