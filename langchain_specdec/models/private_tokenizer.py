"""A tokenizer that nobody else uses or changes: what encodes and decodes every text here."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer
from typing_extensions import Self

from langchain_specdec.completions.room import IN_PIECES
from langchain_specdec.errors import InvalidParameterError, PromptTooLongError, UnsupportedModelError
from langchain_specdec.options import check_unicode

# Characters for each token that may be: texts of more are encoded from their beginning, piece by piece, first.
_CHARACTERS_PER_TOKEN = 16


def apart(tokenizer: Any) -> tuple[Any, Any]:
    """The tokenizer and the image processor of a processor; what is none is a tokenizer."""
    processor = getattr(tokenizer, "image_processor", None)
    if processor is None:
        return tokenizer, None
    own = tokenizer.tokenizer
    if (template := getattr(tokenizer, "chat_template", None)) and not getattr(own, "chat_template", None):
        own = copy.deepcopy(own)
        own.chat_template = template
    return own, processor


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse what is no loaded tokenizer, such as the id of one, or an image processor."""
    has_decode = callable(getattr(tokenizer, "decode", None))
    if not has_decode and (not callable(tokenizer) or hasattr(tokenizer, "preprocess")):
        is_name = isinstance(tokenizer, str)
        advice = f": AutoTokenizer.from_pretrained({tokenizer!r})." if is_name else f", got {type(tokenizer).__name__}."
        raise InvalidParameterError(f"tokenizer must be a loaded tokenizer{advice}")


class PrivateTokenizer:
    """A Hugging Face tokenizer that cuts and pads nothing. It may be used from any number of threads.

    A tokenizer may carry truncation and padding, from its file or from its user's last call, and every call with
    `truncation=True` changes it for whoever else uses it meanwhile. So what works here is a copy that nobody else has:
    what a caller's tokenizer is given later, such as further tokens or a chat template, does not reach it. A copy takes
    tens of MB, so a tokenizer that was loaded here is copied only once somebody asks for it.

    Args:
        tokenizer: A Hugging Face tokenizer.
        is_ours: Whether nobody else has it. It is worked with itself then, and must not be used otherwise afterwards.

    Raises:
        InvalidParameterError: It is none.
        UnsupportedModelError: It cannot be copied.

    Attributes:
        copied: The tokenizer that works here, to read from. Nothing may change it.
        backend: What runs in it, where it is a fast one; None where it is written in Python.
    """

    def __init__(self, tokenizer: Any, *, is_ours: bool = False) -> None:
        check_tokenizer(tokenizer)
        self._original = None if is_ours else tokenizer
        self.copied = tokenizer if is_ours else _copy(tokenizer)
        self.backend: Tokenizer | None = getattr(self.copied, "backend_tokenizer", None)
        # Whoever asks for a tokenizer that was loaded gets these as they came.
        self._cuts = self._pads = None
        if self.backend is not None:
            self._cuts, self._pads = self.backend.truncation, self.backend.padding
            self.backend.no_truncation()
            self.backend.no_padding()
        self._handing_out = threading.Lock()
        self._is_decoded_by_backend = self.backend is not None and _is_decoded_by_backend(type(self.copied))
        # One in Python keeps state while it works. A fast one is only read: its calls run beside each other.
        self._lock = threading.Lock() if self.backend is None else contextlib.nullcontext()
        # The first call may change settings, so that none of the later ones has to.
        with contextlib.suppress(Exception):
            self.encode("a")

    @classmethod
    def of(cls, tokenizer: Any) -> Self:
        """A private copy of a tokenizer; one that is private already is shared."""
        return tokenizer if isinstance(tokenizer, cls) else cls(tokenizer)

    def __deepcopy__(self, memo: dict[int, Any]) -> PrivateTokenizer:
        # Nothing changes it, so copies of what holds it may share it.
        return self

    def __reduce__(self) -> tuple[type[PrivateTokenizer], tuple[Any]]:
        # Another process begins with it anew.
        return PrivateTokenizer, (self.original,)

    @property
    def original(self) -> Any:
        """The tokenizer that was copied; of one that was loaded here a copy, which is everybody's to use and change."""
        with self._handing_out:
            if self._original is None:
                with self._lock:
                    original = _copy(self.copied)
                if self._cuts is not None:
                    original.backend_tokenizer.enable_truncation(**self._cuts)
                if self._pads is not None:
                    original.backend_tokenizer.enable_padding(**self._pads)
                self._original = original
            return self._original

    @property
    def latest(self) -> PrivateTokenizer:
        """The same, as long as nobody else may have changed it; else a copy of what `original` is now."""
        return self if self._original is None else PrivateTokenizer(self._original)

    @property
    def bos_token(self) -> str | None:
        """The text of the token that begins a text."""
        return self.copied.bos_token  # type: ignore[no-any-return]

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text."""
        return self.copied.bos_token_id  # type: ignore[no-any-return]

    @cached_property
    def special_texts(self) -> dict[int, str]:
        """The special tokens with their texts, by id."""
        added = self.copied.added_tokens_decoder.items()
        return {int(index): token.content for index, token in added if token.special}

    def ids_of_added(self, text: str) -> list[int]:
        """The added tokens that are a text, special or not."""
        added = self.copied.added_tokens_decoder.items()
        return [int(index) for index, token in added if token.content == text]

    def encode(
        self, text: str, *, add_special_tokens: bool = True, what: str = "text", limit: int | None = None
    ) -> list[int]:
        """The tokens of a text, as the tokenizer's own call gives them.

        Args:
            text: The text.
            add_special_tokens: Whether to add those that a prompt gets, such as the one that begins it.
            what: What it is, for messages.
            limit: Most tokens that are of use.

        Raises:
            InvalidParameterError: It is no valid Unicode text.
            PromptTooLongError: It has far more than `limit` tokens. Where it has a few more, they are returned.
        """

        def call(part: str) -> list[int]:
            with self._lock:
                return list(
                    self.copied(
                        part,
                        add_special_tokens=add_special_tokens,
                        return_attention_mask=False,
                        return_token_type_ids=False,
                        verbose=False,
                    ).input_ids
                )

        return encode_within(call, text, what, limit)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        if self._is_decoded_by_backend and self.backend is not None:
            # What lies between takes four times as long as the decoding itself, twice a token.
            return self.backend.decode(list(tokens), skip_special_tokens=True)
        with self._lock:
            text: str = self.copied.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def _copy(tokenizer: Any) -> Any:
    try:
        return copy.deepcopy(tokenizer)
    except Exception as error:  # whatever its attributes raise
        reason = " ".join(str(error).split()).rstrip(".")
        msg = (
            f"The tokenizer ({type(tokenizer).__name__}) cannot be copied, and only a copy is safe from its other "
            f"users: {reason}. Give one as AutoTokenizer loads it, without locks, open files and the like."
        )
        raise UnsupportedModelError(msg) from error


def _is_decoded_by_backend(kind: type) -> bool:
    """Whether a tokenizer's own `decode` does nothing but call that of its backend."""
    modules = [getattr(getattr(kind, name, None), "__module__", None) for name in ("decode", "_decode")]
    # By name, since tokenizers need not be transformers' own; `_decode` moved between its versions 4 and 5.
    return modules[0] == "transformers.tokenization_utils_base" and modules[1] in (
        "transformers.tokenization_utils_fast",
        "transformers.tokenization_utils_tokenizers",
    )


def encode_within(encode: Callable[[str], list[int]], text: str, what: str, limit: int | None) -> list[int]:
    """The tokens of a text, if they are not far too many: a huge text is refused by its beginning.

    The beginning of a text may have a token more than it has within the whole, but not twice as many.

    Args:
        encode: Gives the tokens of a text.
        text: The text.
        what: What it is, for messages.
        limit: Most tokens that are of use; None: any number.

    Raises:
        InvalidParameterError: It is no valid Unicode text.
        PromptTooLongError: It has more than `limit` tokens, and so many that this was seen before its end.
    """
    check_unicode(f"The {what}", text)
    size = len(text) if limit is None else (limit + 1) * _CHARACTERS_PER_TOKEN
    while size < len(text):
        if len(encode(text[:size])) > 2 * (limit or 0):
            msg = (
                f"The {what} is too long: it has {len(text)} characters, and its first {size} alone have more tokens "
                f"than max_length, which is {limit}. Shorten it, or load the model with a larger max_length if it "
                f"takes one. {IN_PIECES}"
            )
            raise PromptTooLongError(msg)
        size *= 4
    return encode(text)
