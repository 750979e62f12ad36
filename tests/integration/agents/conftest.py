"""A tiny random model for what a script cannot tell: the same text, slots and caches."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import pytest
from packaging.version import Version

from langchain_specdec import ChatSpeculative, LocalBackend
from tests.support.backends import lasting, make_chat_backend
from tests.support.chat_templates import QWEN

if importlib.util.find_spec("langchain") is None:
    collect_ignore_glob = ["test_*.py"]
elif Version(version("langchain")) < Version("1.5"):
    # They import middleware that older versions do not have.
    collect_ignore_glob = ["test_middleware_*.py"]


@pytest.fixture(scope="package")
def tiny_backend() -> Iterator[LocalBackend]:
    """Two slots."""
    with lasting(make_chat_backend(QWEN, num_slots=2, max_tree_nodes=8)) as backend:
        yield backend


@pytest.fixture(scope="package")
def tiny_chat(tiny_backend: LocalBackend) -> Callable[..., ChatSpeculative]:
    def make(**fields: Any) -> ChatSpeculative:
        return ChatSpeculative(backend=tiny_backend, **fields)

    return make
