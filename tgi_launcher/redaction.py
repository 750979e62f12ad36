"""Keeps secrets out of TGI's log, in every form in which it may write them, whole or cut to pieces."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable
from urllib.parse import quote

from tgi_launcher.command import MASK

# The launcher prints its arguments when it starts, the key too, in the form of Rust's Debug.
_KEY_IN_DUMP = re.compile(r'(api_key:\s*Some\(\s*)"(?:\\.|[^"\\])*"', re.DOTALL)
# What may stand between two parts of one text: line breaks, indentation, the borders of boxes, quotes.
_FILLER = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2500-\u259f\u2026|❱'\"\\]+")
_SIGN = re.compile(r"[^\s\x00-\x1f\x7f-\x9f\u2500-\u259f\u2026|❱'\"\\]")
# Characters of a part of a secret that is replaced. Shorter ones are in ordinary words too.
_PIECE = 8
# A secret may be so short if it is whole.
_MIN_WHOLE = 6
_MARK = 5


class Redactor:
    """Replaces secrets in text.

    A part of a secret of at least eight characters counts as the secret: tracebacks cut long values, and break them
    over lines, in boxes with borders.

    Args:
        secrets: Texts that must not show.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        forms: set[str] = set()
        for secret in filter(None, secrets):
            slashes = secret.replace("\\", "\\\\")
            debug = slashes.replace('"', '\\"')
            forms |= {secret, slashes, debug, json.dumps(secret)[1:-1], json.dumps(debug)[1:-1]}
            forms |= {html.escape(secret), html.escape(secret, quote=False), quote(secret), quote(secret, safe="")}
        # A form may contain another, so the longest is replaced first.
        self._forms = sorted(forms, key=len, reverse=True)
        # The parts by their lengths.
        self._pieces: dict[int, set[str]] = {}
        # Texts of which each part holds at least one. Most texts have none, which is found out fast.
        self._marks: set[str] = set()
        for form in (_FILLER.sub("", form) for form in forms):
            if len(form) >= _MIN_WHOLE:
                size = min(len(form), _PIECE)
                pieces = (form[i : i + size] for i in range(len(form) - size + 1))
                self._pieces.setdefault(size, set()).update(pieces)
                self._marks.update(form[i : i + _MARK] for i in range(0, len(form) - _MARK + 1, size - _MARK + 1))

    def __call__(self, text: str, *, is_cut: bool = False, before: str = "") -> str:
        """The text with `***` for each secret.

        Args:
            text: Any text.
            is_cut: Whether it may end within a secret. So much of its end is left out that it does not.
            before: The `tail` of the line before, if a secret may have been broken over the two.
        """
        text = self._hide_pieces(text, before) if before else text
        for form in self._forms:
            text = text.replace(form, MASK)
        text = _KEY_IN_DUMP.sub(rf'\1"{MASK}"', text)
        # Of a secret that is cut in two, the first part would not be recognised.
        text = text[: 1 - len(self._forms[0])] if is_cut and self._forms and len(self._forms[0]) > 1 else text
        return self._hide_pieces(text)

    def tail(self, text: str, before: str = "") -> str:
        """What of a text, and of the tail before it, the begin of the next line has to be looked at with."""
        if not self._pieces:
            return ""
        # All that can be part of a piece that ends in the next line.
        return (before + _FILLER.sub("", text))[1 - max(self._pieces) :]

    def _hide_pieces(self, text: str, before: str = "") -> str:
        plain = before + _FILLER.sub("", text)
        if not any(mark in plain for mark in self._marks):
            return text
        spans = [
            (start, start + size)
            for size, pieces in self._pieces.items()
            for start in range(len(plain) - size + 1)
            if plain[start : start + size] in pieces
        ]
        if not spans:
            return text
        places = [match.start() for match in _SIGN.finditer(text)]
        shown: list[str] = []
        end = 0
        for start, stop in _merged((start - len(before), stop - len(before)) for start, stop in spans):
            if stop > 0:
                shown += [text[end : places[max(start, 0)]], MASK]
                end = places[stop - 1] + 1
        return "".join([*shown, text[end:]])


def _merged(spans: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    """Spans that overlap or touch, as one, in order."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged
