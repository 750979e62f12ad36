"""Files of prompts: JSON lines as `DraftRecorder` writes them and as Spec-Bench has them, or plain text, one a line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.paths import read_lines

_KEYS = ("messages", "turns", "prompt")
_FORMATS = (
    '{"prompt": "..."}, {"messages": [{"role": "user", "content": "..."}]} or {"turns": ["...", ...]} (what a person '
    "says in turn, each a text)"
)


@dataclass(frozen=True)
class GivenPrompt:
    """What a line of a file asks.

    Attributes:
        text: A question, or the beginning of a text; "" where there are messages.
        messages: A conversation, up to where the assistant answers, as chat templates take it.
        tools: The tools that it names, as OpenAI describes them.
        later_turns: What the person says after each answer, where there is a text.
    """

    text: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    later_turns: tuple[str, ...] = ()


@dataclass(frozen=True)
class PromptFiles:
    """Files that prompts come from, read and checked.

    Attributes:
        prompts: What is trained on.
        eval_prompts: What the draft is measured on.
        digest: Tells contents apart.
    """

    prompts: Sequence[GivenPrompt] = ()
    eval_prompts: Sequence[GivenPrompt] = ()
    digest: str = ""

    @classmethod
    def read(cls, prompts: Sequence[Path], eval_prompts: Sequence[Path]) -> PromptFiles:
        """Read files.

        Raises:
            InvalidParameterError: As `read_prompts` does.
        """
        read = [[prompt for path in paths for prompt in read_prompts(path)] for paths in (prompts, eval_prompts)]
        digest = hashlib.sha256(repr(read).encode("utf-8", "replace")).hexdigest()[:16] if any(read) else ""
        trained, measured = map(_distinct, read)
        return cls(trained, measured, digest)


def read_prompts(path: Path) -> list[GivenPrompt]:
    """Read a file of prompts: JSON lines where its first line is an object, plain text with one a line otherwise.

    Raises:
        InvalidParameterError: It cannot be read, is empty, or a line has not the format.
    """
    lines = read_lines(path, f"a file with a prompt on each line: plain text, or JSON such as {_FORMATS}")
    if lines[0][1].startswith("[") and isinstance(_json("\n".join(line for _, line in lines)), list):
        msg = f"{path} is a JSON array. Give its objects on a line each: jq -c '.[]' {path}"
        raise InvalidParameterError(msg)
    if not lines[0][1].startswith("{"):
        return [GivenPrompt(line) for _, line in lines]
    return list(_parsed(path, lines))


def _parsed(path: Path, lines: Sequence[tuple[int, str]]) -> Iterator[GivenPrompt]:
    for number, line in lines:
        entry = _json(line)
        prompt = _prompt(entry) if isinstance(entry, dict) else None
        if prompt is None:
            named = ""
            if isinstance(entry, dict) and not set(entry) & set(_KEYS):
                named = f" It has the fields {', '.join(map(repr, entry)) or 'of nobody'}, and none of these."
            msg = f"{path}, line {number} holds no prompt. A line is an object such as {_FORMATS}.{named}"
            raise InvalidParameterError(msg)
        yield prompt


def _json(text: str) -> Any:
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    return None


def _prompt(entry: Mapping[str, Any]) -> GivenPrompt | None:
    if "messages" in entry:
        messages, tools = entry["messages"], entry.get("tools") or []
        messages = [_message(each) for each in messages] if isinstance(messages, list) else [None]
        if None in messages or not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            return None
        # The model gives an answer of its own.
        while messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        return GivenPrompt("", tuple(messages), tuple(tools)) if messages else None
    turns = entry.get("turns")
    said: list[Any] = turns if isinstance(turns, list) and turns else [entry.get("prompt")]
    if not all(isinstance(turn, str) and turn.strip() for turn in said):
        return None
    return GivenPrompt(said[0], later_turns=tuple(said[1:]))


def _message(message: Any) -> Mapping[str, Any] | None:
    """A message with its content as text, which OpenAI writes as parts, too, and as null beside calls."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return None
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        content = ""
    if isinstance(content, list):
        texts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
        content = "".join(texts) if len(texts) == len(content) else None
    return {**message, "content": content} if isinstance(content, str) else None


def _distinct(prompts: Sequence[GivenPrompt]) -> list[GivenPrompt]:
    """Of those that begin alike, the first with the most turns: none may be held out and trained on as well."""
    kept: dict[str, GivenPrompt] = {}
    for prompt in prompts:
        key = repr((prompt.text.strip(), prompt.messages, prompt.tools))
        kept[key] = max(kept.get(key, prompt), prompt, key=lambda each: len(each.later_turns))
    return list(kept.values())
