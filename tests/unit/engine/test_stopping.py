"""Where a text ends: stop strings cut out of a growing text, EOS, the limit, and which comes first."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from langchain_specdec.completions import stop_strings
from langchain_specdec.completions.stop_strings import StopText
from langchain_specdec.engine.stopping import StopChecker

pieces_of_ab = st.lists(st.text(alphabet="abc", max_size=4), max_size=10)
stops_of_ab = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3)


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    found = [text.find(s) for s in stop if s in text]
    return min(found, default=None)


def may_become_stop(end: str, stop: Sequence[str]) -> bool:
    return any(s.startswith(end) and len(end) < len(s) for s in stop)


@settings(max_examples=500)
@given(pieces=pieces_of_ab, stop=stops_of_ab)
@example(pieces=["a", "a", "a", "b"], stop=["aab"])
@example(pieces=["a", "b", "a", "b", "c"], stop=["ababc", "bc"])
@example(pieces=["ca", "", "b"], stop=["ab"])
@example(pieces=["abc"], stop=["abc", "b"])
def test_text_is_released_up_to_the_first_stop_string_and_as_early_as_possible(
    pieces: list[str], stop: list[str]
) -> None:
    checker, whole, released = StopText(stop), "", ""
    for piece in pieces:
        whole += piece
        released += checker.add(piece)
        cut = first_stop(whole, stop)
        assert checker.is_found == (cut is not None)
        if cut is not None:
            assert released == whole[:cut]
            return
        # Held back is the longest end that a stop string begins with: no less, or part of one could be shown; no more,
        # or readers would wait for nothing.
        ends = [i for i in range(len(whole) + 1) if i == len(whole) or may_become_stop(whole[i:], stop)]
        assert released == whole[: ends[0]]
    assert released + checker.flush() == whole
    assert checker.flush() == ""


@settings(max_examples=200)
@given(pieces=pieces_of_ab)
def test_without_stop_strings_nothing_is_held_back(pieces: list[str]) -> None:
    checker = StopText([])
    for piece in pieces:
        assert checker.add(piece) == piece
    assert checker.flush() == ""
    assert not checker.is_found


@settings(max_examples=200)
@given(text=st.text(alphabet="abc", max_size=20), stop=stops_of_ab, cuts=st.lists(st.integers(0, 20), max_size=5))
def test_one_stop_string_cuts_at_the_same_place_however_the_text_is_split(
    text: str, stop: list[str], cuts: list[int]
) -> None:
    bounds = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    for one in stop:
        checker, released = StopText([one]), ""
        for start, end in pairwise(bounds):
            released += checker.add(text[start:end])
            if checker.is_found:
                break
        else:
            released += checker.flush()
        assert released == text.split(one)[0]


# --- StopChecker ------------------------------------------------------------------------------------------------------


class Letters:
    """Token 0 is "a", 1 is "b" and so on; 100 + n is a letter that the next token completes."""

    def __init__(self) -> None:
        self._pending = ""

    def add(self, token: int) -> str:
        if token >= 100:
            self._pending += chr(97 + token - 100)
            return ""
        text, self._pending = self._pending + chr(97 + token), ""
        return text

    def flush(self) -> str:
        text, self._pending = self._pending, ""
        return text


def complete(
    tokens: Sequence[int], *, limit: int = 100, stop: Sequence[str] = (), eos: Collection[int] = (25,)
) -> tuple[str, int, str | None]:
    """Text, number of tokens taken and reason."""
    checker, text, count = StopChecker(Letters(), limit, stop, eos, {}, {}), "", 0
    for token in tokens:
        text += checker.add(token)
        count += 1
        if checker.finish_reason is not None:
            break
    return text, count, checker.finish_reason


@pytest.mark.parametrize("limit", range(1, 6))
def test_the_limit_is_exact(limit: int) -> None:
    assert complete([0, 1, 2, 3, 4, 5], limit=limit) == ("abcdef"[:limit], limit, "length")


def test_text_goes_on_before_the_limit() -> None:
    assert complete([0, 1, 2], limit=4) == ("abc", 3, None)


def test_eos_ends_the_text_and_has_none_itself() -> None:
    assert complete([0, 1, 25, 2]) == ("ab", 3, "eos_token")
    assert complete([25]) == ("", 1, "eos_token")
    assert complete([0, 24, 2], eos=(24, 25)) == ("a", 2, "eos_token")


def test_eos_is_text_like_any_where_it_is_ignored() -> None:
    assert complete([0, 25, 1], eos=()) == ("azb", 3, None)


def test_eos_at_the_limit_is_eos() -> None:
    assert complete([0, 25], limit=2) == ("a", 2, "eos_token")


def test_stop_string_at_the_limit_is_a_stop_string() -> None:
    assert complete([0, 1, 2], limit=3, stop=["bc"]) == ("a", 3, "stop_sequence")


@pytest.mark.parametrize(("tokens", "reason"), [([0, 1, 25], "eos_token"), ([0, 1, 2], "length")])
def test_what_was_held_back_is_released_at_the_end(tokens: list[int], reason: str) -> None:
    text = "ab" if reason == "eos_token" else "abc"
    assert complete(tokens, limit=3, stop=["bcd"]) == (text, 3, reason)


def test_half_a_character_is_released_at_the_end() -> None:
    assert complete([0, 101], limit=2) == ("ab", 2, "length")
    assert complete([0, 101, 25]) == ("ab", 3, "eos_token")
    # And it may be what completes a stop string.
    assert complete([0, 101], limit=2, stop=["ab"]) == ("", 2, "stop_sequence")
    assert complete([0, 101, 25], stop=["b"]) == ("a", 3, "stop_sequence")


@settings(max_examples=300)
@given(
    tokens=st.lists(st.sampled_from([0, 1, 2, 25, 100, 101]), max_size=12),
    limit=st.integers(1, 12),
    stop=stops_of_ab,
)
def test_ends_where_looking_at_the_whole_text_after_each_token_ends_it(
    tokens: list[int], limit: int, stop: list[str]
) -> None:
    expected: tuple[str, int, str | None] = ("", 0, None)
    for count, token in enumerate(tokens[:limit], start=1):
        letters = Letters()
        text = "".join(letters.add(t) for t in tokens[:count] if t != 25)
        reason = "eos_token" if token == 25 else "length" if count == limit else None
        if reason:
            text += letters.flush()
        if (cut := first_stop(text, stop)) is not None:
            expected = text[:cut], count, "stop_sequence"
            break
        if reason:
            expected = text, count, reason
            break
    else:
        assert complete(tokens, limit=limit, stop=stop)[1:] == (len(tokens), None)
        return
    assert complete(tokens, limit=limit, stop=stop) == expected


# --- special tokens in stop strings -----------------------------------------------------------------------------------

# Tokens that are no part of the text, with what they are called.
NAMES = {25: "<z>", 24: "<y>"}


def complete_named(
    tokens: Sequence[int],
    stop: Sequence[str],
    eos: Collection[int] = (25,),
    limit: int = 100,
    shown: Collection[int] = (),
) -> tuple[list[str], str | None]:
    """What each token releases, and the reason."""
    shown_specials = {token: NAMES[token] for token in shown}
    checker, released = StopChecker(Letters(), limit, stop, eos, NAMES, shown_specials), []
    for token in tokens:
        released.append(checker.add(token))
        if checker.finish_reason is not None:
            break
    return released, checker.finish_reason


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("<y>", "ab"),
        ("<y>cd", "ab"),
        ("b<y>", "a"),
        ("b<y>c", "a"),
        ("ab<y>cd<y>", ""),
        ("y>", "ab"),
        (">c", "ab"),
        ("b<", "a"),
        # What special tokens stand within is text that a reader would see.
        ("bc", "a"),
        ("d<y>e", "abc"),
    ],
)
def test_stop_strings_find_special_tokens(stop: str, text: str) -> None:
    tokens = [0, 1, 24, 2, 3, 24, 4, 0, 0]
    released, reason = complete_named(tokens, [stop])
    assert ("".join(released), reason) == (text, "stop_sequence")


def test_text_behind_a_special_token_is_held_back_as_far_as_it_may_belong_to_a_stop_string() -> None:
    # "ab" goes at once, "cd" has to wait for what follows.
    assert complete_named([0, 1, 24, 2, 3, 0], ["<y>cde"]) == (["a", "b", "", "", "", "cda"], None)
    assert complete_named([0, 1, 24, 2, 3, 4], ["<y>cde"]) == (["a", "b", "", "", "", ""], "stop_sequence")
    assert complete_named([1, 24, 24, 2], ["<y>c"]) == (["b", "", "", ""], "stop_sequence")
    assert complete_named([1, 24, 2, 25], ["<y>cde"]) == (["b", "", "", "c"], "eos_token")


def test_the_token_that_ends_a_text_may_be_a_stop_string() -> None:
    assert complete_named([0, 25], ["<z>"]) == (["a", ""], "stop_sequence")
    assert complete_named([0, 25], ["a<z>"]) == (["", ""], "stop_sequence")
    assert complete_named([0, 1, 25], ["a<z>"]) == (["", "ab", ""], "eos_token")
    # Where it ends nothing, too.
    assert complete_named([0, 25, 1], ["<z>"], eos=()) == (["a", ""], "stop_sequence")
    assert complete_named([0, 25, 1], ["c"], eos=()) == (["a", "", "b"], None)
    # Half a character comes before it.
    assert complete_named([0, 101, 25], ["b<z>"]) == (["a", "", ""], "stop_sequence")


def test_the_limit_counts_special_tokens() -> None:
    assert complete_named([0, 24, 1], ["x"], limit=2) == (["a", ""], "length")
    assert complete_named([0, 24, 1], ["<y>b"], limit=2) == (["a", ""], "length")


@settings(max_examples=500)
@given(
    tokens=st.lists(st.sampled_from([0, 1, 2, 24]), max_size=14),
    stop=st.lists(st.lists(st.sampled_from(["a", "b", "c", "<y>"]), min_size=1, max_size=4).map("".join), max_size=3),
)
@example(tokens=[24, 24, 0], stop=["<y>a"])
def test_special_tokens_are_found_wherever_the_whole_text_has_them(tokens: list[int], stop: list[str]) -> None:
    written = [NAMES.get(token, chr(97 + token)) for token in tokens]
    released, reason = complete_named(tokens, stop)
    for count in range(1, len(tokens) + 1):
        named, seen = "".join(written[:count]), "".join(text for text in written[:count] if len(text) == 1)
        if first_stop(named, stop) is not None or first_stop(seen, stop) is not None:
            assert (reason, len(released)) == ("stop_sequence", count)
            break
    else:
        assert reason is None
    text = "".join(released)
    assert first_stop(text, stop) is None
    shown = "".join(text for text in written[: len(released)] if len(text) == 1)
    assert shown.startswith(text)
    if reason is None:
        # Nothing is lost but what may yet become a stop string.
        assert len(shown) - len(text) <= max(map(len, stop), default=0)


@pytest.mark.parametrize("stop", ["<y>" * 6 + "x", "<y>" * 170 + "x", "<y>a" * 100 + "x", "<y" * 200])
def test_special_tokens_that_repeat_in_a_stop_string_leave_as_much_to_follow_as_it_is_long(stop: str) -> None:
    checker = StopText([stop])
    for _ in range(300):
        checker.add_special("<y>")
        assert sum(map(len, checker._begun)) <= 2 * len(stop)


def test_stop_strings_see_all_special_tokens_or_none() -> None:
    # "b<y>d" stands in neither "b<y>c<y>d" nor "bcd".
    assert complete_named([1, 24, 24, 3, 0], ["b<y>d"]) == (["", "", "", "bd", "a"], None)
    assert complete_named([1, 24, 24, 3], ["b<y><y>d"]) == (["", "", "", ""], "stop_sequence")
    assert complete_named([1, 24, 24, 3], ["bd"]) == (["", "", "", ""], "stop_sequence")


def test_a_special_token_that_is_shown_stands_at_its_place_in_the_text() -> None:
    assert complete_named([0, 24, 1], [], shown=[24]) == (["a", "<y>", "b"], None)
    # Behind what a stop string holds back, and before what comes later.
    assert complete_named([0, 24, 1, 2], ["ax"], shown=[24]) == (["", "a<y>", "b", "c"], None)
    assert complete_named([24, 0, 24, 1], ["ax"], shown=[24]) == (["<y>", "", "a<y>", "b"], None)
    # Half a character does not wait for what follows.
    assert complete_named([100, 24, 1], [], shown=[24]) == (["", "a<y>", "b"], None)
    assert complete_named([0, 25], [], shown=[25]) == (["a", ""], "eos_token")


@pytest.mark.parametrize(("stop", "text"), [("<y>", "a"), ("a<", ""), ("<y>b", "a"), (">b", "a<y"), ("ab", "a<y>b<z>")])
def test_a_stop_string_cuts_a_special_token_that_is_shown_as_any_text(stop: str, text: str) -> None:
    released, reason = complete_named([0, 24, 1, 25, 3], [stop, "d"], eos=(), shown=[24, 25])
    assert ("".join(released), reason) == (text, "stop_sequence")


def test_work_does_not_grow_with_the_number_of_stop_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    followed = stop_strings._followed

    def counting(begun: Any, character: str) -> Any:
        begun = list(begun)
        steps.append(len(begun))
        return followed(begun, character)

    monkeypatch.setattr(stop_strings, "_followed", counting)
    counts = []
    for number in (1, 200):
        steps.clear()
        checker = StopText([f"b{special}0{index:03}" for index in range(number) for special in ("", "<y>" * 6)])
        text = ""
        for _ in range(20):
            text += checker.add("abacab")
            for _ in range(9):
                text += checker.add_special("<y>")
            text += checker.add("0x")
        assert text == "abacab0x" * 20
        counts.append(sum(steps))
    assert counts[1] == counts[0]
