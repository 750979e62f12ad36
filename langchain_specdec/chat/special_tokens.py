"""Prompts whose data can never act as control: special tokens that arrive in messages are read as plain text.

A chat template mixes its own special tokens with the texts of messages, and a tokenizer cannot tell them apart
afterwards. So what looks like a special token is taken out of the messages before they are rendered, leaving one
private-use character in its place, and put back afterwards in a way that the tokenizer does not recognise.
"""

from __future__ import annotations

import bisect
import re
import threading
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.text_patterns import one_of
from langchain_specdec.grammar.token_names import renamed_json, secret_names
from langchain_specdec.models.private_tokenizer import PrivateTokenizer, encode_within

_PRIVATE_USE = range(0xE000, 0xF900)
_PRIVATE_CHARACTERS = re.compile("[\ue000-\uf8ff]")
_ZERO_WIDTH_SPACE = "\u200b"
# Some tokenizers drop the first, or the first two.
_BREAKERS = (_ZERO_WIDTH_SPACE, " ", "\u00b7", "_")


class Specials:
    """Texts of special tokens, and where they stand in other texts.

    Args:
        contents: The texts.
    """

    def __init__(self, contents: Iterable[str]) -> None:
        self.contents = sorted(contents)
        # Longest first, as tokenizers match.
        self.pattern = re.compile(one_of(self.contents))
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
        used = {character for text in _strings(values) for character in set(_PRIVATE_CHARACTERS.findall(text))}
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
    get the text with a zero-width space in what looks like a special token, also where it only comes to look like one
    when the tokenizer has normalised it, as fullwidth letters do.

    Args:
        tokenizer: A Hugging Face tokenizer, or a private copy of one.
        template: Source of the chat template; added tokens that it mentions are protected too.
    """

    def __init__(self, tokenizer: Any, template: str) -> None:
        self._tokenizer = PrivateTokenizer.of(tokenizer)
        self._lock = threading.Lock()
        added = {t.content: t for t in self._tokenizer.copied.added_tokens_decoder.values() if t.content.strip()}
        always = [content for content, token in added.items() if token.special]
        # Such as <think> and <tool_call> of Qwen: not special to the tokenizer, but control to the template.
        plain = [content for content, token in added.items() if not token.special]
        mentioned = [content for content in plain if content in template or content.replace("<", "</") in template]
        self.specials = Specials(always + mentioned)
        """Texts that must not be control in what people and tools write."""
        self.model_specials = Specials(always)
        """The same for what the model wrote: it may think and call tools."""
        self._normalize = _normalization(self._tokenizer.backend)
        # Tokens that are looked for in the normalised text are themselves normalised before.
        normalized = [self._normalize(content) for content in always + mentioned if added[content].normalized]
        self._disguised = Specials({*always, *mentioned, *filter(str.strip, normalized)})
        self._aliases: dict[str, str] = {}
        self._aliased: Tokenizer | None = None

    def seal(self, *values: Any) -> Sealed:
        """Begin a prompt that will hold these values."""
        return Sealed(self.specials, values)

    def encode(self, rendered: str, sealed: Sealed, limit: int | None = None) -> list[int]:
        """The tokens of a rendered prompt.

        Args:
            rendered: The prompt.
            sealed: What was sealed in it.
            limit: Most tokens that are of use.

        Raises:
            InvalidParameterError: It is no valid Unicode text.
            PromptTooLongError: It has far more than `limit` tokens.
        """
        if sealed.literals or self._has_disguised(rendered):
            if (tokenizer := self._aliased_tokenizer()) is not None:
                text = self.specials.pattern.sub(lambda match: self._aliases[match[0]], rendered)

                def encode(part: str) -> list[int]:
                    return list(tokenizer.encode(part, add_special_tokens=False).ids)

                return encode_within(encode, sealed.unseal(text), "prompt", limit)
            rendered = self._broken_up(rendered, sealed)
        return self._tokenizer.encode(rendered, add_special_tokens=False, what="prompt", limit=limit)

    def as_text(self, rendered: str, sealed: Sealed) -> str:
        """A rendered prompt for those who take text only and look for special tokens in all of it."""
        text = self._broken_up(rendered, sealed)
        bos = self._tokenizer.bos_token
        # The reader of the text puts its first token (BOS) there again.
        if bos and self._tokenizer.encode("a")[:1] == [self._tokenizer.bos_token_id]:
            return text.removeprefix(bos)
        return text

    def as_data(self, text: str) -> str:
        """A text that may stand in a prompt: what is, or comes to be, a special token in it is broken up."""
        sealed = self.seal(text)
        return self._break(sealed.unseal(sealed.seal(text), is_broken_up=True))

    def _has_disguised(self, rendered: str) -> bool:
        """Whether normalising makes special tokens of anything beside the template's own."""
        return any(self._is_disguised(part) for part in self.specials.pattern.split(rendered))

    def _is_disguised(self, text: str) -> bool:
        try:
            return self._disguised.pattern.search(self._normalize(text)) is not None
        except (TypeError, UnicodeError):
            return False  # it is no Unicode text, and has no tokens

    def _broken_up(self, rendered: str, sealed: Sealed) -> str:
        """A rendered prompt in which nothing but the template's own special tokens looks like one."""
        parts: list[str] = []
        position = 0
        for match in self.specials.pattern.finditer(rendered):
            parts += [self._break(sealed.unseal(rendered[position : match.start()], is_broken_up=True)), match[0]]
            position = match.end()
        return "".join([*parts, self._break(sealed.unseal(rendered[position:], is_broken_up=True))])

    def _break(self, text: str) -> str:
        """A text without special tokens in disguise: each is broken by the first character that breaks it."""
        if not self._is_disguised(text):
            return text
        for breaker in _BREAKERS:
            parts: list[str] = []
            start = 0
            while end := self._first_disguised(text, start):
                # The special token is whole with its last character, so that one is set apart.
                parts += [text[start : end - 1], breaker]
                start = end - 1
            broken = "".join([*parts, text[start:]])
            if not self._is_disguised(broken):
                return broken
        msg = (
            "A message holds what this model's tokenizer turns into a special token, and nothing breaks it up. "
            "Take it out of the message."
        )
        raise InvalidParameterError(msg)

    def _first_disguised(self, text: str, start: int) -> int:
        """Where the first special token in disguise ends that begins after `start`; 0: there is none."""
        size = 64
        while not self._is_disguised(text[start : start + size]):
            if start + size >= len(text):
                return 0
            size *= 2
        # One character alone cannot be broken up.
        sizes = range(2, min(size, len(text) - start))
        return (
            start
            + bisect.bisect_left(sizes, True, key=lambda length: self._is_disguised(text[start : start + length]))
            + 2
        )

    def _aliased_tokenizer(self) -> Tokenizer | None:
        with self._lock:
            if not self._aliases:
                self._aliases = secret_names(self.specials.contents)
                backend = self._tokenizer.backend
                self._aliased = _renamed(backend, self._aliases) if backend is not None else None
            return self._aliased


def _normalization(backend: Tokenizer | None) -> Callable[[str], str]:
    """What a tokenizer does to texts before it looks for tokens in them."""
    if backend is None:
        # Those in Python do not tell. Most that normalise do so in this way.
        return lambda text: unicodedata.normalize("NFKC", text)
    normalizer = backend.normalizer
    # It writes spaces as the sign that stands for them in names of tokens.
    has_metaspace = "Metaspace" in str(backend.pre_tokenizer)

    def normalize(text: str) -> str:
        text = normalizer.normalize_str(text) if normalizer is not None else text
        return text.replace(" ", "\u2581") if has_metaspace else text

    return normalize


def _renamed(backend: Tokenizer, names: Mapping[str, str]) -> Tokenizer | None:
    """A copy of a tokenizer whose added tokens bear other names; None where it cannot be made."""
    try:
        renamed = Tokenizer.from_str(renamed_json(backend, names))
    except Exception:  # the library raises nothing more specific
        return None
    is_same = all(renamed.token_to_id(new) == backend.token_to_id(old) for old, new in names.items())
    return renamed if is_same else None


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
