"""A tiny random model for what a script cannot tell: the same text, slots and caches."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from langchain_specdec import ChatSpeculative, LocalBackend
from langchain_specdec.engine.step_cost import StepCost
from tests.support.backends import lasting
from tests.support.chat_templates import QWEN, chat_tokenizer
from tests.support.tiny_models import tiny_model

if importlib.util.find_spec("langchain") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="package")
def tiny_backend() -> Iterator[LocalBackend]:
    """Two slots."""
    tokenizer = chat_tokenizer(QWEN)
    model = tiny_model(2, dtype=torch.float64, vocab_size=len(tokenizer), max_position_embeddings=4096)
    options: dict[str, Any] = {"num_slots": 2, "max_length": 3072, "max_tree_nodes": 8, "step_cost": StepCost.flat()}
    with lasting(LocalBackend(model, tokenizer, dtype=torch.float64, **options)) as backend:
        yield backend


@pytest.fixture(scope="package")
def tiny_chat(tiny_backend: LocalBackend) -> Callable[..., ChatSpeculative]:
    def make(**fields: Any) -> ChatSpeculative:
        return ChatSpeculative(backend=tiny_backend, **fields)

    return make
