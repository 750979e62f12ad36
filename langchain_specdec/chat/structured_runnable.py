"""A chat model that answers with objects of a schema, as LangChain's runnables."""

from __future__ import annotations

from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.runnables import Runnable

from langchain_specdec.chat.answer_parsers import parser_of_calls, parser_of_json, with_raw
from langchain_specdec.chat.schemas import named_schema
from langchain_specdec.errors import InvalidParameterError


def structured(
    model: Any, schema: dict[str, Any] | type, method: str, *, include_raw: bool, strict: bool | None, kwargs: Any
) -> Runnable[LanguageModelInput, Any]:
    """See `ChatSpeculative.with_structured_output`.

    Args:
        model: The chat model.
        schema: Of the objects.
        method: How they are asked for.
        include_raw: Whether the message is returned beside what was read.
        strict: Noted in the schema.
        kwargs: Parameters of the calls.

    Raises:
        InvalidParameterError: There is no such method, or it does not go with what else is asked for.
    """
    if method not in ("json_schema", "function_calling", "json_mode"):
        msg = f"method must be 'json_schema', 'function_calling' or 'json_mode', got {method!r}."
        raise InvalidParameterError(msg)
    tools = kwargs.pop("tools", None)
    if tools and (method == "function_calling" or not include_raw):
        msg = (
            "tools beside a schema need include_raw=True, because the answer may be a call of one of them, and "
            "another method than 'function_calling', which has the schema called. Change that, or leave tools out."
        )
        raise InvalidParameterError(msg)
    described = named_schema(schema)
    form = described.as_response_format(strict)
    # LangChain converts it once more for traces, and cannot do so with all that is taken here.
    traced: dict[str, Any] = {"kwargs": {"method": method}, "schema": form["json_schema"]["schema"]}
    if strict is not None:
        traced["kwargs"]["strict"] = strict
    if include_raw:
        kwargs["_keep_malformed"] = True
    parser = parser_of_json(schema)
    if method == "function_calling":
        kwargs["_whole_schema"] = True
        tool = described.wrapped().as_tool(strict)
        llm = model.bind_tools([tool], tool_choice=described.name, ls_structured_output_format=traced, **kwargs)
        parser = parser_of_calls(schema, described)
    else:
        response_format = form if method == "json_schema" else {"type": "json_object"}
        kwargs |= {"response_format": response_format, "ls_structured_output_format": traced}
        llm = model.bind_tools(tools, strict=strict, **kwargs) if tools else model.bind(**kwargs)
    return with_raw(llm, parser) if include_raw else llm | parser
