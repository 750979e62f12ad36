"""`specdec chat`: talk with a model in the terminal."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langchain_specdec.cli.loading import load_backend, spinner
from langchain_specdec.cli.options import FLAG_NAMES, FLAGS, SYSTEM, Given, takes_options, text_of
from langchain_specdec.cli.reporting import with_flags
from langchain_specdec.cli.standard_input import is_terminal, read_line
from langchain_specdec.cli.terminal_text import printable, visible
from langchain_specdec.errors import InvalidParameterError, PromptTooLongError, SpecDecError
from langchain_specdec.paths import write_own

if TYPE_CHECKING:
    from langchain_core.messages import AIMessageChunk, BaseMessage

    from langchain_specdec.chat_models import ChatSpeculative
    from langchain_specdec.completions.events import Token

_HELP = "/reset forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C stops an answer."


@takes_options(FLAGS.keys() - {"logprobs"}, max_new_tokens={"default": 512})
def chat(
    given: Given,
    *,
    system: Annotated[str | None, SYSTEM] = None,
    history: Annotated[
        Path | None, typer.Option(help="JSON file that keeps the conversation; it goes on from there.", dir_okay=False)
    ] = None,
) -> None:
    """Talk with a model. Text that came from the draft is coloured.

    Each line of standard input is a message, so a script can be piped in too.
    """
    with spinner("Starting PyTorch"):
        from langchain_core.messages import SystemMessage
    messages = _read_history(history)
    if system is not None and not messages:
        messages = [SystemMessage(system)]
    backend = load_backend(given.model, debug=given.debug, **given.options)
    with closing(backend):
        from langchain_specdec.chat_models import ChatSpeculative

        _talk(ChatSpeculative(backend=backend, **vars(given.params)), messages, history)


def _talk(model: ChatSpeculative, messages: list[BaseMessage], history: Path | None) -> None:
    from langchain_core.messages import HumanMessage, SystemMessage

    is_dialogue = is_terminal()
    if is_dialogue:
        with suppress(ImportError):
            import readline  # noqa: F401 - line editing and the arrow keys
        print(f"{model.model_name}. {_HELP}", file=sys.stderr)
    show, end = _printers()
    while (line := _read_line(is_dialogue)) is not None:
        try:
            text = text_of(line, "The message").strip()
        except InvalidParameterError as error:
            print(f"error: {error}", file=sys.stderr)
            continue
        if not text:
            continue
        if text in ("/exit", "/quit"):
            return
        if text == "/reset":
            messages = [message for message in messages[:1] if isinstance(message, SystemMessage)]
            _write_history(history, messages)
            continue
        if text.startswith("/"):
            print(f"error: There is no command {text.split()[0]!r}. {_HELP}", file=sys.stderr)
            continue
        asked = [*messages, HumanMessage(text)]
        try:
            answer = _answer(model, asked, show)
        except SpecDecError as error:
            if not is_dialogue:
                raise
            hint = " /reset forgets the conversation." if isinstance(error, PromptTooLongError) else ""
            print(f"error: {visible(with_flags(str(error), FLAG_NAMES))}{hint}", file=sys.stderr)
            continue
        end(answer)
        if not answer.content:
            continue  # stopped before it began
        messages = [*asked, answer]
        _write_history(history, messages)


def _read_line(is_dialogue: bool) -> str | None:
    """The next message; None at the end of input."""
    try:
        if is_dialogue:
            return input("> ")
        return read_line()
    except EOFError:
        print(file=sys.stderr)
        return None


def _answer(model: ChatSpeculative, messages: list[BaseMessage], show: Callable[[Token], None]) -> AIMessageChunk:
    """The answer, shown as it comes. After Ctrl-C it is what had come by then."""
    from langchain_core.callbacks import BaseCallbackHandler
    from langchain_core.messages import AIMessageChunk

    class _Shown(BaseCallbackHandler):
        run_inline = True
        raise_error = True

        def on_llm_new_token(self, token: Any, *, chunk: Any = None, **_: Any) -> None:
            for part in getattr(chunk, "tokens", ()):
                show(part)

    answer = AIMessageChunk(content="")
    stream = model.stream(messages, {"callbacks": [_Shown()]})
    try:
        for chunk in stream:
            answer = answer + chunk
    except KeyboardInterrupt:
        stream.close()  # type: ignore[attr-defined]  # it is a generator
    return answer


def _printers() -> tuple[Callable[[Token], None], Callable[[AIMessageChunk], None]]:
    """How tokens are shown, and what follows an answer: colours in a terminal, plain text elsewhere."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    is_coloured = console.is_terminal and os.environ.get("TERM") not in ("dumb", "unknown")
    drafted = "underline" if console.no_color else "green"

    def show(token: Token) -> None:
        if is_coloured:
            console.print(Text(visible(token.text), style=drafted if token.drafted else ""), end="", soft_wrap=True)
        else:
            print(printable(token.text, sys.stdout), end="", flush=True)

    def end(answer: AIMessageChunk) -> None:
        print(flush=True)
        if is_coloured:
            console.print(Text(_figures(answer) + "\n", style="dim"))

    return show, end


def _figures(answer: AIMessageChunk) -> str:
    usage = answer.usage_metadata
    if usage is None:
        return "stopped"
    speculation = answer.response_metadata["speculation"]
    seconds = speculation["decode_seconds"]
    parts = [
        f"{usage['output_tokens']} tokens",
        f"{usage['output_tokens'] / seconds:.1f} tokens/s" if seconds else "",
        f"{speculation['tokens_per_step']:.2f} tokens/step",
        f"{usage.get('input_token_details', {}).get('cache_read', 0)} of {usage['input_tokens']} read before",
        "cut off by --max-new-tokens" if answer.response_metadata["finish_reason"] == "length" else "",
    ]
    return " · ".join(part for part in parts if part)


def _read_history(path: Path | None) -> list[BaseMessage]:
    from langchain_core.messages import messages_from_dict

    if path is None:
        return []
    if not path.exists():
        if not path.absolute().parent.is_dir():
            msg = f"There is no folder {str(path.absolute().parent)!r} to keep the conversation in. Make it first."
            raise InvalidParameterError(msg)
        return []
    try:
        return messages_from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError) as error:
        msg = f"{path} does not hold a conversation of specdec chat ({error}). Give another file, or delete it."
        raise InvalidParameterError(msg) from error


def _write_history(path: Path | None, messages: list[BaseMessage]) -> None:
    from langchain_core.messages import message_chunk_to_message, messages_to_dict

    if path is None:
        return
    whole = [message_chunk_to_message(message) for message in messages]
    content = json.dumps(messages_to_dict(whole), ensure_ascii=False, indent=1)
    target = path.resolve()  # a link stays one
    # A new one is nobody else's to read.
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o600
    write_own(target, content.encode(), mode=mode)
