"""Tool calls in the text of a model: one parser per family, the same result however the text is cut into chunks."""

from langchain_specdec.chat.tool_calls.base import Piece, ToolCallParser
from langchain_specdec.chat.tool_calls.hermes import GenericParser, HermesParser
from langchain_specdec.chat.tool_calls.llama import LlamaParser
from langchain_specdec.chat.tool_calls.mistral import MistralParser
from langchain_specdec.chat.tool_calls.values import BrokenToolCall, ToolCall

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


def parser_class(template: str, *, shows_tools: bool) -> type[ToolCallParser]:
    """The parser for what a chat template teaches its model to write.

    Args:
        template: The source of the chat template.
        shows_tools: Whether it tells the model about tools; if not, the generic prompt does.
    """
    families = (MistralParser, HermesParser, LlamaParser) if shows_tools else ()
    return next((parser for parser in families if parser.is_taught_by(template)), GenericParser)
