"""What the form of an answer has to be: JSON schemas from response formats and forced tool calls."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from langchain_specdec.chat.schemas import speaks_of_objects
from langchain_specdec.chat.tool_calls import ToolCallParser
from langchain_specdec.chat.tool_calls.argument_types import ignore
from langchain_specdec.errors import InvalidParameterError, RelaxedSchemaWarning
from langchain_specdec.grammar.call_grammar import CallGrammar
from langchain_specdec.grammar.call_parts import Json, Part, either
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.grammar.json_schema import checked_schema, map_references, references_of
from langchain_specdec.grammar.relaxation import relaxed

ANY = ("any", "required", True)
"""Values of `tool_choice` that have some tool called."""
# What the root of a schema says of itself as a document; a part of another schema is none.
_OF_DOCUMENTS = frozenset({"$id", "$schema"})
# Keywords that say nothing of which properties an object may have.
_SAYS_NOTHING = frozenset({"type", "title", "description", "$comment", "default", "examples", "required", "$defs"})

_telling = threading.Lock()

CheckGrammar = Callable[[Grammar], None]
"""Raises an `InvalidParameterError` where a grammar cannot be held."""


@dataclass(frozen=True)
class OutputForm:
    """The form of a whole answer: fixed text, JSON that fits a schema, fixed text.

    The fixed text before is put at the end of the prompt, and that after is added to the answer, so a model writes
    nothing but JSON.

    Attributes:
        schema: JSON schema of the middle part. `{"type": "object"}` is any object.
        begin: Text before it.
        end: Text after it.
    """

    schema: Mapping[str, Any]
    begin: str = ""
    end: str = ""

    @property
    def grammar(self) -> Grammar:
        """What constrains the middle part."""
        return Grammar(schema=self.schema)


def forced_tools(tools: Sequence[Mapping[str, Any]], choice: Any) -> list[Mapping[str, Any]] | None:
    """The tools of which one has to be called; None where the model is free.

    Args:
        tools: Tools as OpenAI describes them.
        choice: None, `"auto"`, `"none"`, `"any"` (also `"required"` and True), a tool's name, or what OpenAI takes.

    Raises:
        InvalidParameterError: There is no such choice.
    """
    if choice in (None, "auto", "none", False):
        return None
    if isinstance(choice, Mapping) and isinstance(choice.get("function"), Mapping):
        choice = choice["function"].get("name")
    names = [tool["function"]["name"] for tool in tools]
    if choice in names:
        return [tool for tool, name in zip(tools, names, strict=True) if name == choice]
    if choice in ANY and tools:
        return list(tools)
    listed = ", ".join(repr(name) for name in names) or "there is none"
    msg = f"tool_choice must be None, 'auto', 'none', 'any' or the name of a bound tool ({listed}), got {choice!r}."
    raise InvalidParameterError(msg)


@dataclass(frozen=True)
class CallsForm(OutputForm):
    """The form of an answer that is calls of tools.

    Attributes:
        call: One call. Where it is JSON, `schema` is its own; else that says nothing.
        separator: Text between two calls; None where there is one only.
        last: What the model writes after the last call itself, since it is then that it decides to end.
    """

    call: Part = field(kw_only=True)
    separator: str | None = field(kw_only=True)
    last: str = field(kw_only=True)

    @property
    def grammar(self) -> Grammar:
        """What constrains the answer but for its fixed text."""
        if self.separator is None and isinstance(self.call, Json):
            return Grammar(schema=self.schema)
        return CallGrammar(call=self.call, separator=self.separator, end=self.last)


def form_of_calls(
    tools: Sequence[Mapping[str, Any]],
    parser: type[ToolCallParser],
    check: CheckGrammar,
    *,
    needs_properties: bool = False,
    is_whole: bool = False,
    takes_one_call: bool = True,
) -> CallsForm:
    """The form of an answer that is calls of these tools, as the parser reads them.

    Args:
        tools: Tools as OpenAI describes them.
        parser: Reads the answer.
        check: Raises where a grammar cannot be held; what it refuses of a tool's schema is left out.
        needs_properties: Whether the outermost schema has to be that of one object; a union of calls is wrapped then.
        is_whole: Whether a schema that cannot be held as it is raises instead.
        takes_one_call: Whether the answer is one call.

    Raises:
        InvalidParameterError: None of the tools can be called.
    """
    call = call_of(tools, parser, check, needs_properties=needs_properties, is_whole=is_whole)
    schema = call.schema if isinstance(call, Json) else {"type": "object"}
    separator = None if takes_one_call else parser.call_separator
    last = "" if separator is None else parser.call_end
    # Fixed text around the calls, as in the template, lets the next turn find this one in the cache.
    end = parser.call_end if separator is None else ""
    return CallsForm(schema, parser.call_begin, end, call=call, separator=separator, last=last)


def call_of(
    tools: Sequence[Mapping[str, Any]],
    parser: type[ToolCallParser],
    check: CheckGrammar,
    *,
    needs_properties: bool = False,
    is_whole: bool = False,
) -> Part:
    """One call of one of these tools, as the parser reads it.

    Tools check their arguments, so what no grammar holds of a schema is left out, and told once by a
    `RelaxedSchemaWarning`. A tool that cannot be called at all is left out beside others.

    Raises:
        InvalidParameterError: None of the tools can be called.
    """
    definitions: dict[str, Any] = {}
    calls: list[dict[str, Any]] = []
    parts: list[Part] = []
    refusals = []
    for index, tool in enumerate(tools):
        name = tool["function"]["name"]
        parameters = _arguments_schema(checked_schema(tool["function"].get("parameters") or {}))
        if not is_whole:
            held = _held_parameters(name, json.dumps(parameters), check)
            if not held.refusal and parser.form == "parts":
                held = _held_part(name, held.schema, parser, check)
            if held.refusal:
                refusals.append(f"No call of the tool {name!r} can be forced. {held.refusal}")
                continue
            parameters = json.loads(held.schema)
        if parser.form == "parts":
            parts.append(parser.call_part(name, parameters, ignore))
        else:
            calls.append(_call_schema(name, parameters, parser.arguments_key, f"tool{index}", definitions))
    if refusals and not (calls or parts):
        raise InvalidParameterError(refusals[0])
    for refusal in refusals:
        _warn_once(refusal)
    if parts:
        return either(parts)
    schema: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    if len(calls) > 1 and needs_properties:
        schema = {"type": "object", "properties": {"function": schema}, "required": ["function"]}
    return Json({**schema, "$defs": definitions} if definitions else schema)


class _Held(NamedTuple):
    """What a grammar holds of a tool's arguments: a schema as JSON, or why it holds none."""

    schema: str
    refusal: str = ""


@lru_cache(maxsize=256)
def _held_parameters(tool: str, schema: str, check: CheckGrammar) -> _Held:
    """The schema of a tool's arguments without what cannot be held, which is told here, and so once."""

    def check_call(parameters: dict[str, Any]) -> None:
        definitions: dict[str, Any] = {}
        call = _call_schema(tool, parameters, "arguments", "tool", definitions)
        check(Grammar(schema={**call, "$defs": definitions} if definitions else call))

    parameters = json.loads(schema)
    try:
        check_call(parameters)
    except InvalidParameterError:
        found = relaxed(parameters, check_call)
    else:
        return _Held(schema)
    try:
        check_call(found.schema)
    except InvalidParameterError as error:
        return _Held("", str(error))
    _warn_once(_told(tool, found.left_out))
    return _Held(json.dumps(found.schema))


@lru_cache(maxsize=256)
def _held_part(tool: str, schema: str, parser: type[ToolCallParser], check: CheckGrammar) -> _Held:
    """The same for calls that are not JSON, whose form may hold less."""
    left_out: list[str] = []
    try:
        check(CallGrammar(call=parser.call_part(tool, json.loads(schema), left_out.append)))
    except InvalidParameterError as error:
        return _Held("", str(error))
    if left_out:
        _warn_once(_told(tool, left_out))
    return _Held(schema)


def _told(tool: str, left_out: Sequence[str]) -> str:
    return (
        f"The schema of the tool {tool!r} has parts that no grammar holds, so that calls which are forced may break "
        f"them and the tool has to refuse those itself: {', '.join(left_out)}. All else holds."
    )


def _warn_once(message: str) -> None:
    # Calls of a batch find the same at the same time.
    with _telling:
        _warn(message)


@lru_cache(maxsize=256)
def _warn(message: str) -> None:
    warnings.warn(message, RelaxedSchemaWarning, stacklevel=3)


def _arguments_schema(parameters: dict[str, Any]) -> dict[str, Any]:
    """The schema of what a tool takes. Where it says nothing of properties, there are none."""
    said = {key: value for key, value in parameters.items() if key not in _OF_DOCUMENTS and value is not None}
    if said.keys() <= _SAYS_NOTHING and not said.get("required"):
        said["properties"] = {}
    return said


def _call_schema(
    tool: str, parameters: dict[str, Any], key: str, name: str, definitions: dict[str, Any]
) -> dict[str, Any]:
    if any(not reference.startswith("#/$defs/") for reference in references_of(parameters)):
        # Other places than definitions are referred to, so the whole becomes a definition.
        definitions[name] = map_references(parameters, lambda reference: f"#/$defs/{name}{reference[1:]}")
        parameters = {"$ref": f"#/$defs/{name}"}
    else:
        # Definitions of several tools meet in one schema, and may have the same names.
        renamed = map_references(parameters, lambda reference: reference.replace("/$defs/", f"/$defs/{name}_", 1))
        for inner, definition in renamed.pop("$defs", {}).items():
            definitions[f"{name}_{inner}"] = definition
        parameters = renamed
    return {
        "type": "object",
        "properties": {"name": {"const": tool}, key: parameters},
        "required": ["name", key],
        "additionalProperties": False,
    }


def form_of_response(response_format: Any) -> OutputForm | None:
    """The form that a `response_format` of OpenAI's interface asks for; None for free text.

    Raises:
        InvalidParameterError: It is none.
    """
    if response_format is None:
        return None
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return OutputForm({"type": "object"})
    if kind == "json_schema":
        described = response_format.get("json_schema")
        schema = described.get("schema") if isinstance(described, Mapping) else None
        if isinstance(schema, Mapping):
            return OutputForm(checked_schema(schema))
    msg = (
        "response_format must be {'type': 'json_schema', 'json_schema': {'name': ..., 'schema': {...}}}, "
        f"{{'type': 'json_object'}} or {{'type': 'text'}}, got {response_format!r}."
    )
    raise InvalidParameterError(msg)


def with_schema_prompt(
    messages: Sequence[dict[str, Any]], form: OutputForm, *, has_tools: bool = False
) -> list[dict[str, Any]]:
    """Tell the model what will be expected of it: a constraint alone decides the form, not the sense.

    Args:
        messages: The messages.
        form: The form of the answer.
        has_tools: Whether the model may call tools before it answers so.
    """
    what = "a JSON object" if speaks_of_objects(form.schema) else "JSON"
    prompt = f"When no more function is needed, answer with {what}" if has_tools else f"Answer with {what}"
    if form.schema == {"type": "object"}:
        prompt += "."
    else:
        prompt += f" that fits this JSON schema:\n{json.dumps(form.schema, ensure_ascii=False)}"
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{prompt}".strip()}, *messages[1:]]
    return [{"role": "system", "content": prompt}, *messages]
