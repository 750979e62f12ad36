"""Whether one model can draft for another, by their tokenizers, or a trained head for a model."""

from __future__ import annotations

from langchain_specdec.cli.doctor_finding import Finding
from langchain_specdec.errors import UnsupportedModelError
from langchain_specdec.models.common_vocabulary import shared_tokens
from langchain_specdec.models.compatibility import refuse_recurrent_draft
from langchain_specdec.models.heads.eagle3_format import check_kind, format_name
from langchain_specdec.models.heads.fit import check_head
from langchain_specdec.models.heads.head_source import HeadSource, find_head
from langchain_specdec.models.heads.head_weights import weight_shapes
from langchain_specdec.models.heads.load_assistant import check_assistant, is_assistant
from langchain_specdec.models.heads.target_sizes import TargetSizes
from langchain_specdec.models.loader import load_config, load_tokens

# Below this share of common tokens a draft seldom goes far.
_FEW = 0.5


def check_model(model: str) -> None:
    """Raise where a trained head is given for the model.

    Args:
        model: As for `findings`.

    Raises:
        UnsupportedModelError: It is a trained head.
        ModelLoadError: There is no such folder or id.
    """
    if find_head(model) is not None:
        msg = (
            f"{model} is a trained head, which drafts for a model. Give it as --draft-model, and the model that it was "
            "trained for as --model."
        )
        raise UnsupportedModelError(msg)


def findings(model: str, draft_model: str) -> list[Finding]:
    """What two models have in common, or whether a head fits the model.

    Args:
        model: Model id, folder, GGUF file or `"embedded"`.
        draft_model: The same for the draft model, or the id or folder of a trained head.

    Raises:
        ModelLoadError: One of them, or its tokenizer, cannot be found or read.
    """
    if (head := find_head(draft_model)) is not None:
        return _of_head(model, head)
    try:
        if TargetSizes.of(draft_model, load_config(draft_model)).has_states:
            refuse_recurrent_draft(draft_model, model)
        common = shared_tokens(load_tokens(model), load_tokens(draft_model))
    except UnsupportedModelError as error:
        return [Finding("tokenizers", "no pair", "error", str(error))]
    if common is None:
        return [Finding("tokenizers", "the same", "ok")]
    value = f"differ; {len(common)} tokens in common, {common.share:.0%} of the target's"
    if common.share < _FEW:
        advice = "Drafts end where the next token is not a common one. A draft model of the same family drafts further."
        return [Finding("tokenizers", value, "warning", advice)]
    return [Finding("tokenizers", value, "ok")]


def _of_head(model: str, head: HeadSource) -> list[Finding]:
    """What a head is, as far as its files are on this machine, and whether it fits the model."""
    try:
        if is_assistant(head):
            check_assistant(head, model, load_config(model))
            return [Finding("head", "assistant of Gemma 4"), Finding("fits", "by its config.json", "ok")]
        check_kind(head)
        target, shapes = TargetSizes.of(model, load_config(model)), weight_shapes(head)
        known = [Finding("head", format_name(head))]
        if shapes is None:
            return [*known, Finding("its weights", "not on this machine; downloaded, they tell whether it fits")]
        config = check_head(head, target, shapes)
    except UnsupportedModelError as error:
        return [Finding("head", "does not fit", "error", str(error))]
    share = config.draft_vocab_size / config.vocab_size
    return [
        *known,
        Finding(
            "layers of the model that it reads", f"{', '.join(map(str, config.tap_points))} of {target.num_layers}"
        ),
        Finding("tokens that it drafts", f"{config.draft_vocab_size} of {config.vocab_size}, {share:.1%}"),
        Finding("fits", "yes", "ok"),
    ]
