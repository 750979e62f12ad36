"""The tests that run on a GPU, and steps that may not wait for it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch

from tools.gpu_check.check import Check
from tools.gpu_check.runners import batch_of, plain, runner_of

TESTS = (
    "tests/unit/runner/cuda/test_capture.py",
    "tests/unit/runner/cuda/test_captured_runner.py",
    "tests/unit/runner/cuda/test_waiting.py",
    "tests/unit/runner/test_verify.py",
    "tests/unit/runner/test_trees.py",
    "tests/unit/sampling/test_sampling.py",
    "tests/unit/models/test_families.py",
    "tests/unit/engine/test_lossless.py",
    "tests/unit/engine/test_steps.py",
    "tests/unit/grammar/test_constraint.py",
)
KEYWORDS = "cuda and not any_configuration or needs_gpu or test_cuda or test_a_cuda"
_REHEARSED = ("tests/unit/sampling/test_top_tokens.py",)
# What a file of tests imports, SciPy say, may not be there: the others are run all the same.
_OPTIONS = ("-v", "-p", "no:cacheprovider", "--timeout", "60", "--continue-on-collection-errors")


def unit(check: Check) -> None:
    """Waits first: they take a moment."""
    _waits(check)
    _tests(check)


def _tests(check: Check) -> None:
    """In this process, which is the part's own; where there is a GPU, in six more."""
    selected = check.pick(("-n", "6", "-k", KEYWORDS, *TESTS), _REHEARSED)
    written = check.out / "pytest.txt"
    # Line by line: if the part is cut, what was tested until then is known.
    with written.open("w", buffering=1, encoding="utf-8") as file, contextlib.redirect_stdout(file):
        code = pytest.main([*_OPTIONS, f"--junitxml={check.out / 'junit.xml'}", *selected])
    check.note(tests=written.read_text(encoding="utf-8").splitlines()[-40:], code=int(code))
    check.expect(code == 0, f"pytest ends with {int(code)}")


@torch.inference_mode()
def _waits(check: Check) -> None:
    """A verification may not wait at all, captured or not; a draft loop waits once, for its tokens."""
    runner = runner_of(check, "qwen2.5-0.5b", slots=4, length=512, width=9)
    for temperature in (0.0, 0.8):
        batch = batch_of(1, 5, 100, temperature)
        draft = partial(runner.chain, batch_of(1, 1, 100, temperature), 3, runner.vocab_size)
        for _ in range(3):
            runner.begin_turn()
            runner.verify(batch)
            runner.begin_turn()
            draft()
        steps: dict[str, tuple[Callable[[], object], int]] = {
            "captured": (partial(runner.verify, batch), 0),
            "eager": (partial(plain(runner).verify, batch), 0),
            "draft": (draft, 1),
        }
        for name, (step, most) in steps.items():
            found = _waits_of(check, step)
            check.note(waits=found, of=name, temperature=temperature)
            check.expect(len(found) <= most, f"the step {name} waits {len(found)} times: {found}")
        with _no_waits(check, "error"):
            runner.verify(batch)


def _waits_of(check: Check, step: Callable[[], object]) -> list[str]:
    """Where a step waits for the device, by file and line."""
    with warnings.catch_warnings(record=True) as caught, _no_waits(check, "warn"):
        warnings.simplefilter("always")
        step()
    return [
        f"{warning.filename}:{warning.lineno}" for warning in caught if "called a synchronizing" in str(warning.message)
    ]


@contextmanager
def _no_waits(check: Check, mode: str) -> Iterator[None]:
    """PyTorch warns of waits or raises."""
    if check.is_rehearsal:
        yield
        return
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
