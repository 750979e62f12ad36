"""`specdec serve`: serve a model to other programs, by TGI's HTTP interface and OpenAI's."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Annotated

import typer

from langchain_specdec.backends.local_options import OPTIONS
from langchain_specdec.cli.loading import API_KEY, load_backend
from langchain_specdec.cli.options import FLAGS, Given, takes_options
from langchain_specdec.cli.signals import handled
from langchain_specdec.cli.terminal_text import visible
from langchain_specdec.errors import InvalidParameterError, MissingDependencyError
from langchain_specdec.server.settings import SETTINGS, ServerSettings
from tgi_launcher.extras import install_command

_SERVER = "Server"
_MODEL = FLAGS["model"].help.replace("`", "")


@takes_options(
    FLAGS.keys() & OPTIONS.keys(),
    num_slots={"default": OPTIONS["num_slots"].default},
    grammar_timeout={"default": 5},
)
def serve(
    given: Given,
    *,
    model: Annotated[str | None, typer.Argument(help=_MODEL, show_default=False)] = None,
    model_flag: Annotated[
        str | None,
        typer.Option("--model", "-m", help="The model, as other commands take it.", rich_help_panel="Model"),
    ] = None,
    host: Annotated[str, SETTINGS["host"], _SERVER],
    port: Annotated[int, SETTINGS["port"], _SERVER],
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar=API_KEY,
            help="Key that clients have to send. May be repeated. Better given by the environment, with spaces between "
            "several: other users see command lines.",
            show_default="none",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    allowed_host: Annotated[list[str] | None, SETTINGS["allowed_host"], _SERVER],
    served_model_name: Annotated[str | None, SETTINGS["served_model_name"], _SERVER],
    max_waiting: Annotated[int, SETTINGS["max_waiting"], _SERVER],
    request_timeout: Annotated[float, SETTINGS["request_timeout"], _SERVER],
    body_limit: Annotated[int, SETTINGS["body_limit"], _SERVER],
    drain_timeout: Annotated[int, SETTINGS["drain_timeout"], _SERVER],
    share: Annotated[bool, SETTINGS["share"], _SERVER],
) -> None:
    """Serve a model to other programs, by TGI's HTTP interface and OpenAI's, until Ctrl-C or SIGTERM."""
    named = {name for name in (model, model_flag) if name is not None}
    if len(named) != 1:
        what = "Give the model" if not named else "The model is given twice: give one"
        msg = f"{what}, as in: specdec serve embedded"
        raise InvalidParameterError(msg)
    (source,) = named
    given_settings = (host, port, allowed_host, served_model_name, max_waiting, request_timeout, body_limit)
    settings = ServerSettings(*given_settings, drain_timeout, share, api_key=api_key or None)
    try:
        from langchain_specdec.server.run import Server
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn"):
            raise
        msg = f"specdec serve needs starlette and uvicorn: {install_command('serve')}"
        raise MissingDependencyError(msg) from error
    # The port is taken before the model is loaded, which takes long.
    server = Server(settings)
    backend = load_backend(source, debug=given.debug, **given.options)
    # uvicorn ends by a signal, and has it done again what it did before: nothing, as this is no failure.
    with closing(backend), handled(signal.SIGTERM, _end), handled(signal.SIGINT, _end):
        ready = visible(f"Serving {backend.model_name} on {server.url}")
        server.run(backend, lambda: print(ready, flush=True), _wait_told(drain_timeout))


def _wait_told(seconds: int) -> Callable[[int], None]:
    def tell(num_requests: int) -> None:
        what = "1 request" if num_requests == 1 else f"{num_requests} requests"
        print(f"Ending: {what} may run for {seconds} seconds more. Ctrl-C ends it now.", file=sys.stderr, flush=True)

    return tell


def _end(*_: object) -> None:
    """The server has ended."""
