"""Whether a model can draft by MTP layers of its own, by its configuration and the headers of its files."""

from __future__ import annotations

from langchain_specdec.cli.doctor_finding import Finding
from langchain_specdec.errors import InvalidParameterError, UnsupportedModelError
from langchain_specdec.models.heads.mtp_source import find_mtp
from langchain_specdec.models.loader import load_config

_NAME = "MTP layers"
_HOW = 'drafter="mtp" (--drafter mtp) drafts by them'


def findings(model: str) -> list[Finding]:
    """What a model has to draft by for itself. No weights are read or downloaded.

    Args:
        model: Model id, folder, GGUF file or `"embedded"`.

    Raises:
        ModelLoadError: It cannot be found or read.
        UnsupportedModelError: The engine cannot run this kind of model.
    """
    config = load_config(model)
    try:
        source = find_mtp(model, downloads=False)
    except (InvalidParameterError, UnsupportedModelError):
        return [Finding(_NAME, "none; lookups draft without, and so can a draft model or a trained head")]
    if not source.is_here:
        asked = "there are some, by its index; whether they fit" if source.files else "whether there are some"
        return [Finding(_NAME, f"{asked} is known once the model is downloaded")]
    # It imports transformers' model code.
    from langchain_specdec.models.heads.load_mtp import check_mtp

    try:
        check_mtp(source, config)
    except UnsupportedModelError as error:
        return [Finding(_NAME, "there are some that do not fit", "warning", str(error))]
    return [Finding(_NAME, f"there, and they fit; {_HOW}", "ok")]
