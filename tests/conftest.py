"""What all tests share: what their markers allow, the devices there are, and a watch over the engine's threads."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from logging import WARNING, Handler
from typing import Any

import huggingface_hub
import pytest
import torch
from hypothesis import HealthCheck, settings
from transformers.utils import logging as transformers_logging

from langchain_specdec.drafters.base import Drafter
from langchain_specdec.engine.engine import Engine
from langchain_specdec.models import devices
from langchain_specdec.runner import attention
from langchain_specdec.runner.cpu.compiler import compiler_command
from tests.support.tiny_models import make_engine

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
THREAD_NAME = "specdec-engine"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    # A shell has what it starts in the background ignore Ctrl-C, and processes that tests start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ:
    # Processes that tests start leave the other tests their core, as `pytest_runtest_protocol` does in this one.
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


# What a test may do only if it carries one of these markers, by Python's name for the event.
GUARDED = {
    "subprocess.Popen": {"process", "compiles"},
    "socket.connect": {"process", "server"},
    "socket.bind": {"process", "server"},
}
# Building our own kernels once, in the first test that needs them, is no test's doing.
COMPILER = compiler_command()[0]
_allowed: set[str] = set(GUARDED)


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if event in GUARDED and event not in _allowed and args[0] != COMPILER:
        pytest.fail(f"{event} in a test without one of the markers {sorted(GUARDED[event])}")


sys.addaudithook(_watch)


# Folders of tests that may all differ between versions of LangChain.
OF_LANGCHAIN = {"chat", "langchain", "agents"}


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.path.parent.name in OF_LANGCHAIN:
        item.add_marker(pytest.mark.transformers)
    if item.get_closest_marker("server"):
        # Of text_generation's own code.
        item.add_marker(pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"))


def pytest_collection_finish() -> None:
    # What imports have made takes 0.3 s in each full collection, and is no garbage.
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test, and the fixtures made for it, may do what its markers say."""
    markers = {marker.name for marker in item.iter_markers()}
    # A tiny model on two threads spends most of its time on their meeting: ten times the CPU of one where the machine
    # has other work. A real one gains by two, unless other tests run beside it. An engine's thread keeps the number
    # that held when it started, so this is set before a module's fixtures are made.
    torch.set_num_threads(2 if "embedded" in markers and "PYTEST_XDIST_WORKER" not in os.environ else 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "_allowed", {event for event in GUARDED if GUARDED[event] & markers})
        if "server" in markers:
            # While this is set, as it is in CI, huggingface_hub refuses every address, this machine's too.
            patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
            # Before version 1 each session remembers.
            getattr(huggingface_hub.utils, "reset_sessions", lambda: None)()
        return (yield)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _cpu_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that names no device means the CPU, also where there is a GPU; its texts are those of float32."""
    monkeypatch.setattr(devices, "default_device", lambda: torch.device("cpu"))


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
def only_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in for captures records PyTorch's operators; our kernels for CPUs are none, and never captured."""
    monkeypatch.setattr(attention, "can_decode_attention", lambda *tensors: False)


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
