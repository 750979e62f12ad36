"""The text of answers by both backends: its first space, and stop strings with special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from langchain_specdec import ChatSpeculative, Grammar, LocalBackend, SamplingParams, SpeculativeLLM
from langchain_specdec.backends.remote.answer import Answer
from langchain_specdec.backends.remote.frames import Frame, FrameEnd
from langchain_specdec.backends.tgi.server_facts import _ServerToken, _without_added
from langchain_specdec.completions.events import FinishReason
from langchain_specdec.completions.thoughts import Thoughts
from tests.support.chat_templates import chat_tokenizer
from tests.support.tiny_models import scripted_model

pytestmark = pytest.mark.transformers


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """As Llama 2's: a text begins with a space of its own, which decoding leaves out again."""
    words = {"▁Paris": 256, ".": 257, "▁": 258}
    raw = Tokenizer(models.BPE(vocab={f"<0x{i:02X}>": i for i in range(256)} | words, merges=[], byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    raw.add_special_tokens(["</s>", "[INST]", "[/INST]"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>")
    tokenizer.chat_template = "{% for m in messages %}[INST]{{ m.content }} [/INST]{% endfor %}"
    return tokenizer


def writing(tokenizer: Any, answer: list[int], num_prompt_tokens: int = 1, **options: Any) -> LocalBackend:
    """A backend whose model writes these tokens after a prompt of so many, and ends."""
    script = [0] * (num_prompt_tokens - 1) + answer + [tokenizer.eos_token_id]
    return LocalBackend(scripted_model(script, vocab_size=len(tokenizer)), tokenizer, num_slots=1, **options)


def test_a_completion_begins_with_the_space_that_sets_it_apart() -> None:
    tokenizer, prompt = sentencepiece_like(), "The capital is"
    start = tokenizer(prompt).input_ids
    backend = writing(tokenizer, [256, 257], len(start))
    llm = SpeculativeLLM(backend=backend, max_new_tokens=3)
    assert llm.invoke(prompt) == " Paris."
    assert "".join(llm.stream(prompt)) == " Paris."
    assert llm.invoke(prompt) == tokenizer.decode([*start, 256, 257])[len(tokenizer.decode(start)) :]
    generation = llm.generate([prompt], stop=[" Paris"], logprobs=1).generations[0][0]
    assert (generation.text, generation.generation_info["finish_reason"]) == ("", "stop_sequence")  # type: ignore[index]
    info = llm.generate([prompt], logprobs=1).generations[0][0].generation_info
    assert info is not None
    assert [entry["text"] for entry in info["logprobs"]] == [" Paris", ".", ""]
    backend.close()


def test_the_answer_of_a_chat_is_a_text_of_its_own() -> None:
    tokenizer = sentencepiece_like()
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Where?"}], tokenize=False)
    backend = writing(tokenizer, [256, 257], len(tokenizer(rendered, add_special_tokens=False).input_ids))
    chat = ChatSpeculative(backend=backend, max_new_tokens=3)
    # Templates put the space there themselves, when the answer comes back to them.
    assert chat.invoke("Where?").text == "Paris."
    # But what a grammar allows is the text as a whole.
    assert chat.invoke("Where?", max_tokens=9, grammar=Grammar(regex=r" Paris\.")).text == " Paris."
    backend.close()


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("<|im_end|>", "Hello."),
        ("<|im_start|>user", "Hello.\n"),
        (".<|im_end|>", "Hello"),
        ("\n<|im_start|>", "Hello."),
        ("<eos>", "Hello.\nuser\nAnd?"),
        ("And?<eos>", "Hello.\nuser\n"),
        ("\n", "Hello."),
        (".\nuser", "Hello"),
    ],
)
def test_special_tokens_in_stop_strings(stop: str, text: str) -> None:
    tokenizer = chat_tokenizer()
    answer = tokenizer("Hello.<|im_end|>\n<|im_start|>user\nAnd?", add_special_tokens=False).input_ids
    backend = writing(tokenizer, answer)
    for ignores in (False, True):
        llm = SpeculativeLLM(backend=backend, max_new_tokens=len(answer) + 1, stop=[stop], ignore_eos=ignores)
        generation = llm.generate(["Q"]).generations[0][0]
        assert generation.generation_info is not None
        assert (generation.text, generation.generation_info["finish_reason"]) == (text, "stop_sequence")
        assert "".join(llm.stream("Q")) == text
    backend.close()


def frames(*texts: str) -> list[Frame]:
    """An answer of a server, as its tokens; special ones are in angle brackets."""
    whole = "".join(text for text in texts if not text.startswith("<"))
    end = FrameEnd("eos_token", whole, 3)
    count = len(texts)
    return [
        Frame(i, text, text.startswith("<"), None, (), end if i == count - 1 else None) for i, text in enumerate(texts)
    ]


@pytest.mark.parametrize(
    ("stop", "text", "reason"),
    [
        ("<user>", "Hello.", "stop_sequence"),
        (".<user>Hi", "Hello", "stop_sequence"),
        ("</s>", "Hello.Hi", "stop_sequence"),
        (".Hi", "Hello", "stop_sequence"),
        ("<x>", "Hello.Hi", "eos_token"),
    ],
)
def test_special_tokens_in_stop_strings_that_a_server_did_not_see(stop: str, text: str, reason: str) -> None:
    answer, released = Answer(SamplingParams(stop=[stop]), {}), ""
    for frame in frames("Hello", ".", "<user>", "Hi", "</s>"):
        released += answer.add(frame).text
        if answer.finish_reason is not None:
            break
    assert (released, answer.finish_reason) == (text, reason)


@pytest.mark.parametrize(
    ("stop", "text", "reason"),
    [
        (".x", "Hello.[CALL]Hi", "eos_token"),
        ("[CALL]", "Hello.", "stop_sequence"),
        (".[", "Hello", "stop_sequence"),
        (".Hi", "Hello.[CALL]Hi", "eos_token"),
    ],
)
def test_special_tokens_that_are_shown_stand_at_their_place(stop: str, text: str, reason: str) -> None:
    answer, released = Answer(SamplingParams(stop=[stop]), {2: "[CALL]", 4: "[END]"}), ""
    for frame in frames("Hello", ".", "<call>", "Hi", "</s>"):
        released += answer.add(frame).text
        if answer.finish_reason is not None:
            break
    assert (released, answer.finish_reason) == (text, reason)


def test_stop_strings_of_a_server_s_answer_count_behind_its_thought() -> None:
    thoughts = Thoughts(("<think>",), "</think>", is_open=True)
    answer, released = Answer(SamplingParams(stop=["."]), {}, None, thoughts), ""
    for frame in frames("One. Two", ".</thi", "nk>\n", "Three. Four", "</s>"):
        released += answer.add(frame).text
        if answer.finish_reason is not None:
            break
    assert (released, answer.finish_reason) == ("One. Two.</think>\nThree", "stop_sequence")


def test_a_special_token_that_is_shown_may_be_the_last() -> None:
    end = FrameEnd("length", "Hi", 3)
    answer = Answer(SamplingParams(max_new_tokens=2), {1: "[CALL]"})
    texts = [
        answer.add(Frame(i, text, i == 1, None, (), end if i else None)).text for i, text in enumerate(["Hi", "x"])
    ]
    assert (texts, answer.finish_reason) == (["Hi", "[CALL]"], "length")


def read(params: SamplingParams, answer_frames: list[Frame]) -> tuple[str, str | None, int]:
    """The text of an answer, why it ended, and its tokens."""
    answer, released = Answer(params, {}), ""
    for frame in answer_frames:
        released += answer.add(frame).text
        if answer.finish_reason is not None:
            break
    return released, answer.finish_reason, answer.num_tokens


def ended_with(whole: str, reason: FinishReason, *texts: str) -> list[Frame]:
    """An answer whose last frame says that of the whole."""
    last = len(texts) - 1
    end = FrameEnd(reason, whole, 3)
    return [Frame(i, text, False, None, (), end if i == last else None) for i, text in enumerate(texts)]


@pytest.mark.parametrize("whole", ["", "Hel", "Hello \ufffd", "Hello "])
@pytest.mark.parametrize("reason", ["length", "eos_token", "stop_sequence"])
def test_what_was_streamed_stands_whatever_the_end_says(whole: str, reason: FinishReason) -> None:
    # The last token is half a character, which has no text yet.
    released = read(SamplingParams(max_new_tokens=9), ended_with(whole, reason, "Hel", "lo ", ""))
    assert released == ("Hello \ufffd" if whole.endswith("\ufffd") else "Hello ", reason, 3)


@pytest.mark.parametrize("whole", ["", "Hel"])
def test_the_last_token_is_kept_where_the_end_says_less(whole: str) -> None:
    assert read(SamplingParams(), ended_with(whole, "length", "Hel", "lo"))[0] == "Hello"
    # An end-of-sequence token has no text of its own.
    assert read(SamplingParams(), ended_with(whole, "eos_token", "Hel", "lo", "</s>"))[0] == "Hello"


@pytest.mark.parametrize(
    ("pieces", "stop", "text"),
    [
        ("abcdef", ["c", "bcd"], "ab"),  # complete first, though the other begins before it
        ("abcdef", ["bcd", "c"], "ab"),
        (["abc", "def"], ["bcd", "c"], "ab"),
        ("abcdef", ["abcx", "bc"], "a"),
        ("abcdef", ["bcde", "bcd"], "a"),
        ("abcdef", ["bcd", "cd"], "a"),  # complete with the same token: the one that begins first
        (["ab", "cd", "ef"], ["c", "bcd"], "a"),
        (["abcdef"], ["cd", "bcd"], "a"),
    ],
)
def test_of_overlapping_stop_strings_the_first_that_is_complete_wins(
    pieces: Sequence[str], stop: list[str], text: str
) -> None:
    answer = ended_with("abcdef", "eos_token", *pieces, "</s>")
    assert read(SamplingParams(stop=stop), answer)[:2] == (text, "stop_sequence")


@pytest.mark.parametrize(
    ("limit", "stop", "expected"),
    [
        (3, [], ("abc", "length", 3)),
        (4, [], ("abc", "eos_token", 4)),  # the limit's own token ends it by itself
        (3, ["c"], ("ab", "stop_sequence", 3)),  # at the limit
        (3, ["d"], ("abc", "length", 3)),  # past it
        (3, ["cd"], ("abc", "length", 3)),  # begun before it
        (3, ["bcd", "c"], ("ab", "stop_sequence", 3)),
    ],
)
def test_nothing_past_the_limit_counts(limit: int, stop: list[str], expected: tuple[str, str, int]) -> None:
    params = SamplingParams(max_new_tokens=limit, stop=stop)
    last, whole = ("d", "abcd") if limit == 3 else ("</s>", "abc")
    assert read(params, ended_with(whole, "eos_token", "a", "b", "c", last)) == expected


def test_tokens_that_a_server_puts_around_a_text_are_not_counted() -> None:
    bos, text, empty = (
        _ServerToken(id=i, start=start, stop=stop) for i, start, stop in [(1, 0, 0), (7, 0, 1), (9, 1, 1)]
    )
    assert _without_added([bos, text]) == [7]
    assert _without_added([bos, text, empty, text, bos]) == [7, 9, 7]
    assert _without_added([bos, bos]) == [1, 1]  # it tells no places
    assert _without_added([]) == []
