"""Gives a Hugging Face module its slots, and what makes it fast on its device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain_specdec.models.compatibility import check_cached_forward, fitting, takes_trees
from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.models.quantized_module import widen_module
from langchain_specdec.progress import Progress
from langchain_specdec.runner.cpu.mapped_weights import MappedWeights, copy_mapped
from langchain_specdec.runner.cpu.packed_layers import can_pack, pack_linears
from langchain_specdec.runner.cuda.capture import CudaCapture
from langchain_specdec.runner.cuda.captured_runner import CapturedRunner
from langchain_specdec.runner.model_runner import ModelRunner
from langchain_specdec.runner.model_state import keep_private
from langchain_specdec.runner.stateful_layers import states_bytes
from langchain_specdec.runner.trials import CompileMode

TESTED_FAMILIES = frozenset((
    "arcee", "cohere", "cohere2", "deepseek_v2", "deepseek_v3", "ernie4_5", "ernie4_5_moe", "exaone4",
    "falcon", "gemma", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "glm", "glm4", "glm4_moe", "gpt2",
    "gpt_bigcode", "gpt_neox", "gpt_oss", "gptj", "granite", "granitemoe", "helium", "hunyuan_v1_dense",
    "hunyuan_v1_moe", "llama", "minimax_m2", "ministral", "ministral3", "mistral", "mixtral", "nemotron", "olmo",
    "olmo2", "olmo3", "olmoe", "opt", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss",
    "smollm3", "stablelm", "starcoder2",
))  # fmt: skip
"""Text models whose forward on the slots is compared with their own in the tests; others are compared when loaded."""


def make_module_runner(
    loaded: LoadedModel,
    num_slots: int,
    length_of: Callable[[int], int],
    max_width: int,
    capture: CompileMode,
    progress: Progress | None,
) -> ModelRunner | CapturedRunner:
    """Give a loaded module its slots, and on CPU a layout of its weights that makes wide steps cheap.

    Args:
        loaded: The model.
        num_slots: See `make_runner`.
        length_of: Says how many positions a slot has beside so many bytes of something else; asked after the weights
            have taken their memory.
        max_width: See `make_runner`.
        capture: How its steps are captured as CUDA graphs; `"off"`: they are not, as where they cannot be.
        progress: See `make_runner`.

    Raises:
        UnsupportedModelError: The model does not work with the engine's cache.
    """
    if loaded.is_owned:
        keep_private(loaded.model)
        if loaded.quantization is not None:
            widen_module(loaded.model, loaded.quantization, loaded.name)
        mapped = MappedWeights()
        if can_pack(loaded.model):
            pack_linears(loaded.model, mapped.drop)
        copy_mapped(loaded.model, mapped)
    with fitting(loaded.name):
        work = num_slots * states_bytes(loaded.model)
        reads_images = loaded.image_reader is not None
        runner = ModelRunner(loaded.model, num_slots, length_of(work), max_width, reads_images=reads_images)
        runner.work_bytes = work
        runner.adapters = loaded.adapters
        if not _is_tested(loaded.model):
            check_cached_forward(runner, loaded.name)
            runner.takes_trees = runner.takes_trees and takes_trees(runner)
    if capture == "off":
        return runner
    return CapturedRunner(runner, CudaCapture(loaded.model.device), capture, progress)


def _is_tested(model: Any) -> bool:
    # Code that comes with a checkpoint is another's, whatever family it calls itself.
    comes_along = type(model).__module__.startswith("transformers_modules.")
    return not comes_along and model.config.get_text_config().model_type in TESTED_FAMILIES
