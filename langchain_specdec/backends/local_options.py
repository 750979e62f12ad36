"""The options of `LocalBackend`, each declared once; `specdec` and the documentation read them too."""

# Without `annotations` of __future__, which would make strings of the declarations. Types of PyTorch and transformers
# are strings, as neither is imported here.

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from typing_extensions import TypedDict

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.options import Option, options_of
from langchain_specdec.parameter_names import refuse_unknown
from langchain_specdec.progress import Progress

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from langchain_specdec.engine.step_cost import StepCost

DrafterName = Literal["auto", "prompt_lookup", "draft_model", "mtp", "none"]
DRAFTERS: tuple[str, ...] = get_args(DrafterName)
"""Names of the drafters that can be asked for."""
Quantization = Literal["int8", "int4"]
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)
"""What weights can be quantised to."""
_COMPILE_MODES = ("auto", "off", "reduce-overhead", "max-autotune")


# fmt: off
class DraftOptions(TypedDict, total=False):
    """What is drafted."""

    drafter: Annotated[DrafterName, Option(
        "auto", "Where drafts come from. `auto`: trees of all that may follow by the text, by earlier answers and by "
        "the target's recent candidates, and by the draft model or trained head, as far as it pays; `prompt_lookup`: "
        "the request's own text only; `draft_model`: that, or the head, alone; `mtp`: as `auto`, with the MTP layers "
        "of the model's own checkpoint (Qwen3.5); `none`.", str, words=DRAFTERS)]
    draft_length: Annotated[int | Literal["auto"], Option(
        "auto", "`auto` drafts as many tokens as pay, by measurement, down to none; a number drafts chains of that "
        "many wherever there is something to propose, also where that is slower.", int, 0, 64, ("auto",))]
    max_draft_tokens: Annotated[int, Option(10, "Most tokens to draft one after the other.", int, 1, 64)]
    max_tree_nodes: Annotated[int, Option(
        32, "Most tokens of a draft that branches; 0: drafts never branch.", int, 0, 64)]
    shared_lookup: Annotated[bool, Option(
        True, "Whether requests draft from each other's answers. It never changes a text, but how fast it comes may "
        "tell that another request was answered alike.", bool)]
    prompt_lookup_max_ngram: Annotated[int, Option(5, "Longest n-gram to look up.", int, 1, 16)]


class EngineOptions(TypedDict, total=False):
    """How the engine runs."""

    num_slots: Annotated[int, Option(8, "Completions that run at a time; more wait for a slot.", int, 1, 1024)]
    max_length: Annotated[int | None, Option(
        None, "Positions of a slot, prompt and new tokens together.", int, 2, 1 << 24,
        unset="what the model was made for, as far as half of the free memory holds it; on a GPU up to 8192")]
    prefill_chunk: Annotated[int, Option(
        512, "Most prompt tokens of one forward. On a CPU it takes fewer while others decode: what takes as long as a "
        "few of their steps.", int, 1, 1 << 20)]
    num_threads: Annotated[int | None, Option(
        None, "On a CPU, threads that share a forward of the native decoder.", int, 1, 64,
        unset="the physical cores that this process may use")]
    compile: Annotated[Literal["auto", "off", "reduce-overhead", "max-autotune"], Option(
        "auto", "On CUDA, whether steps are captured as graphs, one at a time between steps: `auto` once a shape was "
        "seen a few times, `reduce-overhead` at once, `max-autotune` at once and without rounding shapes. `off`: "
        "never. On a CPU there is nothing to capture, so `reduce-overhead` and `max-autotune` are refused.",
        str, words=_COMPILE_MODES)]
    attn_implementation: Annotated[str | None, Option(
        None, "Attention of transformers: `sdpa` or `eager`.", str, unset="the engine's own")]
    grammar_timeout: Annotated[int | None, Option(
        None, "Seconds of processor time that the grammar of a request may take to prepare, in 512 MB, for programs "
        "whose grammars come from strangers: it is tried in a process of its own first. Not on Windows.",
        int, 1, 86_400, unset="without limit")]
    step_cost: Annotated["StepCost | None", Option(
        None, "What steps cost; for tests and reproducible step counts.", unset="what is measured")]


class LoadingOptions(TypedDict, total=False):
    """What is loaded, and where to."""

    draft_model: Annotated["str | os.PathLike[str] | PreTrainedModel | None", Option(
        None, "A smaller model, given as the model is, best with the same tokenizer; or a trained head: EAGLE-3's, or "
        "Gemma 4's assistant.", str)]
    draft_tokenizer: Annotated[Any, Option(None, "The draft model's loaded tokenizer.", unset="loads its own")]
    dtype: Annotated["str | torch.dtype", Option(
        "auto", "Numeric type, such as `bfloat16`; `auto` is the checkpoint's on a GPU and float32 on a CPU.", str)]
    device: Annotated["str | torch.device | None", Option(
        None, "Where the model runs: `cpu`, `cuda`, `cuda:1`, `mps`.", str, unset="CUDA, else the CPU")]
    device_map: Annotated[Any, Option(
        None, "Passed to transformers, for models spread over devices; needs accelerate.", str)]
    revision: Annotated[str | None, Option(None, "Branch, tag or commit of the model id.", str)]
    draft_revision: Annotated[str | None, Option(None, "The same for the draft model.", str)]
    quantization: Annotated[Quantization | None, Option(
        None, "Bits of the target's weights, which are quantised when it is loaded: the text is that of the quantised "
        "model.", str, words=QUANTIZATIONS, unset="the checkpoint's own")]
    draft_quantization: Annotated[Quantization | None, Option(
        None, "The same for the draft model, which changes no text.", str, words=QUANTIZATIONS,
        unset="the checkpoint's own")]
    quantization_config: Annotated[Any, Option(None, "Passed to transformers, for the target.")]
    adapter: Annotated["str | os.PathLike[str] | None", Option(
        None, "Folder or model id of a LoRA or another adapter for the target, merged into its weights when it is "
        "loaded; needs PEFT, the extra `adapters`.", str)]
    adapters: Annotated["Mapping[str, str | os.PathLike[str]] | None", Option(
        None, "Folders or model ids of LoRAs, by name, of which each call chooses one by `adapter`, also in one "
        "batch; needs PEFT.")]
    trust_remote_code: Annotated[bool, Option(False, "Whether code that comes with a model may run.", bool)]
    # No flag: command lines are seen by every user of a machine.
    token: Annotated[str | bool | None, Option(
        None, "Access token of the Hugging Face Hub.", unset="the one that is logged in")]
    progress: Annotated[Progress | None, Option(
        None, "Told `(description, done, total)` while kernels are compiled for this CPU (once), while a large GGUF "
        "file is read, and when graphs are captured, then from the engine's thread.")]


class LocalOptions(DraftOptions, EngineOptions, LoadingOptions, total=False):
    """Keywords of `LocalBackend`, each declared with its default, what it is, and what it may be."""
# fmt: on


OPTIONS = options_of(LocalOptions)
"""Every option by its name."""


def checked_options(given: Mapping[str, Any]) -> LocalOptions:
    """All options: those that are given, and the defaults of the others and of those that are None.

    Raises:
        InvalidParameterError: One is unknown or out of its range, or they contradict each other.
    """
    refuse_unknown(given, OPTIONS)
    options: Any = {name: option.or_default(given.get(name)) for name, option in OPTIONS.items()}
    drafter, has_draft_model = options["drafter"], options["draft_model"] is not None
    OPTIONS["drafter"].check("drafter", drafter)
    if drafter == "draft_model" and not has_draft_model:
        msg = "drafter='draft_model' needs a draft model: give draft_model."
        raise InvalidParameterError(msg)
    if drafter == "mtp" and has_draft_model:
        msg = "drafter='mtp' drafts by the model's own MTP layers, never by a draft model. Leave one of them out."
        raise InvalidParameterError(msg)
    if drafter in ("prompt_lookup", "none") and has_draft_model:
        msg = f"drafter={drafter!r} would never use the draft model. Leave it out, or take 'auto' or 'draft_model'."
        raise InvalidParameterError(msg)
    if options["draft_quantization"] is not None and not has_draft_model:
        msg = "draft_quantization needs a draft model: give draft_model, or leave it out."
        raise InvalidParameterError(msg)
    if options["quantization"] is not None and options["quantization_config"] is not None:
        msg = "Give quantization or quantization_config, not both."
        raise InvalidParameterError(msg)
    for name, option in OPTIONS.items():
        if name != "draft_length":
            option.check(name, options[name])
    replace(OPTIONS["draft_length"], high=options["max_draft_tokens"]).check("draft_length", options["draft_length"])
    checked: LocalOptions = options
    return checked
