"""CUDA without a GPU: tensors that know their device and hold no numbers, and a record of what passes to and from it.

PyTorch's fake tensors go through every operator's checks of shapes, types and devices, and compute nothing. What would
wait for the GPU is answered by the test, and recorded with the line of the package that asks for it.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import shlex
import subprocess
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention.bias import CausalBias
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from transformers import AutoModelForCausalLM, PreTrainedModel

import langchain_specdec
from langchain_specdec.runner.attention import register
from langchain_specdec.runner.cpu.compiler import compiler_command, find_compiler
from langchain_specdec.runner.cuda.waiting import is_composite, waits
from tests.support.source_code import ROOT

PACKAGE = Path(langchain_specdec.__file__).parent
MIXED_DEVICES = r"(FakeTensorDeviceMismatchError|RuntimeError: .* found two different devices)"
"""How PyTorch names what mixes devices; up to 2.11 by the second."""
# Tokens of the tiny models' tokenizer: the letters from a on.
FIRST_LETTER, NUM_LETTERS = 64, 16

_GUARD = Path(__file__).with_name("fake_cuda_guard.cpp")
_COMPILER = compiler_command()
_LIBRARY_SECONDS = 120
_IS_PINNED = "_is_pinned_by_test"
_aten = torch.ops.aten
# These make no kernel run: they name or rename memory.
_FREE = {
    "aten.empty", "aten.empty_like", "aten.empty_strided", "aten.new_empty", "aten.new_empty_strided", "aten.detach_",
    "aten.lift_fresh", "aten._unsafe_view",
}  # fmt: skip


class Record(TorchDispatchMode):
    """What ran on the device, operator by operator.

    Attributes:
        waits: Each time that the host waits for what the device found: the operator and the line that asks for it.
        copies: Each copy from the host to the device, likewise. The host waits for those of memory that is not pinned.
        doubles: Each float64 tensor on the device that was not made of another one, likewise.
        launches: How often each operator ran there that takes a kernel.
    """

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cuda = cuda
        self.waits: list[str] = []
        self.copies: list[str] = []
        self.doubles: list[str] = []
        self.launches: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        # Attention is one kernel or another, and counts as one.
        if func is not _aten.scaled_dot_product_attention.default and is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        name = str(func).rpartition(".")[0]
        if _copies(func, args, kwargs):
            is_pinned = any(getattr(t, _IS_PINNED, False) for t in args)
            self._note(self.copies, f"{name}, pinned" if is_pinned else name)
        if _waits(func, args, kwargs):
            self._note(self.waits, name)
        if func is _aten._local_scalar_dense.default:
            return np.ravel(self._cuda.answer(args[0])).tolist()[0]
        output = func(*args, **kwargs)
        made = [t for t in (output if isinstance(output, (tuple, list)) else (output,)) if _is_on(t, "cuda")]
        if made and not func.is_view and name not in _FREE:
            self.launches[name] += 1
        if any(t.dtype == torch.float64 for t in made) and not any(_is_double(t) for t in args):
            self._note(self.doubles, name)
        return output

    def wait(self, name: str) -> None:
        """Note that the host waits, for something that is no operator."""
        self._note(self.waits, name)

    def _note(self, events: list[str], name: str) -> None:
        event = f"{_place(traceback.walk_stack(None))}: {name}"
        if self._cuda.is_capturing and events is not self.doubles:
            msg = f"operation not permitted when stream is capturing: {event}"
            raise RuntimeError(msg)
        events.append(event)


class FakeCuda:
    """The device "cuda", as long as the context lasts.

    Attributes:
        answer: What the host reads in a tensor, as `tolist` would give it.
        is_capturing: Whether what waits or copies is refused, as it is while a graph is captured.
    """

    def __init__(self) -> None:
        self.answer: Callable[[Tensor], Any] = letters
        self.is_capturing = False
        self._record: Record | None = None

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[FakeCuda]:
        """Have the tensors that are made fake ones."""
        cuda = cls()
        with pytest.MonkeyPatch.context() as patch, fake_mode():
            # Tensors of one number would keep it, and operators on them would run, on a device that is not there.
            patch.setattr(fake_tensor, "CONSTANT_NUMEL_LIMIT", 0)
            patch.setattr(FakeTensor, "tolist", lambda tensor: cuda._tolist(tensor))
            patch.setattr(FakeTensor, "pin_memory", _pinned)
            # It is made without an operator, and stands for a mask that is never made.
            patch.setattr(CausalBias, "__new__", staticmethod(_new_bias))
            patch.setattr(torch.cuda, "synchronize", lambda device=None: cuda._wait("torch.cuda.synchronize"))
            # Experts ask for it, to choose how to multiply.
            patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
            yield cuda

    @contextmanager
    def watch(self) -> Iterator[Record]:
        """Record what runs, and fail with the line of the package where anything goes wrong, if only in the log.

        Raises:
            AssertionError: Something failed; the engine may have gone on without it.
        """
        swallowed = _Failures()
        logger = logging.getLogger(PACKAGE.name)
        level = logger.level
        logger.setLevel(logging.DEBUG)
        logger.addHandler(swallowed)
        error: BaseException | None = None
        try:
            with Record(self) as record:
                self._record = record
                yield record
        except Exception as raised:
            error = raised
        finally:
            self._record = None
            logger.removeHandler(swallowed)
            logger.setLevel(level)
        error = swallowed.first or error
        if error is not None:
            raise AssertionError(explained(error)) from error

    def _tolist(self, tensor: FakeTensor) -> Any:
        if _is_on(tensor, "cuda"):
            self._wait("tolist")
        return self.answer(tensor)

    def _wait(self, name: str) -> None:
        if self._record is not None:
            self._record.wait(name)


def make_model(config: Any, attention: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A model on the device, which would be slow to move there: its parameters are made there at once."""
    with torch.device("cuda"), pytest.MonkeyPatch.context() as patch:
        # Some draw again until all numbers are small enough.
        patch.setattr(PreTrainedModel, "initialize_weights", lambda model: None)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager").eval()
    register()
    model.set_attn_implementation(attention)
    return model


class FakeCapture:
    """A `Capture` whose graphs do nothing. What is recorded may neither wait nor copy."""

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        self._seconds = cycle((1.0, 2.0))

    def record(
        self, load: Callable[[], None], function: Callable[[], tuple[Tensor, ...]]
    ) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        load()
        self._cuda.is_capturing = True
        try:
            return function(), lambda: None
        finally:
            self._cuda.is_capturing = False

    def seconds(self, action: Callable[[], object]) -> float:
        return next(self._seconds)

    def give_back_memory(self) -> None:
        pass


class _Failures(logging.Handler):
    """Errors that are logged and lived with."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.first: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        arguments = record.args if isinstance(record.args, tuple) else ()
        told = [(record.exc_info or (None, None))[1], *(a for a in arguments if isinstance(a, BaseException))]
        self.first = self.first or next((error for error in told if error is not None), None)


def letters(tensor: Tensor) -> Any:
    """Numbers of a tensor that nobody knows: tokens of small letters, all different; no difference; yes."""
    shape = tuple(tensor.shape)
    if tensor.dtype == torch.bool:
        return np.ones(shape, dtype=np.bool_).tolist()
    if tensor.is_floating_point():
        return np.zeros(shape).tolist()
    row = FIRST_LETTER + np.arange(shape[-1] if shape else 1) % NUM_LETTERS
    return np.broadcast_to(row, shape or (1,)).reshape(shape).tolist()


def explained(error: BaseException) -> str:
    """What went wrong, and the innermost line of the package that led to it."""
    while isinstance(error.__cause__, BaseException):
        error = error.__cause__
    frames = list(traceback.walk_tb(error.__traceback__))
    return f"{_place(reversed(frames))}: {type(error).__name__}: {error}"


def _pinned(tensor: FakeTensor) -> FakeTensor:
    setattr(tensor, _IS_PINNED, True)
    return tensor


def _new_bias(kind: type[CausalBias], *_: object) -> CausalBias:
    with _disable_current_modes():
        return torch.Tensor.__new__(kind)


def obstacle() -> str | None:
    """Why there are no fake tensors on CUDA here; None where there are."""
    if torch.cuda.is_available():
        return "there is a GPU, which PyTorch would use for some of what is fake"
    if torch.version.cuda is None and find_compiler() is None:
        return f"PyTorch was built without CUDA, and there is no {shlex.join(_COMPILER)} to build what it lacks"
    return None


@functools.cache
def fake_mode() -> FakeTensorMode:
    """What makes tensors fake: one for the whole process, so that models can be shared."""
    if torch.version.cuda is None:
        torch.ops.load_library(str(_guard_library()))
    return FakeTensorMode(allow_non_fake_inputs=False)


def _guard_library() -> Path:
    """Compile the guard, once for each PyTorch."""
    torch_folder = Path(torch.__file__).parent
    identity = hashlib.sha256(_GUARD.read_bytes() + f"{torch.__version__} {_COMPILER}".encode()).hexdigest()[:16]
    library = ROOT / "build" / f"fake_cuda_guard-{identity}.so"
    if not library.exists():
        library.parent.mkdir(exist_ok=True)
        staged = library.with_suffix(f".{os.getpid()}")
        flags = ["-std=c++20", "-shared", "-fPIC", f"-I{torch_folder / 'include'}", f"-L{torch_folder / 'lib'}"]
        # The compiler is the one that the environment names.
        command = [*_COMPILER, *flags, str(_GUARD), "-lc10", "-o", str(staged)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LIBRARY_SECONDS)  # noqa: S603
        assert done.returncode == 0, done.stderr
        # Other processes may be at it too: whichever is last leaves a whole file.
        staged.replace(library)
    return library


def _is_on(value: object, device: str) -> bool:
    return isinstance(value, FakeTensor) and value.fake_device.type == device


def _is_double(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float64


def _waits(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether the host has to know what the device found before it can go on."""
    if func is _aten._to_copy.default:
        return _is_on(args[0], "cuda") and kwargs.get("device", torch.device("cuda")).type == "cpu"
    if func is _aten.copy_.default:
        return _is_on(args[1], "cuda") and _is_on(args[0], "cpu")
    return bool(args) and _is_on(args[0], "cuda") and waits(func, args, kwargs)


def _copies(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether something is taken from the host to the device."""
    if func is _aten._to_copy.default:
        return _is_on(args[0], "cpu") and kwargs.get("device", torch.device("cpu")).type == "cuda"
    if func is _aten.copy_.default:
        return _is_on(args[1], "cpu") and _is_on(args[0], "cuda")
    if func in (_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default):
        return _is_on(args[0], "cuda") and any(_is_on(t, "cpu") for t in (*args[1], *args[2:3]))
    return False


def _place(frames: Iterable[tuple[Any, int]]) -> str:
    """The first line of the package among these."""
    for frame, line in frames:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            return f"{path.relative_to(PACKAGE.parent)}:{line}"
    return "outside of the package"
