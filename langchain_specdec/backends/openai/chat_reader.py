"""Reads the answer to a chat whose prompt the server wrote: thoughts, text and calls, as servers really send them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from langchain_specdec.backends.openai.chunks import Chunk, ChunkToken
from langchain_specdec.backends.openai.dialect import Reader
from langchain_specdec.backends.openai.plain import known_reason, usage_of
from langchain_specdec.completions.events import FinishReason
from langchain_specdec.completions.server_chat import THOUGHT_BEGIN, THOUGHT_END, written_call
from langchain_specdec.completions.thoughts import Reasoning

_REASONS: dict[str, FinishReason] = {
    **dict.fromkeys(("stop", "tool_calls", "function_call"), "eos_token"),
    "length": "length",
}


@dataclass
class _Call:
    """A call that is coming in pieces."""

    index: int | None
    id: str = ""
    name: str = ""
    arguments: Any = ""

    def add(self, delta: Mapping[str, Any]) -> None:
        """Take a piece. The name comes whole, and some servers repeat it; arguments may come parsed."""
        function = delta.get("function") or {}
        self.id = self.id or delta.get("id") or ""
        self.name = self.name or function.get("name") or ""
        arguments = function.get("arguments")
        if isinstance(arguments, str) and isinstance(self.arguments, str):
            self.arguments += arguments
        elif arguments is not None:
            self.arguments = arguments

    def is_followed_by(self, delta: Mapping[str, Any]) -> bool:
        """Whether a piece with a name has arguments that cannot go on with those of this call."""
        is_whole = not isinstance(self.arguments, str) or self.arguments.startswith("{")
        return is_whole and _is_json(self.arguments) and bool(delta["function"].get("arguments"))


class ChatReader(Reader):
    """Pieces of a chat. The calls come with its end, for pieces of several may alternate.

    Args:
        of_completions: Reads what the kind of server tells of completions, and of chats alike.
    """

    def __init__(self, of_completions: Reader) -> None:
        self._of_completions = of_completions
        # As far as the server has told.
        self._num_tokens = 0
        self._is_thinking = False
        self._calls: list[_Call] = []

    def read(self, event: Mapping[str, Any]) -> Chunk:
        """See `Reader`."""
        counts: Any = usage_of(event)
        self._num_tokens = counts.get("completion_tokens") or self._num_tokens
        stats = self._of_completions.stats(event, self._num_tokens)
        choices = event["choices"]
        if not choices:
            # Some begin with such a piece, which tells of filters.
            end = self._of_completions.end_of(event)
            return Chunk(finish_reason=end, stats=stats, is_last=bool(counts), **counts)
        choice = choices[0]
        delta = choice.get("delta") or {}
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        text = self._thought(thought) if isinstance(thought, str) else ""
        for part in _parts(delta.get("content")):
            text += self._thought(part.text) if isinstance(part, Reasoning) else self._thought_end() + part
        if refusal := delta.get("refusal"):
            text += self._thought_end() + refusal
        for call in delta.get("tool_calls") or ():
            self._take(call)
        if legacy := delta.get("function_call"):
            self._take({"index": None, "function": legacy})
        reason = known_reason(_REASONS, choice.get("finish_reason"))
        if reason is not None:
            text += self._thought_end() + self._finished_calls(reason)
        return Chunk(text, (ChunkToken(-1),) if text else (), reason, stats=stats, **counts)

    def _thought(self, text: str) -> str:
        begin = "" if self._is_thinking else THOUGHT_BEGIN
        self._is_thinking = True
        return begin + text

    def _thought_end(self) -> str:
        end = THOUGHT_END if self._is_thinking else ""
        self._is_thinking = False
        return end

    def _take(self, delta: Mapping[str, Any]) -> None:
        """Take a piece of a call."""
        index, given, name = delta.get("index"), delta.get("id"), (delta.get("function") or {}).get("name")
        last = self._calls[-1] if self._calls else None
        call = next((call for call in reversed(self._calls) if call.index == index), last if index is None else None)
        # Some give all calls one number, or none; then the id of another tells, or that the one before is whole.
        if call is None or (name and (given != call.id if given and call.id else call.is_followed_by(delta))):
            call = _Call(index)
            self._calls.append(call)
        call.add(delta)

    def _finished_calls(self, reason: FinishReason) -> str:
        calls, self._calls = self._calls, []
        cut = calls[-1:] if reason == "length" else []
        return "".join(
            written_call(call.name, call.arguments, call.id, is_cut=call in cut and not _is_json(call.arguments))
            for call in calls
        )


def _parts(content: Any) -> Iterator[str | Reasoning]:
    """The texts and thoughts of a content, which is a text, but of Mistral's thinking models a list."""
    for part in [content] if isinstance(content, str) else content or ():
        if isinstance(part, str):
            yield from [part] if part else []
        elif part.get("type") == "thinking":
            yield from (Reasoning(text) for text in _parts(part["thinking"]) if isinstance(text, str))
        else:
            yield from _parts(part["text"])


def _is_json(text: Any) -> bool:
    if not isinstance(text, str):
        return True
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
