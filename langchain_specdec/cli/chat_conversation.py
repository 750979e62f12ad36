"""What has been said in a chat: the messages, the question that waits for an answer, and the files they are kept in."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    message_chunk_to_message,
    messages_from_dict,
    messages_to_dict,
)
from pydantic import ValidationError

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.paths import write_output

_SUFFIXES = (".md", ".json")


class Conversation:
    """The messages of a chat.

    Args:
        path: File that keeps them after every change; None keeps them nowhere.

    Attributes:
        messages: A system message, if there is one, and questions with their answers.
        unanswered: The last question, where its answer failed or was stopped before it began.

    Raises:
        InvalidParameterError: The file holds no conversation, or its folder is missing.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.messages = _read(path)
        self.unanswered: HumanMessage | None = None

    @property
    def system(self) -> str | None:
        """The system message; None leaves the template its own."""
        first = self.messages[:1]
        return first[0].text if first and isinstance(first[0], SystemMessage) else None

    @system.setter
    def system(self, text: str | None) -> None:
        talk = self._talk()
        self.messages = [SystemMessage(text), *talk] if text else talk
        self.keep()

    @property
    def last_question(self) -> HumanMessage | None:
        """The question that a retry asks again."""
        if self.unanswered is not None:
            return self.unanswered
        questions = [message for message in self.messages if isinstance(message, HumanMessage)]
        return questions[-1] if questions else None

    def asked(self, question: HumanMessage) -> list[BaseMessage]:
        """The messages up to a question, which is a new one or the last."""
        before = self.messages
        if question is not self.unanswered and question in before:
            before = before[: len(before) - 1 - before[::-1].index(question)]
        return [*before, question]

    def add(self, asked: Sequence[BaseMessage], answer: AIMessageChunk) -> None:
        """Go on with an answer to what was `asked`."""
        self.messages = [*asked, answer]
        self.unanswered = None
        self.keep()

    def reset(self) -> None:
        """Forget all but the system message."""
        self.messages = self.messages[: len(self.messages) - len(self._talk())]
        self.unanswered = None
        self.keep()

    def keep(self) -> None:
        """Write the file that keeps the conversation.

        Raises:
            OSError: It cannot be written; it is as it was before then.
        """
        if self.path is None:
            return
        # A new one is nobody else's to read.
        write_output(self.path, self._as_json().encode(), mode=0o600)

    def save(self, path: Path, model_name: str) -> None:
        """Write a new file: Markdown to read, or JSON that `--history` goes on from, by its suffix.

        Raises:
            InvalidParameterError: There is nothing to save, the suffix is another, the file is there already, or it
                cannot be made.
            OSError: Its text cannot be written.
        """
        if path.suffix.lower() not in _SUFFIXES:
            msg = f"{path} must end in .md, to be read, or in .json, for --history to go on from."
            raise InvalidParameterError(msg)
        if not self.messages:
            msg = "Nothing has been said yet, so there is nothing to save."
            raise InvalidParameterError(msg)
        text = self._as_json() if path.suffix.lower() == ".json" else self._as_markdown(model_name)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            msg = f"{path} is there already. Give another name, or delete it first."
            raise InvalidParameterError(msg) from error
        except FileNotFoundError as error:
            msg = f"There is no folder {str(path.parent)!r} to save it in. Make it first, or give another."
            raise InvalidParameterError(msg) from error
        except (OSError, ValueError) as error:
            msg = f"{str(path)!r} cannot be written: {getattr(error, 'strerror', None) or error}."
            raise InvalidParameterError(msg) from error
        try:
            with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
                file.write(text)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def _talk(self) -> list[BaseMessage]:
        return self.messages[1:] if self.system is not None else self.messages

    def _as_json(self) -> str:
        whole = [message_chunk_to_message(message) for message in self.messages]
        return json.dumps(messages_to_dict(whole), ensure_ascii=False, indent=1)

    def _as_markdown(self, model_name: str) -> str:
        writers = {"system": "System", "human": "You"}
        parts = [f"# A talk with {model_name}"]
        for message in self.messages:
            name = model_name if isinstance(message, AIMessage) else writers.get(message.type, message.type)
            parts += [f"## {name}", message.text.strip()]
        return "\n\n".join(parts) + "\n"


def _read(path: Path | None) -> list[BaseMessage]:
    if path is None:
        return []
    if not path.exists():
        if not path.absolute().parent.is_dir():
            msg = f"There is no folder {str(path.absolute().parent)!r} to keep the conversation in. Make it first."
            raise InvalidParameterError(msg)
        return []
    try:
        text = path.read_text(encoding="utf-8")
        if not text.strip():
            return []  # as mktemp and touch make it
        kept = json.loads(text)
        if not isinstance(kept, list):
            msg = f"a list of messages was expected, got {type(kept).__name__}"
            raise TypeError(msg)
        return messages_from_dict(kept)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = _why(error)
        msg = f"{path} does not hold a conversation of specdec chat ({reason}). Give another file, or delete it."
        raise InvalidParameterError(msg) from error


def _why(error: Exception) -> str:
    """What is wrong with a conversation, in a few words: pydantic has many lines for it."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
