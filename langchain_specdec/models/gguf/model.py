"""A model out of a GGUF file: configuration, weights and tokenizer."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from langchain_specdec.models.gguf.config import GGUFConfig, read_config
from langchain_specdec.models.gguf.file import GGUFFile, open_gguf
from langchain_specdec.models.gguf.tokenizer import ending_tokens, read_tokenizer
from langchain_specdec.models.gguf.weights import check_tensors, read_weights
from langchain_specdec.models.private_tokenizer import PrivateTokenizer
from langchain_specdec.progress import READING_WEIGHTS, Progress
from langchain_specdec.runner.cpu.decoder_weights import DecoderWeights

# Bytes whose reading is worth a word: less take a part of a second.
_LONG = 2**29


@dataclass(frozen=True, eq=False)  # as modules: each is equal to itself alone
class GGUFModel:
    """A model in the bits of its file, with what else is asked of a Hugging Face model.

    Attributes:
        name: What the user calls it.
        config: Its configuration, under Hugging Face's names.
        generation_config: Its special tokens; `eos_token_id` lists all that end a text.
        weights: Its weights.
        private_tokenizer: Its tokenizer, for everything done here; None where another one was given.
        file: Where it was read from, without the lists that a tokenizer is built from.
        dtype: Of its arithmetic.
        device: Where it is.
    """

    name: str
    config: GGUFConfig
    generation_config: GGUFConfig
    weights: DecoderWeights
    private_tokenizer: PrivateTokenizer | None
    file: GGUFFile
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def tokenizer(self) -> Any:
        """A `PreTrainedTokenizerFast` with the file's chat template; None where another one was given."""
        return None if self.private_tokenizer is None else self.private_tokenizer.original


def read_gguf(
    path: str | os.PathLike[str],
    progress: Progress | None = None,
    *,
    name: str | None = None,
    with_tokenizer: bool = True,
) -> GGUFModel:
    """Read a model. None of transformers' model code is imported.

    Args:
        path: A GGUF file; the first one of a model that is split.
        progress: Told how many bytes are read, and of how many, where it takes more than a moment.
        name: What the user calls it; None is the path.
        with_tokenizer: Whether its tokenizer is wanted.

    Raises:
        ModelLoadError: A file cannot be read, is damaged or is not whole.
        UnsupportedModelError: The engine cannot run such a model, or nothing here knows its tokenizer. Raised before
            its weights are read.
        MissingDependencyError: The package gguf has to dequantise weights, and is not installed.
    """
    file = open_gguf(Path(path))
    shown = str(path) if name is None else name
    config = read_config(file)
    config._name_or_path = shown
    check_tensors(file, config)
    generation = GGUFConfig(
        bos_token_id=config.bos_token_id, eos_token_id=ending_tokens(file), pad_token_id=config.pad_token_id
    )
    tokenizer = None
    if with_tokenizer:
        tokenizer = PrivateTokenizer(read_tokenizer(file, config.max_position_embeddings), is_ours=True)
    file = file.without_lists()

    def tell(done: int, total: int) -> None:
        if progress is not None and total >= _LONG:
            progress(READING_WEIGHTS, done, total)

    weights = read_weights(file, config, shown, tell)
    return GGUFModel(shown, config, generation, weights, tokenizer, file)
