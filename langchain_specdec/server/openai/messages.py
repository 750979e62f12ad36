"""Messages, tools and forms of answers in OpenAI's bodies. What they hold beside is passed on as it is."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

_OBJECT = {"type": "object"}


class _Open(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class Part(_Open):
    """A part of a message: `text`, or `image_url` for models that are given images."""

    type: Annotated[str, Field(json_schema_extra={"examples": ["text", "image_url"]})]
    text: str | None = None


class CalledFunction(_Open):
    """What is called, and with which arguments, as JSON in a text."""

    name: str
    arguments: str


class Call(_Open):
    """A call of a tool that the assistant made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(_Open):
    """A message of a chat. That of a tool names the call that it answers."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"role": {"const": "tool"}}},
            "then": {"required": ["tool_call_id"], "properties": {"tool_call_id": {"type": "string"}}},
        }
    )

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None

    def row(self) -> dict[str, Any]:
        """The message as it was given; without content it has an empty one."""
        return {"content": "", **self.model_dump(exclude_unset=True)}


class Function(_Open):
    """A function that may be called."""

    name: Annotated[str, Field(min_length=1)]
    description: str | None = None
    parameters: Annotated[dict[str, Any] | None, Field(description="A JSON schema of an object.")] = None
    strict: bool | None = None


class Tool(_Open):
    """A tool."""

    type: Literal["function"]
    function: Function


class NamedFunction(_Open):
    """A function that has to be called."""

    name: str


class ToolChoice(_Open):
    """A tool that has to be called."""

    type: Literal["function"]
    function: NamedFunction


ResponseFormat = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "description": "The form of the answer, as OpenAI has it, or as TGI does.",
            "anyOf": [
                {"type": "object", "required": ["type"], "properties": {"type": {"enum": ["text", "json_object"]}}},
                {
                    "type": "object",
                    "required": ["type", "json_schema"],
                    "properties": {
                        "type": {"const": "json_schema"},
                        "json_schema": {"type": "object", "required": ["schema"], "properties": {"schema": _OBJECT}},
                    },
                },
                {
                    "type": "object",
                    "required": ["type", "value"],
                    "properties": {"type": {"enum": ["json", "json_object"]}, "value": _OBJECT},
                },
                {
                    "type": "object",
                    "required": ["type", "value"],
                    "properties": {"type": {"const": "regex"}, "value": {"type": "string", "minLength": 1}},
                },
            ],
        }
    ),
]
"""The form of an answer."""
