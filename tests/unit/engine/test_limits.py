"""Promise 3: `max_new_tokens`, stop strings and EOS end the text exactly where plain decoding would.

Most of these use `scripted_model`, which writes a known text, so that the end can be put anywhere inside a run of
accepted draft tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, Literal, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from langchain_specdec.completions.events import FinishEvent, Token
from langchain_specdec.drafters.base import Drafter
from langchain_specdec.drafters.combined import CombinedDrafter
from langchain_specdec.drafters.prompt_lookup import PromptLookupDrafter
from langchain_specdec.engine.engine import Engine
from langchain_specdec.sampling.params import SamplingParams
from tests.support.tiny_models import (
    EOS,
    OracleDrafter,
    References,
    byte_tokenizer,
    make_draft_drafter,
    make_engine,
    perturbed,
    read,
    scripted_model,
    tiny_model,
    token_ids,
)

PROMPT = (257,)
TOKENIZER = byte_tokenizer()
REPLACEMENT = "\ufffd"


def script_of(text: str) -> list[int]:
    """The tokens of a text; the tokenizer's ids of bytes are its own."""
    return list(TOKENIZER(text, add_special_tokens=False).input_ids)


def text_of(tokens: Sequence[int]) -> str:
    return str(TOKENIZER.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))


class Written(NamedTuple):
    tokens: list[Token]
    finish: FinishEvent

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)

    @property
    def ids(self) -> list[int]:
        return token_ids(self.tokens)


def write(
    script: Sequence[int],
    params: SamplingParams,
    *,
    drafter: str = "oracle",
    draft_length: int | Literal["auto"] = 4,
    device: str = "cpu",
) -> Written:
    """Have a model write a script."""
    model = scripted_model(script, device)
    drafters: dict[str, Callable[[], Drafter]] = {
        "none": Drafter,
        # Knows all of it, also what comes after the end, so every draft is accepted in full.
        "oracle": lambda: OracleDrafter({PROMPT: script}, 1.0),
        "half an oracle": lambda: OracleDrafter({PROMPT: script}, 0.5),
        "itself": lambda: make_draft_drafter(model, max_length=len(script) + 1),
        "prompt_lookup": lambda: PromptLookupDrafter(5),
        "auto": lambda: CombinedDrafter(
            [PromptLookupDrafter(5), make_draft_drafter(model, max_length=len(script) + 1)]
        ),
    }
    engine = make_engine(model, drafters[drafter](), max_length=len(script) + 1, draft_length=draft_length)
    with closing(engine):
        return Written(*read(engine.submit(PROMPT, params)))


DRAFTERS = ("none", "oracle", "half an oracle", "itself", "prompt_lookup", "auto")


def expected(script: Sequence[int], params: SamplingParams, eos: Sequence[int] = (EOS,)) -> tuple[str, list[int], str]:
    """Text, tokens and reason, worked out the slow way: the whole text again after every token."""
    for count in range(1, params.max_new_tokens + 1):
        ids = list(script[:count])
        if ids[-1] in eos and not params.ignore_eos:
            return text_of(ids), ids, "eos_token"
        text = text_of(ids)
        whole = text if count == params.max_new_tokens else text.rstrip(REPLACEMENT)
        found = [whole.find(stop) for stop in params.stop if stop in whole]
        if found:
            return whole[: min(found)], ids, "stop_sequence"
    return text_of(script[: params.max_new_tokens]), list(script[: params.max_new_tokens]), "length"


def check(written: Written, script: Sequence[int], params: SamplingParams) -> None:
    text, ids, reason = expected(script, params)
    assert written.text == text
    assert written.ids == ids
    assert written.finish.finish_reason == reason
    assert written.finish.completion_tokens == len(ids)
    assert written.finish.speculation.emitted_tokens == len(ids)


# --- max_new_tokens ---------------------------------------------------------------------------------------------------


class Models(NamedTuple):
    target: Any
    near: Any
    references: References


@pytest.fixture(scope="module")
def models(device: str) -> Models:
    target = tiny_model(0, device).double()
    return Models(target, perturbed(target, 0.02), References(target))


@pytest.mark.slow
@pytest.mark.parametrize("draft_length", [1, 4, 10, "auto"])
@pytest.mark.parametrize("name", ["none", "prompt_lookup", "itself", "near", "auto", "oracle"])
def test_exactly_max_new_tokens_at_every_length(
    models: Models, engines: Callable[..., Engine], name: str, draft_length: int | Literal["auto"]
) -> None:
    prompt = (1, 2, 3, 1, 2, 3)
    longest = models.references(prompt, SamplingParams(max_new_tokens=25, ignore_eos=True))
    drafters: dict[str, Callable[[], Drafter]] = {
        "none": Drafter,
        "prompt_lookup": lambda: PromptLookupDrafter(5),
        "itself": lambda: make_draft_drafter(models.target),
        "near": lambda: make_draft_drafter(models.near),
        "auto": lambda: CombinedDrafter([PromptLookupDrafter(5), make_draft_drafter(models.near)]),
        "oracle": lambda: OracleDrafter({prompt: longest}, 1.0),
    }
    engine = engines(models.target, drafters[name](), draft_length=draft_length)
    # All at once, so that rows of one batch reach their limits at different steps.
    streams = [engine.submit(prompt, SamplingParams(max_new_tokens=n, ignore_eos=True)) for n in range(1, 26)]
    for n, stream in enumerate(streams, start=1):
        tokens, finish = read(stream)
        assert token_ids(tokens) == longest[:n]
        assert finish.finish_reason == "length"
        assert finish.completion_tokens == n
        # The last token comes from the target in any case, so it is never drafted.
        assert finish.speculation.drafted_tokens <= max(0, n - 1) * max(1, finish.speculation.num_steps)


@pytest.mark.parametrize("max_new_tokens", range(1, 12))
@pytest.mark.parametrize("draft_length", [4, 10])
def test_nothing_beyond_the_limit_is_drafted(max_new_tokens: int, draft_length: int) -> None:
    # Drafting past the limit would be work for nothing; the last token needs no draft.
    params = SamplingParams(max_new_tokens=max_new_tokens)
    written = write(script_of("abcdefghijklmnopqrst"), params, draft_length=draft_length)
    stats = written.finish.speculation
    assert stats.num_steps == -(-max_new_tokens // (1 + draft_length))
    assert stats.drafted_tokens == stats.accepted_tokens == max_new_tokens - stats.num_steps


def test_prompt_and_output_may_fill_the_slot_to_the_last_position(device: str) -> None:
    script = script_of("x" * 30)
    for drafter in DRAFTERS:
        written = write(script, SamplingParams(max_new_tokens=30), drafter=drafter, draft_length=10, device=device)
        assert written.text == "x" * 30


# --- End of sequence --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draft_length", [1, 2, 3, 4, 7, 10, "auto"])
@pytest.mark.parametrize("num_before", range(0, 13, 2))
def test_eos_inside_an_accepted_run_ends_the_text(draft_length: int | Literal["auto"], num_before: int) -> None:
    script = [*script_of("abcdefghijklmnop")[:num_before], EOS, *script_of("never seen")]
    params = SamplingParams(max_new_tokens=len(script))
    written = write(script, params, draft_length=draft_length)
    check(written, script, params)
    assert written.finish.finish_reason == "eos_token"
    assert written.text == "abcdefghijklmnop"[:num_before]
    assert written.ids[-1] == EOS  # It is a token of the completion, without text.


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_eos_ends_the_text_with_every_drafter(device: str, drafter: str) -> None:
    script = [*script_of("aaaaaaaabbbb"), EOS, *script_of("aaaa"), EOS]
    params = SamplingParams(max_new_tokens=len(script))
    check(write(script, params, drafter=drafter, device=device), script, params)


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_ignore_eos_goes_on_to_the_limit(device: str, drafter: str) -> None:
    script = [*script_of("aaaa"), EOS, *script_of("bbbb"), EOS, *script_of("cc")]
    params = SamplingParams(max_new_tokens=len(script), ignore_eos=True)
    written = write(script, params, drafter=drafter, device=device)
    assert written.text == "aaaabbbbcc"
    assert written.ids == script
    assert written.finish.finish_reason == "length"


def test_eos_as_the_last_token_allowed_is_reported_as_eos() -> None:
    params = SamplingParams(max_new_tokens=4)
    written = write([*script_of("abc"), EOS], params)
    assert (written.text, written.finish.finish_reason) == ("abc", "eos_token")


def test_each_of_several_eos_tokens_ends_the_text() -> None:
    # Chat models have an end of turn beside the end of text.
    script = script_of("ab;cd")
    model = scripted_model(script)
    oracle = OracleDrafter({PROMPT: script}, 1.0)
    with closing(make_engine(model, oracle, eos=(EOS, script[2]), max_length=16)) as engine:
        tokens, finish = read(engine.submit(PROMPT, SamplingParams(max_new_tokens=5)))
    assert token_ids(tokens) == script[:3]
    assert finish.finish_reason == "eos_token"
    assert finish.completion_tokens == 3


# --- Stop strings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize(
    ("text", "stop", "kept"),
    [
        ("the quick brown fox", ["brown"], "the quick "),
        ("the quick brown fox", ["t"], ""),  # The first token already completes it.
        ("the quick brown fox", ["the"], ""),  # The start of the text.
        ("the quick brown fox", ["the quick brown fox"], ""),  # All of it.
        ("the quick brown fox", ["fox", "brown", "own fox"], "the quick "),
        ("the quick brown fox", ["uick", "qui", "ck"], "the "),  # Overlapping; "qui" is complete first.
        ("the quick brown fox", ["quick brown f", "brown"], "the quick "),  # The shorter one completes first.
        ("the quick brown fox", ["quick brown cow"], "the quick brown fox"),  # Held back, then released.
        ("aaaaaaaaab", ["aab"], "aaaaaaa"),  # Its beginning comes again and again.
        ("abababababc", ["ababc"], "ababab"),
        ("x\n\n\nObservation: y", ["\nObservation"], "x\n\n"),
        ("Grüße aus Köln", ["öl"], "Grüße aus K"),  # A character that spans tokens.
        ("日本語のテキスト", ["語の"], "日本"),
        ("a🙂b🙂c", ["🙂c"], "a🙂b"),
    ],
)
def test_stop_string_ends_the_text_before_it(text: str, stop: list[str], kept: str, drafter: str) -> None:
    script = script_of(text)
    params = SamplingParams(max_new_tokens=len(script), stop=stop)
    written = write(script, params, drafter=drafter)
    check(written, script, params)
    assert written.text == kept
    assert written.finish.finish_reason == ("stop_sequence" if kept != text else "length")


@pytest.mark.slow
@pytest.mark.parametrize("draft_length", range(1, 11))
def test_stop_string_across_steps(draft_length: int) -> None:
    # Steps of 2 to 11 tokens cut the seven characters of the stop string in every way.
    script = script_of("0123456789 STOPPER after")
    for offset in range(11):
        moved = script[offset:]
        params = SamplingParams(max_new_tokens=len(moved), stop=["STOPPER"])
        written = write(moved, params, draft_length=draft_length)
        check(written, moved, params)
        assert written.text == "0123456789 "[offset:]


@pytest.mark.slow
@settings(max_examples=60)
@given(
    text=st.text(alphabet="abé🙂", min_size=1, max_size=14),
    stop=st.lists(st.text(alphabet="abé🙂", min_size=1, max_size=4), max_size=3),
    drafter=st.sampled_from(["oracle", "half an oracle", "prompt_lookup"]),
    draft_length=st.sampled_from([1, 2, 3, 5, 10, "auto"]),
    cut=st.integers(0, 3),
    eos_at=st.none() | st.integers(0, 20),
)
@example(text="aaab", stop=["aab", "ab"], drafter="oracle", draft_length=10, cut=0, eos_at=None)
@example(text="ab", stop=["abé"], drafter="oracle", draft_length=1, cut=0, eos_at=2)
def test_any_text_ends_where_it_would_without_speculation(
    text: str, stop: list[str], drafter: str, draft_length: int | Literal["auto"], cut: int, eos_at: int | None
) -> None:
    script = script_of(text)
    if eos_at is not None:
        script.insert(min(eos_at, len(script)), EOS)
    # Cutting tokens off the end may leave half a character.
    params = SamplingParams(max_new_tokens=max(1, len(script) - cut), stop=stop)
    plain = write(script, params, drafter="none")
    check(plain, script, params)
    fast = write(script, params, drafter=drafter, draft_length=draft_length)
    check(fast, script, params)
    # Also piece by piece: no token releases more than it would in plain decoding, so none shows part of a stop string.
    assert [token.text for token in fast.tokens] == [token.text for token in plain.tokens]


def test_no_piece_shows_the_beginning_of_a_stop_string_before_it_is_ruled_out() -> None:
    script = script_of("say END of ENDING")
    params = SamplingParams(max_new_tokens=len(script), stop=["ENDING"])
    shown = ""
    for token in write(script, params).tokens:
        shown += token.text
        assert "say END of ".startswith(shown)
    assert shown == "say END of "


# --- Text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draft_length", [1, 2, 3, 4, 7, "auto"])
@pytest.mark.parametrize("drafter", ["none", "oracle", "half an oracle"])
def test_characters_that_span_tokens_stream_whole(draft_length: int | Literal["auto"], drafter: str) -> None:
    text = "Grüße, 東京 🙂👩‍👩‍👧 naïve Ω"
    script = script_of(text)
    assert len(script) > len(text)
    written = write(script, SamplingParams(max_new_tokens=len(script)), drafter=drafter, draft_length=draft_length)
    pieces = [token.text for token in written.tokens]
    assert "".join(pieces) == text
    assert not any(REPLACEMENT in piece for piece in pieces)
    # Every token but the last of a character is silent.
    assert [bool(piece) for piece in pieces] == [
        is_last for character in text for is_last in [*[False] * (len(character.encode()) - 1), True]
    ]


def test_a_limit_inside_a_character_shows_what_a_whole_decode_shows() -> None:
    script = script_of("ab🙂")
    for count in range(2, 7):
        written = write(script, SamplingParams(max_new_tokens=count), draft_length=10)
        assert written.text == text_of(script[:count])
        assert written.finish.finish_reason == "length"
