"""Tools that tests give to models."""

from __future__ import annotations

from langchain_core.tools import tool


@tool
def weather(place: str) -> str:
    """The weather of a place."""
    return f"It rains in {place}."


@tool
def add(a: int, b: int) -> int:
    """The sum of two numbers."""
    return a + b
