"""Tool calls in the text of a model: one parser per family, the same result however the text is cut into chunks."""

from langchain_specdec.chat.tool_calls.base import BrokenToolCall, Piece, ToolCall, ToolCallParser
from langchain_specdec.chat.tool_calls.hermes import GenericParser, HermesParser
from langchain_specdec.chat.tool_calls.llama import LlamaParser
from langchain_specdec.chat.tool_calls.mistral import MistralParser
from langchain_specdec.chat.tool_calls.select import parser_class

__all__ = [
    "BrokenToolCall",
    "GenericParser",
    "HermesParser",
    "LlamaParser",
    "MistralParser",
    "Piece",
    "ToolCall",
    "ToolCallParser",
    "parser_class",
]
