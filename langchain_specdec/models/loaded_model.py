"""A model with all that was loaded beside it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from langchain_specdec.models.generation_defaults import read_plain
from langchain_specdec.models.image_reader import ImageReader
from langchain_specdec.models.private_tokenizer import PrivateTokenizer
from langchain_specdec.models.quantization import QUANTIZATIONS
from langchain_specdec.runner.cpu.decoder_weights import DecoderWeights, LayerWeights, Matrix
from langchain_specdec.runner.model_config import max_positions
from langchain_specdec.runner.row_adapters import RowAdapters

# Bytes of each weight by which models are told apart.
_NUM_SAMPLED = 64


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to run, with its tokenizer.

    Attributes:
        model: Causal language model; one that was loaded elsewhere may be in training mode. Out of a GGUF file it is a
            `GGUFModel`, which is no module.
        private_tokenizer: Its tokenizer, for everything done here.
        name: Model id or folder, for messages and identification.
        eos_token_ids: Tokens that end a text.
        is_owned: Whether it was loaded here, so that nobody else relies on how it keeps its weights.
        adapter: Id or folder of the adapter that was merged into its weights.
        quantization: What its runner is to make of its weights, a word of `QUANTIZATIONS`.
        adapters: Says which of the adapters beside its weights the rows of a forward go by; None where there are none.
        adapter_sources: Where these adapters came from, by name.
        image_reader: Reads images for it; None where it is given text only.
        why_no_images: Why it is, as the end of a sentence.
    """

    model: Any
    private_tokenizer: PrivateTokenizer
    name: str
    eos_token_ids: tuple[int, ...]
    is_owned: bool = False
    adapter: str | None = None
    quantization: str | None = None
    adapters: RowAdapters | None = None
    adapter_sources: Mapping[str, str] = field(default_factory=dict)
    image_reader: ImageReader | None = None
    why_no_images: str = "it reads text only"

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer, which its owner may use and change."""
        return self.private_tokenizer.original

    @property
    def max_positions(self) -> int | None:
        """Positions that the model was made for; None where it does not say."""
        return max_positions(self.model.config.get_text_config())

    def identity(self, source: object, revision: str | None, *, is_own_tokenizer: bool) -> dict[str, Any]:
        """What tells this model from others: equal for equal text, as plain values.

        Args:
            source: What it was loaded from: a model id, a folder, or a loaded model.
            revision: The revision that was asked for.
            is_own_tokenizer: Whether the tokenizer is the one that comes with the model.
        """
        config = self.model.config
        identity: dict[str, Any] = {
            "model": self.name,
            "revision": getattr(config, "_commit_hash", None) or revision,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "eos_token_ids": self.eos_token_ids,
        }
        quantization = getattr(config, "quantization_config", None)
        if quantization is not None:
            identity["quantization"] = str(quantization)
        if self.quantization is not None:
            identity["quantization"] = str(QUANTIZATIONS[self.quantization])
        if not isinstance(self.model, torch.nn.Module):
            identity["quantization"] = ", ".join(sorted(format_names(self.model.weights)))
        if not is_own_tokenizer:
            identity["tokenizer"] = _digest([sorted(self.private_tokenizer.copied.get_vocab().items())])
        if isinstance(source, (str, os.PathLike)) and Path(source).exists():
            identity["model"] = str(Path(str(source)).resolve())
        if self.adapter is not None:
            identity["adapter"] = self.adapter
        if self.adapter_sources:
            identity["adapters"] = dict(self.adapter_sources)
        # A loaded model has no name to rely on, a folder may hold another model tomorrow, and an id of the hub the next
        # revision: transformers 5 does not tell which one it read.
        identity["fingerprint"] = _fingerprint(self.model)
        return identity


def eos_token_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end a text, by a model's generation configuration and by its tokenizer."""
    token_ids: set[int] = set()
    generation = getattr(model, "generation_config", None)
    for value in (read_plain(generation, "eos_token_id"), tokenizer.eos_token_id):
        if value is not None:
            token_ids.update(value if isinstance(value, (list, tuple)) else [value])
    return tuple(sorted(token_ids))


def _fingerprint(model: Any) -> str:
    """Tells models apart that may share a name: a digest of the first numbers of every weight."""
    if not isinstance(model, torch.nn.Module):
        return _digest([sorted(model.config.to_dict().items()), *map(_beginnings, _parts(model.weights))])
    from langchain_specdec.runner.cpu.matrix_experts import ExpertWeight
    from langchain_specdec.runner.cpu.matrix_layers import MatrixEmbedding, MatrixLinear
    from langchain_specdec.runner.cpu.packed_layers import PackedLinear
    from langchain_specdec.runner.cpu.weight_numbers import first_numbers
    from langchain_specdec.runner.row_adapters import AdaptedLinear

    parameters = [
        # Weights that are on disk only are on the device "meta" and have no numbers at hand.
        (name, tuple(p.shape), [] if p.is_meta else first_numbers(p))
        for name, p in model.named_parameters()
    ]
    parameters += [
        (name, tuple(buffer.shape), first_numbers(buffer))
        for name, module in model.named_modules()
        if isinstance(module, AdaptedLinear)
        for buffer in module.buffers(recurse=False)
    ]
    # The model of another backend may be packed, or share its weights with a native decoder.
    packed = [
        (name, module.samples)
        for name, module in model.named_modules()
        if isinstance(module, (PackedLinear, MatrixLinear, MatrixEmbedding, ExpertWeight))
    ]
    return _digest([*parameters, *packed])


def _parts(weights: DecoderWeights) -> Iterator[LayerWeights | DecoderWeights]:
    yield weights
    yield from weights.layers


def _beginnings(part: LayerWeights | DecoderWeights) -> list[object]:
    """What a part of a decoder holds: the first bytes of its arrays, and plain values."""
    beginnings: list[object] = []
    for each in fields(part):
        value = getattr(part, each.name)
        if isinstance(value, Matrix):
            beginnings.append((value.format.name, value.data.shape, value.data[:1, :_NUM_SAMPLED].tobytes()))
        elif isinstance(value, np.ndarray):
            beginnings.append(value[:_NUM_SAMPLED].tobytes())
        elif not isinstance(value, (list, tuple)):
            beginnings.append(value)
    return beginnings


def format_names(weights: DecoderWeights) -> set[str]:
    """The formats that a decoder's matrices are in, by GGML's names."""
    matrices = (getattr(part, field.name) for part in _parts(weights) for field in fields(part))
    return {matrix.format.name for matrix in matrices if isinstance(matrix, Matrix)}


def _digest(parts: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode())
    return digest.hexdigest()[:16]
