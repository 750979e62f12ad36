"""From the messages of `with_structured_output` to objects."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

__all__ = ["parser_of_calls", "parser_of_json", "with_raw"]


def _is_class(schema: Any) -> bool:
    return isinstance(schema, type) and is_basemodel_subclass(schema)


def parser_of_calls(schema: Any) -> Runnable[Any, Any]:
    """Reads a message that calls the schema as a tool: an object of the class, or the arguments."""
    if _is_class(schema):
        return PydanticToolsParser(tools=[schema], first_tool_only=True)
    name = convert_to_openai_tool(schema)["function"]["name"]
    return JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)


def parser_of_json(schema: Any) -> Runnable[Any, Any]:
    """Reads a message whose text is JSON: an object of the class, or a dictionary."""
    parser: Any = PydanticOutputParser
    return parser(pydantic_object=schema) if _is_class(schema) else JsonOutputParser()


def with_raw(llm: Runnable[Any, Any], parser: Runnable[Any, Any]) -> Runnable[Any, Any]:
    """The message as `raw`, and what was read from it, or why it could not be, as `parsed` and `parsing_error`."""
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=llm) | parsed.with_fallbacks([failed], exception_key="parsing_error")
