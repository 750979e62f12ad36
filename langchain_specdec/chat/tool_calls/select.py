"""Which parser reads the calls of a model, by its chat template."""

from __future__ import annotations

from langchain_specdec.chat.tool_calls.base import ToolCallParser
from langchain_specdec.chat.tool_calls.hermes import GenericParser, HermesParser
from langchain_specdec.chat.tool_calls.llama import LlamaParser
from langchain_specdec.chat.tool_calls.mistral import MistralParser

__all__ = ["parser_class"]


def parser_class(template: str, *, shows_tools: bool) -> type[ToolCallParser]:
    """The parser for what a template teaches its model to write.

    Args:
        template: The source of the chat template.
        shows_tools: Whether it tells the model about tools; if not, the generic prompt does.
    """
    if not shows_tools:
        return GenericParser
    if "[TOOL_CALLS]" in template:
        return MistralParser
    if "<tool_call>" in template:
        return HermesParser
    if "<|python_tag|>" in template or ("<|start_header_id|>" in template and '"parameters"' in template):
        return LlamaParser
    return GenericParser
