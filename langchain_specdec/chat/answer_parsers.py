"""Structured answers as objects and dictionaries: read strictly, whole or while they grow."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Iterator, Sequence
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

from langchain_specdec.chat.schemas import NamedSchema
from langchain_specdec.errors import MalformedAnswerError

# Told of an answer that a class does not take, and characters of each.
_MAX_PROBLEMS = 3
_MAX_SHOWN = 200
FORM_ERROR = "form_error"
"""Key of `response_metadata`: what is wrong with the form of an answer, or of a call in it."""


class UnreadableAnswerError(MalformedAnswerError, OutputParserException):
    """A `MalformedAnswerError` that LangChain knows for one of its parsers' errors, too.

    Attributes:
        llm_output: The text of the answer.
    """

    def __init__(self, error: Any, llm_output: str = "") -> None:
        OutputParserException.__init__(self, error, llm_output=llm_output)
        self._given = error, llm_output

    def __reduce__(self) -> tuple[Any, ...]:
        # By its message alone it would get LangChain's link a second time.
        return type(self), self._given


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
            UnreadableAnswerError: It is no JSON, or nothing of the class.
        """
        try:
            value = strict_json(text)
        except ValueError as error:
            msg = f"The answer is no whole JSON ({error}). It is the error's llm_output."
            raise UnreadableAnswerError(msg, llm_output=text) from error
        return self._as_target(value, text)

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """The value that an answer is, or None where it is calls. A part of one is a part of a dictionary, or None.

        Raises:
            UnreadableAnswerError: It was cut, a server broke its grammar, or it cannot be read.
        """
        text = result[0].text
        message = result[0].message if isinstance(result[0], ChatGeneration) else None
        if not partial:
            if message is not None:
                _check_form(message)
            # What is asked for beside tools may be calls instead.
            return None if getattr(message, "tool_calls", None) and not text else self.parse(text)
        if self.target is not None and message is not None and "finish_reason" not in message.response_metadata:
            # Only the end tells whether it is an answer.
            return None
        try:
            if message is not None:
                _check_form(message)
            return parse_partial_json(text) if self.target is None else self.parse(text)
        except ValueError:
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
            msg = f"The answer is no {self.target.__name__} ({_problems(error)}). It is the error's llm_output."
        # Outside of `except`, for Pydantic's error shows parts of the answer, which may hold anything.
        raise UnreadableAnswerError(msg, llm_output=text)

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
            UnreadableAnswerError: There is no such call, it was cut, a server broke its grammar, or what it holds is
                nothing of the class.
        """
        generation = result[0]
        message: Any = generation.message if isinstance(generation, ChatGeneration) else AIMessage(generation.text)
        for call in message.tool_calls:
            if call["name"] == self.described.name:
                try:
                    value = self.described.unwrap(call["args"])
                except KeyError as error:
                    msg = f"The call of {self.described.name} lacks {error}. The answer is the error's llm_output."
                    raise UnreadableAnswerError(msg, llm_output=message.text) from error
                return self._as_target(value, json.dumps(value))
        if partial:
            return None
        _check_form(message)
        broken = "; ".join(call["error"] for call in message.invalid_tool_calls if call.get("error"))
        msg = f"The answer holds no whole call of {self.described.name}{f' ({broken})' if broken else ''}."
        raise UnreadableAnswerError(msg, llm_output=message.text)


def _problems(error: ValueError) -> str:
    """What a class does not take, by field and without the values: they may be anything, and long."""
    # Both of Pydantic's versions have it.
    problems: Any = getattr(error, "errors", list)
    found = [f"{'.'.join(map(str, at['loc'])) or 'it'}: {at['msg']}"[:_MAX_SHOWN] for at in problems()]
    return "; ".join([*found[:_MAX_PROBLEMS], *(["and more"] if len(found) > _MAX_PROBLEMS else [])])


def _check_form(message: BaseMessage) -> None:
    """Raise what is known to be wrong with the form of an answer."""
    if error := message.response_metadata.get(FORM_ERROR):
        raise UnreadableAnswerError(error, llm_output=message.text)


def is_whole(text: str) -> bool:
    """Whether a text is one JSON value, and nothing could have been written after it: to a number, digits could."""
    try:
        value = strict_json(text)
    except ValueError:
        return False
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return not is_number or text[-1].isspace()


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
