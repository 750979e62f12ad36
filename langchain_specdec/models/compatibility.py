"""Whether the engine can run a model, and whether one model can draft for another."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from langchain_specdec.errors import SpecDecError, UnsupportedModelError
from langchain_specdec.models.common_vocabulary import CommonVocabulary, ModelTokens, shared_tokens
from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.runner.model_state import evaluating, modules_of
from langchain_specdec.runner.stateful_layers import goes_on_from_states, stateful_layers
from langchain_specdec.runner.step_inputs import RowBatch

if TYPE_CHECKING:
    from langchain_specdec.runner.model_runner import ModelRunner

# "attention" is what configurations call it that list the blocks of hybrid models.
_KNOWN_LAYERS = {"full_attention", "sliding_attention", "attention"}
# Families whose layers keep recurrent or convolution states, which the engine rolls back; see `layer_states`.
_HYBRID_FAMILIES = {
    "bamba", "falcon_h1", "granitemoehybrid", "jamba", "lfm2", "lfm2_moe", "nemotron_h", "olmo_hybrid",
    "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next",
}  # fmt: skip
_ASSISTANTS = {"gemma4_assistant", "gemma4_unified_assistant"}
_HYBRID_LAYERS = {"linear_attention", "conv", "hybrid", "mamba", "moe", "mlp"}
_WITH_KEYS = {*_KNOWN_LAYERS, "hybrid"}
# Most tokens of the draft that `takes_trees` tries.
_PROBED_WIDTH = 33


def check_supported(config: Any, model_class: type | None) -> None:
    """Raise an `UnsupportedModelError` where the configuration alone shows that the engine cannot run the model.

    Args:
        config: The model's configuration.
        model_class: Its class; None where that is not known, or where there is none.
    """
    if getattr(config, "is_encoder_decoder", False):
        # First of all: such a configuration may hold several texts', and asking for its text's would fail.
        _refuse(config.model_type, "it is an encoder-decoder model; the engine runs decoder-only models")
    text = config.get_text_config()
    kinds = {kind for name in ("layer_types", "layers_block_type") for kind in getattr(text, name, None) or ()}
    is_hybrid = text.model_type in _HYBRID_FAMILIES
    unknown = ", ".join(sorted(kinds - _KNOWN_LAYERS - (_HYBRID_LAYERS if is_hybrid else set())))
    reason = None
    if model_class is None and "AutoModelForCausalLM" not in (getattr(config, "auto_map", None) or {}):
        reason = "transformers knows no causal language model of this type"
    elif config.model_type in _ASSISTANTS:
        reason = "it drafts for a model of Gemma 4, and writes nothing by itself"
    elif is_hybrid and not _has_states():
        reason = "it keeps a recurrent state, which can be rolled back only with a newer transformers (5.24)"
    elif getattr(model_class, "_is_stateful", False) and not is_hybrid:
        reason = "it keeps a recurrent state, which the engine cannot roll back when a draft is rejected"
    elif unknown:
        reason = f"it has layers of kind {unknown}; only full and sliding-window attention works"
    elif is_hybrid and kinds and kinds.isdisjoint(_WITH_KEYS):
        reason = "none of its layers is attention, and the engine runs hybrids that have one at least"
    elif getattr(text, "attention_chunk_size", None):
        reason = "it uses chunked attention; only full and sliding-window attention works"
    elif getattr(text, "alibi", False) or text.model_type == "bloom":
        reason = "its attention takes distances for positions (ALiBi), in masks that the engine does not make"
    elif getattr(text, "use_bidirectional_attention", None) is True:
        reason = "its tokens see those that come after them, so it writes no text"
    elif not isinstance(layers := getattr(text, "num_hidden_layers", None), int) or layers < 1:
        reason = "its configuration names no number of layers"
    if reason:
        _refuse(text.model_type, reason)


def _has_states() -> bool:
    """Whether caches of this transformers keep the states of several tokens."""
    # A native decoder does without what this imports.
    from transformers.cache_utils import Cache

    return hasattr(Cache, "get_conv_state")


def common_vocabulary(target: LoadedModel, draft: LoadedModel) -> CommonVocabulary | None:
    """What the tokenizers of a model and its draft model have in common; None where they are the same.

    Raises:
        UnsupportedModelError: The one cannot draft for the other: it keeps a recurrent state, or has nothing in common.
    """
    if isinstance(draft.model, nn.Module) and stateful_layers(draft.model):
        refuse_recurrent_draft(draft.name, target.name)
    ours, theirs = (
        ModelTokens(each.name, each.private_tokenizer, each.model.config.get_text_config().vocab_size)
        for each in (target, draft)
    )
    return shared_tokens(ours, theirs)


def refuse_recurrent_draft(draft: str, target: str) -> NoReturn:
    """Raise an `UnsupportedModelError` for a draft model that keeps a recurrent state.

    Args:
        draft: What the user calls it.
        target: What the user calls its target.
    """
    msg = (
        f"{draft} cannot draft for {target}: it keeps a recurrent state, and a draft model has to go back to any "
        "token. Choose one that has attention only, or drafter='prompt_lookup', which needs none."
    )
    raise UnsupportedModelError(msg)


def check_cached_forward(runner: ModelRunner, name: str) -> None:
    """Raise an `UnsupportedModelError` where a forward over the slots gives other logits than the model's own.

    Where there are several slots, the forward has a second row at the far end of its slot: a model that takes all
    rows to be of one length shows it there. A state has to be made before text can go on from it, so that of a model
    that keeps any begins its slot. It also goes back to where a draft was rejected.
    """
    tokens = [t % runner.vocab_size for t in (11, 7, 5, 13, 3, 2)]
    half, has_states = len(tokens) // 2, runner.cache.states is not None
    slots, starts, rows = [0], [half], [tokens[half:]]
    if runner.cache.num_slots > 1 and runner.max_length > len(tokens):
        far = 0 if has_states else runner.max_length - half
        slots, starts, rows = [0, 1], [half, far], [tokens[half:], tokens[: half - has_states]]
    try:
        runner.prefill(RowBatch([0], [0], [tokens[:half]]))
        if has_states:
            if not goes_on_from_states(runner.model):
                _refuse(
                    runner.model.config.get_text_config().model_type,
                    "it does not go on from its recurrent states where it reads several tokens at a time",
                )
            runner.verify(RowBatch([0], [half - 1], [[*tokens[half - 1 : half + 1], tokens[0]]]))
        ours = runner.verify(RowBatch(slots, starts, rows)).logits[0]
        with torch.inference_mode(), evaluating(runner.model, modules_of(runner.model)):
            ids = torch.tensor([tokens], device=runner.device)
            # With a cache of its own, as `generate` runs it: without one, layers that share keys and values (Gemma 3n)
            # compute their own on older versions of transformers.
            theirs = runner.model(input_ids=ids, use_cache=True).logits[0, half:]
    except (MemoryError, torch.OutOfMemoryError, SpecDecError):
        raise  # it tells of the machine, or has been explained
    except Exception as error:
        raise UnsupportedModelError(_failure(name, error)) from error
    similarity = _similarity(ours, theirs)
    if not similarity > _least_similarity(runner):
        msg = (
            f"{name} computes other logits on the engine's cache than by itself (cosine similarity "
            f"{similarity:.4f}), so its text would change. The engine does not support this model."
        )
        raise UnsupportedModelError(msg)


def takes_trees(runner: ModelRunner) -> bool:
    """Whether a forward over a draft that branches gives the logits of each path; not so for ALiBi models such as MPT.

    A node stands in its slot after its siblings, and in the text right after its parent. A model that takes the first
    for its position, whatever it is told, is right for drafts that do not branch. Many siblings are put in between,
    more than drafts may have, so that it shows in any numeric type. Where a slot has no room for one, the answer is no.
    """
    if "position_ids" not in inspect.signature(runner.model.base_model.forward).parameters:
        return False
    text, path = [t % runner.vocab_size for t in (11, 7, 5)], [t % runner.vocab_size for t in (4, 3, 2)]
    count = min(_PROBED_WIDTH, runner.max_length - len(text)) - len(path)
    if count < 1:
        return False
    # The siblings are children of the path's first token, and so is its second.
    nodes, parents = [path[0], *path[:1] * count, *path[1:]], [-1, *[0] * (count + 1), count + 1]
    runner.prefill(RowBatch([0], [0], [text]))
    ours = runner.verify(RowBatch([0], [len(text)], [nodes], [parents])).logits[0, -2:]
    theirs = runner.verify(RowBatch([0], [len(text)], [path])).logits[0, -2:]
    return _similarity(ours, theirs) > _least_similarity(runner)


@contextmanager
def fitting(name: str) -> Iterator[None]:
    """Raise an `UnsupportedModelError` where the block fails because of what a model is, or says of itself."""
    try:
        yield
    except (SpecDecError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UnsupportedModelError(_failure(name, error)) from error


def _failure(name: str, error: Exception) -> str:
    detail = f"{type(error).__name__}: {error}".partition("\n")[0]
    return (
        f"The engine cannot run {name}: its forward fails on the engine's cache, or its config.json says what does not "
        f"fit ({detail[:200]}). Use transformers or a TGI server for it."
    )


def _similarity(ours: Tensor, theirs: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(ours.float(), theirs.float(), dim=-1).min())


def _least_similarity(runner: ModelRunner) -> float:
    return 0.9999 if runner.model.dtype == torch.float32 else 0.98


def _refuse(model_type: str, reason: str) -> NoReturn:
    msg = f"The engine cannot run a model of type {model_type!r}: {reason}. Use transformers or a TGI server for it."
    raise UnsupportedModelError(msg)
