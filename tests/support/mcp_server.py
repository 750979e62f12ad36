"""A server of tools by the Model Context Protocol, over standard streams."""

from __future__ import annotations

from mcp.server.fastmcp import FastMCP
from mcp.types import EmbeddedResource, ResourceLink, TextContent, TextResourceContents
from pydantic import AnyUrl

server = FastMCP("weather", log_level="ERROR")
NOTES = AnyUrl("https://example.org/notes.txt")


@server.tool()
def weather(place: str, days: int = 1, units: list[str] | None = None) -> str:
    """The weather of a place."""
    return f"It rains in {place} for {days} days." + "".join(f" In {unit}." for unit in units or ())


@server.tool()
def notes() -> list[TextContent | ResourceLink | EmbeddedResource]:
    """Notes, in parts of several kinds."""
    return [
        TextContent(type="text", text="Two notes."),
        EmbeddedResource(type="resource", resource=TextResourceContents(uri=NOTES, text="Rain is wet.")),
        ResourceLink(type="resource_link", name="more", uri=NOTES),
    ]


@server.tool()
def fail() -> str:
    """Always fails."""
    msg = "The station is closed."
    raise ValueError(msg)


@server.prompt()
def question(place: str) -> str:
    """A question."""
    return f"How is the weather in {place}?"


if __name__ == "__main__":
    server.run()
