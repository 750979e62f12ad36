"""A model as a command finds it: in a folder; one that `specdec chat` talks with, and a person who types."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable

import pytest

from tests.support.backends import ScriptedBackend
from tests.support.tiny_models import byte_tokenizer, tiny_model

# By its name: the package gives that to the command.
chat_module = importlib.import_module("langchain_specdec.cli.chat")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "plain"
    tiny_model().save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> ScriptedBackend:
    """A model that says what it is told to, to `specdec chat`."""
    backend = ScriptedBackend("One.", "Two.", "Three.")
    monkeypatch.setattr(chat_module, "load_backend", lambda *args, **kwargs: backend)
    return backend


class _Typed:
    """A person who types lines; in place of one there may be an exception."""

    is_dialogue = True
    note = ""

    def __init__(self, lines: Iterable[str | type[BaseException]]) -> None:
        self._lines = iter(lines)

    def read(self) -> str | None:
        line = next(self._lines, None)
        if line is None or isinstance(line, str):
            return line
        raise line


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Types lines to `specdec chat`."""

    def type_lines(*lines: str | type[BaseException]) -> None:
        reader = _Typed(lines)
        monkeypatch.setattr(chat_module, "make_reader", lambda _: reader)

    return type_lines
