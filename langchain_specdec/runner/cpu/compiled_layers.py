"""Decoder layers compiled by torch, for the forwards of one model.

Outside its matrix products, a step of a Hugging Face model is some forty small operators per layer. `torch.compile`
fuses them. The whole model would take minutes to compile and milliseconds per call to check; here a few layers make
one graph, which all groups of equal layers share, and shapes are dynamic. Two graphs serve one row (one token, or
several), two more serve many.

A graph is made in a thread of its own while the engine goes on without it, is compared with the uncompiled forward,
and is used if it is right and faster. On disk torch keeps what it compiled, so later runs take seconds.
"""

from __future__ import annotations

import logging
import shlex
import threading
import time
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from langchain_specdec.runner.cpu.compile_costs import CompileCosts, GraphKey
from langchain_specdec.runner.cpu.compile_thread import CompileThread
from langchain_specdec.runner.cpu.compiler import compiler_command, compiler_program, find_compiler
from langchain_specdec.runner.cpu.worker_threads import release_workers
from langchain_specdec.runner.kv_cache import ForwardShape, SlotCache
from langchain_specdec.runner.model_config import decoder_layers
from langchain_specdec.runner.trials import CompileMode, MadeGraph, Shortcut, largest_error

Trial = Callable[[bool, int, int], tuple[Tensor, float]]
"""Runs a short step on a scratch cache: (compiled, rows, width) -> its logits, and the seconds that it took."""

_logger = logging.getLogger(__name__)
_MAX_LAYERS_PER_GRAPH = 8
_TRIALS = 5


@dataclass
class _Call:
    """One forward on its way through the layers: what the layers of the current group were called with."""

    cache: SlotCache
    shape: ForwardShape
    hidden: Tensor | None = None
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)


class _LayerView:
    """The cache as one compiled layer sees it: plain tensors, and `update` as transformers calls it."""

    def __init__(self, keys: Tensor, values: Tensor, rows: Tensor, positions: Tensor) -> None:
        self._keys, self._values, self._rows, self._positions = keys, values, rows, positions

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new tokens and return all that the forward sees; see `SlotCache`."""
        self._keys[self._rows, :, self._positions] = key_states.transpose(1, 2)
        self._values[self._rows, :, self._positions] = value_states.transpose(1, 2)
        return self._keys, self._values


def _run_group(
    layers: Sequence[nn.Module],
    hidden: Tensor,
    arguments: Sequence[tuple[tuple[Any, ...], dict[str, Any]]],
    cache_names: Sequence[int | str],
    buffers: Sequence[tuple[Tensor, Tensor]],
    rows: Tensor,
    positions: Tensor,
) -> Tensor:
    """The layers one after the other; this is what torch compiles."""
    for layer, (args, kwargs), name, (keys, values) in zip(layers, arguments, cache_names, buffers, strict=True):
        view = _LayerView(keys, values, rows, positions)
        if isinstance(name, int):
            output = type(layer).forward(layer, hidden, *args[:name], view, *args[name + 1 :], **kwargs)
        else:
            output = type(layer).forward(layer, hidden, *args, **{**kwargs, name: view})
        hidden = output[0] if isinstance(output, tuple) else output
    return hidden


class CompiledLayers(Shortcut):
    """Runs a model's decoder layers, compiled where that is ready and pays, and as they are elsewhere.

    Args:
        model: A model that nobody else uses: its layers' `forward` is replaced, with the same results. Several runners
            of it may share this object and its graphs, whatever the sizes of their caches.
        mode: `"auto"` compiles once the time that it would have saved so far equals what it costs. The others compile
            from the first forward on, `"max-autotune"` trying more kernels.
    """

    def __init__(self, model: Any, mode: CompileMode) -> None:
        super().__init__("Compiled layers")
        self._mode = mode
        self._layers = decoder_layers(model)
        self._group_size = _group_size(len(self._layers))
        # By how a group of layers is built, and by its first layer: to look a layer through takes as long as to run it.
        self._functions: dict[object, Callable[..., Tensor]] = {}
        self._functions_of: dict[int, Callable[..., Tensor]] = {}
        self._local = threading.local()
        self._returns_tuple = False
        self.graphs: dict[GraphKey, MadeGraph] = {}
        """What was compiled so far."""
        self._ready: set[GraphKey] = set()
        self._tried: set[GraphKey] = set()
        self._spent: dict[GraphKey, float] = {}
        self._costs = CompileCosts(model)
        self._thread: threading.Thread | None = None
        for index, layer in enumerate(self._layers):
            layer.forward = self._hook(index, layer)

    @property
    def ready(self) -> frozenset[GraphKey]:
        """The graphs that are in use."""
        return frozenset() if self.is_stopped else frozenset(self._ready)

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the graph that is being made, if one is."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout)

    def prepare(self, rows: int, trial: Trial) -> None:
        """Make the graphs of all forwards of up to `rows` rows now, whether or not they would pay, and wait for them.

        Args:
            rows: Most rows of a forward.
            trial: Runs a step of such a forward.
        """
        for key in product((True, False)[:rows], (True, False)):
            self.wait()
            if not self.is_stopped and key not in self._tried:
                self._tried.add(key)
                self._make(key, trial)

    def is_ready(self, shape: ForwardShape) -> bool:
        """Whether a forward of this shape would run compiled."""
        return not self.is_stopped and shape.first_slot is not None and _key(shape) in self._ready

    @contextmanager
    def applied(self, cache: SlotCache, shape: ForwardShape) -> Iterator[None]:
        """Run the layers compiled within, in this thread."""
        self._local.call = _Call(cache, shape)
        try:
            yield
        finally:
            self._local.call = None

    def observe(self, shape: ForwardShape, seconds: float, trial: Trial) -> None:
        """Note what an uncompiled forward took; start compiling for its shape where that would pay.

        Args:
            shape: What was run.
            seconds: What it took.
            trial: Runs a step of such a shape.
        """
        key = _key(shape)
        if self.is_stopped or key in self._tried or (self._thread is not None and self._thread.is_alive()):
            return
        self._spent[key] = self._spent.get(key, 0.0) + seconds
        seconds_needed, saving = self._costs.get(key)
        # As with renting skis: who buys when the rent paid equals the price never pays more than twice the best.
        if self._mode == "auto" and self._spent[key] * saving < seconds_needed:
            return
        self._tried.add(key)
        self._thread = CompileThread(partial(self._make, key, trial), self.stop)
        self._thread.start()

    def _make(self, key: GraphKey, trial: Trial) -> None:
        """Compile for one kind of shape, check and time it."""
        rows, width = 1 if key[0] else 3, 1 if key[1] else 5
        try:
            expected, _ = trial(False, rows, width)
            started = time.perf_counter()
            computed, _ = trial(True, rows, width)
            seconds = time.perf_counter() - started

            def times() -> tuple[float, float]:
                pairs = [(trial(True, rows, width)[1], trial(False, rows, width)[1]) for _ in range(_TRIALS)]
                return min(fused for fused, _ in pairs), min(plain for _, plain in pairs)

            saving = self.measure_saving(key, largest_error(computed, expected), expected.dtype, times)
            if saving is not None:
                self._costs.put(key, seconds, saving)
                self.graphs[key] = MadeGraph(seconds, saving)
                if saving > 0:
                    self._ready.add(key)
        except Exception as error:
            self.fail(error)
        finally:
            release_workers()

    def _hook(self, index: int, layer: nn.Module) -> Callable[..., Any]:
        # A layer whose forward held it, or held us and by us the model, would stay in memory until Python looks for
        # cycles, which it seldom does.
        ours, itself = weakref.ref(self), weakref.ref(layer)

        def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            compiled, layer = ours(), itself()
            call: _Call | None = getattr(compiled._local, "call", None) if compiled else None
            if compiled is None or call is None:
                output = type(layer).forward(layer, hidden, *args, **kwargs)  # type: ignore[union-attr]
                if compiled is not None:
                    compiled._returns_tuple = isinstance(output, tuple)
                return output
            hidden = compiled._advance(call, index, hidden, args, kwargs)
            return (hidden,) if compiled._returns_tuple else hidden

        return forward

    def _advance(
        self, call: _Call, index: int, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """Take a layer's call: run the group with its last layer, hand the input on unchanged until then."""
        if call.hidden is None:
            call.hidden = hidden
        elif call.hidden is not hidden:
            msg = "the model changes its hidden states between layers"
            raise RuntimeError(msg)
        call.arguments.append((args, kwargs))
        is_last = index + 1 == len(self._layers) or (index + 1) % self._group_size == 0
        if not is_last:
            return hidden
        first = index + 1 - len(call.arguments)
        layers = tuple(self._layers[first : index + 1])
        output = self._run(call, first, layers, hidden)
        call.hidden, call.arguments = None, []
        return output

    def _run(self, call: _Call, first: int, layers: tuple[nn.Module, ...], hidden: Tensor) -> Tensor:
        shape = call.shape
        buffers = [call.cache.view(first + i, shape) for i in range(len(layers))]
        names: list[int | str] = []
        arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        for args, kwargs in call.arguments:
            named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
            names.append(next(name for name, value in named if value is call.cache))
            positional = tuple(None if value is call.cache else value for value in args)
            arguments.append((positional, {k: v for k, v in kwargs.items() if v is not call.cache}))
        rows = torch.arange(len(shape.slots), device=hidden.device)[:, None]
        function = self._functions_of.get(first)
        if function is None:
            function = self._functions_of[first] = self._function(layers)
        if _key(shape) not in self._ready:
            _mark_dynamic([hidden, rows, shape.positions, *_tensors(arguments)], buffers)
        return function(layers, hidden, tuple(arguments), tuple(names), tuple(buffers), rows, shape.positions)

    def _function(self, layers: tuple[nn.Module, ...]) -> Callable[..., Tensor]:
        """The compiled function of all groups that are built like this one.

        Only the shapes of tensors are checked at each call; that a layer is another one than at first is not, since
        each way of being built has a function of its own.
        """
        signature = tuple(_signature(layer) for layer in layers)
        if signature not in self._functions:
            code = _run_group.__code__.replace(co_name=f"_run_group_{len(self._functions)}")
            function = types.FunctionType(code, _run_group.__globals__)
            options: dict[str, Any] = {"guard_filter_fn": _keep_tensor_guards, "compile_threads": 1}
            if len(compiler_command()) > 1:
                # PyTorch takes all of CXX for the name of one program.
                options["cpp.cxx"] = (None, compiler_program())
            if self._mode == "max-autotune":
                options["max_autotune"] = True
            self._functions[signature] = torch.compile(function, fullgraph=True, options=options)
        return self._functions[signature]


def can_compile(model: nn.Module) -> str | None:
    """Why the model's layers cannot be compiled here; None where they can."""
    if not hasattr(torch.compiler, "keep_tensor_guards_unsafe"):
        return f"PyTorch {torch.__version__} is too old (2.9 or later is needed)"
    if any(p.device.type != "cpu" for p in model.parameters()):
        return "layers are compiled on CPU only, and graphs captured on CUDA only"
    if find_compiler() is None:
        return f"there is no C++ compiler {shlex.join(compiler_command())} (install g++, or have CXX name one)"
    if not decoder_layers(model):
        return f"the layers of a {type(model).__name__} are not where they are expected"
    return None


def _keep_tensor_guards(entries: Any) -> Any:
    return torch.compiler.keep_tensor_guards_unsafe(entries)


def _key(shape: ForwardShape) -> GraphKey:
    rows, width = shape.positions.shape
    return rows == 1, width == 1


def _group_size(count: int) -> int:
    """Layers per graph: the largest divisor up to the limit, so that groups are equal; else the limit itself."""
    divisors = [d for d in range(3, _MAX_LAYERS_PER_GRAPH + 1) if count % d == 0]
    return max(divisors, default=min(count, _MAX_LAYERS_PER_GRAPH))


def _signature(layer: nn.Module) -> object:
    """How a layer is built: classes, settings and sizes, and not which layer it is."""
    parts: list[object] = []
    for name, module in layer.named_modules():
        settings = sorted(
            (key, value)
            for key, value in vars(module).items()
            if isinstance(value, (bool, int, float, str)) and key != "layer_idx"
        )
        sizes = tuple((n, tuple(p.shape)) for n, p in module.named_parameters(recurse=False))
        parts.append((name, type(module), tuple(settings), sizes))
    return tuple(parts)


def _tensors(arguments: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]) -> Iterator[Tensor]:
    for args, kwargs in arguments:
        for value in (*args, *kwargs.values()):
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, Tensor):
                    yield item


def _mark_dynamic(tensors: Sequence[Tensor], buffers: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Tell the compiler which sizes change: rows, tokens, and positions seen."""
    mark = torch._dynamo.maybe_mark_dynamic
    for tensor in tensors:
        # Masks are [rows, 1, width, length], all else begins with [rows, width].
        for dim in (0, 2, 3) if tensor.ndim == 4 else range(min(tensor.ndim, 2)):
            mark(tensor, dim)
    for pair in buffers:
        for buffer in pair:
            mark(buffer, 0)
            mark(buffer, 2)
