"""Makes the contestants that run other engines than this one."""

from __future__ import annotations

from typing import Any

from langchain_specdec.bench.contestant import Contestant, ContestantSpec
from langchain_specdec.bench.contestant_llama_cpp import LlamaCppContestant
from langchain_specdec.bench.weights import Weights
from langchain_specdec.models.heads.head_source import HeadSource
from langchain_specdec.sampling.params import SamplingParams

# Where the contestant has no setting: what their authors measured with, or show in their documentation.
_LENGTHS = {"hf-prompt-lookup": 10, "hf-assisted": None, "economize": 6, "economize-eagle3": 6}


def make_peer(
    spec: ContestantSpec,
    weights: Weights,
    draft: Weights | HeadSource | None,
    params: SamplingParams,
    *,
    num_slots: int,
    max_length: int,
    num_threads: int,
) -> Contestant:
    """Make one.

    Args:
        spec: Which one.
        weights: The model, loaded for its kind.
        draft: The draft model or trained head, if there is one.
        params: What to generate.
        num_slots: Prompts that it decodes at once.
        max_length: Positions that the longest prompt and its answer take.
        num_threads: Threads of one that does not take PyTorch's.
    """
    if spec.is_gguf:
        return _llama_cpp(spec, weights, params, num_slots, max_length, num_threads)
    # The modules of the others import transformers' model code.
    if spec.kind in ("economize", "economize-eagle3"):
        from langchain_specdec.bench.contestant_economize import EconomizeContestant

        length = int(spec.setting or _LENGTHS[spec.kind] or 0)
        head = draft if spec.takes and isinstance(draft, HeadSource) else None
        drafts = "prompt lookup" if head is None else "trained head"
        note = f"economize on transformers' model, {drafts}, steps of up to {length} tokens"
        return EconomizeContestant(
            spec.name, note, weights, params, concurrency=spec.concurrency, cycle_length=length, head=head
        )
    model = draft.peer if isinstance(draft, Weights) else None
    if spec.kind == "flashspec":
        from langchain_specdec.bench.contestant_peers import FlashspecContestant

        strategy = str(spec.setting or "auto")
        note = f"flashspec, {strategy if model is not None else 'n-gram lookup'}"
        return FlashspecContestant(spec.name, note, weights, params, draft_model=model, strategy=strategy)
    return _generate(spec, weights, model, params)


def _generate(spec: ContestantSpec, weights: Weights, draft_model: Any, params: SamplingParams) -> Contestant:
    from langchain_specdec.bench.contestant_peers import GenerateContestant

    options: dict[str, Any] = {}
    mode = None
    note = "transformers' generate, dynamic cache"
    length = spec.setting if spec.setting is not None else _LENGTHS.get(spec.kind)
    if spec.kind == "hf-prompt-lookup":
        options["prompt_lookup_num_tokens"] = length
        note = f"transformers' prompt lookup, {length} tokens; may return more than max_new_tokens"
    elif spec.kind == "hf-assisted" and draft_model is not None:
        options["assistant_model"] = draft_model
        note = f"transformers' assisted generation, {length or 'its usual number of'} tokens"
    elif spec.kind == "hf-compiled":
        mode = str(spec.setting or "reduce-overhead")
        note = f"transformers' generate, static cache, torch.compile({mode})"
    tokens = int(length) if "assistant_model" in options and length is not None else None
    return GenerateContestant(
        spec.name,
        note,
        weights,
        params,
        concurrency=spec.concurrency,
        options=options,
        assistant_tokens=tokens,
        compile_mode=mode,
    )


def _llama_cpp(
    spec: ContestantSpec, weights: Weights, params: SamplingParams, num_slots: int, max_length: int, num_threads: int
) -> LlamaCppContestant:
    speculation = str(spec.setting or "ngram-simple") if spec.kind == "llama-cpp-lookup" else ""
    note = f"llama.cpp on the same GGUF file, {speculation or 'no drafts'}; rounds activations to 8 bits"
    return LlamaCppContestant(
        spec.name,
        note,
        weights.gguf_path,
        params,
        num_slots=num_slots,
        max_length=max_length,
        num_threads=num_threads,
        speculation=speculation,
    )
