"""What the form of an answer has to be: JSON schemas from response formats and forced tool calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_specdec.chat.schemas import speaks_of_objects
from langchain_specdec.chat.tool_calls import ToolCallParser
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.grammar.json_schema import checked_schema, map_references, references_of

_ANY = ("any", "required", True)


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
    if choice in _ANY and tools:
        return list(tools)
    listed = ", ".join(repr(name) for name in names) or "there is none"
    msg = f"tool_choice must be None, 'auto', 'none', 'any' or the name of a bound tool ({listed}), got {choice!r}."
    raise InvalidParameterError(msg)


def form_of_calls(
    tools: Sequence[Mapping[str, Any]], parser: type[ToolCallParser], *, needs_properties: bool = False
) -> OutputForm:
    """The form of an answer that is one call of one of these tools, as the parser reads it.

    Args:
        tools: Tools as OpenAI describes them.
        parser: Reads the answer.
        needs_properties: Whether the outermost schema has to be that of one object; a union of calls is wrapped then.
    """
    definitions: dict[str, Any] = {}
    key = parser.arguments_key
    calls = [_call_schema(tool["function"], key, f"tool{index}", definitions) for index, tool in enumerate(tools)]
    schema: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    if len(calls) > 1 and needs_properties:
        schema = {"type": "object", "properties": {"function": schema}, "required": ["function"]}
    if definitions:
        schema = {**schema, "$defs": definitions}
    # Fixed text around the JSON, as in the template, lets the next turn find this one in the cache.
    return OutputForm(schema, parser.call_begin, parser.call_end)


def _call_schema(function: Mapping[str, Any], key: str, name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    parameters = checked_schema(function.get("parameters") or {"type": "object", "properties": {}})
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
        "properties": {"name": {"const": function["name"]}, key: parameters},
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
