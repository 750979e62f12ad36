"""Arguments of calls that are forced: what of a tool's schema holds, and that no tool stands in another's way."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from langchain_specdec import ChatSpeculative
from langchain_specdec.backends.base import Backend
from langchain_specdec.backends.tgi.backend import TGIBackend
from langchain_specdec.chat import structured_output
from langchain_specdec.errors import InvalidParameterError, RelaxedSchemaWarning
from langchain_specdec.grammar.call_grammar import CallGrammar
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.grammar.text_check import TextCheck
from tests.support.backends import ScriptedBackend, scripted_backend
from tests.support.chat_templates import LLAMA, MISTRAL, QWEN

TEXT = {"type": "string"}
SET = {"type": "array", "items": TEXT, "uniqueItems": True}
FORMAT = {"type": "json_schema", "json_schema": {"name": "A", "schema": {"title": "A", "properties": {"sum": TEXT}}}}


class Answer(BaseModel):
    """The answer."""

    wet: bool


class AsServer(ScriptedBackend):
    """What a TGI server asks of grammars."""

    needs_properties = True
    takes_calls_or_object = False
    takes_token_ids = False
    check_grammar = staticmethod(TGIBackend.check_grammar)


@pytest.fixture(autouse=True)
def untold() -> Iterator[None]:
    """As in a new program."""
    structured_output._warn.cache_clear()
    structured_output._held_parameters.cache_clear()
    yield


def function(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": parameters}}


def label(inner: Any = SET) -> dict[str, Any]:
    return function("label", {"type": "object", "properties": {"a": TEXT, "b": inner}, "required": ["a"]})


def make(kind: type[ScriptedBackend] = ScriptedBackend, template: str = QWEN, **fields: Any) -> ChatSpeculative:
    return ChatSpeculative(backend=kind("x", template=template), **fields)


def grammar_of(model: Any, **kwargs: Any) -> Grammar:
    """The grammar of a call, whose answer here is none."""
    model.invoke("x", **kwargs)
    grammar = scripted_backend(model).requests[-1].params.grammar
    assert grammar is not None
    type(scripted_backend(model)).check_grammar(grammar)
    return grammar


def takes(grammar: Grammar, name: str, arguments: Any, key: str = "arguments") -> bool:
    call: dict[str, Any] = {"name": name, key: arguments}
    check = TextCheck(grammar)
    end = grammar.end if isinstance(grammar, CallGrammar) else ""
    return any(check.fit(json.dumps(form) + end).is_whole for form in (call, {"function": call}))


@pytest.mark.parametrize("kind", [ScriptedBackend, AsServer])
@pytest.mark.parametrize(("template", "key"), [(QWEN, "arguments"), (LLAMA, "parameters"), (MISTRAL, "arguments")])
def test_a_tool_that_cannot_be_held_whole_disables_no_other(
    kind: type[ScriptedBackend], template: str, key: str
) -> None:
    model = make(kind, template).bind_tools([Answer, label()], tool_choice="any")
    with pytest.warns(RelaxedSchemaWarning, match="tool 'label' .*uniqueItems in properties/b") as told:
        grammar = grammar_of(model)
    assert len(told) == 1
    assert takes(grammar, "Answer", {"wet": True}, key)
    assert not takes(grammar, "Answer", {"wet": "yes"}, key)
    assert takes(grammar, "label", {"a": "x", "b": ["x", "x"]}, key)
    for wrong in ({"b": ["x"]}, {"a": "x", "b": [1]}, {"a": "x", "c": 1}):
        assert not takes(grammar, "label", wrong, key)
    # It is told once.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grammar_of(model)
        grammar_of(model.bound.bind_tools([Answer, label()], tool_choice="label"))  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("choice", ["Answer", None, "none"])
def test_only_the_schema_of_the_tool_that_is_forced_counts(choice: str | None) -> None:
    bad = [label(), function("never", {"type": "object", "not": {}})]
    make().bind_tools([Answer, *bad], tool_choice=choice).invoke("x")


def test_a_batch_tells_it_once_too() -> None:
    with pytest.warns(RelaxedSchemaWarning) as told:
        make().bind_tools([Answer, label()], tool_choice="any").batch(["x"] * 16)
    assert len([warning for warning in told if warning.category is RelaxedSchemaWarning]) == 1


def test_beside_a_response_format_too() -> None:
    model = make().bind_tools([Answer, label()])
    with pytest.warns(RelaxedSchemaWarning, match="'label'"):
        grammar = grammar_of(model, response_format=FORMAT)
    check = TextCheck(grammar)
    for arguments, is_right in (({"a": "x", "b": ["x", "x"]}, True), ({"b": []}, False)):
        call = json.dumps({"name": "label", "arguments": arguments})
        assert check.fit(f"<tool_call>\n{call}\n</tool_call>").is_whole == is_right
    assert check.fit('{"sum": "x"}').is_whole


@pytest.mark.parametrize("kind", [ScriptedBackend, AsServer])
def test_a_tool_that_nothing_fits_is_refused_alone_and_left_out_beside_others(kind: type[ScriptedBackend]) -> None:
    never = function("never", {"type": "object", "properties": {"a": TEXT}, "not": {}})
    model = make(kind)
    with pytest.raises(InvalidParameterError, match=r"No call of the tool 'never' can be forced.*unsatisfiable"):
        model.bind_tools([Answer, never], tool_choice="never").invoke("x")
    with pytest.warns(RelaxedSchemaWarning, match="No call of the tool 'never'"):
        grammar = grammar_of(model.bind_tools([Answer, never], tool_choice="any"))
    assert takes(grammar, "Answer", {"wet": True})
    assert not takes(grammar, "never", {})


@pytest.mark.filterwarnings("error")
def test_forms_of_answers_are_held_whole_or_refused() -> None:
    schema = {"title": "Label", "type": "object", "properties": {"b": SET}}
    model = ChatSpeculative(backend=ScriptedBackend("x"))
    model.with_structured_output(schema, method="function_calling", include_raw=True).invoke("x")
    forced = scripted_backend(model).requests[-1].params.grammar
    model.with_structured_output(schema, include_raw=True).invoke("x")
    answered = scripted_backend(model).requests[-1].params.grammar
    for grammar in (forced, answered):
        assert grammar is not None
        # The engine does so before it decodes.
        with pytest.raises(InvalidParameterError, match="uniqueItems"):
            Backend.check_grammar(grammar)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [ScriptedBackend, AsServer])
def test_a_tool_of_which_nobody_says_what_it_takes_takes_nothing(kind: type[ScriptedBackend]) -> None:
    for parameters in (
        {},
        {"type": "object"},
        {"type": "object", "description": "Nothing.", "required": []},
        {"type": "object", "properties": {}},
        {"type": "object", "properties": None, "required": None},
        {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"},
        {"type": "object", "additionalProperties": False},
    ):
        grammar = grammar_of(make(kind).bind_tools([function("clock", parameters)], tool_choice="clock"))
        assert takes(grammar, "clock", {})
        assert not takes(grammar, "clock", {"type": "object"}), parameters
    free = function("note", {"type": "object", "additionalProperties": True})
    assert takes(grammar_of(make(kind).bind_tools([free], tool_choice="any")), "note", {"any": "key"})


def test_any_object_is_still_a_form_of_answers() -> None:
    grammar = grammar_of(make(), response_format={"type": "json_object"})
    assert TextCheck(grammar).fit('{"type": "object"}').is_whole
    schema = {"type": "json_schema", "json_schema": {"name": "A", "schema": {"type": "object"}}}
    assert TextCheck(grammar_of(make(), response_format=schema)).fit('{"a": 1}').is_whole


def test_a_schema_with_an_id_is_a_part_like_any_other() -> None:
    parameters = {
        "$id": "https://example.org/x.json",
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/A"}},
        "$defs": {"A": {"enum": ["x", "y"]}},
    }
    grammar = grammar_of(make().bind_tools([function("f", parameters), Answer], tool_choice="any"))
    assert takes(grammar, "f", {"a": "x"})
    assert not takes(grammar, "f", {"a": "z"})
