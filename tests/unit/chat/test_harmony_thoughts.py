"""Thoughts, calls and answers in the channels of gpt-oss, and forms that come after a thought there."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

import pytest
import torch
from pydantic import BaseModel, Field

from langchain_specdec import ChatSpeculative, LocalBackend
from langchain_specdec.engine.step_cost import StepCost
from tests.support.backends import lasting, scripted_backend
from tests.support.thinking import GEMMA4, HARMONY, thinking, thinking_tokenizer
from tests.support.tiny_models import tiny_model
from tests.support.tools import weather

pytestmark = pytest.mark.transformers

SHOWN = HARMONY.replace("<|end|>' }}{% for", "<|end|>' }}{% if tools %}{{ tools | tojson }}{% endif %}{% for", 1)
FINAL = "<|start|>assistant<|channel|>final<|message|>"
CALL = '<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>{"place": "Ulm"}'


class Sky(BaseModel):
    """The sky."""

    colour: str = Field(max_length=12)


@pytest.mark.parametrize("width", [1, 5])
def test_a_thought_stands_in_its_channel(width: int) -> None:
    model = thinking(f"<|channel|>analysis<|message|>Hm.<|end|>{FINAL}Blue.", template=SHOWN, width=width)
    for each in (model, model.bind_tools([weather])):
        for answer in (each.invoke("x"), reduce(add, each.stream("x"))):
            assert (answer.text, answer.additional_kwargs) == ("Blue.", {"reasoning_content": "Hm."})
    model = thinking(f"<|channel|>analysis<|message|>Hm.<|end|>{CALL}", template=SHOWN, width=width)
    called = model.bind_tools([weather]).invoke("x")
    assert [each["args"] for each in called.tool_calls] == [{"place": "Ulm"}]
    assert (called.text, called.additional_kwargs) == ("", {"reasoning_content": "Hm."})


@pytest.mark.parametrize("width", [1, 5])
def test_an_answer_is_found_behind_a_thought_that_did_not_end(width: int) -> None:
    for rest in (FINAL, FINAL.removeprefix("<|start|>assistant")):
        model = thinking(f"<|channel|>analysis<|message|>Hm.{rest}Blue.", template=SHOWN, width=width)
        for each in (model, model.bind_tools([weather])):
            for answer in (each.invoke("x"), reduce(add, each.stream("x"))):
                assert (answer.text, answer.additional_kwargs) == ("Blue.", {"reasoning_content": "Hm."})
        assert model.invoke("x", stop=["lu"]).text == "B"
    for call in (
        CALL,
        '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"place": "Ulm"}<|call|>',
    ):
        model = thinking(f"<|channel|>analysis<|message|>Hm.{call}", template=SHOWN, width=width)
        called = model.bind_tools([weather]).invoke("x")
        assert [each["args"] for each in called.tool_calls] == [{"place": "Ulm"}]
        assert (called.text, called.additional_kwargs) == ("", {"reasoning_content": "Hm."})


def test_stop_strings_do_not_end_the_header_of_an_answer() -> None:
    written = f"<|channel|>analysis<|message|>Hm.<|end|>{FINAL}Blue, the final assistant."
    for stop, text in (("assistant", "Blue, the final "), ("final", "Blue, the ")):
        model = thinking(written, template=SHOWN)
        for answer in (model.invoke("x", stop=[stop]), reduce(add, model.stream("x", stop=[stop]))):
            assert (answer.text, answer.additional_kwargs["reasoning_content"]) == (text, "Hm.")
    called = thinking(CALL, template=SHOWN).bind_tools([weather]).invoke("x", stop=["assistant", "commentary"])
    assert [each["args"] for each in called.tool_calls] == [{"place": "Ulm"}]


def test_forms_come_after_the_thought() -> None:
    model = thinking(f'Hm.<|end|>{FINAL}{{"colour": "blue"}}', template=SHOWN)
    assert model.with_structured_output(Sky).invoke("x") == Sky(colour="blue")
    how: Any = scripted_backend(model).requests[-1].thoughts
    assert (how.closing, how.following) == ("<|end|>", FINAL)
    either: Any = model.with_structured_output(Sky, tools=[weather], include_raw=True).invoke("x")
    assert either["parsed"] == Sky(colour="blue")
    how = scripted_backend(model).requests[-1].thoughts
    assert how.following == "<|start|>assistant"
    model = thinking(f"Hm.<|end|>{CALL}", template=SHOWN)
    assert model.bind_tools([weather], tool_choice="any").invoke("x").tool_calls[0]["args"] == {"place": "Ulm"}


@pytest.mark.parametrize(
    "template", [SHOWN, GEMMA4.replace("{% for", "{% if tools %}{{ '<|tool_call>' }}{% endif %}{% for", 1)]
)
def test_forms_hold_after_thoughts_of_a_real_model(template: str) -> None:
    tokenizer = thinking_tokenizer(template)
    tokenizer.add_tokens(["<|tool_call>", "<tool_call|>", '<|"|>'], special_tokens=True)
    found = []
    options: dict[str, Any]
    for options in ({"drafter": "none"}, {"max_tree_nodes": 8}):
        target = tiny_model(2, dtype=torch.float64, vocab_size=len(tokenizer), max_position_embeddings=4096)
        defaults: dict[str, Any] = {"num_slots": 2, "max_length": 1024, "step_cost": StepCost.flat()}
        with lasting(LocalBackend(target, tokenizer, dtype=torch.float64, **defaults, **options)) as backend:
            model = ChatSpeculative(backend=backend, max_tokens=140, max_reasoning_tokens=20, reasoning=True)
            sky = model.with_structured_output(Sky).invoke("x")
            called = model.bind_tools([weather], tool_choice="any").invoke("x")
            either: Any = model.with_structured_output(Sky, tools=[weather], include_raw=True).invoke("x")
            assert isinstance(sky, Sky)
            assert called.tool_calls[0]["name"] == "weather"
            assert not called.text
            assert either["parsed"] or either["raw"].tool_calls
            found.append((sky, called.tool_calls[0]["args"], either["parsed"], either["raw"].text))
    assert found[0] == found[1]
