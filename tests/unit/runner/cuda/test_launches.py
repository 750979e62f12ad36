"""How many kernels a step launches: a GPU step of one row is bound by them, so none is added unseen."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.support.fake_cuda import FakeCuda
from tests.support.launches import count_launches

# Launches of a decoder layer, attention among them, and outside of layers: at most so many.
# Four of a verification find scores that are NaN or infinite, in the copy that brings the picks.
# Where heads share keys (llama-8b), the queries of a group are laid beside each other.
BUDGETS: dict[tuple[str, Any, int, bool], tuple[int, int]] = {
    ("qwen1.5-1.8b", "verify", 1, False): (42, 46),
    ("qwen1.5-1.8b", "verify", 8, False): (43, 57),
    ("qwen1.5-1.8b", "verify", 8, True): (43, 146),
    ("qwen1.5-1.8b", "draft", 1, False): (42, 35),
    ("llama-8b", "verify", 1, False): (42, 46),
    ("llama-8b", "verify", 8, False): (44, 57),
    ("llama-8b", "verify", 8, True): (44, 146),
    ("llama-8b", "draft", 1, False): (42, 35),
}
# As the default drafter asks for.
NUM_CANDIDATES = {"verify": 8, "draft": 0}


def check(cuda: FakeCuda, shape: str, kind: Any, width: int, *, is_sampled: bool) -> None:
    parts = count_launches(cuda, shape, kind, width, is_sampled=is_sampled, num_candidates=NUM_CANDIDATES[kind])
    budgets = BUDGETS[shape, kind, width, is_sampled]
    for name, launches, budget in zip(("a layer", "all but layers"), parts, budgets, strict=True):
        assert launches.total() <= budget, f"{launches.total()} launches of {name}: {listed(launches)}"


def listed(launches: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(launches.items()))


@pytest.mark.parametrize(("shape", "kind", "width", "is_sampled"), BUDGETS)
def test_a_step_launches_no_more_than_its_budget(
    shape: str, kind: Any, width: int, is_sampled: bool, cuda: FakeCuda
) -> None:
    check(cuda, shape, kind, width, is_sampled=is_sampled)
