"""Calls of models whose chat template knows no tools: the form that the generic prompt asks for, and near misses."""

from __future__ import annotations

from typing import ClassVar

from langchain_specdec.tool_calls.hermes import HermesParser

__all__ = ["GenericParser"]


class GenericParser(HermesParser):
    """Calls between `<tool_call>` tags; also bare or fenced JSON at the beginning of a line, if it names a tool."""

    family: ClassVar[str] = "generic"
    takes_bare_json: ClassVar[bool] = True
