"""`DraftRecorder`: a LangChain callback that keeps the prompts of a program, for `specdec make-draft --prompts`."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.outputs import LLMResult

from langchain_specdec.chat.messages import to_template_messages
from langchain_specdec.errors import InvalidParameterError

# Only the user: prompts hold what people wrote.
_MODE = 0o600


class DraftRecorder(BaseCallbackHandler):
    """Writes each prompt that a program gives to models into a file, a line of JSON each.

    Of a plain model it is `{"prompt": ...}`, of a chat model `{"messages": [...]}`, with `"tools"` where the call has
    some. Answers are left out: a draft is trained on those of its own model. It works in any thread and event loop,
    and several recorders, also of several processes, may share a file. Prompts with images are skipped.

    Args:
        path: The file. Lines are appended to one that is there. A new one can be read by its owner alone.
        with_answers: Whether each line also has the `"answer"` that came, whichever model wrote it. Lines are written
            when calls end then.

    Attributes:
        num_recorded: Prompts that were written.
        num_skipped: Prompts that no text model can be given.

    Raises:
        InvalidParameterError: The file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, with_answers: bool = False) -> None:
        self.path = Path(path)
        self.with_answers = with_answers
        self.num_recorded = 0
        self.num_skipped = 0
        self._lock = threading.Lock()
        # What was asked in calls that run, where their answers are wanted.
        self._asked: dict[UUID, list[dict[str, Any]]] = {}
        self._write([])

    def __repr__(self) -> str:
        return f"DraftRecorder({str(self.path)!r}): {self.num_recorded} prompts"

    def on_llm_start(self, serialized: dict[str, Any], prompts: list[str], *, run_id: UUID, **kwargs: Any) -> None:
        """Record the prompts of a plain model."""
        self._take(run_id, [{"prompt": prompt} for prompt in prompts])

    def on_chat_model_start(
        self, serialized: dict[str, Any], messages: list[list[BaseMessage]], *, run_id: UUID, **kwargs: Any
    ) -> None:
        """Record the messages of a chat model."""
        rows = []
        tools = (kwargs.get("invocation_params") or {}).get("tools")
        for conversation in messages:
            try:
                row: dict[str, Any] = {"messages": to_template_messages(conversation)}
                if tools:
                    row["tools"] = tools
                json.dumps(row)
            except (InvalidParameterError, TypeError, ValueError, RecursionError):
                with self._lock:
                    self.num_skipped += 1
                continue
            rows.append(row)
        self._take(run_id, rows)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """Record the answers, where they are wanted."""
        rows = self._take_back(run_id)
        for row, generations in zip(rows, response.generations, strict=False):
            if generations:
                row["answer"] = generations[0].text
        if rows:
            self._write(rows)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Record the prompts of a call that failed: they are as good as others."""
        if rows := self._take_back(run_id):
            self._write(rows)

    def _take(self, run_id: UUID, rows: list[dict[str, Any]]) -> None:
        if not self.with_answers:
            self._write(rows)
            return
        with self._lock:
            self._asked[run_id] = rows

    def _take_back(self, run_id: UUID) -> list[dict[str, Any]]:
        with self._lock:
            return self._asked.pop(run_id, [])

    def _write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append lines, by one call each, so that those of other processes do not mix with them."""
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
        try:
            with self._lock, open(os.open(self.path, flags, _MODE), "ab", buffering=0) as file:  # noqa: PTH123
                file.write(data)
                self.num_recorded += len(rows)
        except OSError as error:
            reason = error.strerror or error
            msg = f"Prompts cannot be recorded in {self.path}: {reason}. Give a file in a folder of yours."
            raise InvalidParameterError(msg) from error
