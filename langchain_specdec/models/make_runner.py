"""Gives a loaded model its slots, and what makes it fast on its device."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.models.compatibility import check_cached_forward, fitting, takes_trees
from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.models.memory import free_memory
from langchain_specdec.progress import Progress
from langchain_specdec.runner.cpu.compiled_layers import CompiledLayers, can_compile, decoder_layers
from langchain_specdec.runner.cpu.mapped_weights import MappedWeights, copy_mapped
from langchain_specdec.runner.cpu.packed_layers import can_pack, pack_linears
from langchain_specdec.runner.cuda.capture import CudaCapture, can_capture
from langchain_specdec.runner.cuda.captured_runner import CapturedRunner
from langchain_specdec.runner.lazy_memory import is_memory_lazy
from langchain_specdec.runner.model_inputs import cached_bytes
from langchain_specdec.runner.model_runner import ModelRunner
from langchain_specdec.runner.model_state import keep_private
from langchain_specdec.runner.runner import Runner
from langchain_specdec.runner.trials import CompileMode

# Families whose cached forward is compared with the uncached one in the tests; others are compared when loaded.
_TESTED_FAMILIES = {
    "gemma2", "gemma3_text", "gpt2", "gpt_neox", "llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3",
}  # fmt: skip


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
    progress: Progress | None = None,
) -> Runner:
    """Give a loaded model its slots, and on CPU a layout of its weights that makes wide steps cheap.

    Args:
        loaded: The model.
        num_slots: Completions that can run at a time.
        max_length: Positions of a slot; None is what the model was made for, up to what half of the free memory holds:
            of one slot where memory is taken by the tokens in it, as on a CPU, else of all slots and up to 8192.
        max_width: Most tokens of a row in a verification.
        most_positions: Most that `max_length` is by default, as of a draft model; None sets no limit of its own.
        compile: Whether and when its layers are compiled, on CPU, or its steps captured, on CUDA; see `CompiledLayers`
            and `GraphStore`.
        progress: Told `(description, done, total)` when graphs are captured.

    Raises:
        InvalidParameterError: `max_length` is more than the model was made for, or it cannot be compiled or captured.
        UnsupportedModelError: The model does not work with the engine's cache.
    """
    with fitting(loaded.name):
        _check_max_length(max_length, loaded)
    is_cuda = loaded.model.device.type == "cuda"
    obstacle = can_capture(loaded.model) if is_cuda else can_compile(loaded.model)
    if obstacle is None and not is_cuda and not loaded.is_owned:
        obstacle = "it was loaded elsewhere, and compiling changes its layers (give its id or folder instead)"
    if obstacle is not None and compile not in ("auto", "off"):
        done = "captured" if is_cuda else "compiled"
        msg = f"{loaded.name} cannot be {done}: {obstacle}. Leave compile at 'auto' or set it to 'off'."
        raise InvalidParameterError(msg)
    if loaded.is_owned:
        keep_private(loaded.model)
        mapped = MappedWeights()
        if can_pack(loaded.model):
            pack_linears(loaded.model, mapped.drop)
        copy_mapped(loaded.model, mapped)
    with fitting(loaded.name):
        if max_length is None:
            # After the weights have taken their memory.
            max_length = _default_max_length(loaded, num_slots, most_positions)
        runner = ModelRunner(loaded.model, num_slots, max_length, max_width)
        if loaded.model.config.get_text_config().model_type not in _TESTED_FAMILIES:
            check_cached_forward(runner, loaded.name)
            runner.takes_trees = takes_trees(runner)
    if compile == "off" or obstacle is not None:
        return runner
    if is_cuda:
        return CapturedRunner(runner, CudaCapture(loaded.model.device), compile, progress)
    runner.compiled = CompiledLayers(loaded.model, compile)
    return runner


def _check_max_length(max_length: int | None, loaded: LoadedModel) -> None:
    limit = loaded.max_positions
    if max_length is not None and limit is not None and max_length > limit:
        msg = (
            f"max_length is {max_length}, but {loaded.name} was made for {limit} positions at most. "
            f"Set max_length={limit} or less."
        )
        raise InvalidParameterError(msg)


def _default_max_length(loaded: LoadedModel, num_slots: int, most_positions: int | None) -> int:
    config = loaded.model.config.get_text_config()
    # A model may be spread over several GPUs; the one with the least room for its layers decides.
    counts = Counter(map(_device_of, decoder_layers(loaded.model))) or {loaded.model.device: config.num_hidden_layers}
    is_lazy = all(map(_is_lazy, counts))
    # Where memory is taken by the tokens in the slots, the scheduler sees to it that all of them have room.
    num_full = 1 if is_lazy else num_slots
    per_layer = cached_bytes(config, loaded.model.dtype) * num_full
    free = {device: free_memory(device) for device in counts}
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


def token_budget(runners: Sequence[Runner]) -> int | None:
    """Tokens that the slots may hold in all: what half of the free memory has room for, and one full slot at least.

    Args:
        runners: The target's, and that of its draft model, which holds the same tokens.

    Returns:
        None where nothing is saved by holding fewer: the slots are allocated at once.
    """
    device = runners[0].device
    if not all(_is_lazy(runner.device) for runner in runners):
        return None
    per_token = sum(runner.bytes_per_token for runner in runners)
    return max(int(free_memory(device) * _CACHE_SHARE) // per_token, runners[0].max_length)


def _is_lazy(device: torch.device) -> bool:
    """Whether slots on a device take memory by the tokens in them."""
    return device.type == "cpu" and is_memory_lazy()


def _device_of(layer: nn.Module) -> torch.device:
    """Where a layer runs, and its keys and values stand. Its weights may be elsewhere until accelerate fetches them."""
    placed = getattr(getattr(layer, "_hf_hook", None), "execution_device", None)
    if placed is None:
        return next(layer.parameters()).device
    return torch.device("cuda", placed) if isinstance(placed, int) else torch.device(placed)
