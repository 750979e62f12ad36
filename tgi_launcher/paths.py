"""Paths made absolute, since TGI's processes run in a folder of their own."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

# Variables that hold paths which TGI, the libraries it stands on and the system's loader read.
_PATHS = {
    "CUDA_CACHE_PATH", "CUDA_HOME", "CURL_CA_BUNDLE", "HF_ASSETS_CACHE", "HF_DATASETS_CACHE", "HF_HOME",
    "HF_HUB_CACHE", "HF_MODULES_CACHE", "HF_STORED_TOKENS_PATH", "HF_TOKEN_PATH", "HF_XET_CACHE", "HOME",
    "HUGGINGFACE_ASSETS_CACHE", "HUGGINGFACE_HUB_CACHE", "NETRC", "NUMBA_CACHE_DIR", "OPENSSL_CONF", "PYTHONHOME",
    "PYTHONPYCACHEPREFIX", "PYTHONUSERBASE", "REQUESTS_CA_BUNDLE", "SSL_CERT_DIR", "SSL_CERT_FILE", "TEMP", "TMP",
    "TMPDIR", "TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "TORCH_HOME", "TRANSFORMERS_CACHE",
    "TRITON_CACHE_DIR", "TRITON_HOME", "VIRTUAL_ENV", "WEIGHTS_CACHE_OVERRIDE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
}  # fmt: skip
_LISTS_OF_PATHS = {"LD_LIBRARY_PATH", "LD_PRELOAD", "PATH", "PYTHONPATH"}
# `id`, `id=path` and `id=path@revision`, as in text_generation_server.utils.adapter.
_ADAPTER = re.compile(r"(?P<id>[^=@]+)(?:=(?P<path>[^@]+))?(?P<revision>@.+)?")


def absolute(path: str) -> str:
    """A path that means the same in any folder; `~` is the home folder.

    Raises:
        ValueError: It begins with `~` and the name of nobody here.
    """
    return str(expanded(path).absolute())


def expanded(path: str | Path) -> Path:
    """A path with the home folder for `~`.

    Raises:
        ValueError: It begins with `~` and the name of nobody here.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        msg = f"{path} begins with a user's home folder that is not known here: write the path in full."
        raise ValueError(msg) from None


def absolute_program(name: str) -> str:
    """The same for a program, which is looked up on PATH where its name has no slash."""
    return absolute(name) if "/" in name else name


def split_adapters(adapters: str) -> list[tuple[str, str | None, str]]:
    """LoRA adapters as (id, path, revision with its `@`); an id that is a folder has that as its path, too."""
    found: list[tuple[str, str | None, str]] = []
    for adapter in map(str.strip, adapters.split(",")):
        match = _ADAPTER.fullmatch(adapter)
        name, path, revision = (match["id"], match["path"], match["revision"]) if match else (adapter, None, None)
        if path is None and expanded(name).is_dir():
            path = name
        found.append((name, absolute(path) if path is not None else None, revision or ""))
    return found


def absolute_adapters(adapters: str) -> str:
    """LoRA adapters with absolute paths; ids of the Hub stay as they are."""
    return ",".join(
        f"{name}{f'={path}' if path else ''}{revision}" for name, path, revision in split_adapters(adapters)
    )


def absolute_variables(env: Mapping[str, str]) -> dict[str, str]:
    """An environment whose paths mean the same in any folder."""
    return {name: _absolute_variable(name, text) for name, text in env.items()}


def _absolute_variable(name: str, text: str) -> str:
    # Of the variables that nobody thought of, those that name what is here.
    is_path = name in _PATHS or ("/" in text and name not in _LISTS_OF_PATHS and os.path.exists(text))  # noqa: PTH110
    if is_path and text and not text.startswith("~"):
        return os.path.abspath(text)  # noqa: PTH100  # it may end in a name that is no file yet
    if name in _LISTS_OF_PATHS:
        # An empty entry is a slip, or the folder where the process runs. LD_PRELOAD may hold bare names of libraries.
        return os.pathsep.join(
            part if not part or part.startswith("~") or (name == "LD_PRELOAD" and "/" not in part) else absolute(part)
            for part in text.split(os.pathsep)
        )
    return text
