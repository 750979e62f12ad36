"""Tool calls in the text of a model: one parser per family, the same result however the text is cut into chunks."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from langchain_specdec.chat.tool_calls.base import Piece, Schemas, ToolCallParser
from langchain_specdec.chat.tool_calls.deepseek import DeepSeekParser, DeepSeekV3Parser
from langchain_specdec.chat.tool_calls.gemma import GemmaParser
from langchain_specdec.chat.tool_calls.glm import GlmParser
from langchain_specdec.chat.tool_calls.harmony import HarmonyParser
from langchain_specdec.chat.tool_calls.hermes import GenericParser, HermesParser
from langchain_specdec.chat.tool_calls.llama import LlamaParser
from langchain_specdec.chat.tool_calls.mistral import MistralParser, TekkenParser
from langchain_specdec.chat.tool_calls.pythonic import LfmParser, PythonicParser
from langchain_specdec.chat.tool_calls.qwen_coder import QwenCoderParser
from langchain_specdec.chat.tool_calls.response_template import ResponseTemplateParser
from langchain_specdec.chat.tool_calls.tagged import GraniteParser, PhiParser
from langchain_specdec.chat.tool_calls.told import ToldCallParser
from langchain_specdec.chat.tool_calls.values import BrokenToolCall, ToolCall

__all__ = [
    "BrokenToolCall",
    "DeepSeekParser",
    "DeepSeekV3Parser",
    "GemmaParser",
    "GenericParser",
    "GlmParser",
    "GraniteParser",
    "HarmonyParser",
    "HermesParser",
    "LfmParser",
    "LlamaParser",
    "MistralParser",
    "PhiParser",
    "Piece",
    "PythonicParser",
    "QwenCoderParser",
    "ResponseTemplateParser",
    "Schemas",
    "TekkenParser",
    "ToldCallParser",
    "ToolCall",
    "ToolCallParser",
    "parser_class",
    "writing_parser",
]

# The first whose marks a template has; those with marks that others have too come before these.
_FAMILIES: tuple[type[ToolCallParser], ...] = (
    *(HarmonyParser, GemmaParser, DeepSeekV3Parser, DeepSeekParser, TekkenParser, MistralParser),
    *(QwenCoderParser, GlmParser, LfmParser, GraniteParser, PhiParser, PythonicParser, HermesParser, LlamaParser),
)


def parser_class(
    template: str, *, shows_tools: bool, response_template: Mapping[str, Any] | None = None
) -> type[ToolCallParser]:
    """The parser for what a chat template teaches its model to write.

    Args:
        template: The source of the chat template.
        shows_tools: Whether it tells the model about tools; if not, the generic prompt does.
        response_template: How the tokenizer describes answers, for templates that nobody here knows. It takes
            transformers 5.16.
    """
    if not shows_tools:
        return GenericParser
    known = next((parser for parser in _FAMILIES if parser.is_taught_by(template)), None)
    if known is None and response_template and find_spec("transformers.utils.chat_parsing"):
        return ResponseTemplateParser.of(dict(response_template))
    return known or GenericParser


def writing_parser(parser: type[ToolCallParser], *, takes_parts: bool, is_whole: bool = False) -> type[ToolCallParser]:
    """The parser in whose format calls are written under a grammar: the same, or the generic one where that is JSON.

    Args:
        parser: The parser of the model's family.
        takes_parts: Whether grammars may have other parts than one JSON schema.
        is_whole: Whether all of the schemas has to hold.
    """
    holds = takes_parts and (parser.holds_schemas or not is_whole)
    return parser if parser.form == "json" or (parser.form == "parts" and holds) else GenericParser
