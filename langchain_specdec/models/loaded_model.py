"""A model with all that was loaded beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from langchain_specdec.models.private_tokenizer import PrivateTokenizer
from langchain_specdec.models.quantization import QUANTIZATIONS
from langchain_specdec.runner.cpu.packed_layers import PackedLinear, first_numbers
from langchain_specdec.runner.model_inputs import max_positions


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to run, with its tokenizer.

    Attributes:
        model: Causal language model; one that was loaded elsewhere may be in training mode.
        tokenizer: Its tokenizer, which its owner may use and change.
        name: Model id or folder, for messages and identification.
        eos_token_ids: Tokens that end a text.
        is_owned: Whether it was loaded here, so that nobody else relies on how it keeps its weights.
        adapter: Id or folder of the adapter that was merged into its weights.
        quantization: What its runner is to make of its weights, a word of `QUANTIZATIONS`.
    """

    model: Any
    tokenizer: Any
    name: str
    eos_token_ids: tuple[int, ...]
    is_owned: bool = False
    adapter: str | None = None
    quantization: str | None = None

    @cached_property
    def private_tokenizer(self) -> PrivateTokenizer:
        """A copy of the tokenizer for everything done here, as it was when this was read first."""
        return PrivateTokenizer(self.tokenizer)

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
        if not is_own_tokenizer:
            identity["tokenizer"] = _digest([sorted(self.private_tokenizer.copied.get_vocab().items())])
        if not isinstance(source, torch.nn.Module) and Path(str(source)).exists():
            identity["model"] = str(Path(str(source)).resolve())
        if self.adapter is not None:
            identity["adapter"] = self.adapter
        # A loaded model has no name to rely on, a folder may hold another model tomorrow, and an id of the hub the next
        # revision: transformers 5 does not tell which one it read.
        identity["fingerprint"] = _fingerprint(self.model)
        return identity


def _fingerprint(model: torch.nn.Module) -> str:
    """Tells models apart that may share a name: a digest of the first numbers of every parameter."""
    parameters = [
        # Weights that are on disk only are on the device "meta" and have no numbers at hand.
        (name, tuple(p.shape), [] if p.is_meta else first_numbers(p))
        for name, p in model.named_parameters()
    ]
    # The model of another backend may be packed.
    packed = [(name, module.samples) for name, module in model.named_modules() if isinstance(module, PackedLinear)]
    return _digest([*parameters, *packed])


def _digest(parts: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode())
    return digest.hexdigest()[:16]
