"""Commands of a chat: what begins with a slash."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from langchain_specdec.errors import InvalidParameterError

if TYPE_CHECKING:
    from langchain_specdec.cli.chat_talk import Talk

KEYS_HELP = """\
Alt-Enter, or a backslash at its end, goes on in another line; pasted lines are one message.
Ctrl-C clears what is typed, and stops an answer. Ctrl-D at an empty line ends the talk."""


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        run: Called with the talk and what follows the command's name; returns what to say, or None.
        argument: How that is called in the help; "" where nothing may follow.
        help: What the command does.
    """

    run: Callable[[Talk, str], str | None]
    argument: str
    help: str


def command_of(text: str) -> tuple[str, str] | None:
    """The name and the argument of a command; None where the text is a message."""
    if not text.startswith("/") or text.startswith("//"):
        return None
    name, *argument = text.split(None, 1)
    return name, "".join(argument)


def message_of(text: str) -> str:
    """The message that a text stands for: two slashes at its beginning are one."""
    return text[1:] if text.startswith("//") else text


def run_command(talk: Talk, name: str, argument: str) -> str | None:
    """Run a command.

    Returns:
        What to say; None where there is nothing.

    Raises:
        InvalidParameterError: There is no such command, or its argument is missing, too much or wrong.
        SpecDecError: What the command asks for failed.
        OSError: A file cannot be written.
        EOFError: The talk is to end.
    """
    command = COMMANDS.get(name)
    if command is None:
        raise InvalidParameterError(_unknown(name))
    if argument and not command.argument:
        msg = f"{name} takes nothing after it. To send the text as a message, begin it with two slashes: /{name} …"
        raise InvalidParameterError(msg)
    return command.run(talk, argument)


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    shown = name if len(name) <= 40 else f"{name[:40]}…"  # a pasted text may begin with a slash
    meant = f" Did you mean {near[0]}?" if near else ""
    return (
        f"There is no command {shown!r}.{meant} /help lists the commands; "
        "a message that begins with a slash is written with two: //"
    )


def _help(_talk: Talk, _: str) -> str:
    usages = {f"{name} {command.argument}".strip(): command.help for name, command in COMMANDS.items()}
    width = max(map(len, usages))
    return "\n".join(f"{usage.ljust(width)}  {text}" for usage, text in usages.items()) + "\n" + KEYS_HELP


def _end(_talk: Talk, _: str) -> None:
    raise EOFError


def _reset(talk: Talk, _: str) -> str:
    talk.conversation.reset()
    kept = " but for the system message" if talk.conversation.system else ""
    return f"The conversation is forgotten{kept}."


def _retry(talk: Talk, _: str) -> None:
    talk.retry()


def _system(talk: Talk, text: str) -> str:
    if not text:
        system = talk.conversation.system
        return "There is no system message but the model's own." if system is None else f"System message: {system}"
    talk.conversation.system = None if text in ('""', "''") else text
    return "The system message is set." if talk.conversation.system else "The system message is taken away."


def _save(talk: Talk, name: str) -> str:
    if len(name) > 1 and name[0] == name[-1] and name[0] in "\"'":
        name = name[1:-1]
    if not name:
        msg = "/save needs the name of a file: /save talk.md to read it, /save talk.json for --history."
        raise InvalidParameterError(msg)
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:
        msg = f"{name}: there is no such user."
        raise InvalidParameterError(msg) from error
    talk.conversation.save(path, talk.model.model_name)
    return f"Saved in {path}."


def _plain(talk: Talk, _: str) -> str:
    if not talk.view.is_terminal:
        msg = "Answers are plain text here: standard output is no terminal, or one that only prints."
        raise InvalidParameterError(msg)
    talk.view.shows_markdown = not talk.view.shows_markdown
    if talk.view.shows_markdown:
        return "Markdown is rendered from now on."
    return "Answers are shown as they are written from now on, with what came from the draft in colour."


COMMANDS: Mapping[str, Command] = {
    "/help": Command(_help, "", "lists the commands"),
    "/retry": Command(_retry, "", "gives another answer to the last question, or asks it again if it failed"),
    "/system": Command(_system, "TEXT", 'sets the system message; alone it shows it, and /system "" takes it away'),
    "/save": Command(_save, "FILE", "saves the conversation: .md to read it, .json for --history"),
    "/plain": Command(_plain, "", "shows answers as written, drafted text in colour; once more renders Markdown"),
    "/reset": Command(_reset, "", "forgets the conversation"),
    "/exit": Command(_end, "", "ends the talk, as /quit and Ctrl-D do"),
    "/quit": Command(_end, "", "ends the talk"),
}
