"""How commands end: errors as one line on stderr, exit codes, and what Ctrl-C means."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import typer

from langchain_specdec.cli.terminal_text import visible
from langchain_specdec.errors import InvalidParameterError, MissingDependencyError, SpecDecError
from tgi_launcher.standard_streams import FAILED, INTERRUPTED, is_output_lost

__all__ = ["FAILED", "INTERRUPTED", "WRONG_USE", "flag_of", "reported", "with_flags"]

WRONG_USE = 2
_WORDS = {"reasoning": {"True": "on", "False": "off"}}


def flag_of(name: str) -> str:
    """How an option is written on a command line."""
    return f"--{name.removeprefix('as_').replace('_', '-')}"


@contextmanager
def reported(*, debug: bool = False, flags: Mapping[str, str] | None = None) -> Iterator[None]:
    """Turn whatever ends a command early into a message and an exit code.

    Args:
        debug: Let errors through, with their traceback.
        flags: How the command line writes options, by their names in Python.
    """
    try:
        yield
    except (typer.Exit, typer.BadParameter):
        raise
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if isinstance(error, OSError) and is_output_lost():
            raise typer.Exit(FAILED) from None
        if debug:
            raise
        # It may quote a model's files, such as what its chat template raises.
        print(f"error: {visible(with_flags(_message(error), flags or {}))}", file=sys.stderr)
        code = WRONG_USE if isinstance(error, InvalidParameterError) else FAILED
        raise typer.Exit(code) from None


def _message(error: Exception) -> str:
    text = str(error).strip()
    if isinstance(error, MissingDependencyError):
        return text  # it ends in commands, each on a line of its own
    text = " ".join(text.split())
    if isinstance(error, (SpecDecError, OSError)) and text:
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


def with_flags(text: str, flags: Mapping[str, str]) -> str:
    """The message with `--draft-model` in place of `draft_model`, and without what is said of Python alone."""
    if not flags:
        return text
    text = text.replace("DocumentSummarizer", "specdec summarize")
    text = re.sub(r" \(\w+ in SpeculativeLLM\)|, or None( for all tokens)?(?=,)", "", text)

    def flag(match: re.Match[str]) -> str:
        lead, name, value, verb = match.groups()
        # A name without "_" is also a word, which is an option in some places only.
        if "_" not in name and lead is value is verb is None:
            return match[0]
        shown = (value or "").strip("='")
        shown = _WORDS.get(name, {}).get(shown, shown)
        return f"{lead or ''}{flags[name]}" + (f" {shown}" if shown not in ("", "True") else "") + (verb or "")

    name = "|".join(sorted(flags, key=len, reverse=True))
    lead, value, verb = "(^|[.:] |[Gg]ive |[Ll]eave )?", r"(=(?:'[^']*'|\w+|(?=\.)))?", "( must | contradict )?"
    # Neither in quotes nor part of a path or a file's name.
    return re.sub(rf"{lead}(?<![\w'\"/.-])({name}){value}(?![\w'\"/-]|\.\w){verb}", flag, text)
