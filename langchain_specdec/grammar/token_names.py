"""Tokenizers whose added tokens bear other names, so that no text is ever taken for one of them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer

# Private-use characters of a plane that nobody's texts use.
_ALIAS_BASE = 0xF0000
_ALIAS_LENGTH = 12


def special_names(tokenizer: Any) -> set[str]:
    """Added tokens that stand in no text: those that are special, and tags, whatever the tokenizer says of them."""
    added = tokenizer.added_tokens_decoder.values()
    return {t.content for t in added if t.special or (t.content.startswith("<") and t.content.endswith(">"))}


def secret_names(contents: Iterable[str]) -> dict[str, str]:
    """A name for each of these tokens that nobody can guess. It has the form of a tag, as most such tokens have."""
    secret = "".join(chr(_ALIAS_BASE + secrets.randbelow(0xFFFD)) for _ in range(_ALIAS_LENGTH))
    return {content: f"<{secret}{chr(_ALIAS_BASE + index)}>" for index, content in enumerate(contents)}


def renamed_json(backend: Tokenizer, names: Mapping[str, str]) -> str:
    """A tokenizer as JSON, with other names for some of its added tokens.

    Args:
        backend: The tokenizer.
        names: New names by the old ones.
    """
    state = json.loads(backend.to_str())
    for token in state["added_tokens"]:
        if token["content"] in names:
            token["content"] = names[token["content"]]
            token["normalized"] = False
    model = state["model"]
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(name, name): index for name, index in vocab.items()}
    elif isinstance(vocab, list):
        model["vocab"] = [[names.get(name, name), score] for name, score in vocab]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if not _makes_any(merge, names)]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    return json.dumps(state)


def _makes_any(merge: Any, names: Mapping[str, str]) -> bool:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left in names or right in names or left + right in names
