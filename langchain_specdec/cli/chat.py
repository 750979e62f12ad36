"""`specdec chat`: talk with a model in the terminal."""

from __future__ import annotations

from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from langchain_specdec.cli.chat_commands import COMMANDS, command_of, message_of, run_command
from langchain_specdec.cli.chat_input import make_reader
from langchain_specdec.cli.loading import connected, load_backend, spinner
from langchain_specdec.cli.options import FLAG_NAMES, FLAGS, OUTPUT, SYSTEM, Given, takes_options, text_of
from langchain_specdec.cli.quiet_keyboard import quiet_keyboard
from langchain_specdec.cli.reporting import with_flags
from langchain_specdec.errors import InvalidParameterError, PromptTooLongError, SpecDecError
from langchain_specdec.options import Option

if TYPE_CHECKING:
    from langchain_specdec.backends.base import Backend
    from langchain_specdec.cli.chat_input import Reader
    from langchain_specdec.cli.chat_talk import Talk


@takes_options(FLAGS.keys() - {"logprobs"}, max_new_tokens={"default": 512})
def chat(
    given: Given,
    *,
    system: Annotated[str | None, SYSTEM] = None,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Server to talk with in place of a model that is loaded: vLLM, SGLang, llama.cpp, specdec serve, or "
            "another that speaks OpenAI's protocol. Its key is SPECDEC_API_KEY of the environment.",
            show_default=False,
            rich_help_panel="Model",
        ),
    ] = None,
    history: Annotated[
        Path | None, typer.Option(help="JSON file that keeps the conversation; it goes on from there.", dir_okay=False)
    ] = None,
    plain: Annotated[
        bool, Option(False, "Show Markdown as it is written, with what came from the draft in colour.", bool), OUTPUT
    ],
) -> None:
    """Talk with a model. In a terminal Markdown is rendered, and /help lists the commands.

    Each line of standard input is a message, so a script can be piped in too.
    """
    with spinner("Starting PyTorch"):
        from langchain_specdec.cli.chat_conversation import Conversation
    conversation = Conversation(history)
    backend: Backend
    if server is None:
        backend = load_backend(given.model, debug=given.debug, **given.options)
    else:
        backend = connected(server, given)
    with closing(backend):
        from langchain_specdec.chat_models import ChatSpeculative
        from langchain_specdec.cli.chat_talk import Talk
        from langchain_specdec.cli.chat_view import make_view

        model = ChatSpeculative(backend=backend, **given.thinking, **vars(given.params))
        if system is not None:
            conversation.system = system
        # An object that a schema or an expression asks for is no Markdown.
        view = make_view(shows_markdown=not plain and given.params.grammar is None)
        _hold(Talk(model, conversation, view), make_reader(COMMANDS.keys()))


def _hold(talk: Talk, reader: Reader) -> None:
    """Read messages and commands to their end."""
    from langchain_specdec.cli.chat_view import say

    if reader.is_dialogue:
        say(f"{talk.model.model_name}. /help lists the commands, Ctrl-C stops an answer, Ctrl-D ends the talk.")
        if reader.note:
            say(reader.note)
    with suppress(EOFError):
        while True:
            _take_turn(talk, reader)


def _take_turn(talk: Talk, reader: Reader) -> None:
    """Read a line and do what it says. Where a person types, nothing that goes wrong ends the talk.

    Raises:
        EOFError: The talk is to end.
    """
    from langchain_specdec.cli.chat_view import say

    try:
        line = reader.read()
        if line is None:
            raise EOFError
        with quiet_keyboard():
            _handle(talk, line)
    except KeyboardInterrupt:
        if not reader.is_dialogue:
            raise
        say("Ctrl-D or /exit ends the talk.")
    except (SpecDecError, OSError) as error:
        if not reader.is_dialogue:
            raise
        say(f"error: {_told(error)}")


def _handle(talk: Talk, line: str) -> None:
    """Do what a line says. What is wrong with the line itself is told, and does not end a script."""
    from langchain_specdec.cli.chat_view import say

    try:
        text = text_of(line, "The message").strip()
        command = command_of(text)
        said = run_command(talk, *command) if command else None
    except PromptTooLongError:
        raise
    except InvalidParameterError as error:
        said, text = f"error: {error}", ""
    if said is not None:
        say(said)
    elif text and command is None:
        talk.ask(message_of(text))


def _told(error: Exception) -> str:
    text = with_flags(" ".join(str(error).split()), FLAG_NAMES)
    if isinstance(error, PromptTooLongError):
        return f"{text} /reset forgets the conversation."
    is_answer_missing = isinstance(error, SpecDecError) and not isinstance(error, InvalidParameterError)
    return f"{text} /retry asks again." if is_answer_missing else text
