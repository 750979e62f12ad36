"""Whether one model can draft for another, by their tokenizers."""

from __future__ import annotations

from langchain_specdec.cli.doctor_finding import Finding
from langchain_specdec.errors import UnsupportedModelError
from langchain_specdec.models.common_vocabulary import shared_tokens
from langchain_specdec.models.loader import load_tokens

# Below this share of common tokens a draft seldom goes far.
_FEW = 0.5


def findings(model: str, draft_model: str) -> list[Finding]:
    """What two models have in common.

    Args:
        model: Model id, folder, GGUF file or `"embedded"`.
        draft_model: The same for the draft model.

    Raises:
        ModelLoadError: One of them, or its tokenizer, cannot be found or read.
    """
    try:
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
