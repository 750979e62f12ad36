"""Command-line options made from the fields of TGIConfig and EngineConfig, so that neither side can lack one."""

from __future__ import annotations

import functools
import inspect
import os
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from tgi_launcher.cli.help_text import UsageError
from tgi_launcher.cli.reporting import KEY_VARIABLE, SECRETS, reported, with_flags
from tgi_launcher.config import TGIConfig
from tgi_launcher.engine_config import EngineConfig
from tgi_launcher.engines.facts import EngineFacts, Method
from tgi_launcher.engines.table import ENGINES

# Stands for the model where there is none. No folder is like that.
_ANY_MODEL = "any/model"
# Characters of the words that an option takes, to be written behind it.
_WIDEST = 24
_SECRETS_PANEL = "Secrets"
# The engine is chosen by an option, whatever config it leads to. Of fields that both have, TGI's description is shown.
_FIELDS = {**EngineConfig.model_fields, **TGIConfig.model_fields}
_REPEATED_FLAGS = {"extra_args": "--extra-arg"}
# Those that may be repeated, by what stands for their value.
_REPEATED = {"env": "NAME=VALUE", "cors_allow_origin": "ORIGIN", "extra_args": "ARGUMENT"}


def takes_config(command: Callable[..., None], *, needs_model: bool = True) -> Callable[..., None]:
    """Give a command the options of TGIConfig and of EngineConfig.

    Args:
        command: Called with the config, and with the options that its own signature has behind it.
        needs_model: Whether MODEL must be given. Where it need not, the command is told by `has_model`; the config is
            that of the other options then.

    Returns:
        A function with a signature that typer reads. Errors become one line and an exit code.
    """
    signature = inspect.signature(command, eval_str=True)
    own = [
        _keyword(p.name, p.annotation, p.default)
        for p in list(signature.parameters.values())[1:]
        if needs_model or p.name != "has_model"
    ]
    names = [name for name in _FIELDS if name != "model_id" and name not in SECRETS]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        with reported():
            has_model = given["model"] is not None
            config = _make_config(given if has_model else {**given, "model": _ANY_MODEL}, names)
            told = {} if needs_model else {"has_model": has_model}
            command(config, **told, **{parameter.name: given[parameter.name] for parameter in own})

    model = typer.Argument(help="Model id of the Hugging Face Hub, or a local folder or GGUF file.", metavar="MODEL")
    parameters = [_keyword("model", Annotated[str, model] if needs_model else Annotated[str | None, model],
                           inspect.Parameter.empty if needs_model else None)]  # fmt: skip
    parameters += [_option(name, _FIELDS[name]) for name in names]
    key_help = f"File with the key that requests have to carry (else: variable {KEY_VARIABLE}, or the engine's own)."
    key_file = typer.Option(help=key_help, exists=True, dir_okay=False, rich_help_panel=_SECRETS_PANEL)
    parameters += [_keyword("api_key_file", Annotated[Path | None, key_file], None), *own]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del run.__wrapped__  # typer would look behind it
    return run


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    panel = str((field.json_schema_extra or {}).get("group"))  # type: ignore[union-attr]
    description = with_flags(str(field.description))
    shown: Any = {"help": description, "rich_help_panel": panel, "show_default": False}
    kind = _without_none(field.annotation)
    if kind is bool:
        both = f"{flag}/--no-{flag[2:]}" if field.default else flag
        # What is on by default may depend on other options.
        default = None if field.default else False
        return _keyword(name, Annotated[bool | None, typer.Option(both, **shown)], default)
    if name in _REPEATED:
        option = typer.Option(_REPEATED_FLAGS.get(name, flag), metavar=_REPEATED[name], **shown)
        return _keyword(name, Annotated[list[str], option], [])
    if get_origin(kind) is tuple:
        return _keyword(name, Annotated[str | None, typer.Option(flag, metavar="N,N,...", **shown)], None)
    if name == "engine":
        return _keyword(name, Annotated[str | None, typer.Option(flag, metavar="ENGINE", **shown)], None)
    if get_origin(kind) is Literal or (kind is Method):
        words = "|".join(_words(kind))
        shown |= {"metavar": words if len(words) <= _WIDEST else "KIND"}
        if len(words) > _WIDEST:
            shown["help"] = f"{description} One of {', '.join(_words(kind))}."
        kind = str
    if kind in (int, float):
        # What is no number is left to TGIConfig, which says what it must be and what it is.
        shown |= {"metavar": f"<{kind.__name__}>", "parser": functools.partial(_number, kind)}
        kind = str
    if field.default is not None and not field.is_required():
        shown["help"] = f"{description.rstrip('.')} (default: {field.default})."
    return _keyword(name, Annotated[kind | None, typer.Option(flag, **shown)], None)


def _words(kind: Any) -> list[str]:
    return [one.value for one in Method] if kind is Method else list(get_args(kind))


def _number(kind: type, text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        return text


def _without_none(annotation: Any) -> Any:
    """The plain type of a field: `int` for `Annotated[int, …] | None`."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif isinstance(annotation, types.UnionType) or str(get_origin(annotation)) == "typing.Union":
            annotation = next(kind for kind in get_args(annotation) if kind is not type(None))
        else:
            return annotation


def _make_config(given: dict[str, Any], names: list[str]) -> TGIConfig | EngineConfig:
    values: dict[str, Any] = {"model_id": given["model"]}
    for name in names:
        value = given[name]
        if value is None or value == []:
            continue
        if name == "env":
            value = dict(_pair(text) for text in value)
        elif name in ("devices", "cuda_graphs"):
            value = tuple(part.strip() for part in value.split(","))
        elif name in _REPEATED:
            value = tuple(value)
        values[name] = value
    if given["api_key_file"] is not None:
        values["api_key"] = SecretStr(given["api_key_file"].read_text(encoding="utf-8").strip())
    engine = values.pop("engine", "tgi")
    if "api_key" not in values and (key := _key_of(engine)):
        values["api_key"] = SecretStr(key)
    return _config_of(engine, values)


def _key_of(engine: str) -> str | None:
    """The key of the environment, under our name or the engine's own: without it the server would be open to all."""
    own = ENGINES[engine].key_variable if engine in ENGINES else None
    return os.environ.get(KEY_VARIABLE) or (os.environ.get(own) if own else None)


def _config_of(engine: str, values: dict[str, Any]) -> TGIConfig | EngineConfig:
    config: type[TGIConfig | EngineConfig] = TGIConfig
    method = None
    if engine != "tgi":
        config, values = EngineConfig, {"engine": engine, **values}
        if engine not in ENGINES:
            msg = f"There is no engine {engine}: use tgi, {', '.join(ENGINES)}."
            raise UsageError(msg)
    elif "speculation_method" in values:
        method = _method_of_tgi(values)
        values = {name: value for name, value in values.items() if name != "speculation_method"}
    for name, value in values.items():
        # A switch that is off is the default of both.
        if name not in config.model_fields and value is not False:
            hint = "use --engine vllm or another" if engine == "tgi" else "leave it out, or use --extra-arg"
            msg = f"{engine} has no option {_flag_of(name)}: {hint}."
            raise UsageError(msg)
    made = config(**{name: value for name, value in values.items() if name in config.model_fields})
    if method is not None and isinstance(made, TGIConfig):
        _check_heads(method, made)
        if method is Method.NGRAM and made.speculate is None:
            return TGIConfig(**{**values, "speculate": EngineFacts.default_tokens})
    return made


def _check_heads(method: Method, config: TGIConfig) -> None:
    info = config.model_info
    if info.is_known and (info.speculator is not None if method is Method.NGRAM else info.speculator != "Medusa"):
        has = f"{info.speculator} heads" if info.speculator else "no heads"
        msg = f"TGI speculates by what MODEL has, and {config.model_id} has {has}: leave --speculation-method out."
        raise UsageError(msg)


def _method_of_tgi(values: dict[str, Any]) -> Method:
    """The method that is asked for, if TGI has it. It takes heads for a model of their own."""
    name = values["speculation_method"]
    method = next((one for one in Method if one.value == name), None)
    if method is not Method.NGRAM and method is not Method.MEDUSA:
        by = method.words if method is not None else name
        msg = f"TGI does not speculate by {by}: it has ngram, and medusa where MODEL is the heads."
        raise UsageError(msg)
    if "draft_model" in values:
        msg = "TGI has no draft models, and takes Medusa heads as MODEL: leave --draft-model out."
        raise UsageError(msg)
    if values.get("speculate") == 0:
        msg = "--speculate 0 is no speculation: leave --speculation-method out beside it."
        raise UsageError(msg)
    return method


def _flag_of(name: str) -> str:
    return _REPEATED_FLAGS.get(name, f"--{name.replace('_', '-')}")


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        # What was given is not repeated: it may be a secret.
        msg = "--env takes NAME=VALUE, got a text without a name and '='."
        raise typer.BadParameter(msg)
    return name, value
