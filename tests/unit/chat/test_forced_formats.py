"""Calls that are forced in the format of each family: a random model writes them, and they fit the schema."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import reduce
from operator import add
from typing import Any

import jsonschema
import pytest
import torch

from langchain_specdec import ChatSpeculative, LocalBackend
from langchain_specdec.backends.base import Backend
from langchain_specdec.chat.structured_output import form_of_calls
from langchain_specdec.chat.template import ChatTemplate
from langchain_specdec.chat.tool_calls import ToolCall
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.errors import RelaxedSchemaWarning
from langchain_specdec.grammar.text_check import TextCheck
from tests.support.backends import is_idle, lasting
from tests.support.tiny_models import tiny_model
from tests.support.tool_formats import parse
from tests.support.tool_templates import FAMILIES, Family, family_tokenizer


def function(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "A tool.", "parameters": parameters}}


FERRY = {
    "type": "object",
    "properties": {
        "harbour": {"type": "string", "minLength": 2, "maxLength": 6},
        "deck": {"enum": ["upper", "lower"]},
        "cars": {"type": "integer", "minimum": 0, "maximum": 9},
        "is_return": {"type": "boolean"},
        "plates": {"type": "array", "items": {"type": "string", "maxLength": 3}, "minItems": 1, "maxItems": 2},
        "owner": {"$ref": "#/$defs/Owner"},
        "note": {"anyOf": [{"type": "string", "maxLength": 4}, {"type": "null"}]},
    },
    "required": ["harbour", "cars", "plates", "owner"],
    "$defs": {
        "Owner": {
            "type": "object",
            "properties": {"name": {"type": "string", "pattern": "^[A-Z][a-z]{1,3}$"}, "age": {"type": "integer"}},
            "required": ["name"],
        }
    },
}
TIDE: dict[str, Any] = {"type": "object", "properties": {"when": {"type": "string", "maxLength": 5}}}
SCHEMAS = {"ferry": FERRY, "tide": TIDE}
TOOLS = [function(name, schema) for name, schema in SCHEMAS.items()]

# Arguments, and whether they fit.
CASES: list[tuple[dict[str, Any], bool]] = [
    ({"harbour": "Kiel", "cars": 2, "plates": ["a"], "owner": {"name": "Ann"}}, True),
    ({"harbour": 'a"\n<b', "cars": 0, "plates": ["a", "{}"], "owner": {"name": "Bob", "age": 3}, "note": None}, True),
    ({"harbour": "Ulm", "deck": "lower", "cars": 9, "is_return": True, "plates": [""], "owner": {"name": "Cy"}}, True),
    ({"harbour": "Kiel", "cars": 2, "plates": ["a"]}, False),
    ({"harbour": "K", "cars": 2, "plates": ["a"], "owner": {"name": "Ann"}}, False),
    ({"harbour": "Kiel", "cars": 12, "plates": ["a"], "owner": {"name": "Ann"}}, False),
    ({"harbour": "Kiel", "deck": "roof", "cars": 2, "plates": ["a"], "owner": {"name": "Ann"}}, False),
]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def backend(family: Family) -> Iterator[LocalBackend]:
    tokenizer = family_tokenizer(family)
    model = tiny_model(3, dtype=torch.float64, vocab_size=len(tokenizer), max_position_embeddings=4096)
    options: dict[str, Any] = {"num_slots": 2, "max_length": 3600, "dtype": torch.float64, "step_cost": StepCost.flat()}
    with lasting(LocalBackend(model, tokenizer, **options)) as backend:
        yield backend


def check_calls(message: Any) -> None:
    assert message.invalid_tool_calls == []
    assert message.tool_calls
    assert message.text == ""
    for call in message.tool_calls:
        jsonschema.validate(call["args"], SCHEMAS[call["name"]])


SAMPLED = {"temperature": 1.5, "seed": 3}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("named", "options"), [("ferry", {}), pytest.param("tide", SAMPLED, marks=pytest.mark.one_version)]
)
def test_a_random_model_writes_calls_that_fit(backend: LocalBackend, named: str, options: dict[str, Any]) -> None:
    model: Any = ChatSpeculative(backend=backend, max_tokens=400, **options)
    for choice in ("any", named):
        bound = model.bind_tools(TOOLS, tool_choice=choice)
        message = bound.invoke("When?")
        check_calls(message)
        assert reduce(add, bound.stream("When?")).tool_calls[0]["args"] == message.tool_calls[0]["args"]
    assert [call["name"] for call in message.tool_calls] == [named]
    one = model.bind_tools(TOOLS, tool_choice="any", parallel_tool_calls=False).invoke("When?")
    check_calls(one)
    assert len(one.tool_calls) == 1
    assert is_idle(backend)


@pytest.mark.one_version
@pytest.mark.parametrize(("tools", "options"), [(TOOLS, {}), (TOOLS[::-1], SAMPLED)], ids=["greedy", "sampled"])
def test_drafts_change_no_call(
    family: Family, backend: LocalBackend, tools: list[dict[str, Any]], options: dict[str, Any]
) -> None:
    plain_options: dict[str, Any] = {"num_slots": 2, "max_length": 3600, "dtype": torch.float64, "drafter": "none"}
    with lasting(LocalBackend(backend.model, family_tokenizer(family), **plain_options)) as plain:
        told = []
        for each in (backend, plain):
            bound = ChatSpeculative(backend=each, max_tokens=200, **options).bind_tools(tools, tool_choice="any")
            told.append([[call["args"] for call in message.tool_calls] for message in bound.batch(["When?", "Why?"])])
        assert told[0] == told[1]


@pytest.mark.one_version
def test_answers_end_in_time(backend: LocalBackend) -> None:
    # Long arguments are what this model likes best.
    model: Any = ChatSpeculative(backend=backend, max_tokens=260, temperature=2.0, seed=260)
    check_calls(model.bind_tools(TOOLS, tool_choice="ferry").invoke("When?"))


def written_calls(family: Family, *calls: tuple[str, dict[str, Any]]) -> str:
    """Calls as the family's template writes them in a history, without what stands around the message."""
    template = ChatTemplate(family_tokenizer(family), "tiny")
    function_calls = [
        {"type": "function", "id": "abcdefghi", "function": {"name": name, "arguments": arguments}}
        for name, arguments in calls
    ]
    question = {"role": "user", "content": "x"}
    answer = {"role": "assistant", "content": "specdec_mark"}
    with_calls = template.text([question, {"role": "assistant", "content": "", "tool_calls": function_calls}], TOOLS)
    before, after = template.text([question, answer], TOOLS).split("specdec_mark")
    return with_calls.removeprefix(before).removesuffix(after)


# Families whose calls are no JSON, and whose template writes nothing but what stands between the marks of a message.
OWN = ["qwen coder", "glm", "tekken", "gemma", "deepseek", "deepseek v3"]
SEVERAL = [*OWN, "hermes", "phi", "granite", "pythonic", "lfm"]


@pytest.mark.one_version
@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(("arguments", "fits"), CASES)
def test_the_grammar_takes_what_fits_as_the_template_writes_it(
    name: str, arguments: dict[str, Any], fits: bool
) -> None:
    parser = FAMILIES[name].parser
    written = written_calls(FAMILIES[name], ("ferry", arguments))
    assert parse(parser, [written], SCHEMAS) == [ToolCall("ferry", arguments)]
    form = form_of_calls(TOOLS, parser, Backend.check_grammar)
    body = written.removeprefix(form.begin).removesuffix(form.end)
    assert TextCheck(form.grammar).fit(body).is_whole == fits, body


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", SEVERAL)
def test_several_calls_are_one_answer(name: str) -> None:
    parser = FAMILIES[name].parser
    calls = [("ferry", CASES[0][0]), ("tide", {"when": "now"})]
    written = written_calls(FAMILIES[name], *calls)
    assert parse(parser, [written], SCHEMAS) == [ToolCall(*call) for call in calls]
    form = form_of_calls(TOOLS, parser, Backend.check_grammar, takes_one_call=False)
    assert form.end == ""
    assert TextCheck(form.grammar).fit(written.removeprefix(form.begin)).is_whole, written


@pytest.mark.parametrize("name", ["qwen coder", "glm", "gemma"])
def test_what_raw_text_cannot_hold_is_told(name: str) -> None:
    parameters = {
        "type": "object",
        "properties": {"day": {"type": "string", "format": "date"}, "code": {"type": "string", "pattern": "a|^b"}},
    }
    tool = function(f"told_{name[:4]}", parameters)
    with pytest.warns(RelaxedSchemaWarning, match=r"pattern in properties/code") as told:
        form_of_calls([tool], FAMILIES[name].parser, Backend.check_grammar)
    assert len(told) == 1
    assert "format in properties/day" in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        form_of_calls([tool], FAMILIES[name].parser, Backend.check_grammar)


TREE = {
    "type": "object",
    "properties": {"root": {"$ref": "#/$defs/Node"}, "again": {"$ref": "#/properties/root"}},
    "required": ["root"],
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer"},
                "left": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
                "right": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
            },
            "required": ["value"],
        }
    },
}
TREES = {
    "qwen coder": '<function=tree>\n<parameter=root>\n{"value": 1, "left": {"value": 2}}\n</parameter>\n</function>',
    "glm": 'tree\n<arg_key>root</arg_key>\n<arg_value>{"value": 1, "left": {"value": 2}}</arg_value>',
    "pythonic": 'tree(root={"value": 1, "left": {"value": 2}})',
    "gemma": "tree{root:{value:1,left:{value:2,left:null}}}",
}


@pytest.mark.parametrize(("name", "text"), TREES.items())
def test_arguments_that_hold_their_like(name: str, text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RelaxedSchemaWarning)  # Gemma's notation has only so many levels
        grammar = form_of_calls([function("tree", TREE)], FAMILIES[name].parser, Backend.check_grammar).grammar
    check = TextCheck(grammar)
    assert check.fit(text).is_whole
    assert not check.fit(text.replace("2", '"2"')).is_begun
    assert len(grammar.identity[1]) < 30_000
