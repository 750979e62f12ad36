"""Tokenizers with numbers of their own, and models that write the same in them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.support.tiny_models import tiny_model

EOS, BOS = "</s>", "<s>"


def shuffled_tokenizer(seed: int = 0, merges: Sequence[tuple[str, str]] = (), *, has_bos: bool = False) -> Any:
    """Every byte is a token, and some pairs are, all with numbers of their own; texts end and begin by other names."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*alphabet, *("".join(pair) for pair in merges)]
    numbers = random.Random(seed).sample(range(len(entries)), len(entries))
    tokenizer = Tokenizer(models.BPE(vocab=dict(zip(entries, numbers, strict=True)), merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([BOS, EOS])
    if has_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, bos_token=BOS)


def renumbered(model: Any, ours: Any, theirs: Any) -> Any:
    """A model that writes as `model` does, in another tokenizer's numbers."""
    other = tiny_model(vocab_size=len(theirs), dtype=model.dtype)
    names = {ours.eos_token: theirs.eos_token, ours.bos_token: theirs.bos_token}
    with torch.no_grad():
        for (_, old), (name, new) in zip(model.named_parameters(), other.named_parameters(), strict=True):
            if name not in ("model.embed_tokens.weight", "lm_head.weight"):
                new.copy_(old)
                continue
            new.zero_()
            for entry, index in ours.get_vocab().items():
                new[theirs.convert_tokens_to_ids(names.get(entry, entry))] = old[index]
    return other
