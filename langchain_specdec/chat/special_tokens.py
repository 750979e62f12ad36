"""Prompts whose data can never act as control: special tokens that arrive in messages are read as plain text.

A chat template mixes its own special tokens with the texts of messages, and a tokenizer cannot tell them apart
afterwards. So what looks like a special token is taken out of the messages before they are rendered, leaving one
private-use character in its place, and put back afterwards in a way that the tokenizer does not recognise.
"""

from __future__ import annotations

import copy
import json
import re
import secrets
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer

from langchain_specdec.errors import InvalidParameterError

_PRIVATE_USE = range(0xE000, 0xF900)
# Private-use characters of another plane, for the names that special tokens bear while hostile text is encoded.
_ALIAS_BASE = 0xF0000
_ALIAS_LENGTH = 12
_ZERO_WIDTH_SPACE = "\u200b"


class Specials:
    """Texts of special tokens, and where they stand in other texts.

    Args:
        contents: The texts.
    """

    def __init__(self, contents: Iterable[str]) -> None:
        # Longest first, as tokenizers match.
        self.contents = sorted(contents, key=lambda content: (-len(content), content))
        # An empty alternation would match everywhere.
        self.pattern = re.compile("|".join(map(re.escape, self.contents)) or r"(?!)")
        self._beginnings = {content[:length] for content in self.contents for length in range(1, len(content))}
        self._longest = max(map(len, self._beginnings), default=0)

    def is_begun_by(self, text: str) -> bool:
        """Whether more text could complete one of them."""
        return any(text[-length:] in self._beginnings for length in range(1, min(self._longest, len(text)) + 1))


class Sealed:
    """What one prompt's special-looking texts were replaced by.

    Args:
        specials: Texts of the special tokens.
        values: All data of the prompt, to choose characters that do not occur in it.
    """

    def __init__(self, specials: Specials, values: Any) -> None:
        self._specials = specials
        used = {character for text in _strings(values) for character in text}
        self._free = (chr(code) for code in _PRIVATE_USE if chr(code) not in used)
        self.literals: dict[str, str] = {}
        """Private-use character -> the text that it stands for."""

    def seal(self, value: Any, specials: Specials | None = None) -> Any:
        """A copy of JSON-like data without anything that is, or could grow into, a special token.

        Args:
            value: The data.
            specials: Seal only these.
        """
        if isinstance(value, str):
            return self._seal_text(value, specials or self._specials)
        if isinstance(value, Mapping):
            return {self.seal(key, specials): self.seal(item, specials) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.seal(item, specials) for item in value]
        return value

    def _seal_text(self, text: str, specials: Specials) -> str:
        text = specials.pattern.sub(lambda match: self._stand_in(match[0]), text)
        # A text may end with the beginning of a special token, which the template would then complete.
        if specials.is_begun_by(text):
            text += self._stand_in("")
        return text

    def _stand_in(self, literal: str) -> str:
        for character, known in self.literals.items():
            if known == literal:
                return character
        character = next(self._free, "")
        if not character:
            msg = "The messages use all private-use characters of Unicode, so none is left to protect their text with."
            raise InvalidParameterError(msg)
        self.literals[character] = literal
        return character

    def unseal(self, text: str, *, is_broken_up: bool = False) -> str:
        """Put the literal texts back, as they were or broken up by zero-width spaces."""
        for character, literal in self.literals.items():
            broken = literal[:1] + _ZERO_WIDTH_SPACE + literal[1:] if literal else ""
            text = text.replace(character, broken if is_broken_up else literal)
        return text


class ProtectedEncoder:
    """Encodes rendered prompts so that only the template's own special tokens become special tokens.

    For harmless messages the tokens are those of the tokenizer on the rendered text, exactly. Otherwise a copy of
    the tokenizer is used whose special tokens bear secret names: the template's are renamed in the text, and what
    messages contain has no special meaning for it. A tokenizer in pure Python, and a server that takes only text,
    get the text with a zero-width space in what looks like a special token.

    Args:
        tokenizer: A Hugging Face tokenizer. It is copied: the original may be in use by others.
        template: Source of the chat template; added tokens that it mentions are protected too.
    """

    def __init__(self, tokenizer: Any, template: str) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)
        self._lock = threading.Lock()
        added = {t.content: t for t in tokenizer.added_tokens_decoder.values() if t.content.strip()}
        always = [content for content, token in added.items() if token.special]
        # Such as <think> and <tool_call> of Qwen: not special to the tokenizer, but control to the template.
        plain = [content for content, token in added.items() if not token.special]
        mentioned = [content for content in plain if content in template or content.replace("<", "</") in template]
        self.specials = Specials(always + mentioned)
        """Texts that must not be control in what people and tools write."""
        self.model_specials = Specials(always)
        """The same for what the model wrote: it may think and call tools."""
        # A normalizer may turn other texts into these, so the secret names are always needed.
        self._is_normalized = any(added[content].normalized for content in always + mentioned)
        self._aliases: dict[str, str] | None = None
        self._aliased: Tokenizer | None = None

    def seal(self, *values: Any) -> Sealed:
        """Begin a prompt that will hold these values."""
        return Sealed(self.specials, values)

    def encode(self, rendered: str, sealed: Sealed) -> list[int]:
        """The tokens of a rendered prompt."""
        with self._lock:
            if (sealed.literals or self._is_normalized) and (tokenizer := self._aliased_tokenizer()) is not None:
                text = self.specials.pattern.sub(lambda match: (self._aliases or {})[match[0]], rendered)
                return self._encode(lambda: tokenizer.encode(sealed.unseal(text), add_special_tokens=False).ids)
            text = sealed.unseal(rendered, is_broken_up=True)
            return self._encode(lambda: self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def as_text(self, rendered: str, sealed: Sealed) -> str:
        """A rendered prompt for those who take text only and look for special tokens in all of it."""
        text = sealed.unseal(rendered, is_broken_up=True)
        with self._lock:
            begins = self._tokenizer("a", verbose=False).input_ids
        bos = self._tokenizer.bos_token
        # The reader of the text puts its first token (BOS) there again.
        return text.removeprefix(bos) if bos and begins[:1] == [self._tokenizer.bos_token_id] else text

    @staticmethod
    def _encode(encode: Any) -> list[int]:
        try:
            return list(encode())
        except (TypeError, UnicodeError) as error:
            msg = f"A message is not valid Unicode text, so it has no tokens: {error}"
            raise InvalidParameterError(msg) from error

    def _aliased_tokenizer(self) -> Tokenizer | None:
        if self._aliases is None:
            secret = "".join(chr(_ALIAS_BASE + secrets.randbelow(0xFFFD)) for _ in range(_ALIAS_LENGTH))
            names = enumerate(self.specials.contents)
            self._aliases = {content: f"{secret}{chr(_ALIAS_BASE + index)}" for index, content in names}
            backend = getattr(self._tokenizer, "backend_tokenizer", None)
            self._aliased = _renamed(backend, self._aliases) if backend is not None else None
        return self._aliased


def _renamed(backend: Tokenizer, names: Mapping[str, str]) -> Tokenizer | None:
    """A copy of a tokenizer whose added tokens bear other names; None where it cannot be made."""
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
    try:
        renamed = Tokenizer.from_str(json.dumps(state))
    except Exception:  # the library raises nothing more specific
        return None
    is_same = all(renamed.token_to_id(new) == backend.token_to_id(old) for old, new in names.items())
    return renamed if is_same else None


def _makes_any(merge: Any, names: Mapping[str, str]) -> bool:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left in names or right in names or left + right in names


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)
