"""Stop strings in a growing text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

# Characters that may follow -> where they lead; an empty string marks where a stop string is complete.
_Trie = dict[str, Any]
# How far the stop strings have come that may be complete later, and where each began in what is held.
_Begun = list[tuple[_Trie, int]]


class StopText:
    """Cuts a growing text at the first stop string and holds back what may become one.

    All stop strings are followed at once, character by character, so how many there are costs nothing.

    A special token is no part of the text. A stop string ends the text where it stands in the text, or in the text with
    the names of all special tokens.

    Args:
        stop: The stop strings.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._trie: _Trie = {}
        for text in stop:
            node = self._trie
            for character in text:
                node = node.setdefault(character, {})
            node[""] = {}
        self._held = ""
        # In the text with all special tokens, and in that without; one for both before any stands in what is held. Each
        # has at most one for every place where a stop string may have begun.
        self._begun: list[_Begun] = [[]]
        self.is_found = False

    def add(self, text: str) -> str:
        """Text that is safe to release, without the stop string if that is complete now."""
        if not self._trie:
            return text
        places = list(enumerate(text, start=len(self._held)))
        followed = [self._follow(reading, places) for reading in self._begun]
        found = [start for _, starts in followed for start in starts]
        return self._released(self._held + text, [begun for begun, _ in followed], found)

    def add_special(self, content: str) -> str:
        """The same for a special token, which releases nothing of its own."""
        if not self._trie:
            return ""
        named, found = self._follow(self._begun[0], [(len(self._held), character) for character in content])
        return self._released(self._held, [named, self._begun[-1]], found)

    def flush(self) -> str:
        """What was held back; the text ended and it did not become a stop string."""
        held, self._held, self._begun = self._held, "", [[]]
        return held

    def _follow(self, begun: _Begun, places: Iterable[tuple[int, str]]) -> tuple[_Begun, list[int]]:
        """What is begun after some characters, and where stop strings began that are complete now."""
        found: list[int] = []
        for position, character in places:
            if begun or character in self._trie:
                begun, complete = _followed([*begun, (self._trie, position)], character)
                found += complete
        return begun, found

    def _released(self, text: str, begun: list[_Begun], found: list[int]) -> str:
        if found:
            self.is_found = True
            self._held, self._begun = "", [[]]
            return text[: min(found)]
        end = min((start for reading in begun for _, start in reading), default=len(text))
        self._held = text[end:]
        self._begun = [[(node, start - end) for node, start in reading] for reading in begun] if any(begun) else [[]]
        return text[:end]


def _followed(begun: _Begun, character: str) -> tuple[_Begun, list[int]]:
    """What of the begun stop strings goes on with a character, and where those began that it completes."""
    further = [(node[character], start) for node, start in begun if character in node]
    complete = [start for node, start in further if "" in node]
    return [(node, start) for node, start in further if len(node) > ("" in node)], complete


def overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark` and is not all of it."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0
