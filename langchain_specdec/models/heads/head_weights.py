"""The weights of a head, from safetensors or PyTorch's files, under the names of its module."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from langchain_specdec.errors import ModelLoadError
from langchain_specdec.models.checkpoint import explained
from langchain_specdec.models.heads.head_source import HeadSource

_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# Names that the classic format and older versions of SGLang have.
_RENAMED = {
    "midlayer.": "layers.0.",
    "aux_norm_low.": "fc_norm.0.",
    "aux_norm_mid.": "fc_norm.1.",
    "aux_norm_high.": "fc_norm.2.",
}
# What trainers leave in the files: it is computed, or belongs to the target.
_LEFT_OVER = re.compile(r"rotary_emb\.inv_freq$|^verifier_(norm|lm_head)\.")


def read_weights(source: HeadSource) -> dict[str, Tensor]:
    """All weights of a head on the CPU, and its maps `d2t` and `t2d`.

    Raises:
        ModelLoadError: There are none, or they cannot be read or downloaded.
    """
    weights: dict[str, Tensor] = {}
    with explained(source.name, source.place):
        for path in _weight_files(source.file, source.name):
            if path.suffix == ".safetensors":
                part: Mapping[str, Tensor] = load_file(path)
            else:
                part = torch.load(path, map_location="cpu", weights_only=True)
            weights |= {_renamed(name): weight for name, weight in part.items() if not _LEFT_OVER.search(name)}
    return weights


def weight_shapes(source: HeadSource) -> dict[str, tuple[int, ...]] | None:
    """The shapes of a head's weights, without their numbers; None where they are not on this machine.

    Raises:
        ModelLoadError: As `read_weights`.
    """
    if not any(source.here(name) for name in _FILES) and not Path(source.place).is_dir():
        return None
    shapes: dict[str, tuple[int, ...]] = {}
    with explained(source.name, source.place):
        for path in _weight_files(source.here, source.name):
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    part = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            else:
                on_meta = torch.load(path, map_location="meta", weights_only=True)
                part = {name: tuple(weight.shape) for name, weight in on_meta.items()}
            shapes |= {_renamed(name): shape for name, shape in part.items() if not _LEFT_OVER.search(name)}
    return shapes


def _weight_files(find: Callable[[str], Path | None], shown: str) -> list[Path]:
    for name in _FILES:
        path = find(name)
        if path is None:
            continue
        if path.suffix != ".json":
            return [path]
        parts = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        found = {part: find(part) for part in parts}
        if lacking := [part for part, place in found.items() if place is None]:
            raise ModelLoadError(f"Cannot load {shown}: {lacking[0]} is missing. Download the head anew.")
        return [place for place in found.values() if place is not None]
    raise ModelLoadError(
        f"Cannot load {shown}: it has a head's config.json, and no weights ({_FILES[0]} or {_FILES[2]}). "
        "Download it anew, with all its files."
    )


def _renamed(name: str) -> str:
    name = name.removeprefix("model.")
    for old, new in _RENAMED.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
