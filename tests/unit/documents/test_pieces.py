"""Pieces of a text: none is too long, nothing is lost or doubled, and cuts are where they hurt least."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from langchain_specdec.documents.pieces import split

WORDS = st.sampled_from(
    ["one", "two.", "Three!", "vier", "\n", "\n\n", "  ", "東京。", "e\u0301", "🙂", "x" * 40, "\t"]
)
TEXTS = st.lists(st.one_of(st.lists(WORDS, max_size=60).map(" ".join), st.text(max_size=80)), min_size=1, max_size=4)


def bytes_of(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def words_of(text: str) -> int:
    return len(text.split())


@given(TEXTS, st.integers(4, 60))
def test_the_pieces_join_to_the_text_and_each_has_room(texts, room):
    pieces = split(texts, bytes_of, room)
    assert "".join(pieces) == "".join(texts)
    assert all(pieces)
    assert max(map(bytes_of, pieces), default=0) <= room


@given(TEXTS, st.integers(1, 9))
def test_so_they_do_where_tokens_are_whole_words(texts, room):
    """A count that does not grow with every character, and not by one."""
    pieces = split(texts, words_of, room)
    assert "".join(pieces) == "".join(texts)
    assert all(words_of(piece) <= room for piece in pieces)


@given(st.text(alphabet="🙂東", min_size=1, max_size=30))
def test_a_character_is_never_cut(text):
    assert split([text], bytes_of, 1) == list(text)


def test_cuts_are_between_documents_then_paragraphs_lines_sentences_words():
    def pieces(*texts: str) -> list[str]:
        return split(texts, len, 30)

    sentence = "Aa bb cc. "
    assert pieces(sentence * 2, "\n\nDd ee.\n\n" + sentence) == [sentence * 2, "\n\nDd ee.\n\n" + sentence]
    assert pieces(sentence + "\n\n" + sentence * 2 + "\n") == [sentence + "\n\n", sentence * 2 + "\n"]
    assert pieces("Aa. bb, cc\nCc. dd. ee ff. gg hh.") == ["Aa. bb, cc\n", "Cc. dd. ee ff. gg hh."]
    assert pieces("Aa bb cc dd ee. Ff gg hh ii jj kk ll.") == ["Aa bb cc dd ee. ", "Ff gg hh ii jj kk ll."]
    assert pieces("aa bb cc dd ee ff gg hh ii jj kk ll mm") == ["aa bb cc dd ee ff ", "gg hh ii jj kk ll mm"]
    assert [len(piece) for piece in pieces("x" * 62)] == [21, 21, 20]


def test_the_last_piece_is_no_sliver():
    text = "word " * 205  # 1025 characters: ten pieces of 100 would leave 25
    sizes = [len(piece) for piece in split([text], len, 100)]
    assert len(sizes) == math.ceil(1025 / 100)
    assert min(sizes) >= 75


def test_lengths_are_asked_for_a_few_times_a_piece():
    """A server may be the one who counts."""
    asked = []

    def count(text: str) -> int:
        asked.append(text)
        return words_of(text)

    pieces = split(["Some words, and a sentence. " * 2000], count, 500)
    assert len(asked) <= 4 * len(pieces)
