"""Runners and engines over models with random weights; in a rehearsal, recordings stand for their graphs."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from langchain_specdec.backends import local
from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.bench.random_weights import random_model
from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.models.loader import load_model
from langchain_specdec.models.make_runner import make_runner
from langchain_specdec.runner import attention
from langchain_specdec.runner.cuda.capture import Capture, CudaCapture
from langchain_specdec.runner.cuda.captured_runner import CapturedRunner
from langchain_specdec.runner.model_runner import ModelRunner
from langchain_specdec.runner.runner import Runner
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.sampling.noise import Noise
from tests.support.recorded_graphs import RecordedCapture
from tools.gpu_check.check import Check


def shape(check: Check, name: str) -> str:
    """The name of a model with random weights, as large as the machine bears."""
    return str(check.pick(f"random:{name}", "random:tiny"))


def model_of(check: Check, name: str, dtype: str = "bfloat16") -> tuple[Any, Any]:
    """A model with random weights, and its tokenizer."""
    return random_model(shape(check, name), check.pick(dtype, "float32"), str(check.device))


def loaded_of(check: Check, name: str) -> LoadedModel:
    """Random weights in bfloat16, for runners."""
    return load_model(*model_of(check, name))


def new_capture(check: Check) -> Capture:
    """What records functions here."""
    if not check.is_rehearsal:
        return CudaCapture(check.device)
    # Recordings hold PyTorch's operators; our kernels for CPUs are none.
    mock.patch.object(attention, "can_decode_attention", lambda *_: False).start()
    return RecordedCapture()


def runner_over(check: Check, loaded: LoadedModel, *, slots: int, length: int, width: int) -> Runner:
    """A runner whose steps are captured, each as soon as it is seen.

    Args:
        check: The part.
        loaded: The model, which other runners may have had before.
        slots: Slots.
        length: Positions of each.
        width: Most tokens of a row.
    """
    make = _maker(check, is_captured=True)
    return make(loaded, num_slots=slots, max_length=length, max_width=width, compile=_mode(is_captured=True))


def runner_of(check: Check, name: str, *, slots: int, length: int, width: int) -> Runner:
    """The same over new random weights in bfloat16."""
    return runner_over(check, loaded_of(check, name), slots=slots, length=length, width=width)


def backend_of(check: Check, model: Any, tokenizer: Any, *, is_captured: bool, **options: Any) -> LocalBackend:
    """An engine over a loaded model, with its draft model's steps captured too; the rest is as in `LocalBackend`."""
    with mock.patch.object(local, "make_runner", _maker(check, is_captured=is_captured)):
        return LocalBackend(model, tokenizer, compile=_mode(is_captured=is_captured), **options)


def plain(runner: Runner) -> ModelRunner:
    """The runner without its graphs."""
    inner = runner.uncaptured if isinstance(runner, CapturedRunner) else runner
    assert isinstance(inner, ModelRunner)
    return inner


def captured(runner: Runner) -> CapturedRunner:
    """The runner, which has graphs."""
    assert isinstance(runner, CapturedRunner)
    return runner


def batch_of(rows: int, width: int, start: int, temperature: float = 0.0) -> RowBatch:
    """Rows of so many tokens each, at the same place of their slots."""
    noise = Noise([1] * rows, [temperature] * rows)
    return RowBatch(range(rows), [start] * rows, [[9] * width] * rows, None, noise)


def free(check: Check) -> None:
    """Give back what is not in use any more."""
    gc.collect()
    if not check.is_rehearsal:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _mode(*, is_captured: bool) -> Any:
    return "reduce-overhead" if is_captured else "off"


def _maker(check: Check, *, is_captured: bool) -> Callable[..., Runner]:
    """`make_runner`; one that gives runners recordings on a CPU, draft models' too, where they would have graphs."""

    def make(loaded: LoadedModel, **options: Any) -> Runner:
        runner = plain(make_runner(loaded, **{**options, "compile": "off"}))
        return CapturedRunner(runner, new_capture(check), "reduce-overhead") if is_captured else runner

    return make if check.is_rehearsal else make_runner
