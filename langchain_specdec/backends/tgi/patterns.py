"""Regular expressions as TGI reads them (interegular): which it refuses, how large they are, and inside of JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from langchain_specdec.errors import InvalidParameterError

CLASS_SIZE = 20
"""What a class of characters counts for in the size of an expression."""
# What may follow in a string of JSON that has no escapes.
_REST = r'[^"\\\x00-\x1f\x7f-\x9f]*'
_PARTS = re.compile(
    r"\\(?P<escape>x[0-9a-fA-F]{2}|[0-7]{3}|0[0-7]{0,2}|.)|(?P<set>\[\^?\]?(?:\\.|[^\]\\])*\])"
    r"|(?P<times>\{(?P<low>\d*)(?P<comma>,?)(?P<high>\d*)\}|[*+?])"
    r"|\((?:\?(?P<extension>P?<\w+>|P?[:=!<](?:(?<=<)[=!])?|[a-zA-Z-]+[:)]|.))?|.",
    re.DOTALL,
)
_IN_SET = re.compile(r"\\(x[0-9a-fA-F]{2}|[0-7]{1,3}|.)|.", re.DOTALL)
_MAX_SHOWN = 60
# Anchors, references to groups, and names of characters; in a set of characters some are digits in base 8.
_UNKNOWN_ESCAPES = "AbBZNpPuU123456789"
_UNKNOWN_IN_SETS = "NpPuU89"
_UNKNOWN_PARTS = {"^": "the anchor ^", "$": "the anchor $", "(?<=": "lookbehind", "(?<!": "lookbehind"}
# Readers of regular expressions differ in what these mean inside of a set.
_UNCLEAR = re.compile(r"\[|--|&&|~~|\|\|")
# Where Unicode's letters and spaces count, or only those of ASCII.
_OF_UNICODE = re.compile(r"(?<!\\)(?:\\\\)*(?:\\[WS]|\[\^.*\\[ws])", re.DOTALL)

_LAST = 0x10FFFF
_Ranges = list[tuple[int, int]]
_WORD: _Ranges = [(48, 57), (65, 90), (95, 95), (97, 122)]
_DIGITS: _Ranges = [(48, 57)]
_SPACES: _Ranges = [(9, 13), (32, 32)]
# To the library that answers are checked with, all of Unicode has spaces and letters; to TGI only ASCII has.
_ALL_SPACES: _Ranges = [
    *(*_SPACES, (28, 31), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A)),
    *((0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000)),
]
_MAYBE_WORD: _Ranges = [*_WORD, (128, _LAST)]
# By the letter of an escape: what it surely stands for, and what it may stand for.
_CLASSES = {"w": (_WORD, _MAYBE_WORD), "d": (_DIGITS, _DIGITS), "s": (_SPACES, _ALL_SPACES)}
_CONTROLS = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11}
# What a string of JSON holds only by an escape, or that TGI's own strings never hold.
_NOT_PLAIN: _Ranges = [(0, 31), (34, 34), (92, 92), (127, 159)]
_JSON_ESCAPES = {34: '"', 92: "\\\\", 8: "b", 9: "t", 10: "n", 12: "f", 13: "r"}


class Extent(NamedTuple):
    """Of a regular expression: its characters, repeated ones as often as they may come, and levels of groups."""

    size: int
    depth: int

    @classmethod
    def around(cls, parts: Iterable[Extent], *, times: int = 1, size: int = 0, depth: int = 0) -> Extent:
        """Of these parts together, so many times, with so much more around them."""
        parts = list(parts)
        return cls(
            size + times * sum(part.size for part in parts), depth + max((part.depth for part in parts), default=0)
        )

    @classmethod
    def of(cls, regex: str) -> Extent:
        """Of a valid one."""
        sizes, last, deepest = [0], 0, 0
        for part in _PARTS.finditer(regex):
            text = part[0]
            if (part["extension"] or "").endswith(")"):
                continue
            if text.startswith("("):
                sizes.append(0)
                deepest = max(deepest, len(sizes) - 1)
                continue
            if text == ")":
                last = sizes.pop() if len(sizes) > 1 else 0
            elif part["comma"] is not None:
                # The last part counts once already.
                last *= max(int((part["high"] or part["low"] or "1")[:9]) - 1, 0)
            elif part["times"] or text == "|":
                continue
            else:
                is_class = text == "." or part["set"] or (part["escape"] or " ") in "wdsWDS"
                last = CLASS_SIZE if is_class else 1
            sizes[-1] += last
        return cls(sum(sizes), deepest)


def refuse_syntax(regex: str, what: str) -> None:
    """Refuse what a server would: each refusal takes with it the requests that it begins together with.

    Args:
        regex: A regular expression.
        what: What it is, for the message.

    Raises:
        InvalidParameterError: It is not valid, TGI does not know a part of it, or reads it as something else.
    """
    for part in _PARTS.finditer(regex):
        inner = (part["set"] or "").removeprefix("[").removesuffix("]").removeprefix("^")
        unclear = _UNCLEAR.search(re.sub(r"\\.", "  ", inner, flags=re.DOTALL))
        if unclear or inner.startswith("]"):
            said = unclear[0] if unclear else "]"
            msg = (
                f"{what} has an unclear set of characters, {part[0][:_MAX_SHOWN]}: readers differ in what {said} means "
                f"there. Write {''.join(chr(92) + c for c in said)} for the characters themselves."
            )
            raise InvalidParameterError(msg)
        if part[0] == "{" or part[0] == "{}":
            msg = f"{what} has an unclear {{ that begins no repetition. Write \\{{ for the character."
            raise InvalidParameterError(msg)
    try:
        re.compile(regex)
    except RecursionError:
        # Told by its depth.
        return
    except (re.error, OverflowError) as error:
        msg = f"{what} is not valid: {error}. Correct it."
        raise InvalidParameterError(msg) from None
    repeated_until = -1
    for part in _PARTS.finditer(regex):
        unknown = _unknown(part)
        if part["times"]:
            if repeated_until == part.start() and part[0] == "+":
                unknown = "a possessive repetition (+ after another)"
            repeated_until = part.end()
        if unknown is not None:
            is_anchor = part[0] in ("^", "$", r"\A", r"\Z")
            hint = " (all of the text has to match it, so that it needs no anchors)" if is_anchor else ""
            msg = (
                f"{what} has {unknown}, which TGI's grammars do not know. Write it without{hint}, or use a "
                f"LocalBackend."
            )
            raise InvalidParameterError(msg)


def _unknown(part: re.Match[str]) -> str | None:
    """What TGI does not know in a part of an expression."""
    escapes = [(part["escape"], _UNKNOWN_ESCAPES)] if part["escape"] else []
    escapes += [(m[1], _UNKNOWN_IN_SETS) for m in _IN_SET.finditer(part["set"] or "") if m[1]]
    for escape, unknown in escapes:
        if escape in unknown:
            return f"the escape \\{escape}"
    extension = part["extension"] or ""
    if extension.startswith("#"):
        return "a comment"
    if extension in ("P=", ">", "("):
        return f"the group (?{extension}"
    if re.match(r"[a-zA-OQ-Z-]", extension) and set(extension) - set("is-:)"):
        return f"the flags (?{extension}"
    return _UNKNOWN_PARTS.get(part[0])


def as_text(regex: str) -> str:
    """The expression with all but letters, or all but spaces, told so that TGI and the check here read the same.

    Args:
        regex: One that `refuse_syntax` takes.
    """
    return "".join(
        _as_set(characters) if _OF_UNICODE.search(part[0]) and (characters := _characters(part)) else part[0]
        for part in _PARTS.finditer(regex)
    )


def in_json(pattern: str, what: str) -> str:
    """The pattern of a string, for the text of that string as JSON: in brackets, with both anchors.

    It is never wider than the pattern, and narrower where the two libraries differ: one that is not anchored in front
    is taken for the whole string, `.` and sets of "all but" stand for no character that JSON escapes.

    Args:
        pattern: A regular expression.
        what: What it is, for messages.

    Raises:
        InvalidParameterError: See `refuse_syntax`; or no such character can be in a string.
    """
    body = pattern.removeprefix("^")
    is_anchored = body.endswith("$") and (len(body) - len(body[:-1].rstrip("\\"))) % 2 == 1
    body = body[:-1] if is_anchored else body
    refuse_syntax(body, what)
    written = []
    for part in _PARTS.finditer(body):
        if re.fullmatch(r"[a-zA-Z-]+\)", part["extension"] or ""):
            msg = (
                f"{what} has {part[0]}, which would hold for the whole schema on a TGI server. Write "
                f"{part[0][:-1]}:...) around what it is for."
            )
            raise InvalidParameterError(msg)
        is_character = not (part["times"] or part[0].startswith("(") or part[0] in (")", "|"))
        written.append(_character_in_json(part, what) if is_character else part[0])
    rest = _REST if pattern.startswith("^") and not is_anchored else ""
    return f"^(?:{''.join(written)}){rest}$"


def _character_in_json(part: re.Match[str], what: str) -> str:
    characters = _characters(part)
    is_open = bool(characters) and characters[-1][1] == _LAST
    plain = _without(characters, _NOT_PLAIN)
    choices = [_as_set(plain)] if plain else []
    if not is_open:
        escaped = [e for code, e in _JSON_ESCAPES.items() if any(low <= code <= high for low, high in characters)]
        choices += [rf"\\[{''.join(escaped)}]"] if escaped else []
    if not choices:
        msg = f"{what} has {part[0]}, which no string of TGI's JSON can hold. Leave it out, or use a LocalBackend."
        raise InvalidParameterError(msg)
    return choices[0] if len(choices) == 1 and not choices[0].startswith("\\\\") else f"(?:{'|'.join(choices)})"


def _characters(part: re.Match[str]) -> _Ranges:
    """The characters that a part of an expression stands for in any reader's opinion."""
    if part[0] == ".":
        return _without([(0, _LAST)], [(10, 10)])
    return _of_set(part["set"]) if part["set"] else _of_member(part["escape"], part[0], is_negated=False)


def _of_set(text: str) -> _Ranges:
    """The characters that a set surely stands for."""
    is_negated = text.startswith("[^")
    members = list(_IN_SET.finditer(text[2 if is_negated else 1 : -1]))
    found: _Ranges = []
    at = 0
    while at < len(members):
        ranges = _of_member(members[at][1], members[at][0], is_negated=is_negated)
        if at + 2 < len(members) and members[at + 1][0] == "-":
            end = _of_member(members[at + 2][1], members[at + 2][0], is_negated=is_negated)
            ranges = [(ranges[0][0], end[0][0])]
            at += 2
        found += ranges
        at += 1
    return _without([(0, _LAST)], found) if is_negated else _without(found, [])


def _of_member(escape: str | None, text: str, *, is_negated: bool) -> _Ranges:
    """The characters that an escape or a character stands for: surely, or in a set that is negated, maybe."""
    if escape is None:
        return [(ord(text), ord(text))]
    if (name := escape.lower()) in _CLASSES:
        sure, maybe = _CLASSES[name]
        if escape == name:
            return maybe if is_negated else sure
        return _without([(0, _LAST)], sure if is_negated else maybe)
    if escape in _CONTROLS:
        code = _CONTROLS[escape]
    elif escape.startswith("x"):
        code = int(escape[1:], 16)
    else:
        code = int(escape, 8) if escape[0] in "01234567" else ord(escape)
    return [(code, code)]


def _without(ranges: _Ranges, others: _Ranges) -> _Ranges:
    """Ranges in their order and apart from each other, without what is in others."""
    left: _Ranges = []
    for low, high in sorted(ranges):
        low = max(low, left[-1][1] + 1) if left else low
        if low <= high:
            left.append((low, high))
    for cut_low, cut_high in others:
        around = [((low, min(high, cut_low - 1)), (max(low, cut_high + 1), high)) for low, high in left]
        left = [(low, high) for pair in around for low, high in pair if low <= high]
    return left


def _as_set(ranges: _Ranges) -> str:
    """A set of characters; TGI lists each, so that one which goes up to the last is told by what it lacks."""
    is_open = ranges[-1][1] == _LAST
    ranges = _without([(0, _LAST)], ranges) if is_open else ranges
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1] and not is_open:
        return _spelled(ranges[0][0])
    spelled = (_spelled(low) + (f"-{_spelled(high)}" if high > low else "") for low, high in ranges)
    return f"[{'^' if is_open else ''}{''.join(spelled)}]"


def _spelled(code: int) -> str:
    if code < 32 or 127 <= code < 160:
        return f"\\x{code:02x}"
    return chr(code) if code >= 160 or chr(code).isalnum() or chr(code) in " _/,:;<>=@%!'\"`" else f"\\{chr(code)}"
