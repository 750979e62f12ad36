"""Later turns of conversations, asked after the model's own answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.training.answers import Text, write_answers
from langchain_specdec.training.conversations import Conversation, Conversations
from langchain_specdec.training.prompt_files import GivenPrompt
from langchain_specdec.training.prompt_tokens import PromptFormat
from langchain_specdec.training.settings import DraftSettings
from langchain_specdec.training.work_folder import WorkFolder
from tests.support.tiny_models import byte_tokenizer, tiny_model

pytestmark = pytest.mark.transformers

MAX_LENGTH, MAX_NEW_TOKENS = 160, 12
TURNS: tuple[list[str], ...] = (["a", "b", "c"], [], ["d", "e"], ["f", "g" * 150, "h"])


@pytest.fixture
def backend() -> Iterator[LocalBackend]:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ raise_exception('No.') if m.content == 'no' }}<{{ m.role[0] }}>{{ m.content }}"
        "{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    )
    backend = LocalBackend(tiny_model(), tokenizer, num_slots=1, max_length=MAX_LENGTH)
    yield backend
    backend.close()


@pytest.fixture
def asked(backend: LocalBackend) -> Conversations:
    return Conversations(PromptFormat(backend), MAX_LENGTH, MAX_NEW_TOKENS)


def begin(backend: LocalBackend, turns: list[str]) -> Conversation:
    tokens = PromptFormat(backend).token_ids(GivenPrompt(turns[0] if turns else "alone"), MAX_LENGTH)
    assert tokens is not None
    return Conversation(tokens, turns)


def answered(backend: LocalBackend, out: Path, *, goes_on: bool) -> list[Text]:
    asked = Conversations(PromptFormat(backend), MAX_LENGTH, MAX_NEW_TOKENS)
    settings, folder = DraftSettings(max_new_tokens=MAX_NEW_TOKENS), WorkFolder(out, {}, goes_on=goes_on)
    return write_answers(backend, [begin(backend, turns) for turns in TURNS], asked, settings, folder, lambda *_: None)


def test_later_turns_stand_behind_the_models_own_answers_wherever_a_run_was_ended(backend, tmp_path):
    texts = answered(backend, tmp_path / "draft", goes_on=False)
    rows = WorkFolder(tmp_path / "draft", {}, goes_on=True).rows("answers.jsonl")
    first, second, third = (rows[number]["text"] for number in (0, 4, 6))
    prompts = [backend.private_tokenizer.decode(text.tokens[: text.num_prompt_tokens]) for text in texts]
    assert prompts == [
        *("<u>a<a>", "<u>alone<a>", "<u>d<a>", "<u>f<a>"),
        *(f"<u>a<a>{first}<u>b<a>", f"<u>d<a>{rows[2]['text']}<u>e<a>"),
        f"<u>a<a>{first}<u>b<a>{second}<u>c<a>",
    ]
    assert third
    assert [list(text.tokens[text.num_prompt_tokens :]) for text in texts] == [row["tokens"] for row in rows]
    # Within a round, between rounds, and at the end.
    file = tmp_path / "draft/work/answers.jsonl"
    whole = file.read_bytes()
    for count in (2, 4, 5, 6, 7):
        file.write_bytes(b"".join(whole.splitlines(keepends=True)[:count]))
        assert answered(backend, tmp_path / "draft", goes_on=True) == texts
        assert file.read_bytes() == whole


def test_where_a_conversation_ends_its_later_turns_are_counted(backend, asked):
    conversation = begin(backend, ["a", "b", "c"])
    assert asked.next(conversation, " ") is None
    gone_on = asked.next(conversation, "x")
    assert gone_on is not None
    assert (gone_on.answers, gone_on.num_later) == (("x",), 1)
    assert asked.next(gone_on, "x" * MAX_LENGTH) is None
    assert asked.next(begin(backend, ["a", "no"]), "x") is None
    assert asked.next(begin(backend, []), "x") is None
    assert [count for _, count in sorted(asked.left_out.items())] == [2, 1, 1], asked.left_out


def test_the_most_that_texts_take_is_known_before(backend, asked):
    for turns, count in zip(TURNS, (3, 1, 2, 1), strict=True):
        conversation, lengths = begin(backend, turns), asked.most_lengths(begin(backend, turns))
        assert (len(lengths), lengths[0]) == (count, len(conversation.tokens) + MAX_NEW_TOKENS)
        for most in lengths[1:]:
            conversation = asked.next(conversation, "y" * MAX_NEW_TOKENS)
            assert len(conversation.tokens) + MAX_NEW_TOKENS <= most <= MAX_LENGTH
