"""What all tests share: the devices there are, repeatable randomness, and a watch over the engine's threads."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from logging import WARNING, Handler
from typing import Any

import huggingface_hub
import pytest
import torch
from hypothesis import HealthCheck, settings
from transformers.utils import logging as transformers_logging

from langchain_specdec.drafters.base import Drafter
from langchain_specdec.engine.engine import Engine
from langchain_specdec.runner.cpu.compiled_layers import CompiledLayers
from tests.support.tiny_models import make_engine

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
THREAD_NAME = "specdec-engine"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    # A shell has what it starts in the background ignore Ctrl-C, and processes that tests start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ:
    # Processes that tests start leave the other tests their core, as `_few_threads` does in this one.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples on every run, so that a failure belongs to the change that caused it. New ones are searched for
# with `pytest --hypothesis-profile=search`.
_common: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("repeatable", derandomize=True, **_common)
settings.register_profile("search", **_common)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Every device there is, one after the other."""
    return str(request.param)


@pytest.fixture(autouse=True, scope="module")
def _reachable(request: pytest.FixtureRequest) -> Iterator[None]:
    """huggingface_hub refuses every address, this machine's too, while HF_HUB_OFFLINE is set, as it is in CI."""
    if not request.path.stem.startswith("test_tgi"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        # Before version 1 each session remembers.
        getattr(huggingface_hub.utils, "reset_sessions", lambda: None)()
        yield


@pytest.fixture(autouse=True, scope="module")
def _uncompiled(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compiling in the background would take both cores for a minute from every test of a real model beside it."""
    if request.path.stem in ("test_compiled_layers", "test_bench"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompiledLayers, "observe", lambda *_: None)
        yield


@pytest.fixture(autouse=True)
def _few_threads(request: pytest.FixtureRequest) -> None:
    # A tiny model on two threads spends most of its time on their meeting: ten times the CPU of one where the machine
    # has other work.
    # A real one gains by two, unless other tests run beside it.
    is_alone = "PYTEST_XDIST_WORKER" not in os.environ
    torch.set_num_threads(2 if is_alone and request.node.get_closest_marker("embedded") else 1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_engine_thread_left() -> Iterator[None]:
    """Fail a test that leaves an engine's thread behind: whoever makes an engine closes it."""
    before = _engine_threads()
    yield
    deadline = time.monotonic() + 5.0
    while left := _engine_threads() - before:
        # An engine that the test dropped on purpose ends as soon as it is collected.
        gc.collect()
        assert time.monotonic() < deadline, f"the test left {len(left)} engine thread(s) running"
        time.sleep(0.01)


def _engine_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == THREAD_NAME}


@pytest.fixture
def engines() -> Iterator[Callable[..., Engine]]:
    """Makes engines on tiny models, `engines(model, drafter, ...)`, and closes them when the test ends."""
    made: list[Engine] = []

    def make(model: Any, drafter: Drafter | None = None, **kwargs: Any) -> Engine:
        made.append(make_engine(model, drafter or Drafter(), **kwargs))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def records() -> Iterator[list[Any]]:
    """What transformers warns of while the engine loads and runs a model: it must be nothing."""
    records: list[Any] = []
    handler = Handler(WARNING)
    handler.emit = records.append  # type: ignore[method-assign, assignment]
    transformers_logging.get_logger("transformers").addHandler(handler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield records
    transformers_logging.get_logger("transformers").removeHandler(handler)
    assert [record.getMessage() for record in records] == []
