"""What the name of a model stands for, and whether it is here or on the Hub: said before PyTorch is imported."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public by its documentation

from langchain_specdec.errors import InvalidParameterError, ModelLoadError
from langchain_specdec.models.hub import (
    CONFIG_FILES,
    EXAMPLE,
    GGUF_ADVICE,
    downloaded,
    downloaded_file,
    hub_file,
    is_out_of_reach,
    obstacle,
    without_login,
)

_ONNX = f"ONNX files are not read here. Give the model that it was made from, by its id on the Hub, such as {EXAMPLE}."
_GGML = "This form of file came before GGUF and is not read. Give a GGUF file of the model."
_ARCHIVE = "Unpack the archive, and give the folder that holds the model's config.json, weights and tokenizer."
_WEIGHTS = "Give the folder that holds a model's config.json, weights and tokenizer, not one of its files."
# What to do about a file, by the end of its name.
_FILES = {
    ".gguf": GGUF_ADVICE, ".ggml": _GGML, ".onnx": _ONNX,
    ".zip": _ARCHIVE, ".tar": _ARCHIVE, ".gz": _ARCHIVE, ".tgz": _ARCHIVE, ".xz": _ARCHIVE, ".7z": _ARCHIVE,
    ".safetensors": _WEIGHTS, ".bin": _WEIGHTS, ".pt": _WEIGHTS, ".pth": _WEIGHTS, ".ckpt": _WEIGHTS, ".json": _WEIGHTS,
}  # fmt: skip
_MODEL = "a model's config.json, weights and tokenizer"
ADAPTER = "an adapter's adapter_config.json and weights"
"""What the folder of an adapter holds."""
_NAME = r"[\w.-]+/[\w.-]+|[\w.-]+"
_PATH = r"(?P<id>[\w.-]+(?:/(?!(?:tree|blob|resolve)/)[\w.-]+)?)(?P<rest>[/:?#].*)?"
_PAGE = rf"(?:https?://)?(?:[^/@]*@)?(?:www\.)?(?:huggingface\.co|hf\.co)/{_PATH}"


def check_source(
    source: str | os.PathLike[str],
    *,
    holds: str = _MODEL,
    revision: str | None = None,
    token: str | bool | None = None,
) -> tuple[str, str | None]:
    """Raise an error where a model or an adapter is certainly not where its name says.

    The Hub is asked by one request, and for seconds at most: where it is out of reach, transformers would wait for
    minutes, also for what was downloaded before.

    Args:
        source: Model id, folder, GGUF file (`owner/name:file.gguf` on the Hub) or `"embedded"`, as the user gave it.
        holds: What its folder has to hold, in words. GGUF files are taken for models only.
        revision: Branch, tag or commit of the id.
        token: Access token of the Hub; None takes the one that is logged in.

    Returns:
        What to read, and its revision: as given, the GGUF file in the folder that was given, or where it was
        downloaded to if the Hub is out of reach.

    Raises:
        InvalidParameterError: It is no name, or a revision is given of what is on this machine.
        ModelLoadError: There is no such folder or id, it holds no model or cannot be read, or the Hub is out of reach.
    """
    if not isinstance(source, (str, os.PathLike)):
        msg = f"A model is given as an id, a local folder or a loaded Hugging Face model, got {type(source).__name__}."
        raise InvalidParameterError(msg)
    name = str(source)
    path = _looked_at(name)
    if revision is not None and (name == "embedded" or path.exists()):
        msg = (
            f"{name!r} is on this machine, and only a model id of the Hub has revisions: leave out the revision "
            f"{revision!r}."
        )
        raise InvalidParameterError(msg)
    if name == "embedded":
        return name, None
    takes_gguf = holds == _MODEL
    if takes_gguf and not path.exists() and (on_hub := hub_file(name)):
        return _checked_file(name, *on_hub, revision, token)
    if not name.strip():
        reason: str | None = _no_folder(name, holds)
    elif path.is_dir():
        files = gguf_files(path) if takes_gguf and not _has_config(path) else []
        if len(files) == 1:
            return str(files[0]), None
        reason = _several(name, files) if files else _lack(path, name, holds)
    elif path.is_file() and takes_gguf and path.suffix.lower() == ".gguf":
        return name, None
    elif path.is_file():
        reason = f"{name!r} is a file. {_of_file(path, holds)}"
    elif path.exists():
        reason = f"{name!r} is neither a file nor a folder. Give the folder that holds {holds}."
    else:
        reason = _slip(name)
        if reason is None and is_missing_folder(source):
            advice = _advice(path, holds)
            reason = f"There is no file {name!r}. {advice}" if advice else _no_folder(name, holds)
        reason = reason or _malformed(name)
    is_name = reason is None and not path.exists()
    if is_name and (folder := downloaded(name, revision)):
        is_away = not constants.HF_HUB_OFFLINE and is_out_of_reach(name, revision, token)
        return (str(folder), None) if is_away else (name, revision)
    if is_name:
        advice = _advice(path, holds)
        if advice and "/" not in name:
            reason = f"There is no file {name!r}. {advice}"
        elif (reason := obstacle(name, revision, token)) and advice:
            reason += f" If a file is meant: there is none of that name. {advice}"
    if reason is not None:
        raise ModelLoadError(reason)
    return name, revision


def means_gguf(source: str | os.PathLike[str]) -> bool:
    """Whether a name is that of a GGUF model, on this machine or on the Hub, which is not asked.

    Raises:
        ModelLoadError: A folder or a file of that name cannot be looked at.
    """
    name, path = str(source), _looked_at(source)
    if path.is_dir():
        return not _has_config(path) and bool(gguf_files(path))
    return path.suffix.lower() == ".gguf" and (path.is_file() or hub_file(name) is not None)


def _looked_at(source: str | os.PathLike[str]) -> Path:
    """The path of a name. What the system keeps from being looked at is told; Python asks anew at each look below."""
    path = Path(source)
    try:
        if path.is_dir() and not _has_config(path):
            gguf_files(path)
    except OSError as error:
        msg = f"Cannot read {str(source)!r}: {error.strerror or error}."
        raise ModelLoadError(msg) from error
    return path


def gguf_files(folder: Path) -> list[Path]:
    """The GGUF models in a folder: the first file of each that is split, and none that only goes with another."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf" and path.is_file())
    later = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
    return [path for path in found if not later.search(path.name) and not path.name.startswith("mmproj")]


def is_missing_folder(source: str | os.PathLike[str]) -> bool:
    """Whether a folder is meant that is not there; transformers would take it for a malformed model id."""
    name = str(source)
    is_path = isinstance(source, os.PathLike) or name.startswith((".", "~", os.sep)) or name.count("/") > 1
    return (is_path or "\\" in name) and not Path(name).is_dir()


def _checked_file(
    name: str, repository: str, file: str, revision: str | None, token: str | bool | None
) -> tuple[str, str | None]:
    if (reason := _malformed(repository)) is None:
        if path := downloaded_file(repository, file, revision):
            is_away = not constants.HF_HUB_OFFLINE and is_out_of_reach(repository, revision, token)
            return (str(path), None) if is_away else (name, revision)
        reason = obstacle(repository, revision, token, file)
    if reason is not None:
        raise ModelLoadError(reason)
    return name, revision


def _several(name: str, files: list[Path]) -> str:
    listed = ", ".join(path.name for path in files[:12]) + ", ..." * (len(files) > 12)
    return f"{name!r} holds {len(files)} GGUF models. Give one, such as {str(files[0])!r}: {listed}."


def _slip(name: str) -> str | None:
    """What to give in place of a name that belongs to something else; None where it may be an id or a folder."""
    path = name.removeprefix(f"{constants.ENDPOINT}/")
    page = re.fullmatch(_PAGE, name) or (re.fullmatch(_PATH, path) if path != name else None)
    if page is not None and page["rest"] and page["rest"].startswith(":"):
        return _slip(f"{page['id']}{page['rest']}")
    if page is not None and not page["id"].startswith(("datasets/", "spaces/", "collections/")):
        branch = re.match(r"/(?:tree|blob|resolve)/([^/?#]+)(?:/([^?#]+\.gguf))?", page["rest"] or "")
        revision = f", and {branch[1]!r} as the revision" if branch and branch[1] != "main" else ""
        if branch and branch[2]:
            return (
                f"{without_login(name)!r} is an address. Give the file as {page['id'] + ':' + branch[2]!r}{revision}."
            )
        return f"{without_login(name)!r} is an address. Give the model's id, {page['id']!r}{revision}."
    if name.startswith("file:"):
        return f"{name!r} is an address. Give the path, {name.removeprefix('file:').removeprefix('//')!r}."
    if get_close_matches(name, ["embedded"], 1, 0.85):
        return f"There is no model {name!r}. Did you mean 'embedded', the one that comes along?"
    if "://" in name:
        return f"{without_login(name)!r} is an address. Give a folder, or a model's id, such as {EXAMPLE}."
    if pinned := re.fullmatch(rf"({_NAME})@([\w./-]+)", name):
        return f"{name!r} is no model id. Give {pinned[1]!r} as the model, and {pinned[2]!r} as the revision."
    if re.fullmatch(rf"(?:{_NAME}):[\w.-]+", name):
        return (
            f"{name!r} is a name of Ollama's or llama.cpp's. Name a GGUF file on the Hugging Face Hub, as in "
            f"'owner/name:file.gguf', or give a model's id there, such as {EXAMPLE}."
        )
    return None


def _advice(path: Path, holds: str) -> str | None:
    """What to do about a file; None where its name tells of nothing."""
    advice = _FILES.get(path.suffix.lower())
    return f"Give the folder that holds {holds}." if advice == GGUF_ADVICE and holds != _MODEL else advice


def _of_file(path: Path, holds: str) -> str:
    advice = _advice(path, holds)
    if advice in (None, _WEIGHTS):
        where = f" ({str(path.parent)!r})" if (path.parent / "config.json").is_file() else ""
        return f"Give the folder that holds {holds}{where}, or an id on the Hugging Face Hub, such as {EXAMPLE}."
    return advice


def _no_folder(name: str, holds: str) -> str:
    return (
        f"There is no folder {name!r}. Give the folder that holds {holds}, or an id on the Hugging Face Hub, such as "
        f"{EXAMPLE} for a model."
    )


def _has_config(folder: Path) -> bool:
    return any((folder / file).exists() for file in CONFIG_FILES)


def _lack(folder: Path, name: str, holds: str) -> str | None:
    """What a folder holds in place of a model; None where it may hold one."""
    if _has_config(folder):
        return None
    start = f"{name!r} has no config.json, so it holds no model."
    if holds != _MODEL and gguf_files(folder):
        return f"{start} Give the folder that holds {holds}. GGUF files are read as models only."
    if next(folder.glob("*.onnx"), None):
        return f"{start} {_ONNX}"
    below = [*folder.glob("snapshots/*/config.json"), *folder.glob("*/config.json")]
    if below:
        return f"{start} There is one in {str(below[0].parent)!r}: give that folder."
    return f"{start} Give the folder that holds its config.json, weights and tokenizer, as save_pretrained writes them."


def _malformed(name: str) -> str | None:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return (
            f"{name!r} is neither a folder nor a model id. An id has the form owner/name, of letters, digits, '-', '_' "
            f"and '.', such as {EXAMPLE}."
        )
    return None
