"""Prompts to measure on, in the format of Spec-Bench: JSON lines with question_id, category and turns.

Only the first turn of a question is used: it becomes a user's message in the model's chat format, or stands as it is
where the model has none. (Spec-Bench, Xia et al. 2024, https://github.com/hemingkx/Spec-Bench)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from langchain_specdec.bench.contestant import Prompt
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.paths import read_lines

_DEFAULT = "default_workload.jsonl"


@dataclass(frozen=True)
class Question:
    """A line of a workload.

    Attributes:
        question_id: Identifies it.
        category: What kind of task it is.
        text: Its first turn.
    """

    question_id: str
    category: str
    text: str


def load_workload(path: Path | None) -> list[Question]:
    """Read a workload.

    Args:
        path: A file of JSON lines; None is the workload that comes along.

    Raises:
        InvalidParameterError: The file is not there, or a line has not the format.
    """
    if path is None:
        with resources.as_file(resources.files("langchain_specdec.bench").joinpath(_DEFAULT)) as default:
            return _questions(default)
    return _questions(path)


def _questions(path: Path) -> list[Question]:
    lines = read_lines(path, "a file in Spec-Bench's format")
    return [_question(line, f"{path}, line {number}") for number, line in lines]


def _question(line: str, place: str) -> Question:
    try:
        entry = json.loads(line)
        question_id, category, text = entry["question_id"], entry["category"], entry["turns"][0]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        text = None
    is_read = isinstance(text, str) and text.strip() and isinstance(category, str)
    # A terminal shows both, so neither may hold control characters.
    if not is_read or not category.isprintable() or not str(question_id).isprintable():
        msg = (
            f"{place} is not in Spec-Bench's format. Each line has to be an object such as "
            '{"question_id": 1, "category": "summarization", "turns": ["the prompt", ...]}.'
        )
        raise InvalidParameterError(msg)
    return Question(str(question_id), category, text)


def select(questions: Sequence[Question], categories: Sequence[str], limit: int | None) -> list[Question]:
    """The questions of some categories, at most so many of each, in the order of the workload.

    Args:
        questions: The workload.
        categories: Which categories; all where empty.
        limit: Most questions of a category; None is all.

    Raises:
        InvalidParameterError: The workload lacks a category.
    """
    known = list(dict.fromkeys(question.category for question in questions))
    if unknown := [category for category in categories if category not in known]:
        msg = f"The workload has no category {', '.join(map(repr, unknown))}. It has: {', '.join(known)}."
        raise InvalidParameterError(msg)
    counts: dict[str, int] = {}
    chosen = []
    for question in questions:
        if categories and question.category not in categories:
            continue
        counts[question.category] = counts.get(question.category, 0) + 1
        if limit is None or counts[question.category] <= limit:
            chosen.append(question)
    return chosen


def encode(question: Question, tokenizer: Any, max_tokens: int, *, is_chat: bool) -> Prompt:
    """Make tokens of a question.

    A text that is too long loses its end, so that the chat format around it stays whole.

    Args:
        question: The question.
        tokenizer: The target's tokenizer.
        max_tokens: Most tokens of the prompt.
        is_chat: Whether to put it into the tokenizer's chat format.

    Raises:
        InvalidParameterError: Not even the chat format fits.
    """
    render = _chat(tokenizer) if is_chat else _raw(tokenizer)
    text = question.text
    ids = render(text)
    is_cut = len(ids) > max_tokens
    while len(ids) > max_tokens:
        own = tokenizer(text, add_special_tokens=False).input_ids
        kept = len(own) - (len(ids) - max_tokens)
        shorter = tokenizer.decode(own[:kept]) if kept > 0 else ""
        if not shorter or len(shorter) >= len(text):
            msg = (
                f"A prompt of {max_tokens} tokens has no room for question {question.question_id}. Allow more by "
                f"--max-prompt-tokens, or by a lower --max-new-tokens where the model has few positions."
            )
            raise InvalidParameterError(msg)
        text = shorter
        ids = render(text)
    if not ids:
        msg = f"Question {question.question_id} has no tokens."
        raise InvalidParameterError(msg)
    return Prompt(question.question_id, question.category, tuple(ids), is_cut)


def _chat(tokenizer: Any) -> Callable[[str], list[int]]:
    def render(text: str) -> list[int]:
        messages = [{"role": "user", "content": text}]
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        # The chat format writes the token that begins a text, so the tokenizer must not add it again.
        return list(tokenizer(rendered, add_special_tokens=False, verbose=False).input_ids)

    return render


def _raw(tokenizer: Any) -> Callable[[str], list[int]]:
    return lambda text: list(tokenizer(text, verbose=False).input_ids)
