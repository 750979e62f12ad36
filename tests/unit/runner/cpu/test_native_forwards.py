"""Forwards of the native decoder: those of the plain reference, and the same bits whatever is beside a row."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_specdec.runner.cpu.decoder_trial import native_library
from langchain_specdec.runner.cpu.decoder_weights import Activation, DecoderWeights, Floats, Format
from langchain_specdec.runner.cpu.native_decoder import NativeDecoder
from tests.support.random_decoders import Row, Shape, random_decoder, run_rows
from tests.support.reference_decoder import Past, ReferenceDecoder

library = native_library()
pytestmark = pytest.mark.skipif(library is None, reason="there is no native decoder for this machine")

LENGTH, LONG = 640, 5120
# Keys are read in groups of 16 and spans of 256, and at most 80 tokens go through the layers at a time.
BORDERS = [0, 1, 15, 16, 17, 79, 80, 81, 255, 256, 257, 511, 512, 513]
PLAIN = [Format.F32, Format.F16, Format.BF16]
BLOCKS = [Format.Q4_0, Format.Q4_1, Format.Q5_0, Format.Q5_1, Format.Q8_0, Format.IQ4_NL]
SUPER_BLOCKS = [Format.Q4_K, Format.Q5_K, Format.Q6_K]
WINDOWS = [None, 1, 7, 130, 256]

shapes = st.builds(
    lambda kv_heads, group, rotaries, rotary_part, head_dim, **rest: Shape(
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rotary_dim=head_dim // rotary_part,
        rotaries=rotaries if any(r is not None for r in rotaries) else [0],
        **rest,
    ),
    windows=st.lists(st.sampled_from(WINDOWS), min_size=1, max_size=4),
    rotaries=st.lists(st.sampled_from([0, 1, None]), min_size=1, max_size=4),
    hidden=st.sampled_from([8, 32, 36, 57, 96]),
    kv_heads=st.integers(1, 3),
    group=st.sampled_from([1, 2, 3, 8]),
    head_dim=st.sampled_from([8, 16, 24, 64, 80, 96, 128, 256]),
    rotary_part=st.sampled_from([1, 1, 2]),
    mlp=st.sampled_from([17, 64, 130]),
    vocab=st.sampled_from([33, 258, 1000]),
    formats=st.lists(st.sampled_from(PLAIN), min_size=1, max_size=3),
    activation=st.sampled_from(list(Activation)),
    has_rotary_pairs=st.booleans(),
    has_head_norms=st.booleans(),
    has_output_norms=st.booleans(),
    has_biases=st.booleans(),
    is_tied=st.booleans(),
    attention_softcap=st.sampled_from([None, 5.0, 50.0]),
    logit_softcap=st.sampled_from([None, 3.0, 30.0]),
    embedding_scale=st.sampled_from([1.0, 2.5]),
    attention_scale=st.sampled_from([None, 0.3]),
    residual_scale=st.sampled_from([1.0, 0.4]),
    logit_scale=st.sampled_from([1.0, 0.5]),
)
randoms = st.integers(0, 2**32).map(random.Random)


@contextmanager
def decoders(
    weights: DecoderWeights, num_slots: int, *threads: int, length: int = LENGTH
) -> Iterator[list[NativeDecoder]]:
    """Decoders of the same weights with so many threads each."""
    assert library is not None
    with ExitStack() as stack:
        made = []
        for count in threads:
            made.append(NativeDecoder(library, weights, num_slots, length, count))
            stack.callback(made[-1].close)
        yield made


def read_in(decoder: NativeDecoder, slot: int, tokens: Sequence[int], chunks: Iterator[int], vocab: int) -> None:
    """Have a decoder read a prompt in chunks of these sizes."""
    start = 0
    while start < len(tokens):
        chunk = tokens[start : start + next(chunks)]
        run_rows(decoder, [Row(slot, start, chunk)], vocab=vocab, wants_logits=False)
        start += len(chunk)


def sizes(rng: random.Random, *choices: int) -> Iterator[int]:
    while True:
        yield rng.choice(choices)


def random_row(rng: random.Random, slot: int, start: int, width: int, vocab: int, *, is_tree: bool) -> Row:
    parents = [-1] + [rng.randrange(max(0, i - 4), i) for i in range(1, width)] if is_tree else None
    return Row(slot, start, [rng.randrange(vocab) for _ in range(width)], parents)


def check_close(found: Floats, weights: DecoderWeights, row: Row, past: Past, expected: Any) -> None:
    """Logits against the reference's, as near as float32 has them."""
    wanted = expected.numpy()
    allowed = 5e-5 * max(1.0, np.abs(wanted).max())
    if not np.allclose(found, wanted, rtol=0, atol=allowed):
        # Some random decoders make much of a rounding, and so does the reference in float32.
        rough = Past([k.float() for k in past.keys], [v.float() for v in past.values])
        narrow, _ = ReferenceDecoder(weights, torch.float32).forward(
            row.tokens, rough, depths=row.depths, ancestors=row.ancestors
        )
        allowed = max(allowed, 10 * float((narrow.double() - expected).abs().max()))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=allowed)


def check_forwards(shape: Shape, rng: random.Random, threads: int, before: Sequence[int], widest: int) -> None:
    """Rows after texts of these lengths, twice: against the reference, and each alone on one thread."""
    weights, vocab = random_decoder(shape, rng.randrange(1000)), shape.vocab
    reference = ReferenceDecoder(weights)
    pasts = [Past() for _ in before]
    with decoders(weights, len(before), threads, 1) as (together, alone):
        for slot, length in enumerate(before):
            tokens = [rng.randrange(vocab) for _ in range(length)]
            if tokens:
                _, pasts[slot] = reference.forward(tokens)
            read_in(together, slot, tokens, sizes(rng, 7, 33, 128, 200, 500), vocab)
            read_in(alone, slot, tokens, sizes(rng, 1, 17, 300), vocab)
        for is_tree in (True, False):
            slots = rng.sample(range(len(before)), rng.randint(1, len(before)))
            rows = [
                random_row(rng, slot, len(pasts[slot]), rng.randint(1, widest), vocab, is_tree=is_tree)
                for slot in slots
            ]
            result = run_rows(together, rows, vocab=vocab, candidates=5)
            for row, logits, picks, best in zip(rows, result.logits, result.picks, result.best, strict=True):
                before_row = pasts[row.slot]
                expected, past = reference.forward(row.tokens, before_row, depths=row.depths, ancestors=row.ancestors)
                check_close(logits, weights, row, before_row, expected)
                np.testing.assert_array_equal(run_rows(alone, [row], vocab=vocab).logits[0], logits)
                assert picks == logits.argmax(-1).tolist()
                np.testing.assert_array_equal(best, np.argsort(-logits, axis=-1, kind="stable")[:, :5].T)
                # One branch stands.
                seen = row.ancestors[rng.randrange(len(row.tokens))]
                path = [node for node, is_seen in enumerate(seen) if is_seen]
                for decoder in (together, alone):
                    decoder.keep(row.slot, row.start, path)
                pasts[row.slot] = past.keep(row.start, path)


@settings(max_examples=25, deadline=None)
@given(
    shape=shapes,
    rng=randoms,
    threads=st.integers(1, 4),
    before=st.lists(st.sampled_from(BORDERS[:9]), min_size=1, max_size=5),
    widest=st.sampled_from([1, 4, 40]),
)
def test_decoders_of_any_shape(shape: Shape, rng: random.Random, threads: int, before: list[int], widest: int) -> None:
    check_forwards(shape, rng, threads, before, widest)


@pytest.mark.parametrize("before", BORDERS)
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (1, None), (200, 5.0), (256, None)])
def test_texts_of_any_length(before: int, window: int | None, softcap: float | None) -> None:
    shape = Shape(windows=(window, None), attention_softcap=softcap)
    check_forwards(shape, random.Random(before), 2, [before], 20)


@pytest.mark.parametrize("before", range(508, 515))
@pytest.mark.parametrize("window", [2, 3, 5])
def test_a_window_of_each_branch_of_a_tree(before: int, window: int) -> None:
    # Tokens of a tree do not stand in order of their positions, and the window of one may begin before that of those
    # that stand before it.
    row = Row(0, before, list(range(13)), [-1, 0, 1, 2, 1, 2, 2, 4, 4, 6, 8, 8, 0])
    shape = Shape(windows=(window, None), heads=8, kv_heads=1)
    weights, tokens = random_decoder(shape), [i * i % shape.vocab for i in range(before)]
    reference = ReferenceDecoder(weights)
    _, past = reference.forward(tokens)
    with decoders(weights, 1, 1) as (decoder,):
        read_in(decoder, 0, tokens, sizes(random.Random(0), 500), shape.vocab)
        result = run_rows(decoder, [row], vocab=shape.vocab)
    expected, _ = reference.forward(row.tokens, past, depths=row.depths, ancestors=row.ancestors)
    check_close(result.logits[0], weights, row, past, expected)


@pytest.mark.parametrize("widest", [1, 2, 3, 5, 8, 16, 17, 33, 40, 65])
def test_nine_texts_at_once(widest: int) -> None:
    before = [0, 3, 15, 16, 40, 127, 128, 129, 260]
    check_forwards(Shape(windows=(None, 30, None), heads=6), random.Random(widest), 3, before, widest)


def plain_picks(decoder: NativeDecoder, row: Row, vocab: int) -> list[int]:
    """What is picked after each token of a row where its text is decoded token by token, alone, path by path."""
    picks = []
    for seen in row.ancestors:
        path = [token for token, is_seen in zip(row.tokens, seen, strict=True) if is_seen]
        for depth, token in enumerate(path):
            result = run_rows(decoder, [Row(row.slot, row.start + depth, [token])], vocab=vocab)
        picks += result.picks[0]
    return picks


@pytest.mark.parametrize("before", [254, 256, 511, 1023, 1024, 2049, 4095])
def test_drafts_have_the_picks_of_plain_decoding_in_any_company(before: int) -> None:
    # Attention is cut up by spans for few tokens after long texts, and by tokens for many.
    shape = Shape(windows=(None, 300), heads=6)
    rng, vocab, weights = random.Random(before), shape.vocab, random_decoder(shape, before)
    texts = [[rng.randrange(vocab) for _ in range(length)] for length in (before, 255, 0, LONG - before - 1)]
    with decoders(weights, len(texts), 1, 2, 3, length=LONG + 40) as (alone, *others):
        for decoder in (alone, *others):
            for slot, tokens in enumerate(texts):
                read_in(decoder, slot, tokens, sizes(rng, 100, 512), vocab)
        for width, is_tree in itertools.product((1, 2, 5, 13, 33), (False, True)):
            rows = [random_row(rng, slot, len(text), width, vocab, is_tree=is_tree) for slot, text in enumerate(texts)]
            expected = [plain_picks(alone, row, vocab) for row in rows]
            for company in (rows, rows[:1], rows[:2], rng.sample(rows, 3)):
                for decoder in others:
                    picks = run_rows(decoder, company, vocab=vocab).picks
                    assert picks == [expected[row.slot] for row in company], (width, is_tree)


@pytest.mark.parametrize("number_format", [*BLOCKS, *SUPER_BLOCKS])
def test_weights_in_blocks(number_format: Format) -> None:
    size = 256 if number_format in SUPER_BLOCKS else 32
    shape = Shape(hidden=size, heads=size // 16, mlp=2 * size, formats=(number_format,))
    check_forwards(shape, random.Random(1), 2, [0, 20], 9)


@pytest.mark.parametrize("head_dim", [8, 16, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("group", [1, 3, 8])
def test_heads_of_any_size(head_dim: int, group: int) -> None:
    shape = Shape(head_dim=head_dim, rotary_dim=head_dim, heads=2 * group, hidden=37, mlp=41)
    check_forwards(shape, random.Random(head_dim), 2, [30, 270], 9)


@settings(max_examples=10, deadline=None)
@given(rng=randoms, window=st.sampled_from(WINDOWS), count=st.integers(2, 300))
def test_a_token_has_the_same_bits_however_its_text_was_read(
    rng: random.Random, window: int | None, count: int
) -> None:
    shape = Shape(windows=(window, None), formats=PLAIN)
    weights, vocab = random_decoder(shape), shape.vocab
    tokens = [rng.randrange(vocab) for _ in range(count)]
    last = Row(0, count - 1, tokens[-1:])
    found = []
    with decoders(weights, 1, 1, 1, 2, 3) as made:
        for decoder, choices in zip(made, ((1,), (500,), (1, 3, 129), (16, 40)), strict=True):
            read_in(decoder, 0, tokens[:-1], sizes(rng, *choices), vocab)
            found.append(run_rows(decoder, [last], vocab=vocab).logits[0])
    for logits in found[1:]:
        np.testing.assert_array_equal(logits, found[0])


def test_a_token_has_the_same_bits_as_last_of_a_prompt_and_as_root_of_a_tree() -> None:
    shape = Shape(windows=(None, 9))
    rng, vocab = random.Random(3), shape.vocab
    tokens = [rng.randrange(vocab) for _ in range(150)]
    tree = Row(0, 149, [tokens[-1], 5, 9, 6], [-1, 0, 0, 2])
    with decoders(random_decoder(shape), 1, 2) as (decoder,):
        whole = run_rows(decoder, [Row(0, 0, tokens)], vocab=vocab, last_only=True)
        root = run_rows(decoder, [tree], vocab=vocab).logits[0][0]
        assert whole.picks == [[int(root.argmax())]]
        np.testing.assert_array_equal(whole.logits[0][0], root)


def test_a_branch_of_a_tree_has_the_same_bits_as_a_chain() -> None:
    shape = Shape(windows=(3, None))
    vocab = shape.vocab
    with decoders(random_decoder(shape), 2, 2) as (decoder,):
        for slot in (0, 1):
            run_rows(decoder, [Row(slot, 0, list(range(20)))], vocab=vocab, wants_logits=False)
        # Its nodes stand in the order in which a chain has them, with nothing between.
        tree = run_rows(decoder, [Row(0, 20, [4, 8, 15, 16], [-1, 0, 1, 0])], vocab=vocab)
        chain = run_rows(decoder, [Row(1, 20, [4, 8, 15])], vocab=vocab)
        np.testing.assert_array_equal(tree.logits[0][:3], chain.logits[0])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_picks_with_noise_do_not_depend_on_what_is_beside_a_row(threads: int) -> None:
    shape = Shape(vocab=700)
    rng = random.Random(7)
    rows = [random_row(rng, slot, 0, 6, 700, is_tree=slot % 2 == 0) for slot in range(5)]
    heats, seeds = [0.0, 0.7, 1.0, 2.0, 0.3], [(slot * 977, -slot) for slot in range(5)]
    with decoders(random_decoder(shape), 5, threads, 1) as (together, alone):
        result = run_rows(together, rows, vocab=700, temperatures=heats, seeds=seeds, candidates=3)
        assert result.picks[3] != result.logits[3].argmax(-1).tolist()
        for index, row in enumerate(rows):
            heat, seed = heats[index : index + 1], seeds[index : index + 1]
            single = run_rows(alone, [row], vocab=700, temperatures=heat, seeds=seed, candidates=3)
            assert single.picks[0] == result.picks[index]
            np.testing.assert_array_equal(single.best[0], result.best[index])


def test_a_token_that_is_not_finite_is_told_and_other_rows_are_not_touched() -> None:
    shape = Shape()
    weights = random_decoder(shape)
    numbers = np.frombuffer(weights.embedding.data, np.float32).reshape(shape.vocab, shape.hidden).copy()
    numbers[7] = np.nan
    broken = replace(weights.embedding, data=numbers.view(np.uint8))
    rows = [Row(0, 0, [1, 2, 3]), Row(1, 0, [4, 7, 5]), Row(2, 0, [6, 8])]
    with decoders(replace(weights, embedding=broken), 3, 2) as (decoder,):
        result = run_rows(decoder, rows, vocab=shape.vocab)
    with decoders(weights, 3, 1) as (decoder,):
        expected = run_rows(decoder, rows, vocab=shape.vocab)
    assert (result.picks[0], result.picks[2]) == (expected.picks[0], expected.picks[2])
    assert result.picks[1][1:] == [-1, -1]


def test_decoders_that_take_turns_may_come_and_go() -> None:
    assert library is not None
    rng, weights = random.Random(3), random_decoder(Shape())
    texts = [[rng.randrange(70) for _ in range(rng.randint(1, 30))] for _ in range(8)]
    with decoders(weights, 1, 1) as (alone,):
        right = [run_rows(alone, [Row(0, 0, text)], vocab=70).logits[0] for text in texts]
    made = [NativeDecoder(library, weights, 1, 64, 5)]
    for _ in range(1000):
        chance = rng.random()
        if chance < 0.05 and len(made) < 5:
            made.append(NativeDecoder(library, weights, 1, 64, 2, rng.choice(made)))
        elif chance < 0.1 and len(made) > 1:
            made.pop(rng.randrange(len(made))).close()
        elif chance < 0.12:
            rng.choice(made).replace(weights)
        which = rng.randrange(len(texts))
        found = run_rows(rng.choice(made), [Row(0, 0, texts[which])], vocab=70).logits[0]
        np.testing.assert_array_equal(found, right[which])
    assert {decoder.num_threads for decoder in made} == {5}
    for decoder in made:
        decoder.close()
