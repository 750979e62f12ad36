"""Options of commands, made from what `LocalBackend`, `SamplingParams` and chat models declare."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from langchain_specdec.backends import local_options
from langchain_specdec.backends.local_options import OPTIONS, checked_options
from langchain_specdec.chat.reasoning_options import REASONING_OPTIONS
from langchain_specdec.cli.reporting import flag_of, reported
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.options import Option, options_of
from langchain_specdec.parameter_names import named_parameters
from langchain_specdec.sampling.params import SamplingParams
from tgi_launcher.cli import help_text
from tgi_launcher.standard_streams import has_surrogates

OUTPUT = "Output"
"""Heading of options about what is printed."""
CHAT = typer.Option(
    "--chat/--raw",
    help="Prompts as a user's message in the model's chat format, or as they are.",
    show_default="chat where the model has a format",
    rich_help_panel="Prompt",
)
SYSTEM = typer.Option(
    "--system", "-s", help="System message.", show_default="the template's own", rich_help_panel="Prompt"
)
# A command has one adapter, which is merged when the model is loaded, and nothing to choose among.
_SAMPLING = {name: option for name, option in options_of(SamplingParams).items() if name != "adapter"}
_PANELS = (
    ("Model", local_options.LoadingOptions),
    ("Drafts", local_options.DraftOptions),
    ("Engine", local_options.EngineOptions),
)
_PANEL_OF = {name: panel for panel, group in _PANELS for name in group.__annotations__} | {"model": "Model"}
_PANEL_OF |= dict.fromkeys(REASONING_OPTIONS, "Thinking")
# Those that may be folders.
_PATHS = ("model", "draft_model", "adapter")
_DEBUG = Option(False, "Show tracebacks and the libraries' messages.", bool)

FLAGS: Mapping[str, Option] = {
    "model": Option("embedded", "Model id, folder, GGUF file, or `embedded`.", str),
    **{name: OPTIONS[name] for name in _PANEL_OF if name in OPTIONS and OPTIONS[name].kind is not None},
    "num_slots": replace(OPTIONS["num_slots"], default=1),
    "dtype": replace(OPTIONS["dtype"], words=("auto", "float32", "bfloat16", "float16")),
    **{name: option for name, option in _SAMPLING.items() if option.kind is not None},
    **REASONING_OPTIONS,
    "reasoning": replace(
        REASONING_OPTIONS["reasoning"],
        kind=str,
        help="Whether the model thinks before it answers (on, off), or how much (low, medium, high), where its chat "
        "template knows that.",
    ),
    "stop": Option(None, "String that ends the text and is never part of it. May be repeated.", list),
    "schema": Option(None, "JSON schema that the text fits: a file, or the schema itself.", str),
    "regex": Option(None, "Regular expression that the whole text matches.", str),
    "named": Option(None, "Any sampling parameter, its value as JSON or as text. May be repeated.", list),
}
"""Every option that a command can take: what can be written on a command line, and `-o` under the name `named`."""
SUMMARY_FLAGS = FLAGS.keys() - {"logprobs", "schema", "regex", *REASONING_OPTIONS}
"""Those of commands whose texts are summaries."""
_OTHER_NAMES = {
    "logit_bias": "-o logit_bias",
    "grammar": "--schema or --regex",
    "base_url": "--server",
    "api_key": "the variable SPECDEC_API_KEY",
}
FLAG_NAMES: Mapping[str, str] = {name: flag_of(name) for name in FLAGS} | _OTHER_NAMES
"""How the command line writes options, by their names in Python."""


@dataclass(frozen=True)
class Given:
    """What a command is given, checked before anything is loaded.

    Attributes:
        model: Model id or folder.
        options: Options of `LocalBackend`.
        params: What to generate.
        thinking: How to think, by the names of `REASONING_OPTIONS`, of those that the command takes.
        debug: Whether to show tracebacks and what libraries say.
        named: Names of what is not at its default, the command's own options too.
    """

    model: str
    options: dict[str, Any]
    params: SamplingParams
    debug: bool
    thinking: dict[str, Any] = field(default_factory=dict)
    named: tuple[str, ...] = ()


class Command(help_text.Command):
    """A command whose option `-o` takes two words, for which typer has no annotation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for parameter in self.params:
            if parameter.name == "named":
                parameter.nargs = 2


def takes_options(
    flags: Collection[str] = FLAGS.keys(), **changed: Mapping[str, Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command declared options.

    Args:
        flags: Names of those in `FLAGS` that it takes.
        changed: What is declared otherwise for this command: `max_new_tokens={"default": 512}`.

    Returns:
        A decorator. The command is called with a `Given`, and with the keywords of its own signature, which are
        annotated for typer or by an `Option`, and a heading if need be. Errors become one line and an exit code.
    """
    taken = {name: replace(option, **changed.get(name, {})) for name, option in FLAGS.items() if name in flags}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        checked = {p.name: found for p in own for found in get_args(p.annotation) if isinstance(found, Option)}
        parameters = [
            *(_parameter(name, option, _PANEL_OF.get(name, "Sampling")) for name, option in taken.items()),
            *(_parameter(p.name, *get_args(p.annotation)[1:]) if p.name in checked else p for p in own),
            _parameter("debug", _DEBUG, OUTPUT),
        ]
        # "Leave out" is no advice to leave `--out`: words that are options of one command stay words.
        words = {p.name for p in own if p.name not in checked and "_" not in p.name}
        names = _OTHER_NAMES | {p.name: flag_of(p.name) for p in parameters if p.name not in words}

        def run(**values: Any) -> None:
            with reported(debug=values["debug"], flags=names):
                values = {name: _readable(name, value) for name, value in values.items()}
                given = _read(values, taken)
                for name, option in {**taken, **checked}.items():
                    option.check(name, values[name])
                named = tuple(p.name for p in parameters if values[p.name] not in (p.default, [], ()))
                command(replace(given, named=named), **{parameter.name: values[parameter.name] for parameter in own})

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def text_of(argument: str, name: str, *, is_path: bool = False) -> str:
    """What was typed, as text. Where the locale's encoding lacks a character, Python leaves the bytes in its place.

    Args:
        argument: As Python gives it.
        name: What it is called in an error.
        is_path: Whether it names a file or a folder, which libraries cannot open under such a name.

    Raises:
        InvalidParameterError: It is not UTF-8, or a path that the locale's encoding cannot write.
    """
    if not has_surrogates(argument):
        return argument
    try:
        text = os.fsencode(argument).decode()
    except UnicodeError as error:
        advice = "Rename the file or folder" if is_path else "Convert it first"
        msg = f"{name} is not UTF-8 text. {advice}."
        raise InvalidParameterError(msg) from error
    if is_path:
        msg = (
            f"{name} has characters that {sys.getfilesystemencoding()}, the encoding of this locale, does not have. "
            "Set PYTHONUTF8=1 or LC_ALL=C.UTF-8."
        )
        raise InvalidParameterError(msg)
    return text


def _readable(name: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_readable(name, part) for part in value)
    if not isinstance(value, str):
        return value
    is_path = name in _PATHS or (name == "schema" and not _is_schema(value))
    return text_of(value, {"prompt": "The prompt", "named": "-o"}.get(name) or flag_of(name), is_path=is_path)


def _parameter(name: str, option: Any, panel: str | None = None) -> inspect.Parameter:
    """A flag as typer reads it."""
    flags = [flag_of(name), *(["-m"] if name == "model" else [])]
    shown: dict[str, Any] = {"help": option.help.replace("`", ""), "rich_help_panel": panel}
    if option.default is None:
        shown["show_default"] = option.unset.replace("`", "") or False
    if option.words:
        shown["autocompletion"] = lambda: list(option.words)
    annotation: Any = list[str] | None if option.kind is list else (option.kind or str) | None
    if name == "named":
        flags = ["-o", "--option"]
        shown |= {"metavar": "NAME VALUE", "parser": lambda pair: pair}
    elif option.kind in (int, float):
        # What is no number is left for `Option.check`, which says what it must be.
        shown |= {"metavar": f"<{option.kind.__name__}>", "parser": lambda text: _number(option.kind, text)}
    elif option.kind is bool:
        annotation, flags = bool, [f"{flags[0]}/--no-{flags[0][2:]}" if option.default else flags[0]]
    annotation = Annotated[annotation, typer.Option(*flags, **shown)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=option.default)


def _number(kind: type, text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        return text


def _read(values: Mapping[str, Any], taken: Mapping[str, Option]) -> Given:
    options = {name: values[name] for name in taken if name in OPTIONS}
    checked_options(options)
    params = {name: values[name] for name in taken if name in _SAMPLING}
    if "stop" in taken:
        params["stop"] = tuple(values["stop"] or ())
    for name, value in _named_values(values.get("named") or (), taken).items():
        if name in taken and (values[name] or None) != (taken[name].default or None):
            msg = f"{flag_of(name)} is given by -o too: give only one of them."
            raise InvalidParameterError(msg)
        params[name] = value
    if "schema" in taken:
        params["grammar"] = _grammar(values["schema"], values["regex"])
    thinking = {name: values[name] for name in taken if name in REASONING_OPTIONS}
    if "reasoning" in thinking:
        thinking["reasoning"] = {"on": True, "off": False}.get(thinking["reasoning"], thinking["reasoning"])
    return Given(values["model"], options, SamplingParams(**params), values["debug"], thinking)


def _named_values(pairs: Collection[tuple[str, str]], taken: Mapping[str, Option]) -> dict[str, Any]:
    """The values of `-o` by parameter."""
    try:
        values = named_parameters(
            {name: _value(text) for name, text in pairs},
            [name for name in _SAMPLING if name in taken or name == "logit_bias"],
        )
    except InvalidParameterError as error:
        # Raised past `reported`, since these names are no flags.
        raise typer.BadParameter(str(error), param_hint="-o") from error
    if isinstance(bias := values.get("logit_bias"), dict):
        # JSON has only texts for keys.
        values["logit_bias"] = {int(token) if token.isdecimal() else token: number for token, number in bias.items()}
    return values


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _is_schema(schema: str) -> bool:
    """Whether it is the schema itself, and not the name of a file."""
    return schema.lstrip().startswith("{")


def _grammar(schema: str | None, regex: str | None) -> Grammar | None:
    if schema is not None and regex is not None:
        msg = "--schema and --regex are two forms for one text: give only one of them."
        raise InvalidParameterError(msg)
    if schema is None:
        return None if regex is None else Grammar(regex=regex)
    try:
        parsed = json.loads(schema if _is_schema(schema) else Path(schema).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        msg = f"--schema must be a JSON schema, or a file that holds one: {error}"
        raise InvalidParameterError(msg) from error
    return Grammar(schema=parsed)
