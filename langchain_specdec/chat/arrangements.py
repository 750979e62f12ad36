"""Arrangements of messages, for chat templates that refuse them as they are, or leave some out."""

from __future__ import annotations

import json
import re
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from langchain_specdec.chat.images import map_texts

Message = dict[str, Any]

_MARK = "specdec_mark"
_A_MARK = re.compile(rf"{_MARK}_[0-9]+_")
# Whose message is missing between two, for templates in which roles alternate but for calls and their results.
_BETWEEN = {
    ("beginning", "assistant"): "user",
    ("beginning", "call"): "user",
    ("beginning", "tool"): "user",
    ("assistant", "assistant"): "user",
    ("assistant", "call"): "user",
    ("tool", "user"): "assistant",
    ("call", "user"): "assistant",
}


_KNOWS_TOOL_ROLE = re.compile(r"[=!]=\s*['\"]tool['\"]")


def keeps_results_with_calls(template: str) -> bool:
    """Whether a template has results with their calls (`tool_responses`), and would take a tool for a speaker."""
    return "tool_responses" in template and _KNOWS_TOOL_ROLE.search(template) is None


def arrangements(
    messages: Sequence[Message], *, has_texts_apart: bool = True, has_results_with_calls: bool = False
) -> Iterator[list[Message]]:
    """Ways to give a template the same messages, the one that changes least first.

    Neighbours of one role joined and system messages in front; the system's text in the first question; empty messages
    where roles have to alternate. And each of these with the text beside a call before it, with one call a message, and
    with both; and all of them with arguments as text, for templates that write them as they come.

    Args:
        messages: Messages as `apply_chat_template` takes them; at least one.
        has_texts_apart: Whether a text beside a call may become a message of its own.
        has_results_with_calls: Whether results belong to the message with their calls.
    """
    if has_results_with_calls:
        messages = _results_with_calls(messages)
    seen: list[list[Message]] = []
    for given in (messages, _with_text_arguments(messages)):
        for arranged in _all(given, has_texts_apart):
            if arranged not in seen:
                seen.append(arranged)
                yield arranged


def _all(messages: Sequence[Message], has_texts_apart: bool) -> Iterator[list[Message]]:
    # Calls stay together wherever that shows as much: the earlier turns of a thread keep their form then.
    for spread in (list, _one_call_each):
        for arrange in (list, _merged, _without_system):
            yield spread(arrange(messages))
        for arrange in (_merged, _without_system):
            yield _alternating(spread(arrange(messages)))
        if has_texts_apart:
            # A text beside a call is not worth an empty question between the two.
            for arrange in (list, _merged, _without_system):
                yield _texts_apart(spread(arrange(messages)))


class Marked(NamedTuple):
    """Messages of the same shape, with marks for texts and arguments, which tell what a template shows of them.

    Attributes:
        messages: The messages.
        needed: Mark -> what it stands for, of what has to be shown.
        wanted: Marks of the assistant's texts, which many templates leave out beside calls.
    """

    messages: list[Message]
    needed: dict[str, str]
    wanted: list[str]


def marked(messages: Sequence[Message]) -> Marked:
    """Messages with marks in place of all texts and arguments; images stay."""
    rows: list[Message] = []
    needed: dict[str, str] = {}
    wanted: list[str] = []

    def new(what: str) -> str:
        mark = f"{_MARK}_{len(needed) + len(wanted)}_"
        if what:
            needed[mark] = what
        else:
            wanted.append(mark)
        return mark

    def new_content(message: Message) -> str:
        what = "" if message["role"] == "assistant" else f"{message['role']} message"
        return map_texts(message["content"], lambda _: new(what))

    for message in messages:
        row = dict(message)
        if message["content"].strip():
            row["content"] = new_content(message)
        if calls := message.get("tool_calls"):
            row["tool_calls"] = []
            for call in calls:
                mark = new(f"call of {call['function']['name']}")
                given = call["function"]["arguments"]
                # The names stay: a template may look them up in the tool.
                shown = (dict.fromkeys(given, mark) or {"x": mark}) if isinstance(given, dict) else mark
                function = {**call["function"], "arguments": shown}
                row["tool_calls"].append({**call, "function": function})
        if results := message.get("tool_responses"):
            row["tool_responses"] = [{**result, "response": new(f"result of {result['name']}")} for result in results]
        rows.append(row)
    return Marked(rows, needed, wanted)


def marks_in(text: str) -> set[str]:
    """The marks that a text shows, in one look: there may be one for each of thousands of messages."""
    return set(_A_MARK.findall(text))


def _merged(messages: Sequence[Message]) -> list[Message]:
    """System messages in front as one, and neighbours of one role joined; results stay apart, and texts from calls."""
    system = [message for message in messages if message["role"] == "system"]
    merged: list[Message] = []
    for message in [*system, *(message for message in messages if message["role"] != "system")]:
        last: Message = merged[-1] if merged else {"role": None}
        earlier, later = last.get("tool_calls", []), message.get("tool_calls", [])
        if last["role"] == message["role"] != "tool" and bool(earlier) == bool(later):
            merged[-1] = joined = {**last, "content": _joined(last["content"], message["content"])}
            if earlier:
                joined["tool_calls"] = [*earlier, *later]
        else:
            merged.append(message)
    return merged


def _without_system(messages: Sequence[Message]) -> list[Message]:
    first, *others = merged = _merged(messages)
    if first["role"] != "system":
        return merged
    if others and others[0]["role"] == "user":
        return [{**others[0], "content": _joined(first["content"], others[0]["content"])}, *others[1:]]
    return [{"role": "user", "content": first["content"]}, *others]


def _alternating(messages: Sequence[Message]) -> list[Message]:
    """Empty questions and answers where two messages cannot follow each other."""
    alternating: list[Message] = []
    last = "beginning"
    for message in messages:
        kind = "call" if message.get("tool_calls") else message["role"]
        if between := _BETWEEN.get((last, kind)):
            alternating.append({"role": between, "content": ""})
        alternating.append(message)
        last = kind
    return alternating


def _one_call_each(messages: Sequence[Message]) -> list[Message]:
    """A message for each of several calls, with its own result behind it, wherever that stood."""
    results = _places_of_results(messages)
    moved: set[int] = set()
    spread: list[Message] = []
    for place, message in enumerate(messages):
        if place in moved:
            continue
        if len(calls := message.get("tool_calls", ())) < 2:
            spread.append(message)
            continue
        for number, call in enumerate(calls):
            spread.append({**message, "content": "" if number else message["content"], "tool_calls": [call]})
            if own := results[place, call["id"]]:
                moved.add(own[0])
                spread.append(messages[own.popleft()])
    return spread


def _places_of_results(messages: Sequence[Message]) -> dict[tuple[int, Any], deque[int]]:
    """Where the results of calls stand, by the place and the id of the call. Some models use an id in every turn."""
    latest: dict[Any, int] = {}
    places: dict[tuple[int, Any], deque[int]] = defaultdict(deque)
    for place, message in enumerate(messages):
        latest |= dict.fromkeys((call["id"] for call in message.get("tool_calls", ())), place)
        called_by = message.get("tool_call_id")
        if message["role"] == "tool" and called_by in latest:
            places[latest[called_by], called_by].append(place)
    return places


def _results_with_calls(messages: Sequence[Message]) -> list[Message]:
    """Messages with results in those of their calls, as Gemma 4 has them, and texts beside such calls before them."""
    rows: list[Message] = []
    for message in messages:
        last: Message = rows[-1] if rows else {}
        if message["role"] == "tool" and last.get("tool_calls"):
            result = {"name": message["name"], "response": message["content"]}
            text = [{"role": last["role"], "content": last["content"]}] if last["content"].strip() else []
            rows[-1:] = [*text, {**last, "content": "", "tool_responses": [*last.get("tool_responses", []), result]}]
        else:
            rows.append(message)
    return rows


def _with_text_arguments(messages: Sequence[Message]) -> list[Message]:
    """Messages whose calls have JSON in place of arguments."""
    rows: list[Message] = []
    for message in messages:
        if calls := message.get("tool_calls"):
            functions = [{**call["function"], "arguments": _as_text(call["function"]["arguments"])} for call in calls]
            calls = [{**call, "function": function} for call, function in zip(calls, functions, strict=True)]
            rows.append({**message, "tool_calls": calls})
        else:
            rows.append(message)
    return rows


def _as_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _texts_apart(messages: Sequence[Message]) -> list[Message]:
    """The text beside calls as a message before them."""
    apart: list[Message] = []
    for message in messages:
        if message.get("tool_calls") and message["content"].strip():
            apart += [{"role": message["role"], "content": message["content"]}, {**message, "content": ""}]
        else:
            apart.append(message)
    return apart


def _joined(*texts: str) -> str:
    return "\n\n".join(text for text in texts if text)
