"""Messages as they are typed, pasted or piped in."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from langchain_specdec.cli.signals import leaving_on_sigterm
from langchain_specdec.cli.standard_input import is_terminal, read_line
from langchain_specdec.cli.terminal_text import is_drawable
from tgi_launcher.extras import install_command

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

_PROMPT = "> "
_NO_EDITOR = (
    f"Messages are single lines here. To edit them, and to paste several lines as one message: {install_command('cli')}"
)


class Reader(Protocol):
    """Where messages come from.

    Attributes:
        is_dialogue: Whether a person types them.
        note: What the person should know of how they are read; "" for nothing.
    """

    is_dialogue: bool
    note: str

    def read(self) -> str | None:
        """The next message; None at the end.

        Raises:
            KeyboardInterrupt: Ctrl-C where nothing is typed.
        """


def make_reader(commands: Collection[str]) -> Reader:
    """The reader that fits standard input.

    Args:
        commands: What Tab completes.
    """
    if not is_terminal():
        return PipeReader()
    # The question must not go into the file or pipe that takes the answers.
    stream = next((stream for stream in (sys.stdout, sys.stderr) if is_drawable(stream)), None)
    if stream is None:
        return LineReader()
    try:
        from prompt_toolkit.input import create_input
        from prompt_toolkit.output import create_output

        return EditorReader(make_editor(commands, input=create_input(), output=create_output(stream)))
    except ImportError:
        return LineReader(_NO_EDITOR)


class PipeReader:
    """Lines of a pipe or a file, each a message."""

    is_dialogue = False
    note = ""

    def read(self) -> str | None:
        """The next line; None at the end."""
        return read_line()


class LineReader:
    """Lines that are typed, with no more than the terminal does for them."""

    is_dialogue = True

    def __init__(self, note: str = "") -> None:
        self.note = note
        with suppress(ImportError):
            import readline  # noqa: F401 - line editing and the arrow keys

    def read(self) -> str | None:
        """The next line; None at the end."""
        try:
            if sys.stdout.isatty():
                return input(_PROMPT)
            print(_PROMPT, end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
        except KeyboardInterrupt:
            print(file=sys.stderr)
            raise
        except EOFError:
            line = ""
        if not line:
            print(file=sys.stderr)
            return None
        return line


class EditorReader:
    """Messages from an editor of any number of lines."""

    is_dialogue = True
    note = ""

    def __init__(self, editor: PromptSession[str]) -> None:
        self._editor = editor

    def read(self) -> str | None:
        """The next message; None after Ctrl-D."""
        try:
            with leaving_on_sigterm():
                return self._editor.prompt()
        except EOFError:
            return None


def make_editor(commands: Collection[str], **streams: Any) -> PromptSession[str]:
    """An editor of prompt_toolkit: Enter sends, pasted lines stay together, Ctrl-C clears, Tab completes commands.

    Args:
        commands: Names of commands.
        streams: `input` and `output` of prompt_toolkit.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import get_app
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import has_focus
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.shortcuts import CompleteStyle

    paths = PathCompleter(expanduser=True)

    class _Commands(Completer):
        def get_completions(self, document: Document, event: Any) -> Iterator[Completion]:
            typed = document.text_before_cursor
            name, space, argument = typed.partition(" ")
            if name == "/save" and space:
                yield from paths.get_completions(Document(argument), event)
            elif typed.startswith("/"):
                yield from (Completion(name, -len(typed)) for name in commands if name.startswith(typed))

    keys = KeyBindings()
    # In a search for an earlier message the keys have their own meaning.
    edits = has_focus(DEFAULT_BUFFER)

    @keys.add("enter", filter=edits)
    def _send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.is_cursor_at_the_end and buffer.text.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=edits)
    def _break(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c", filter=edits)
    @keys.add("<sigint>")
    def _clear(event: KeyPressEvent) -> None:
        buffer = get_app().layout.get_buffer_by_name(DEFAULT_BUFFER)
        if buffer is not None and buffer.text:
            buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return PromptSession(
        _PROMPT,
        multiline=True,
        prompt_continuation="  ",
        key_bindings=keys,
        completer=_Commands(),
        complete_while_typing=False,
        # Listed below the line as in a shell; a menu would reserve room for itself.
        complete_style=CompleteStyle.READLINE_LIKE,
        enable_suspend=True,
        include_default_pygments_style=False,
        **streams,
    )
