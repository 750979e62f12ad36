"""Tools and forms of answers, in whatever way they are given, as one thing: a name, a description and a JSON schema."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

from langchain_core.tools import BaseTool, StructuredTool, Tool, create_schema_from_function
from langchain_core.utils.function_calling import convert_to_openai_function
from langchain_core.utils.pydantic import is_basemodel_subclass
from typing_extensions import is_typeddict

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.json_schema import checked_schema, map_references, map_schemas, resolved
from langchain_specdec.grammar.pydantic_schema import schema_of_type
from langchain_specdec.grammar.typed_dicts import Descriptions, TypedDicts, docstring_of

_TYPES = frozenset({"null", "boolean", "object", "array", "number", "integer", "string"})
# What tells that a dictionary is a JSON schema.
_KEYWORDS = frozenset(
    {"properties", "$ref", "anyOf", "oneOf", "allOf", "enum", "const", "items", "prefixItems", "additionalProperties"}
    | {"patternProperties", "$defs", "$schema"}
)
# Types of dictionaries that are no tools of a provider.
_NO_TOOLS = frozenset({"function", "json_schema", "json_object", "text"})
_DEFAULT_NAME = "Answer"
_WRAPPED = "value"


@dataclass(frozen=True)
class NamedSchema:
    """What a model is told to fill in.

    Attributes:
        name: Name of the tool, or of the form.
        description: What it is for; empty where nobody said.
        schema: JSON schema. References within it begin at its root.
        strict: What the caller said of it.
        is_named: Whether the name was given.
    """

    name: str
    description: str
    schema: dict[str, Any]
    strict: bool | None = None
    is_named: bool = True

    @property
    def is_object(self) -> bool:
        """Whether all that fits is surely an object, as the arguments of a call are."""
        return speaks_of_objects(self.schema)

    def as_tool(self, strict: bool | None = None) -> dict[str, Any]:
        """The tool as OpenAI describes it.

        Raises:
            InvalidParameterError: It has no name, or its parameters are no object.
        """
        if not self.is_named:
            msg = "A tool needs a name: give the JSON schema a 'title', or use {'name': ..., 'parameters': {...}}."
            raise InvalidParameterError(msg)
        if not self.is_object:
            msg = (
                f"The parameters of the tool {self.name!r} must be an object with properties; a class of another kind "
                f"(such as RootModel) can be a field of one, or be asked for by method='json_schema'."
            )
            raise InvalidParameterError(msg)
        function: dict[str, Any] = {"name": self.name, "description": self.description, "parameters": self.schema}
        strict = self.strict if strict is None else strict
        if strict is not None:
            function["strict"] = strict
        return {"type": "function", "function": function}

    def as_response_format(self, strict: bool | None = None) -> dict[str, Any]:
        """The form of an answer as OpenAI's `response_format` describes it."""
        schema = {"title": self.name, "description": self.description, **self.schema}
        if not self.description:
            del schema["description"]
        described: dict[str, Any] = {"name": self.name, "schema": schema}
        strict = self.strict if strict is None else strict
        if strict is not None:
            described["strict"] = strict
        return {"type": "json_schema", "json_schema": described}

    def wrapped(self) -> NamedSchema:
        """A schema for the arguments of a call: the same, as the only property of an object where it is none itself."""
        if self.is_object:
            return replace(self, is_named=True)
        place = f"#/properties/{_WRAPPED}"
        schema = {
            "type": "object",
            "properties": {_WRAPPED: map_references(self.schema, lambda reference: place + reference[1:])},
            "required": [_WRAPPED],
        }
        return replace(self, schema=schema, is_named=True)

    def unwrap(self, arguments: Any) -> Any:
        """What `wrapped` put into an object."""
        return arguments if self.is_object else arguments[_WRAPPED]


def named_schema(given: Any) -> NamedSchema:
    """What a class, function, tool or dictionary describes, with nothing lost of its schema.

    Args:
        given: A Pydantic class, `TypedDict`, dataclass, function, `BaseTool`, or a dictionary: a JSON schema, or a tool
            or a response format as OpenAI, Anthropic or Bedrock take it.

    Raises:
        InvalidParameterError: It is none of these, or has no JSON schema.
    """
    if isinstance(given, Mapping):
        return _of_dictionary(given)
    if isinstance(given, BaseTool):
        return _of_tool(given)
    if is_typeddict(given):
        return _of_class(TypedDicts(_descriptions).model(given), given)
    if isinstance(given, type) and (is_basemodel_subclass(given) or is_dataclass(given)):
        return _of_class(given, given)
    if callable(given) and not isinstance(given, type):
        return _of_function(given)
    msg = (
        f"A schema or tool must be a Pydantic class, a TypedDict, a dataclass, a function, a LangChain tool, or a "
        f"dictionary with a JSON schema, got {given!r}."
    )
    raise InvalidParameterError(msg)


def as_tool(given: Any, strict: bool | None = None) -> dict[str, Any]:
    """A tool as OpenAI describes it.

    Raises:
        InvalidParameterError: It is none.
    """
    return named_schema(given).as_tool(strict)


def is_response(given: Any) -> bool:
    """Whether a tool is the form of an answer, as LangChain's `ToolStrategy` makes one: nothing in it can be run."""
    return isinstance(given, StructuredTool) and given.func is None and given.coroutine is None


def speaks_of_objects(schema: Mapping[str, Any]) -> bool:
    """Whether all that fits a schema is surely an object."""
    return _is_object(dict(schema), dict(schema))


def _is_object(root: dict[str, Any], schema: Any, depth: int = 20) -> bool:
    if not isinstance(schema, dict) or depth == 0:
        return False
    schema = resolved(root, schema)
    if "type" in schema:
        return bool(schema["type"] == "object")
    for keyword, enough in (("allOf", any), ("anyOf", all), ("oneOf", all)):
        parts = schema.get(keyword)
        if isinstance(parts, list) and parts and enough(_is_object(root, part, depth - 1) for part in parts):
            return True
    return "properties" in schema


def _of_dictionary(given: Mapping[str, Any]) -> NamedSchema:
    kind = given.get("type")
    for outer in ("json_schema", "function"):
        if kind == outer and isinstance(given.get(outer), Mapping):
            return _of_dictionary(given[outer])
    if isinstance(given.get("toolSpec"), Mapping):
        spec = given["toolSpec"]
        schema = spec.get("inputSchema")
        return _described(spec, _parameters(schema.get("json")) if isinstance(schema, Mapping) else None)
    is_schema = (isinstance(kind, str) and kind in _TYPES) or isinstance(kind, list) or bool(_KEYWORDS & given.keys())
    if not is_schema and isinstance(given.get("name"), str):
        if isinstance(given.get("schema"), Mapping):
            return _described(given, given["schema"])
        for key in ("parameters", "input_schema"):
            if isinstance(given.get(key), Mapping):
                return _described(given, _parameters(given[key]))
        if not given.keys() - {
            "name",
            "description",
            "strict",
            "parameters",
            *(("type",) if kind == "function" else ()),
        }:
            return _described(given, _parameters({}))
    if not is_schema:
        _refuse_other_tools(given)
        msg = (
            "A dictionary that describes a form or a tool must be a JSON schema, {'name': ..., 'schema': {...}}, "
            f"{{'name': ..., 'parameters': {{...}}}}, or such a one as OpenAI takes it in 'json_schema' or 'function', "
            f"got {_shortened(given)}."
        )
        raise InvalidParameterError(msg)
    schema = checked_schema(given)
    name, description = schema.pop("title", None), schema.pop("description", None)
    return NamedSchema(
        name if isinstance(name, str) and name else _DEFAULT_NAME,
        description if isinstance(description, str) else "",
        schema,
        is_named=isinstance(name, str) and bool(name),
    )


def _refuse_other_tools(given: Mapping[str, Any]) -> None:
    """Refuse the tools that a provider's servers run, by name; what else is in them may be secret."""
    kind = given.get("type")
    if kind is None and len(given) == 1 and isinstance(next(iter(given.values())), Mapping):
        (kind,) = given
    if isinstance(kind, str) and kind not in _NO_TOOLS:
        name = given.get("name") or given.get("server_label") or kind
        msg = (
            f"The tool {name!r} is no function but of type {kind!r}, which is a provider's own. Tools are "
            f"functions here: leave it out, or give one that does the same, as a Python function, a LangChain tool, or "
            f"{{'name': ..., 'description': ..., 'parameters': {{...}}}}."
        )
        raise InvalidParameterError(msg)


def _parameters(schema: Any) -> Any:
    """The schema of what a tool takes, which is an object also where nobody said so."""
    if not isinstance(schema, Mapping):
        return schema
    kind = schema.get("type")
    if isinstance(kind, (list, tuple)) and "object" in kind:
        return {**schema, "type": "object"}
    if kind is None and not schema.keys() & (_KEYWORDS - {"$schema", "$defs"}):
        return {**schema, "type": "object", "properties": {}}
    return schema


def _described(given: Mapping[str, Any], schema: Any) -> NamedSchema:
    name, strict = given.get("name"), given.get("strict")
    if not isinstance(schema, Mapping) or not isinstance(name, str) or not name:
        msg = f"A tool or form needs a 'name' and a JSON schema, got {_shortened(given)}."
        raise InvalidParameterError(msg)
    schema = checked_schema(schema)
    description = given.get("description") or schema.get("description") or ""
    return NamedSchema(name, str(description), schema, strict if isinstance(strict, bool) else None)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _of_class(kind: Any, given: Any) -> NamedSchema:
    schema = checked_schema(schema_of_type(kind))
    # A class that refers to itself has its own schema among the definitions.
    own = resolved(schema, schema)
    name, description = schema.get("title") or own.get("title") or given.__name__, own.get("description") or ""
    schema.pop("description", None)

    def untitled(inner: dict[str, Any]) -> dict[str, Any]:
        # Pydantic makes titles from names, and a model reads those anyway.
        if isinstance(inner.get("title"), str):
            del inner["title"]
        return inner

    return NamedSchema(name, description, map_schemas(schema, untitled))


def _of_function(function: Callable[..., Any]) -> NamedSchema:
    name = getattr(function, "__name__", type(function).__name__)
    try:
        model: Any = create_schema_from_function(
            name,
            function,
            filter_args=(),
            parse_docstring=True,
            error_on_invalid_docstring=False,
            include_injected=False,
        )
    except (TypeError, ValueError, NameError) as error:
        msg = f"The function {name} cannot be described as a tool: {error}"
        raise InvalidParameterError(msg) from error
    described = _of_class(model, model)
    return NamedSchema(name, inspect.cleandoc(model.__doc__ or "") or described.description, described.schema)


def _of_tool(tool: BaseTool) -> NamedSchema:
    if isinstance(tool, Tool) and (not tool.args_schema or (tool.metadata or {}).get("type") == "custom_tool"):
        # It takes one text, and LangChain knows under which name.
        return _of_dictionary(convert_to_openai_function(tool))
    schema: Any = tool.tool_call_schema
    described = _of_dictionary(_parameters(schema)) if isinstance(schema, Mapping) else _of_class(schema, schema)
    return NamedSchema(tool.name, tool.description, described.schema)


def _descriptions(typed_dict: Any) -> Descriptions:
    """What the docstring says, of the whole and of keys, as LangChain reads it."""
    try:
        function = convert_to_openai_function(typed_dict)
    except Exception:
        return docstring_of(typed_dict)
    found = function.get("parameters", {}).get("properties", {})
    keys = {key: value["description"] for key, value in found.items() if value.get("description")}
    return function.get("description") or None, keys
