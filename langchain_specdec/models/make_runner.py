"""Gives a loaded model its slots, and what makes it fast on its device."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.models.compatibility import fitting
from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.models.memory import default_threads, free_memory
from langchain_specdec.progress import Progress
from langchain_specdec.runner.cpu.decoder_trial import native_library
from langchain_specdec.runner.cpu.decoder_weights import DecoderWeights
from langchain_specdec.runner.cpu.native_runner import NativeRunner, Reread, decoder_of
from langchain_specdec.runner.cpu.work_memory import work_bytes
from langchain_specdec.runner.head_runner import HeadRunner
from langchain_specdec.runner.lazy_memory import is_memory_lazy
from langchain_specdec.runner.model_config import ATTENTION_NAME, cached_bytes, decoder_layers, num_cached_layers
from langchain_specdec.runner.model_state import keep_private
from langchain_specdec.runner.runner import Runner
from langchain_specdec.runner.trials import CompileMode

_logger = logging.getLogger(__name__)
# Where a model does not say for how many positions it was made, and where all slots are allocated at once.
_DEFAULT_MAX_LENGTH = 8192
# Share of the free memory that keys and values may take.
_CACHE_SHARE = 0.5


def make_runner(
    loaded: LoadedModel,
    *,
    num_slots: int,
    max_length: int | None,
    max_width: int,
    most_positions: int | None = None,
    compile: CompileMode = "off",  # noqa: A002 - the name that users give
    num_threads: int | None = None,
    beside: Runner | None = None,
    progress: Progress | None = None,
) -> Runner:
    """Give a loaded model its slots, and what makes it fast on its device.

    On a CPU that is the native decoder for models of the families that it runs, and for others a layout of the weights
    that makes wide steps cheap.

    Args:
        loaded: The model.
        num_slots: Completions that can run at a time.
        max_length: Positions of a slot; None is what the model was made for, up to what half of the free memory holds:
            of one slot where memory is taken by the tokens in it, as on a CPU, else of all slots and up to 8192.
        max_width: Most tokens of a row in a verification.
        most_positions: Most that `max_length` is by default, as of a draft model; None sets no limit of its own.
        compile: Whether and when its steps are captured as CUDA graphs; see `GraphStore`.
        num_threads: Threads of a native decoder; None is `default_threads`.
        beside: Runs the target of a draft model, in turns with it: native decoders share their threads.
        progress: Told `(description, done, total)` when graphs are captured.

    Raises:
        InvalidParameterError: `max_length` is more than the model was made for, or its steps have to be captured and
            cannot be.
        UnsupportedModelError: The model does not work with the engine's cache, or nothing of it can be quantised.
    """
    with fitting(loaded.name):
        _check_max_length(max_length, loaded)
    obstacle = why_uncaptured(loaded)
    if obstacle is not None and compile not in ("auto", "off"):
        msg = (
            f"compile={compile!r} asks for CUDA graphs, and {loaded.name} cannot be captured: {obstacle}. "
            "Leave compile at 'auto' or set it to 'off'."
        )
        raise InvalidParameterError(msg)
    if loaded.quantization is not None:
        from langchain_specdec.models.quantized_module import quantize_module

        quantize_module(loaded.model, loaded.quantization, loaded.name)

    def length_of(work: int = 0) -> int:
        return max_length or _default_max_length(loaded, num_slots, most_positions, work)

    native = _native_weights(loaded)
    if native is not None:
        weights, reread = native
        library = native_library()
        assert library is not None, "asked for before"  # noqa: S101
        with fitting(loaded.name):
            threads = num_threads or default_threads()
            length = length_of(work_bytes(weights, threads))
            return NativeRunner(
                loaded.model, weights, library, num_slots, length, max_width, threads, decoder_of(beside), reread
            )
    from langchain_specdec.models.module_runner import make_module_runner

    capture = "off" if obstacle is not None else compile
    return make_module_runner(loaded, num_slots, length_of, max_width, capture, progress)


def why_uncaptured(loaded: LoadedModel) -> str | None:
    """Why a model's steps cannot be captured as CUDA graphs; None where they can."""
    kind = loaded.model.device.type
    if kind != "cuda":
        return f"it runs on a {kind.upper()} device, and steps are captured on CUDA only"
    from langchain_specdec.runner.cuda.capture import can_capture

    return can_capture(loaded.model) or ("each call chooses its adapter" if loaded.adapters is not None else None)


def _native_weights(loaded: LoadedModel) -> tuple[DecoderWeights, Reread | None] | None:
    """What a native decoder runs of a model, and what reads it again once it has changed; None where none runs it."""
    model: Any = loaded.model
    if not isinstance(model, nn.Module):
        return model.weights, None
    from langchain_specdec.models.decoder_families import decoder_weights, was_given

    module: Any = model
    # One that was read before is not its backend's alone any more, and is made of what a native decoder reads.
    is_ours = loaded.is_owned or was_given(model)
    if not is_ours or module.device.type != "cpu" or module.dtype != torch.float32:
        return None
    # Who asks for another attention gets it.
    if module.config.get_text_config()._attn_implementation not in (None, ATTENTION_NAME) or native_library() is None:
        return None
    if loaded.is_owned:
        keep_private(model)
    weights = decoder_weights(model)
    return None if weights is None else (weights, decoder_weights)


def _check_max_length(max_length: int | None, loaded: LoadedModel) -> None:
    limit = loaded.max_positions
    if max_length is not None and limit is not None and max_length > limit:
        msg = (
            f"max_length is {max_length}, but {loaded.name} was made for {limit} positions at most. "
            f"Set max_length={limit} or less."
        )
        raise InvalidParameterError(msg)


def _default_max_length(loaded: LoadedModel, num_slots: int, most_positions: int | None, work: int) -> int:
    """See `make_runner`; `work` are bytes that forwards will take."""
    config = loaded.model.config.get_text_config()
    counts: Mapping[torch.device, int] = {loaded.model.device: config.num_hidden_layers}
    if isinstance(loaded.model, nn.Module):
        # A model may be spread over several GPUs; the one with the least room for its layers decides.
        counts = Counter(map(_device_of, decoder_layers(loaded.model))) or counts
    is_lazy = all(map(_is_lazy, counts))
    # Where memory is taken by the tokens in the slots, the scheduler sees to it that all of them have room.
    per_layer = cached_bytes(config, loaded.model.dtype) * (1 if is_lazy else num_slots)
    # Taken to be spread evenly over all layers.
    per_layer = max(per_layer * num_cached_layers(config) // config.num_hidden_layers, 1)
    free = {device: _free_beside(work, device) for device in counts}
    affordable = min(int(free[device] * _CACHE_SHARE) // (per_layer * count) for device, count in counts.items())
    wanted: int = loaded.max_positions or _DEFAULT_MAX_LENGTH
    wanted = min(wanted, most_positions or wanted)
    if not is_lazy:
        wanted = min(wanted, _DEFAULT_MAX_LENGTH)
    length: int = max(min(wanted, affordable), 1)
    if length < wanted:
        _logger.warning(
            "max_length is %d positions (prompt and new tokens together), not %d: %s of so many %s into half "
            "of the %.2f GB that are free. Give max_length, or %sfree memory.",
            length, wanted, *(("one slot", "fits") if is_lazy else (f"{num_slots} slots", "fit")),
            min(free.values()) / 1e9, "" if is_lazy else "fewer num_slots, or ",
        )  # fmt: skip
    return length


def token_budget(target: Runner, *others: Runner | HeadRunner) -> int | None:
    """Tokens that the slots may hold in all: what half of the free memory has room for, and one full slot at least.

    What forwards will work in does not count as free, up to half of the memory.

    Args:
        target: Runs the target.
        others: What holds the same tokens beside it: the runner of its draft model, or of a trained head.

    Returns:
        None where nothing is saved by holding fewer: the slots are allocated at once.
    """
    every = [target, *others]
    if not all(_is_lazy(runner.device) for runner in every):
        return None
    per_token = sum(runner.bytes_per_token for runner in every)
    free = _free_beside(sum(runner.work_bytes for runner in every), target.device)
    return max(int(free * _CACHE_SHARE) // per_token, target.max_length)


def _free_beside(work: int, device: torch.device) -> int:
    """Free memory without what forwards will work in: half of it at least, since short prompts take less."""
    free = free_memory(device)
    return max(free - work, free // 2)


def _is_lazy(device: torch.device) -> bool:
    """Whether slots on a device take memory by the tokens in them."""
    return device.type == "cpu" and is_memory_lazy()


def _device_of(layer: nn.Module) -> torch.device:
    """Where a layer runs, and its keys and values stand. Its weights may be elsewhere until accelerate fetches them."""
    placed = getattr(getattr(layer, "_hf_hook", None), "execution_device", None)
    if placed is None:
        return next(layer.parameters()).device
    return torch.device("cuda", placed) if isinstance(placed, int) else torch.device(placed)
