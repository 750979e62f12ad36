"""What the form of an answer has to be: JSON schemas from response formats and forced tool calls."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Annotated, Any

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, BaseMessage, BaseMessageChunk
from langchain_core.output_parsers import BaseCumulativeTransformOutputParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableGenerator
from langchain_core.runnables.utils import AddableDict
from langchain_core.utils.json import parse_partial_json
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import SkipValidation

from langchain_specdec.chat.schemas import NamedSchema, speaks_of_objects
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


def parser_of_calls(schema: Any, described: NamedSchema) -> _StrictJsonParser:
    """Reads a message that calls the schema as a tool: an object of the class, or the arguments."""
    return _CallParser(target=schema if _is_class(schema) else None, described=described)


def parser_of_json(schema: Any) -> _StrictJsonParser:
    """Reads a message whose text is JSON: an object of the class, or a dictionary."""
    return _StrictJsonParser(target=schema if _is_class(schema) else None)


def _is_class(schema: Any) -> bool:
    return isinstance(schema, type) and is_basemodel_subclass(schema)


class _StrictJsonParser(BaseCumulativeTransformOutputParser[Any]):
    """Reads JSON that is whole; while a stream grows, dictionaries grow with it.

    LangChain's parsers close what is open, and so take half an answer for a whole one.
    """

    target: Annotated[Any, SkipValidation] = None

    @property
    def _type(self) -> str:
        return "specdec-json"

    def parse(self, text: str) -> Any:
        """The value that a text is.

        Raises:
            OutputParserException: It is no JSON, or nothing of the class.
        """
        try:
            value = strict_json(text)
        except ValueError as error:
            msg = f"The answer is no whole JSON ({error}): {text}"
            raise OutputParserException(msg, llm_output=text) from error
        return self._as_target(value, text)

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """The value that an answer is. A part of one is a part of a dictionary, or None."""
        text = result[0].text
        if not partial:
            return self.parse(text)
        try:
            return parse_partial_json(text) if self.target is None else self.parse(text)
        except (OutputParserException, ValueError):
            return None

    def _as_target(self, value: Any, text: str) -> Any:
        try:
            if self.target is None:
                return value
            if hasattr(self.target, "model_validate_json"):
                # As JSON: some types are read from text there only.
                return self.target.model_validate_json(text)
            return self.target.parse_obj(value)
        except ValueError as error:
            msg = f"The answer is no {self.target.__name__}: {error}"
            raise OutputParserException(msg, llm_output=text) from error

    def _transform(self, input: Iterator[str | BaseMessage]) -> Iterator[Any]:  # noqa: A002 - LangChain's name
        whole: list[str | BaseMessage] = []

        def kept() -> Iterator[str | BaseMessage]:
            for chunk in input:
                whole.append(chunk)
                yield chunk

        yield from super()._transform(kept())
        self._check(whole)

    async def _atransform(self, input: AsyncIterator[str | BaseMessage]) -> AsyncIterator[Any]:  # noqa: A002
        whole: list[str | BaseMessage] = []

        async def kept() -> AsyncIterator[str | BaseMessage]:
            async for chunk in input:
                whole.append(chunk)
                yield chunk

        async for parsed in super()._atransform(kept()):
            yield parsed
        self._check(whole)

    def _check(self, chunks: Sequence[Any]) -> None:
        """Raise what is wrong with the whole of a stream."""
        if chunks:
            whole = reduce(add, chunks)
            generation = Generation(text=whole) if isinstance(whole, str) else ChatGeneration(message=whole)
            self.parse_result([generation])


class _CallParser(_StrictJsonParser):
    """Reads the arguments of the first call of the tool that a schema was made."""

    described: Annotated[NamedSchema, SkipValidation]

    @property
    def _type(self) -> str:
        return "specdec-call"

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """What the call holds.

        Raises:
            OutputParserException: There is no such call, or what it holds is nothing of the class.
        """
        generation = result[0]
        message: Any = generation.message if isinstance(generation, ChatGeneration) else AIMessage(generation.text)
        for call in message.tool_calls:
            if call["name"] == self.described.name:
                try:
                    value = self.described.unwrap(call["args"])
                except KeyError as error:
                    msg = f"The call of {self.described.name} lacks {error}: {json.dumps(call['args'])}"
                    raise OutputParserException(msg, llm_output=message.text) from error
                return self._as_target(value, json.dumps(value))
        if partial:
            return None
        # In a stream LangChain does not say what is wrong with a call.
        broken = "; ".join(call["error"] for call in message.invalid_tool_calls if call.get("error"))
        msg = f"The answer holds no whole call of {self.described.name}{f' ({broken})' if broken else ''}."
        if message.response_metadata.get("finish_reason") == "length":
            msg += " It was cut at max_new_tokens: raise them."
        raise OutputParserException(msg, llm_output=message.text)


def strict_json(text: str) -> Any:
    """The value that a text is.

    Raises:
        ValueError: It is not one whole JSON value, or holds a number that is none in JSON, or none for a float.
    """

    def refuse(constant: str) -> None:
        msg = f"{constant} is no number in JSON"
        raise ValueError(msg)

    def finite(digits: str) -> float:
        if math.isinf(number := float(digits)):
            msg = f"{digits} is beyond what a float holds"
            raise ValueError(msg)
        return number

    try:
        return json.loads(text, parse_constant=refuse, parse_float=finite)
    except RecursionError as error:
        msg = "it is nested too deeply"
        raise ValueError(msg) from error


def with_raw(llm: Runnable[Any, Any], parser: _StrictJsonParser) -> Runnable[Any, Any]:
    """The message as `raw`, and what was read from it, or why it could not be, as `parsed` and `parsing_error`."""

    def read(chunks: Iterator[BaseMessage]) -> Iterator[AddableDict]:
        reading = _RawReading(parser)
        for chunk in chunks:
            yield from reading.feed(chunk)
        yield reading.close()

    async def aread(chunks: AsyncIterator[BaseMessage]) -> AsyncIterator[AddableDict]:
        reading = _RawReading(parser)
        async for chunk in chunks:
            for read in reading.feed(chunk):
                yield read
        yield reading.close()

    # The model comes first, because LangChain passes the options of a call to the first of a sequence only.
    return llm | RunnableGenerator(read, aread, name="RawAndParsed")


class _RawReading:
    """Reads one message as it comes."""

    def __init__(self, parser: _StrictJsonParser) -> None:
        self._parser = parser
        self._whole: Any = None
        self._parsed: Any = None

    def feed(self, chunk: Any) -> Iterator[AddableDict]:
        """A chunk, and the dictionary that can be read so far, where that is more than before."""
        yield AddableDict(raw=chunk)
        self._whole = chunk if self._whole is None else self._whole + chunk
        if self._parser.target is not None or not isinstance(chunk, BaseMessageChunk):
            return
        parsed = self._parser.parse_result([ChatGeneration(message=self._whole)], partial=True)
        if isinstance(parsed, dict) and parsed != self._parsed:
            self._parsed = parsed
            yield AddableDict(parsed=parsed)

    def close(self) -> AddableDict:
        """What was read, or why nothing was."""
        try:
            parsed = self._parser.parse_result([ChatGeneration(message=self._whole)])
        except Exception as error:  # a validator of the class may raise anything
            return AddableDict(parsed=None, parsing_error=error)
        return AddableDict(parsed=parsed, parsing_error=None)
