"""Checkpoints as transformers reads them, and what is wrong with those that it cannot read, or reads in part."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from safetensors import SafetensorError, safe_open

from langchain_specdec.errors import ModelLoadError, SpecDecError

# Longest explanation of transformers to pass on; some list all model types there are.
_MAX_REASON = 300
_NUM_NAMED = 3
# Files of a folder that are loaded, so that whatever else is there is not blamed.
_LOADED_FILES = (
    "*.safetensors", "*model*.bin", "*.model", "*config.json", "*.index.json", "tokenizer.json", "vocab.json",
    "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
_LFS_POINTER = b"version https://git-lfs"
# What stands in the names of weights that a configuration has to say more about.
_ADAPTER_MARKS = ("lora_", "base_model.model.", "ia3_", "modules_to_save")
_QUANTIZED_MARKS = (
    "qweight", "qzeros", "scale", "absmax", "quant_map", "quant_state", "g_idx", "packed", "zero_point", "SCB",
    "codebook",
)  # fmt: skip


def read_weights(auto_class: Any, source: str, name: str, **options: Any) -> Any:
    """Read a causal language model, all of whose weights its files must hold.

    Args:
        auto_class: What of transformers makes it.
        source: Model id or folder.
        name: What the user calls it.
        options: Passed to transformers.

    Raises:
        ModelLoadError: The files cannot be read, lack weights that the model has, or hold others of its modules.
    """
    with explained(name, source):
        # transformers goes on without it where it cannot be read: the text would not end, or be another one.
        if (path := Path(source, "generation_config.json")).is_file() and (found := _fault(path)):
            msg = f"Cannot load {name}: {path.name} {found}"
            raise ModelLoadError(msg)
        # Sizes that differ are reported below, with more than transformers says.
        read: Any = auto_class.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
        model, info = read
    _check_sizes(model, info["mismatched_keys"], name)
    _check_names(model, info["missing_keys"], info["unexpected_keys"], name)
    return model


@contextmanager
def explained(what: str, source: str = "", advice: str = "") -> Iterator[None]:
    """Say what could not be loaded and what to do, in place of what the libraries underneath say.

    They let through whatever a damaged file makes them meet, so any error counts, but for those of this package and
    those that tell of the machine.

    Args:
        what: What is loaded.
        source: Where from; a folder is searched for files that are damaged.
        advice: What to do, where that is not what it is for a model.
    """
    try:
        yield
    except (SpecDecError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ModelLoadError(
            f"Cannot load {what}: {_damage(source) or _reason_of(error) + (advice or _advice(error))}"
        ) from error


def _reason_of(error: Exception) -> str:
    """The first sentence of an error."""
    first, _, rest = str(error).strip().partition("\n")
    if first.rstrip().endswith(":"):
        first = f"{first.rstrip()} {rest.strip().partition(chr(10))[0]}".rstrip(" ,")
    if not isinstance(error, (OSError, ValueError, ImportError)):
        first = f"{type(error).__name__}: {first}"
    first = first if len(first) <= _MAX_REASON else first[:_MAX_REASON] + " ..."
    return first if first.endswith((".", "!", "?")) else f"{first}."


def _advice(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return " Code of its own comes with it: read that code, and pass trust_remote_code=True if you trust it."
    if not isinstance(error, (OSError, ValueError, ImportError)):
        return " Its files are damaged, or do not fit each other or this version of transformers: download them anew."
    if not isinstance(error, OSError):
        return ""
    advice = (
        " Give a local folder, or the id of a model on the Hugging Face Hub (are id, revision and access token "
        "right, and is there a network?)."
    )
    if constants.HF_HUB_OFFLINE:
        advice += " HF_HUB_OFFLINE is set, so only models are found that were downloaded before."
    return advice


def _damage(source: str) -> str:
    """What is wrong with the files of a folder; "" where nothing is found, or it is none."""
    folder = Path(source)
    if not source or not folder.is_dir():
        return ""
    for path in sorted(path for pattern in _LOADED_FILES for path in folder.glob(pattern)):
        if found := _fault(path):
            return f"{path.name} {found}"
    return ""


def _fault(path: Path) -> str:
    """What is wrong with one file, as the end of a sentence; "" where nothing is found."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
    except OSError as error:
        return f"cannot be read: {error.strerror or error}."
    if not start:
        return "is empty. Download or save the model anew."
    if start == _LFS_POINTER:
        return "is only a pointer of Git LFS: run `git lfs pull` in its repository, or download the file itself."
    try:
        if path.suffix == ".json" and not isinstance(json.loads(path.read_bytes()), dict):
            return "holds no JSON object. Download or save the model anew."
        if path.suffix == ".safetensors":
            with safe_open(path, "pt"):
                pass
    except (ValueError, RecursionError, SafetensorError) as error:
        return f"is damaged ({error}). Download or save the model anew."
    if path.suffix == ".bin":
        try:
            torch.load(path, map_location="meta", weights_only=True)
        except Exception as error:
            return f"is damaged, or holds other things than weights ({type(error).__name__}). Download the model anew."
    return ""


def _check_sizes(model: Any, mismatched: Iterable[Any], name: str) -> None:
    # transformers 5 tells the sizes too.
    keys = [entry if isinstance(entry, str) else entry[0] for entry in mismatched]
    if keys:
        key = min(keys)
        msg = (
            f"Cannot load {name}: the size of {_named(keys)} is another in its files than by its config.json, by which "
            f"{key} is {list(model.state_dict()[key].shape)}. Take files that belong together, "
            "from one download or save."
        )
        raise ModelLoadError(msg)


def _check_names(model: Any, missing: Collection[str], unexpected: Collection[str], name: str) -> None:
    """Refuse a model of which a part would be random numbers, or run without what belongs to it."""
    if missing:
        total = len(model.state_dict())
        msg = (
            f"Cannot load {name}: its files lack {len(missing)} of {total} weights ({_named(missing)}), which would be "
            f"random numbers. {_reason(model, unexpected)}"
        )
        raise ModelLoadError(msg)
    if getattr(model, "hf_quantizer", None) is not None:
        return  # it knows what belongs to a quantised weight
    modules = dict(model.named_modules())
    left_out = [key for key in unexpected if _is_part_of_weights(key, modules)]
    if left_out:
        msg = (
            f"Cannot load {name}: its files hold {_named(left_out)}, for which a {type(model).__name__} of this "
            f"config.json has no place, so its text would be another model's. {_reason(model, left_out)}"
        )
        raise ModelLoadError(msg)


def _is_part_of_weights(key: str, modules: Mapping[str, torch.nn.Module]) -> bool:
    """Whether a name stands below a module that holds weights itself.

    Others are of modules that this model does not have, or of buffers of old checkpoints that are computed now.
    """
    while key:
        key = key.rpartition(".")[0]
        if key in modules:
            return bool(key) and next(modules[key].parameters(recurse=False), None) is not None
    return False


def _reason(model: Any, others: Collection[str]) -> str:
    """Why names differ, as far as those that the files hold tell, and what to do."""
    if any(mark in key for key in others for mark in _ADAPTER_MARKS):
        return (
            f"They hold an adapter ({_named(others)}). Give its base as the model and the adapter as adapter=, or "
            "merge it into the model and save that (merge_and_unload of peft)."
        )
    if any(mark in key for key in others for mark in _QUANTIZED_MARKS):
        return (
            f"They hold quantised weights ({_named(others)}), of which config.json says nothing this version of "
            "transformers reads: take the config.json with its quantization_config that belongs to them, or the model "
            "as it was before."
        )
    written_as = ", ".join(getattr(model.config, "architectures", None) or ()) or model.config.model_type
    beside = f" They hold others instead ({_named(others)})." if others else ""
    return (
        f"{beside} Its config.json says {written_as}, and it is loaded as {type(model).__name__}: take files that "
        "belong together, and download or save the model anew."
    ).lstrip()


def _named(keys: Collection[str]) -> str:
    shown = sorted(keys)[:_NUM_NAMED]
    return ", ".join(shown) + (", ..." if len(keys) > len(shown) else "")
