"""Many agents at once on few slots."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from langchain_specdec import ChatSpeculative, LocalBackend
from langchain_specdec.engine.step_cost import StepCost
from tests.support.agents import ITEMS, ask, make_agent, written
from tests.support.backends import lasting
from tests.support.chat_templates import QWEN, chat_tokenizer
from tests.support.tiny_models import tiny_model

pytest.importorskip("langchain")


@pytest.fixture(scope="module")
def backend() -> Iterator[LocalBackend]:
    tokenizer = chat_tokenizer(QWEN)
    model = tiny_model(2, dtype=torch.float64, vocab_size=len(tokenizer), max_position_embeddings=4096)
    options: dict[str, Any] = {"num_slots": 8, "max_length": 3072, "max_tree_nodes": 8, "step_cost": StepCost.flat()}
    with lasting(LocalBackend(model, tokenizer, dtype=torch.float64, **options)) as backend:
        yield backend


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_agents_at_once_write_what_they_write_alone(backend: LocalBackend, temperature: float) -> None:
    """16 agents on 8 slots."""
    agent = make_agent(ChatSpeculative(backend=backend, max_new_tokens=100, temperature=temperature, seed=4))
    items = [f"{size} {item}" for size in ("small", "big", "old", "new") for item in ITEMS]
    assert len(items) == 16
    alone = [written(ask(agent, item)) for item in items[::5]]
    with ThreadPoolExecutor(16) as pool:
        together = [written(messages) for messages in pool.map(lambda item: ask(agent, item), items)]
    assert together[::5] == alone
    assert all(len(answers) == 3 for answers in together)
