"""Incremental text: the same as decoding everything at once, and never half a character."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from langchain_specdec.engine.detokenizer import Detokenizer
from langchain_specdec.models.private_tokenizer import PrivateTokenizer
from tests.support.tiny_models import EOS, byte_tokenizer

pytestmark = pytest.mark.transformers

BYTES = byte_tokenizer()
REPLACEMENT = "\ufffd"


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Words begin with a mark for the space before them, the first space is dropped, and rare characters are bytes."""
    words = ["▁the", "▁cat", "▁sat", "s", ".", "▁", "a", "b", "▁▁", "é"]
    vocab = {f"<0x{i:02X}>": i for i in range(256)} | {w: 256 + i for i, w in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token=None))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def wordpiece_like() -> PreTrainedTokenizerFast:
    """Words are joined by spaces, and pieces that begin with ## are not."""
    vocab = {w: i for i, w in enumerate(["[UNK]", "the", "cat", "##s", "sat", "un", "##able", "."])}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


SENTENCEPIECE = sentencepiece_like()
WORDPIECE = wordpiece_like()
PRIVATE = {id(tokenizer): PrivateTokenizer(tokenizer) for tokenizer in (BYTES, SENTENCEPIECE, WORDPIECE)}


def whole(tokenizer: PreTrainedTokenizerFast, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def pieces(tokenizer: PreTrainedTokenizerFast, tokens: Sequence[int]) -> list[str]:
    """What each token releases, and at last what the end does."""
    detokenizer = Detokenizer(PRIVATE[id(tokenizer)])
    return [*(detokenizer.add(token) for token in tokens), detokenizer.flush()]


@settings(max_examples=300)
@given(tokens=st.lists(st.integers(0, 257), max_size=40))
@example(tokens=[EOS, EOS])
@example(tokens=[])
def test_random_bytes_decode_as_a_whole(tokens: list[int]) -> None:
    # Most of them are no valid text at all.
    assert "".join(pieces(BYTES, tokens)) == whole(BYTES, tokens)


@settings(max_examples=300)
@given(text=st.text(max_size=30))
@example(text="👩‍👩‍👧 é")
@example(text=REPLACEMENT * 3 + "a" + REPLACEMENT)  # The sign for an incomplete character can stand in a text.
def test_texts_decode_as_a_whole_and_character_by_character(text: str) -> None:
    tokens = BYTES(text, add_special_tokens=False).input_ids
    released = pieces(BYTES, tokens)
    assert "".join(released) == text
    if REPLACEMENT not in text:
        # The last byte of each character releases it, the others nothing.
        position = 0
        for character in text:
            end = position + len(character.encode())
            assert released[position:end] == [*[""] * (end - position - 1), character]
            position = end
        assert released[-1] == ""


@settings(max_examples=200)
@given(text=st.text(max_size=12), cut=st.integers(0, 40))
def test_a_text_cut_anywhere_ends_as_a_whole_decode_does(text: str, cut: int) -> None:
    tokens = BYTES(text, add_special_tokens=False).input_ids[:cut]
    released = pieces(BYTES, tokens)
    assert "".join(released) == whole(BYTES, tokens)
    if REPLACEMENT not in text:
        # Half a character shows only at the very end.
        assert REPLACEMENT not in "".join(released[:-1])


@settings(max_examples=200)
@given(tokens=st.lists(st.integers(256, 265), max_size=20))
@example(tokens=[256, 257])
@example(tokens=[261, 264, 256])
def test_spaces_that_depend_on_neighbours_decode_as_a_whole(tokens: list[int]) -> None:
    assert "".join(pieces(SENTENCEPIECE, tokens)) == whole(SENTENCEPIECE, tokens)


@settings(max_examples=200)
@given(parts=st.lists(st.sampled_from([*"aé東🙂", "the", " cat"]), max_size=12))
def test_characters_that_fall_back_to_bytes_decode_as_a_whole(parts: list[str]) -> None:
    vocab = SENTENCEPIECE.get_vocab()
    tokens: list[int] = []
    for part in parts:
        mark = part.replace(" ", "▁") if part != "the" else "▁the"
        tokens += [vocab[mark]] if mark in vocab else [vocab[f"<0x{byte:02X}>"] for byte in part.encode()]
    released = pieces(SENTENCEPIECE, tokens)
    assert "".join(released) == whole(SENTENCEPIECE, tokens)
    assert REPLACEMENT not in "".join(released)


@settings(max_examples=200)
@given(tokens=st.lists(st.integers(0, 7), max_size=20))
def test_words_joined_by_the_decoder_decode_as_a_whole(tokens: list[int]) -> None:
    assert "".join(pieces(WORDPIECE, tokens)) == whole(WORDPIECE, tokens)


@pytest.mark.parametrize("position", range(4))
def test_special_tokens_have_no_text_wherever_they_stand(position: int) -> None:
    tokens = BYTES("a🙂b", add_special_tokens=False).input_ids
    tokens.insert(position, EOS)
    assert "".join(pieces(BYTES, tokens)) == whole(BYTES, tokens)


def test_work_per_token_does_not_grow_with_the_text() -> None:
    class Counting:
        longest = 0

        def decode(self, tokens: Sequence[int]) -> str:
            Counting.longest = max(Counting.longest, len(tokens))
            return whole(BYTES, tokens)

    detokenizer = Detokenizer(Counting())
    for token in BYTES("Grüße, 東京 🙂! " * 50, add_special_tokens=False).input_ids:
        detokenizer.add(token)
    assert Counting.longest <= 8


# --- after a prompt ---------------------------------------------------------------------------------------------------


def continued(tokenizer: PreTrainedTokenizerFast, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """The text that tokens release after a prompt."""
    detokenizer = Detokenizer(PRIVATE[id(tokenizer)], prompt)
    return "".join([*(detokenizer.add(token) for token in tokens), detokenizer.flush()])


def test_the_space_between_a_prompt_and_its_completion_is_part_of_the_completion() -> None:
    vocab = SENTENCEPIECE.get_vocab()
    the, cat = vocab["▁the"], vocab["▁cat"]
    assert continued(SENTENCEPIECE, [the], [cat, the]) == " cat the"
    assert continued(SENTENCEPIECE, [], [cat, the]) == "cat the"
    assert continued(WORDPIECE, [1], [2, 3]) == " cats"
    assert continued(WORDPIECE, [1, 2], [3]) == "s"


@settings(max_examples=300)
@given(
    kind=st.sampled_from([SENTENCEPIECE, WORDPIECE, BYTES]),
    prompt=st.lists(st.sampled_from([*"aé東🙂", " the", " cat", " sat", "."]), max_size=12),
    answer=st.lists(st.sampled_from([*"aé東🙂", " the", " cat", " sat", "."]), max_size=6),
)
def test_text_after_a_prompt_is_what_it_adds_to_the_whole_decode(
    kind: PreTrainedTokenizerFast, prompt: list[str], answer: list[str]
) -> None:
    before = kind("".join(prompt), add_special_tokens=False).input_ids
    after = kind("".join(answer), add_special_tokens=False).input_ids
    assert continued(kind, before, after) == whole(kind, [*before, *after])[len(whole(kind, before)) :]


@pytest.mark.parametrize("text", ["東京東京", "x東京東京", "xy東京東京", "🙂🙂🙂🙂", "a🙂🙂🙂", "é" * 9])
def test_a_prompt_that_ends_in_long_characters_does_not_break_the_next(text: str) -> None:
    # Bytes are read as one run: if it began in the middle of a character, all of it would look broken.
    assert continued(SENTENCEPIECE, [*text.encode()], [*"é🙂".encode()]) == "é🙂"
