"""Tools for models whose chat template knows none: a generic prompt, and calls and results as plain messages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]

GENERIC_TOOL_PROMPT = """\
You can call the functions below. Each is described by a JSON schema:
<tools>{tools}</tools>

To call functions, answer with a list of calls between tags, and with nothing else. Take names and parameters from the \
descriptions:
<tool_call>[{{"name": "function_name", "arguments": {{"parameter": "value"}}}}]</tool_call>
The results come back between <tool_response> tags. Answer in plain words when no function is needed."""
"""Added to the system message; `{tools}` becomes the list of tools. Close to what SmolLM2 was trained on."""


def with_generic_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages that a template without tools can render.

    Args:
        messages: Messages as `apply_chat_template` takes them.
        tools: The tools as OpenAI describes them; none to render calls and results of earlier ones only.
    """
    plain = [_plain(message) for message in messages]
    if not tools:
        return plain
    functions = [tool.get("function", tool) for tool in tools]
    prompt = GENERIC_TOOL_PROMPT.format(tools=json.dumps(functions, ensure_ascii=False))
    if plain and plain[0]["role"] == "system":
        content = f"{plain[0]['content']}\n\n{prompt}" if plain[0]["content"] else prompt
        return [{**plain[0], "content": content}, *plain[1:]]
    return [{"role": "system", "content": prompt}, *plain]


def _plain(message: Message) -> Message:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>{message['content']}</tool_response>"}
    if calls := message.get("tool_calls"):
        written = json.dumps([call["function"] for call in calls], ensure_ascii=False)
        text = f"{message['content']}\n" if message["content"] else ""
        return {"role": message["role"], "content": f"{text}<tool_call>{written}</tool_call>"}
    return message
