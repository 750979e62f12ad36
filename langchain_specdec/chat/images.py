"""Images of a call: their bytes, and the marks that stand for them in the texts of its messages."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

# Marks are spelled in noncharacters, which no special token has, and hold a secret, so that no text of a message or a
# tool is one, whoever wrote it.
_DIGITS = {digit: chr(0xFDD0 + value) for value, digit in enumerate("0123456789abcdef")}
_BEGIN = "\ufdee" + "".join(_DIGITS[digit] for digit in secrets.token_hex(8))
_END = "\ufdef"
_MARK = re.compile(f"({_BEGIN}[{_DIGITS['0']}-{_DIGITS['9']}]+{_END})")


class _Image(NamedTuple):
    """An image.

    Attributes:
        data: Its file.
        note: What stands in its place where it cannot be shown.
        is_found: Whether a tool found it; what a person gives is never left out.
    """

    data: bytes
    note: str
    is_found: bool


class Images:
    """The images of a call, numbered as its messages have them.

    Args:
        why_none: Why the model cannot be given any, as the end of a sentence; "" where it can.
    """

    def __init__(self, why_none: str = "it reads text only") -> None:
        self.why_none = why_none
        self._images: list[_Image] = []

    def __bool__(self) -> bool:
        return bool(self._images)

    def add(self, data: bytes, note: str, *, is_found: bool) -> str:
        """Add one; the mark that stands for it in texts."""
        self._images.append(_Image(data, note, is_found))
        return mark_of(len(self._images) - 1)

    def data(self, number: int) -> bytes:
        """The file of one."""
        return self._images[number].data

    def note(self, number: int) -> str:
        """What stands in the place of one that cannot be shown."""
        return self._images[number].note

    @property
    def found(self) -> list[int]:
        """The numbers of those that tools found."""
        return [number for number, image in enumerate(self._images) if image.is_found]


def mark_of(number: int) -> str:
    """What stands for an image in texts."""
    return _BEGIN + "".join(_DIGITS[digit] for digit in str(number)) + _END


def split(text: str) -> list[str | int]:
    """A text as its pieces between images, none of them empty, and the numbers of the images."""
    if _BEGIN not in text:
        return [text] if text else []
    return [_number(piece) if _MARK.fullmatch(piece) else piece for piece in _MARK.split(text) if piece]


def map_texts(text: str, change: Callable[[str], str]) -> str:
    """A text whose pieces between images are changed one by one."""
    return "".join(mark_of(piece) if isinstance(piece, int) else change(piece) for piece in split(text))


def numbers_in(text: str) -> list[int]:
    """The numbers of the images in a text, in its order."""
    return [piece for piece in split(text) if isinstance(piece, int)]


def numbers_of(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """The numbers of all images in messages, in their order."""
    texts = [
        text for row in messages for text in (row["content"], *(r["response"] for r in row.get("tool_responses", ())))
    ]
    return [number for text in texts for number in numbers_in(text)]


def with_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates take it, with a list of parts for its content where there are images in it."""
    pieces = split(message["content"])
    if not any(isinstance(piece, int) for piece in pieces):
        return dict(message)
    parts = [{"type": "image"} if isinstance(piece, int) else {"type": "text", "text": piece} for piece in pieces]
    return {**message, "content": parts}


def with_marks(rendered: str, placeholder: str, numbers: Sequence[int]) -> str | None:
    """A rendered prompt with marks in place of the placeholders of a template; None where these are not as many.

    Args:
        rendered: The prompt.
        placeholder: What the template writes where an image stands.
        numbers: Those of the images, in order.
    """
    pieces = rendered.split(placeholder) if placeholder else [rendered]
    if len(pieces) != len(numbers) + 1:
        return None
    return pieces[0] + "".join(mark_of(number) + piece for number, piece in zip(numbers, pieces[1:], strict=True))


def with_texts(rendered: str, texts: Sequence[str]) -> str:
    """A text with others in place of its images, in order."""
    following = iter(texts)
    return "".join(next(following) if isinstance(piece, int) else piece for piece in split(rendered))


def _number(mark: str) -> int:
    return int("".join(str(ord(digit) - 0xFDD0) for digit in mark[len(_BEGIN) : -1]))
