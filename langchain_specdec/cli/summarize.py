"""`specdec summarize`: summarise files of any length."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langchain_specdec.cli.generate import takes_chat
from langchain_specdec.cli.loading import load_backend, spinner
from langchain_specdec.cli.options import CHAT, FLAG_NAMES, OUTPUT, SUMMARY_FLAGS, SYSTEM, Given, takes_options
from langchain_specdec.cli.reporting import FAILED, with_flags
from langchain_specdec.cli.standard_input import is_terminal
from langchain_specdec.cli.terminal_text import json_line, printable, visible
from langchain_specdec.cli.text_files import name_of, read_file
from langchain_specdec.errors import InvalidParameterError, SpecDecError
from langchain_specdec.options import Option

if TYPE_CHECKING:
    from langchain_core.outputs import LLMResult

    from langchain_specdec.backends.local import LocalBackend
    from langchain_specdec.documents.summarizer import DocumentSummarizer, SummaryProgress

_METHODS = ("auto", "stuff", "map_reduce", "refine")


@takes_options(SUMMARY_FLAGS, num_slots={"default": 4})
def summarize(
    given: Given,
    *,
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE", help="Text files, summarised together. '-', or nothing, is standard input."),
    ] = None,
    method: Annotated[
        str,
        Option(
            "auto",
            "stuff: all in one prompt. map_reduce: pieces, then their summaries. refine: piece after piece. "
            "auto: stuff where it has room, else map_reduce.",
            str,
            words=_METHODS,
        ),
        "Summary",
    ],
    instruction: Annotated[
        str | None,
        typer.Option(
            "--instruction",
            "-i",
            help="What to do with the text.",
            show_default="a summary in a few sentences",
            rich_help_panel="Summary",
        ),
    ] = None,
    each: Annotated[bool, Option(False, "A summary of each file instead of one of all.", bool), "Summary"],
    system: Annotated[str | None, SYSTEM] = None,
    chat: Annotated[bool | None, CHAT] = None,
    as_json: Annotated[bool, Option(False, "Print JSON objects instead of text.", bool), OUTPUT],
) -> None:
    """Summarise text files of any length: one summary of all, or one of each.

    What the model has no room for is read in pieces, whose summaries are summarised.
    """
    if instruction is not None and not instruction.strip():
        msg = "--instruction is empty. Say what to do with the text, or leave it out."
        raise InvalidParameterError(msg)
    paths = _checked(files)
    # All of them before a model is loaded for some.
    texts = [read_file(path) for path in paths]
    backend = load_backend(given.model, debug=given.debug, **given.options)
    with closing(backend):
        maker = _Maker(backend, given, system, chat, {"method": method, "instruction": instruction})
        if each and len(paths) > 1:
            _print_each(maker, paths, texts, as_json=as_json)
        elif as_json:
            print(json_line(maker.facts(paths, texts)))
        else:
            maker.print(texts)


def _checked(files: Sequence[Path] | None) -> list[Path]:
    paths = list(files or ())
    if not paths:
        if sys.stdin is None or is_terminal():
            msg = "There is nothing to summarise. Name a file, or pipe text in: specdec summarize < notes.txt"
            raise InvalidParameterError(msg)
        paths = [Path("-")]
    if paths.count(Path("-")) > 1:
        msg = "Standard input (-) can be read once only: give - once."
        raise InvalidParameterError(msg)
    return paths


def _print_each(maker: _Maker, paths: Sequence[Path], texts: Sequence[str], *, as_json: bool) -> None:
    """A summary of each; one that fails does not keep the others from theirs."""
    has_failed = False
    for number, (path, text) in enumerate(zip(paths, texts, strict=True)):
        name = name_of(path)
        try:
            if as_json:
                print(json_line(maker.facts([path], [text])), flush=True)
            else:
                gap = "\n" * (number > 0)
                print(printable(f"{gap}==> {name} <==", sys.stdout), flush=True)
                maker.print([text])
        except SpecDecError as error:
            has_failed = True
            print(f"error: {visible(f'{name}: {with_flags(str(error), FLAG_NAMES)}')}", file=sys.stderr)
    if has_failed:
        raise typer.Exit(FAILED)


class _Maker:
    """Makes summaries, and shows how far they are.

    Args:
        backend: The model.
        given: What the command was given.
        system: System message.
        is_chat: `--chat`, `--raw` or None.
        options: Of `DocumentSummarizer`; those that are None are not given.
    """

    def __init__(
        self, backend: LocalBackend, given: Given, system: str | None, is_chat: bool | None, options: dict[str, Any]
    ) -> None:
        from langchain_core.messages import SystemMessage
        from langchain_core.prompts import ChatPromptTemplate

        from langchain_specdec.chat_models import ChatSpeculative
        from langchain_specdec.llms import SpeculativeLLM

        self._name = backend.model_name
        self._options = {name: value for name, value in options.items() if value is not None}
        self._model: Any
        if takes_chat(backend, system, is_chat):
            self._model = ChatSpeculative(backend=backend, **vars(given.params))
        else:
            self._model = SpeculativeLLM(backend=backend, **vars(given.params))
        if system is not None:
            messages: list[Any] = [SystemMessage(system), ("human", "{text}\n\n{instruction}")]
            self._options["prompt"] = ChatPromptTemplate.from_messages(messages)

    def print(self, texts: Sequence[str]) -> None:
        """Print a summary as it comes."""
        is_at_end_of_line = True
        with ExitStack() as stack:
            stream = self._summarizer(stack).stream(list(texts))
            try:
                for piece in stream:
                    if piece:
                        stack.close()  # the bar and the text share a terminal
                        print(printable(piece, sys.stdout), end="", flush=True)
                        is_at_end_of_line = piece.endswith("\n")
            finally:
                stream.close()  # type: ignore[attr-defined]  # it is a generator
                if not is_at_end_of_line:
                    print(flush=True)

    def facts(self, paths: Sequence[Path], texts: Sequence[str]) -> dict[str, Any]:
        """A summary, and what it took."""
        counts = _counts()
        with ExitStack() as stack:
            text = self._summarizer(stack).invoke(list(texts), {"callbacks": [counts]})
        names = ["-" if str(path) == "-" else name_of(path) for path in paths]
        return {"model": self._name, "files": names, "text": text, **counts.values}

    def _summarizer(self, stack: ExitStack) -> DocumentSummarizer:
        from langchain_specdec.documents.summarizer import DocumentSummarizer

        tell = stack.enter_context(spinner("Summarising")).tell
        return DocumentSummarizer(self._model, on_progress=lambda p: tell(what_of(p), p.done, p.total), **self._options)


def what_of(progress: SummaryProgress) -> str:
    """What a stage of a summary is, in words."""
    if progress.stage == "refine":
        return "Refining the summary with each piece"
    if progress.total == 1:
        return "Reading the text" if progress.level == 1 else "Summarising the summaries"
    return f"Summarising pieces of the {'text' if progress.level == 1 else 'summaries'}"


def _counts() -> Any:
    """A callback that adds up calls and their tokens in `values`."""
    from langchain_core.callbacks import BaseCallbackHandler

    class Counts(BaseCallbackHandler):
        def __init__(self) -> None:
            self.values = {"num_prompts": 0, "prompt_tokens": 0, "completion_tokens": 0}

        def on_llm_end(self, response: LLMResult, **_: Any) -> None:
            for (generation,) in response.generations:
                usage = getattr(getattr(generation, "message", None), "usage_metadata", None)
                info: Any = generation.generation_info or {}
                self.values["num_prompts"] += 1
                self.values["prompt_tokens"] += usage["input_tokens"] if usage else info["prompt_tokens"]
                self.values["completion_tokens"] += usage["output_tokens"] if usage else info["completion_tokens"]

    return Counts()
