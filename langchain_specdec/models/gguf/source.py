"""Where the GGUF file of a model is: here, in the package of the embedded model, or on the Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download

from langchain_specdec.errors import ModelLoadError
from langchain_specdec.models.gguf.file import shard_names
from langchain_specdec.models.hub import downloaded_file, hub_file, unreachable


def local_gguf(source: str, revision: str | None = None, token: str | bool | None = None) -> Path | None:
    """The file of a model that `check_source` let through, downloaded with all its parts where it is on the Hub.

    Args:
        source: What `check_source` returned.
        revision: Branch, tag or commit.
        token: Access token of the Hub; None takes the one that is logged in.

    Returns:
        The file, the first one where the model is split; None where the source is no GGUF model.

    Raises:
        ModelLoadError: It cannot be downloaded.
    """
    path = Path(source)
    if path.suffix.lower() == ".gguf" and path.is_file():
        return path
    if (on_hub := hub_file(source)) is None:
        return None
    repository, file = on_hub
    folder, slash, name = file.rpartition("/")
    names = [f"{folder}{slash}{part}" for part in shard_names(name)]
    try:
        paths = [Path(hf_hub_download(repository, part, revision=revision, token=token)) for part in names]
    except Exception as error:  # whatever its client raises
        if here := downloaded_file(repository, names[0], revision):
            return here
        reason = getattr(error, "strerror", None) or unreachable(error)
        raise ModelLoadError(f"Cannot download {source}: {reason}. Try again, or download it otherwise.") from None
    return paths[0]
