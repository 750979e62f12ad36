"""A text in pieces that a model has room for, cut where it hurts least; joined they are the text."""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence

# Where to cut, best first: between paragraphs, lines, sentences, words. Beyond them anywhere.
_BOUNDARIES = tuple(map(re.compile, (r"\n[^\S\n]*\n\s*", r"\n", r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])", r"\s+")))  # noqa: RUF001
# What is tried next where a beginning has too many tokens, as a share of what its average promises.
_CAUTION = 0.95


def split(texts: Sequence[str], count: Callable[[str], int], room: int) -> list[str]:
    """Pieces of texts that follow one another, of about the same length, none longer than `room` tokens.

    A library's splitter measures every sentence by itself, which a server's tokenizer would be asked for thousands of
    times, and leaves a last piece of a few words, of which no summary can be made.

    Args:
        texts: The texts. Their ends are the best places to cut.
        count: Number of tokens of a text.
        room: Most tokens of a piece, 1 or more. A single character may have more.

    Returns:
        The pieces, in order; joined they are the joined texts. No piece is empty.
    """
    text = "".join(texts)
    ends = [0]
    for part in texts:
        ends.append(ends[-1] + len(part))
    pieces = []
    begin, num_tokens = 0, count(text)
    while begin < len(text):
        rest = len(text) - begin
        # As many as the average says; once there is one only, it is measured.
        number = max(math.ceil(num_tokens * rest / (len(text) * room)), 1)
        size = rest if number == 1 else math.ceil(rest / number)
        end = begin + _fitting(text, begin, size, count, room)
        if end < len(text):
            # Up to what still fits, so that a boundary just behind the even share can be taken.
            most = min(int((end - begin) * 1.2) + 1, rest)
            if most > end - begin and count(text[begin : begin + most]) > room:
                most = end - begin
            end = _boundary(text, begin, end, begin + most, ends)
        pieces.append(text[begin:end])
        begin = end
    return pieces


def _fitting(text: str, begin: int, size: int, count: Callable[[str], int], room: int) -> int:
    """Length of a beginning of the rest that has room, `size` or less, but 1 at least."""
    while size > 1 and (num_tokens := count(text[begin : begin + size])) > room:
        size = max(min(int(size * room / num_tokens * _CAUTION), size - 1), 1)
    return size


def _boundary(text: str, begin: int, even: int, most: int, ends: Sequence[int]) -> int:
    """The best place to end a piece, not far before `even` and not beyond `most`."""
    least = begin + (even - begin + 1) // 2
    at_ends = ends[bisect_left(ends, max(least, begin + 1)) : bisect_right(ends, most)]
    for places in (at_ends, *(_places(pattern, text, least, most) for pattern in _BOUNDARIES)):
        if (nearest := min(places, key=lambda place: abs(place - even), default=None)) is not None:
            return nearest
    return even


def _places(pattern: re.Pattern[str], text: str, least: int, most: int) -> Iterator[int]:
    # White space at the end of the window may go on behind it, where the next piece would begin with the rest.
    return (match.end() for match in pattern.finditer(text, least, most) if match.end() > least)
