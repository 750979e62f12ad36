"""The native decoder: a whole forward of a decoder in one call of our own C++ (`kernels/decoder`), without PyTorch.

Here are the structures of its interface (`decoder.h`), its functions, and a handle that keeps alive what C++ reads.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Sequence
from ctypes import POINTER, byref, c_float, c_int64, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from langchain_specdec.errors import EngineClosedError
from langchain_specdec.runner.cpu.decoder_weights import DecoderWeights, Floats, LayerWeights, Matrix
from langchain_specdec.runner.cpu.native_cache import BLOCK, NativeCache
from langchain_specdec.runner.cpu.native_step import Step
from langchain_specdec.runner.cpu.rotary import RotaryTables

MAX_TAPS = 8
"""Most states of a token that a forward hands out."""
MAX_THREADS = 64
"""Most threads of one decoder; more would wait for memory."""

_CHUNK = 32
_OUTSIDE = 1  # See `Outcome` in decoder.h
_MATRICES = ("query", "key", "value", "output", "gate", "up", "down")
_BIASES = ("query_bias", "key_bias", "value_bias", "output_bias")
_NORMS = ("attention_norm", "query_norm", "key_norm", "post_attention_norm", "mlp_norm", "post_mlp_norm")


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p),
        ("format", c_int64),
        ("outputs", c_int64),
        ("inputs", c_int64),
        ("row_bytes", c_int64),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Matrix) for name in _MATRICES),
        *((name, c_void_p) for name in (*_BIASES, *_NORMS)),
        ("rotary", c_int64),
        ("window", c_int64),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "mlp", "vocab")),
        *((name, c_int64) for name in ("activation", "rotary_dim", "rotary_pairs", "positions")),
        ("cosines", c_void_p * 2),
        ("sines", c_void_p * 2),
        *((name, c_float) for name in ("norm_eps", "embedding_scale", "attention_scale", "attention_softcap")),
        *((name, c_float) for name in ("logit_softcap", "residual_scale", "logit_scale", "reserved")),
        ("embedding", _Matrix),
        ("head", _Matrix),
        ("final_norm", c_void_p),
        ("head_bias", c_void_p),
        ("layer", POINTER(_Layer)),
        ("state_norm", c_void_p),
        ("has_normed_residual", c_int64),
        ("fc", _Matrix),
    )


class _Cache(ctypes.Structure):
    _fields_ = (("data", c_void_p), ("slots", c_int64), ("length", c_int64))


class NativeLibrary:
    """The loaded library.

    Args:
        library: What was compiled of `kernels/decoder`.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self.slot_floats = _function(library.decoder_slot_floats, c_int64, POINTER(_Model), c_int64)
        self.open = _function(library.decoder_open, c_void_p, POINTER(_Model), POINTER(_Cache), c_int64, c_void_p)
        self.close = _function(library.decoder_close, None, c_void_p)
        self.threads = _function(library.decoder_threads, c_int64, c_void_p)
        self.run = _function(library.decoder_run, c_int64, c_void_p, POINTER(Step))
        self.condense = _function(library.decoder_condense, c_int64, c_void_p, c_void_p, c_int64, c_void_p)
        self.keep = _function(library.decoder_keep, None, c_void_p, c_int64, c_int64, c_void_p, c_int64)
        self.wipe = _function(library.decoder_wipe, None, c_void_p, c_int64, c_int64, c_int64)
        self.read = _function(library.decoder_read, None, c_void_p, *[c_int64] * 3, c_void_p, c_void_p)
        self._widen = _function(library.decoder_widen, c_int64, POINTER(_Matrix), c_int64, c_void_p)
        self._product = _function(library.decoder_product, None, POINTER(_Matrix), c_void_p, c_int64, c_void_p)
        self._noise = _function(library.decoder_noise, None, c_void_p, c_int64, c_int64, c_void_p)

    def widen(self, matrix: Matrix, row: int) -> Floats:
        """A row of a matrix as float32 numbers, `[inputs]`.

        Raises:
            ValueError: Its format is not known.
        """
        numbers = np.empty(_padded(matrix.inputs), np.float32)
        if not self._widen(byref(_matrix(matrix)), row, numbers.ctypes.data):
            msg = f"the decoder does not know {matrix.format!r}"
            raise ValueError(msg)
        return numbers[: matrix.inputs]

    def product(self, matrix: Matrix, inputs: Floats) -> Floats:
        """`inputs @ matrix.T`, `[rows, outputs]` for `[rows, inputs]`, without threads."""
        padded = np.zeros((len(inputs), _padded(matrix.inputs)), np.float32)
        padded[:, : matrix.inputs] = inputs
        outputs = np.empty((len(inputs), matrix.outputs), np.float32)
        self._product(byref(_matrix(matrix)), padded.ctypes.data, len(inputs), outputs.ctypes.data)
        return outputs

    def noise(self, seeds: NDArray[np.int32], positions: NDArray[np.int64], vocab_size: int) -> Floats:
        """`sampling.noise.gumbel_noise` with the very numbers that the decoder picks by.

        Args:
            seeds: Lower and upper half of each row's seed, `[rows, 2]`.
            positions: `[rows, width]`.
            vocab_size: Number of tokens.

        Returns:
            `[rows, width, vocab_size]`.
        """
        rows, width = positions.shape
        seeds = np.ascontiguousarray(seeds, np.int32)
        numbers = np.empty((rows, width, _padded(vocab_size)), np.float32)
        for row in range(rows):
            for node in range(width):
                place = numbers[row, node].ctypes.data
                self._noise(seeds[row].ctypes.data, int(positions[row, node]), vocab_size, place)
        return numbers[..., :vocab_size]


class NativeDecoder:
    """A decoder with its slots, ready to run. One thread at a time may call it.

    Args:
        library: See `decoder_trial.native_library`.
        weights: What it computes with; read where they are.
        num_slots: Slots of its cache.
        max_length: Positions of a slot, at least.
        num_threads: Threads that share the work, the calling one included; there may be fewer.
        beside: A decoder that it takes turns with, as a draft's and its target's do: it uses the threads of that one.

    Raises:
        MemoryError: There is no memory for it.

    Attributes:
        cache: Its slots.
        num_threads: Threads that it has.
    """

    def __init__(
        self,
        library: NativeLibrary,
        weights: DecoderWeights,
        num_slots: int,
        max_length: int,
        num_threads: int = 1,
        beside: NativeDecoder | None = None,
    ) -> None:
        self._library = library
        self._pid = os.getpid()
        self._num_threads = max(1, min(num_threads, MAX_THREADS))
        length = -(-max_length // BLOCK) * BLOCK
        position_bytes = 4 * library.slot_floats(byref(_model(weights)), length) // length
        self.cache = NativeCache(len(weights.layers), num_slots, length, position_bytes)
        self.cache.decoder = weakref.proxy(self)
        self._open(weights, None if beside is None else beside._checked)

    def _open(self, weights: DecoderWeights, beside: int | None) -> None:
        library, cache = self._library, self.cache
        self._fc = None if weights.state is None else weights.state.fc
        memory, tables = cache.memory, RotaryTables(weights.rotary, cache.max_length)
        slots = _Cache(memory.ctypes.data, cache.num_slots, cache.max_length)
        # C++ copies the structures; what their pointers lead to stays with the weights, the tables and the cache.
        handle = library.open(byref(_model(weights, tables.array)), byref(slots), self._num_threads, beside)
        if not handle:
            msg = "there is no memory for the decoder"
            raise MemoryError(msg)
        self._handle: int | None = handle
        self._tables = tables
        self.num_threads = int(library.threads(handle))
        self._finalizer = weakref.finalize(self, _close, library, handle, self._pid, (weights, memory, tables))
        # At the end of the process threads and memory go anyway, and another thread may be in a forward.
        self._finalizer.atexit = False

    def replace(self, weights: DecoderWeights) -> None:
        """Compute with other weights of the same sizes from here on; what the slots hold stays."""
        before, tables, beside = self._finalizer, self._tables, self._checked
        self._open(weights, beside)
        before()
        tables.release()

    def run(self, step: Step) -> None:
        """One forward. Other Python threads run meanwhile.

        Raises:
            EngineClosedError: It was closed, or made in another process, whose threads a fork leaves behind.
            ValueError: A token is outside the vocabulary, a row outside the slots, or a tree too wide. Nothing is done.
            MemoryError: There is no memory for it. Slots hold what they held, or some of the rows' first tokens more.
        """
        handle = self._checked
        if step.rows:
            self._tables.reach(max((c_int64 * step.rows).from_address(step.starts)) + step.width)
        outcome = self._library.run(handle, byref(step))
        _check(outcome, "a forward has a token outside the vocabulary, or does not fit into its slots")

    def condense(self, states: Floats) -> Floats:
        """One state of those of several layers; see `StateInput.fc`.

        Args:
            states: `[count, points * target_hidden]`.

        Returns:
            `[count, hidden]`.

        Raises:
            EngineClosedError: See `run`.
            ValueError: It has nothing that condenses states, or they are of another size.
            MemoryError: There is no memory for it.
        """
        fc = self._fc
        if fc is None or states.shape[1:] != (fc.inputs,):
            takes = "none" if fc is None else f"{fc.inputs} numbers at a time"
            msg = f"this decoder condenses {takes}, and not states of shape {states.shape}"
            raise ValueError(msg)
        condensed = np.empty((len(states), fc.outputs), np.float32)
        outcome = self._library.condense(self._checked, _address(states), len(states), _address(condensed))
        _check(outcome, "this decoder condenses no states")
        return condensed

    def keep(self, slot: int, start: int, offsets: Sequence[int]) -> None:
        """Move what stands at `start + offsets[i]` of a slot to `start + i`, in all layers. Offsets grow."""
        count = len(offsets)
        self._library.keep(self._checked, slot, start, (c_int64 * count)(*offsets), count)

    def wipe(self, slot: int, start: int, stop: int) -> None:
        """Have zeros in a slot between two positions, in all layers."""
        self._library.wipe(self._checked, slot, start, stop)

    def close(self) -> None:
        """End its threads, and let go of its rotary tables. Closing twice does nothing."""
        self._handle = None
        self._finalizer()
        self._tables.release()

    @property
    def _checked(self) -> int:
        handle = self._handle
        if handle is None or os.getpid() != self._pid:
            why = "was closed" if handle is None else "was made in another process (no fork)"
            msg = f"This decoder {why}. Load the model in the process that uses it."
            raise EngineClosedError(msg)
        return handle


def _check(outcome: int, why_outside: str) -> None:
    if outcome == _OUTSIDE:
        raise ValueError(why_outside)
    if outcome:
        msg = "there is no memory for a forward"
        raise MemoryError(msg)


def _function(function: Any, result: Any, *arguments: Any) -> Any:
    function.restype, function.argtypes = result, arguments
    return function


def _close(library: NativeLibrary, handle: int, pid: int, held: object) -> None:
    """End a decoder's threads; only then may what it reads go. In a forked child there are none to end."""
    if os.getpid() == pid:
        library.close(handle)
    del held


def _padded(count: int) -> int:
    """Numbers of which the decoder reads and writes whole chunks."""
    return -(-count // _CHUNK) * _CHUNK


def _address(numbers: Floats | None) -> int | None:
    if numbers is None:
        return None
    if numbers.dtype != np.float32 or not numbers.flags.c_contiguous:
        msg = f"the decoder reads float32 without gaps, got {numbers.dtype} with strides {numbers.strides}"
        raise ValueError(msg)
    return numbers.ctypes.data


def _matrix(matrix: Matrix) -> _Matrix:
    data = matrix.data
    if data.dtype != np.uint8 or data.ndim != 2 or not data.flags.c_contiguous:
        msg = f"the decoder reads rows of bytes without gaps, got {data.dtype} with strides {data.strides}"
        raise ValueError(msg)
    return _Matrix(data.ctypes.data, int(matrix.format), data.shape[0], matrix.inputs, data.shape[1])


def _layer(layer: LayerWeights) -> _Layer:
    found = _Layer(
        *(_matrix(getattr(layer, name)) for name in _MATRICES),
        *(_address(getattr(layer, name)) for name in (*_BIASES, *_NORMS)),
    )
    found.rotary = -1 if layer.rotary is None else layer.rotary
    found.window = layer.window or 0
    return found


def _model(weights: DecoderWeights, tables: Floats | None = None) -> _Model:
    """A decoder's structure; without rotary tables, for its sizes."""
    layers = (_Layer * len(weights.layers))(*map(_layer, weights.layers))
    first = weights.layers[0]
    model = _Model(
        len(layers),
        weights.hidden,
        weights.heads,
        weights.kv_heads,
        weights.head_dim,
        first.gate.outputs,
        weights.vocab,
        int(weights.activation),
    )
    model.rotary_pairs = int(weights.has_rotary_pairs)
    if tables is not None:
        model.positions, half = tables.shape[2:]
        model.rotary_dim = 2 * half
        for index, (cosines, sines) in enumerate(tables):
            model.cosines[index], model.sines[index] = _address(cosines), _address(sines)
    model.norm_eps = weights.norm_eps
    model.embedding_scale = weights.embedding_scale
    scale = weights.attention_scale
    model.attention_scale = weights.head_dim**-0.5 if scale is None else scale
    model.attention_softcap = weights.attention_softcap or 0.0
    model.logit_softcap = weights.logit_softcap or 0.0
    model.residual_scale = weights.residual_scale
    model.logit_scale = weights.logit_scale
    model.embedding, model.head = _matrix(weights.embedding), _matrix(weights.head)
    model.final_norm, model.head_bias = _address(weights.final_norm), _address(weights.head_bias)
    model.layer = layers
    if (state := weights.state) is not None:
        model.state_norm, model.has_normed_residual = _address(state.norm), int(state.is_residual_normed)
        if state.fc is not None:
            model.fc = _matrix(state.fc)
    return model
