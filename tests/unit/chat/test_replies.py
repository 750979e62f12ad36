"""Calls are read whether or not decoding leaves their marks in the text."""

from __future__ import annotations

from typing import Any

import pytest

from langchain_specdec.backends.remote.answer import Answer
from langchain_specdec.backends.remote.frames import Frame
from langchain_specdec.chat.replies import ReplyReader
from langchain_specdec.chat.template import ChatTemplate
from langchain_specdec.completions.events import FinishEvent, TokenEvent
from langchain_specdec.completions.stats import SpeculationStats
from langchain_specdec.sampling.params import SamplingParams
from tests.support.chat_templates import TEMPLATES, chat_tokenizer

pytestmark = pytest.mark.transformers

ANSWERS = {
    "llama": '<|python_tag|>{"name": "add", "parameters": {"a": 1}}',
    "mistral": '[TOOL_CALLS]add[ARGS]{"a": 1}',
    "qwen": '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>',
}


@pytest.mark.parametrize("skip_special_tokens", [True, False])
@pytest.mark.parametrize("family", ANSWERS)
def test_marks_count_once(family: str, skip_special_tokens: bool) -> None:
    """Servers write out special tokens that their tokenizer lists among the added ones only."""
    tokenizer: Any = chat_tokenizer(TEMPLATES[family])
    template = ChatTemplate(tokenizer, family)
    ids = tokenizer(ANSWERS[family], add_special_tokens=False).input_ids
    answer = Answer(SamplingParams(max_new_tokens=len(ids) + 1), template.mark_texts)
    events: list[TokenEvent | FinishEvent] = []
    for token in ids:
        text = tokenizer.decode([token], skip_special_tokens=skip_special_tokens)
        frame = Frame(token, text, token in tokenizer.all_special_ids and skip_special_tokens, None, (), None)
        events.append(TokenEvent((answer.add(frame),)))
    events.append(FinishEvent("eos_token", 1, len(ids), 0, SpeculationStats()))
    message: Any = (
        ReplyReader(lambda: family, template.parser({"add": {}}), None, SamplingParams()).generation(events).message
    )
    assert [(call["name"], call["args"]) for call in message.tool_calls] == [("add", {"a": 1})]
    assert not message.invalid_tool_calls
    assert not message.text
