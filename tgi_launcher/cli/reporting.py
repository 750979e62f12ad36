"""What of errors reaches the command line: one line in its own words, and an exit code."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import typer
from pydantic import ValidationError

from tgi_launcher.config import TGIConfig
from tgi_launcher.engine_config import EngineConfig
from tgi_launcher.errors import StartError, TGIError
from tgi_launcher.standard_streams import FAILED, INTERRUPTED, is_output_lost

__all__ = ["FAILED", "INTERRUPTED", "KEY_VARIABLE", "SECRETS", "WRONG_USE", "reported", "with_flags"]

WRONG_USE = 2

KEY_VARIABLE = "TGI_API_KEY"
# These have no option, since every user of the machine can read command lines.
SECRETS = {"api_key": f"--api-key-file or the variable {KEY_VARIABLE}", "hf_token": "the variable HF_TOKEN"}

_FLAGS = {
    **{name: f"--{name.replace('_', '-')}" for name in (*EngineConfig.model_fields, *TGIConfig.model_fields)},
    **SECRETS,
    "extra_args": "--extra-arg",
    "model_id": "MODEL",
}
# A name without "_" is also a word, which is an option only beside a value or one of these verbs.
_MENTION = re.compile(
    r"(?<![\w/.-])(?P<verb>(?:set|given?|leave|check|use|With) )?(?P<name>"
    + "|".join(sorted(_FLAGS, key=len, reverse=True))
    + r")(?![\w/-]|\.\w)(?:=(?P<value>'[^']*'|\('[^)]*\)|[\w.:-]*\w))?(?P<after> must| may not)?"
)


def with_flags(text: str) -> str:
    """A message with options as the command line writes them: `--num-shard 2` in place of `num_shard=2`."""
    return _MENTION.sub(_flag, text)


def _flag(mention: re.Match[str]) -> str:
    verb, name, value, after = mention.groups()
    if "_" not in name and verb is value is after is None:
        return mention[0]
    flag = _FLAGS[name]
    if value is not None and value.startswith("("):
        flag = " ".join(f"{flag}={word}" for word in re.findall("'([^']*)'", value))
    elif value == "False":
        flag = f"--no-{flag[2:]}"
    elif value not in (None, "True"):
        flag = f"{flag} {value.strip(chr(39))}"
    return f"{verb or ''}{flag}{after or ''}"


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turn errors into a line on standard error and an exit code."""
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        raise typer.Exit(INTERRUPTED) from None
    except ValidationError as error:
        for problem in error.errors():
            sys.stderr.write(f"error: {_sentence(problem)}\n")
        raise typer.Exit(WRONG_USE) from None
    except StartError as error:
        # The sentence comes last, where people look first.
        sys.stderr.write("".join(f"  | {line}\n" for line in error.log_tail) + f"error: {with_flags(error.summary)}\n")
        raise typer.Exit(FAILED) from None
    except (TGIError, OSError) as error:
        if isinstance(error, OSError) and is_output_lost():
            raise typer.Exit(FAILED) from None
        sys.stderr.write(f"error: {with_flags(str(error))}\n")
        raise typer.Exit(FAILED) from None


def _sentence(problem: Any) -> str:
    text = str(problem["msg"]).removeprefix("Value error, ")
    place = problem["loc"]
    if not place or str(place[0]) in text:
        return with_flags(text)
    shown = "" if str(place[0]) in SECRETS else f", got {problem['input']!r}"
    # The messages of pydantic's own checks do not name the option.
    return f"{_FLAGS[str(place[0])]}: {with_flags(text)}" + ("" if problem["type"] == "value_error" else shown)
