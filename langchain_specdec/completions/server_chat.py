"""A chat whose prompt its server writes: what is sent, and how the thoughts and calls of its answer stand in a text.

A server that is given messages tells thoughts, text and calls apart. Here they become one text with marks, so that all
that reads the text of a model reads this one too: stop strings, ends behind a first call, and the checks of forms.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Spelled in noncharacters, with a secret: no server writes a mark by accident or on purpose.
_SECRET = "".join(chr(0xFDD0 + int(digit, 16)) for digit in secrets.token_hex(8))
THOUGHT_BEGIN, THOUGHT_END = (f"\ufde0{_SECRET}{kind}" for kind in "\ufde1\ufde2")
"""What stands around a thought."""
CALL_BEGIN, CALL_END = (f"\ufde0{_SECRET}{kind}" for kind in "\ufde3\ufde4")
"""What stands around the JSON of a call, with `name`, `arguments` and `id`."""
_THOUGHT = re.compile(f"{THOUGHT_BEGIN}.*?(?:{THOUGHT_END}|\\Z)", re.DOTALL)
_CALL = re.compile(f"{CALL_BEGIN}(.*?){CALL_END}", re.DOTALL)


@dataclass(frozen=True)
class ServerChat:
    """What is sent of a chat in place of a prompt.

    Attributes:
        messages: Messages as OpenAI's protocol has them.
        tools: Tools as it describes them.
        tool_choice: `"none"`, `"required"` or the tool to call as it has it; None leaves the choice to the model.
        parallel_tool_calls: Whether an answer may have several calls; None is the server's default.
        reasoning: Whether, or how much, the model is to think; None is the server's default.
        template_variables: Further variables of the server's chat template.
        form_prompt: What the model is to be told of the form of its answer, where the server does not tell it.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str | Mapping[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: bool | str | None = None
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    form_prompt: str = ""

    def with_form_prompt(self) -> Sequence[Mapping[str, Any]]:
        """The messages with what the model is to be told of the form."""
        first = self.messages[0] if self.messages else {"role": ""}
        if not self.form_prompt:
            return self.messages
        if first["role"] != "system" or not isinstance(first["content"], str):
            return [{"role": "system", "content": self.form_prompt}, *self.messages]
        return [{**first, "content": f"{first['content']}\n\n{self.form_prompt}".strip()}, *self.messages[1:]]


def written_call(name: str, arguments: Any, call_id: str, *, is_cut: bool = False) -> str:
    """A call as it stands in the text of an answer.

    Args:
        name: The tool's name.
        arguments: JSON as the model wrote it, or what that says. Some servers have nothing for no arguments.
        call_id: The id that the server gave the call.
        is_cut: Whether the answer ended within the call.
    """
    given = {} if arguments in ("", "null", None) else arguments
    return f"{CALL_BEGIN}{json.dumps({'name': name, 'arguments': given, 'id': call_id})}{'' if is_cut else CALL_END}"


def content_of(text: str) -> str:
    """The text of an answer without its thoughts and calls."""
    return _CALL.sub("", _THOUGHT.sub("", text))


def has_calls(text: str) -> bool:
    """Whether there is a call in the text of an answer."""
    return _CALL.search(text) is not None


def shown(text: str) -> str:
    """A text for people to see, with words in place of marks."""
    return text.replace(CALL_BEGIN, "<tool_call>").replace(CALL_END, "</tool_call>")
