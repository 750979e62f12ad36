"""The model that comes along, for all tests of a process: read and packed once, and its steps timed once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from langchain_specdec.backends import local_drafts
from langchain_specdec.drafters.base import Drafter
from langchain_specdec.engine import draft_planner
from langchain_specdec.engine.request import Request
from langchain_specdec.engine.step_cost import StepCost, measure_step_cost
from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.models.loader import load_model
from langchain_specdec.runner.model_runner import ModelRunner


@pytest.fixture(scope="session", autouse=True)
def _weights_read_once() -> Iterator[None]:
    """Whoever asks for a model by name gets the one that was loaded before; no test changes it."""
    known: dict[str, LoadedModel] = {}

    def load(model: Any, tokenizer: Any = None, *, progress: Any = None, **options: Any) -> LoadedModel:
        if not isinstance(model, str):
            return load_model(model, tokenizer, progress=progress, **options)
        key = repr((model, tokenizer, sorted(options.items())))
        if key not in known:
            known[key] = load_model(model, tokenizer, progress=progress, **options)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_drafts, "load_model", load)
        yield


@pytest.fixture(scope="session", autouse=True)
def _steps_timed_once() -> Iterator[None]:
    """Each backend times steps for two seconds before it drafts; here those with the same model and drafter share."""
    known: dict[tuple[Any, ...], StepCost] = {}

    def measure(runner: ModelRunner, drafter: Drafter, request: Request, is_wanted: Callable[[], bool]) -> StepCost:
        key = (runner.model, runner.max_width, runner.cache.num_slots, type(drafter))
        if key not in known:
            cost = measure_step_cost(runner, drafter, request)
            assert cost is not None
            known[key] = cost
        # Each engine refines its own.
        return copy.deepcopy(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draft_planner, "measure_step_cost", measure)
        yield
