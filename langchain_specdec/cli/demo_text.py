"""Texts of the demo: the paragraphs of a document and what it is called; where a summary ends, and whether it loops."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

# Lines that stand for themselves in Markdown: headings, items, quotes, rows of tables, rules.
_OWN_LINE = re.compile(r"#{1,6}\s|[-*+•]\s|\d+[.)]\s|>|\||([-=*_])\1{2,}\s*$")
_FENCE = re.compile(r"```|~~~")
_HEADING = re.compile(r"#{1,6}\s+(?P<text>.*?)\s*#*$")
_LAST_WORD = re.compile(r"(\S*?)([.!?…]+)[\"'”’)\]*_]*\s*\Z")
# A full stop after a letter or a digit alone is that of an initial or of a number that goes on.
_WHOLE_WORD = re.compile(r"([^\W\d_]{2}|\d{3}|[)\]\"'”’%*_])\Z")
_ABBREVIATIONS = {"mr", "mrs", "ms", "dr", "st", "prof", "vs", "etc"}
_OTHER_ENDS = re.compile(r"[。！？]\s*\Z|[^:\s][^\S\n]*\n\s*\Z")  # noqa: RUF001
_LONGEST_END = 32
# Of the tokens that are allowed, the part within which a sentence may be the last.
_LAST_PART = 0.2
# What has been said before counts from so many characters on, which names and turns of phrase do not reach.
_WINDOW = 32
_LOOPING = 0.25
_LONGEST_TITLE = 80


def paragraphs_of(text: str) -> str:
    """The text with one line per paragraph, since a small model takes the line breaks of a file for the author's.

    Headings, items, rows of tables and blocks of code keep their lines, and any kind of line break will do.
    """
    lines: list[str] = []
    is_code, is_open = False, False
    for line in re.split(r"\r\n|\r|\n|\x0c", text):
        stripped = " ".join(line.split())
        is_fence = _FENCE.match(stripped) is not None
        if is_code or is_fence:
            lines.append(line.rstrip())
            is_code, is_open = is_code != is_fence, False
        elif not stripped:
            if lines and lines[-1]:
                lines.append("")
            is_open = False
        elif _OWN_LINE.match(stripped):
            lines.append(stripped)
            # The lines of an item or a quote may go on below it; a heading and a row are done.
            is_open = stripped[0] not in "#|=_"
        elif is_open:
            lines[-1] += f" {stripped}"
        else:
            lines.append(stripped)
            is_open = True
    return "\n".join(lines).strip()


def title_of(document: str, path: Path | None) -> str:
    """What a document is called: by its heading if it begins with one, else by its file."""
    first, _, rest = document.partition("\n")
    heading = _HEADING.match(first)
    if heading is not None and heading["text"]:
        title = heading["text"]
    elif re.match(r"(=+|-+)\s*(\n|\Z)", rest):
        title = first
    elif path is None or str(path) == "-":
        title = "standard input"
    else:
        title = path.name.encode("utf-8", "replace").decode()
    return title if len(title) <= _LONGEST_TITLE else f"{title[: _LONGEST_TITLE - 1].rstrip()}…"


def ends_sentence(text: str) -> bool:
    """Whether a text can end there: after a sentence, or after a line that does not announce the next."""
    text = text[-_LONGEST_END:]
    if _OTHER_ENDS.search(text) is not None:
        return True
    found = _LAST_WORD.search(text)
    if found is None or _WHOLE_WORD.search(found[1]) is None:
        return False
    return found[2] != "." or found[1].lower() not in _ABBREVIATIONS


def sentence_check(max_new_tokens: int) -> Callable[[], Callable[[str], bool]]:
    """What ends a text at the last sentence that is sure to be whole: the first one near the limit.

    Args:
        max_new_tokens: The limit.

    Returns:
        Makes, for each text, what is told the text of every token, and says whether it ends there.
    """

    def make() -> Callable[[str], bool]:
        count, end = 0, ""

        def is_at_end(text: str) -> bool:
            nonlocal count, end
            count += 1
            end = (end + text)[-_LONGEST_END:]
            return bool(text) and count > max_new_tokens * (1 - _LAST_PART) and ends_sentence(end)

        return is_at_end

    return make


def repeated_share(texts: Sequence[str]) -> float:
    """How much of some texts was said before in the same text, from 0 to 1."""
    num_windows = num_repeated = 0
    for text in texts:
        plain = " ".join(text.split())
        seen: set[str] = set()
        for begin in range(len(plain) - _WINDOW + 1):
            window = plain[begin : begin + _WINDOW]
            num_windows += 1
            num_repeated += window in seen
            seen.add(window)
    return num_repeated / num_windows if num_windows else 0.0


def is_looping(share: float) -> bool:
    """Whether texts of which so much was said before are those of a model that goes round in circles."""
    return share >= _LOOPING
