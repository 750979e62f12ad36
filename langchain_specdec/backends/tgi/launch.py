"""A TGI server on this machine that lives as long as the backend that uses it."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import SecretStr, ValidationError
from typing_extensions import Unpack

from langchain_specdec.backends.remote.options import checked_key, checked_options
from langchain_specdec.backends.remote.prompt_tokenizer import LocalTokenizer
from langchain_specdec.backends.tgi.backend import TGIBackend
from langchain_specdec.backends.tgi.client import make_client
from langchain_specdec.backends.tgi.launch_options import LaunchOptions
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.parameter_names import refuse_unknown

_ANY_PORT = "http://127.0.0.1"


def launch_backend(model_id: str, *, speculate: int | None = 4, **options: Unpack[LaunchOptions]) -> TGIBackend:
    """Start a server and connect to it; closing the backend ends the server.

    Args:
        model_id: Model id or local folder.
        speculate: Tokens to draft per step; None is TGI's own choice. Answers of a given form need 0: while TGI
            speculates, it breaks most grammars. A second server or the engine in this process are other ways.
        options: Parameters of `TGIBackend`, whose `api_key` the server is to ask for; fields of
            `tgi_launcher.TGIConfig`; and parameters of `tgi_launcher.TGIServer`, such as `on_progress` and `restart`.

    Raises:
        InvalidParameterError: A parameter is unknown or out of its range. Raised before anything is started.
        MissingDependencyError: The client asked for is not installed.
        tgi_launcher.TGIError: The server did not start.
    """
    from tgi_launcher import TGIConfig, TGIServer

    ours = set(inspect.signature(TGIBackend).parameters) - {"base_url", "server"}
    serving = set(inspect.signature(TGIServer).parameters) - {"config"}
    refuse_unknown(options, {*ours, *TGIConfig.model_fields, *serving})
    # Of all of these, None is the default.
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    mine = {name: value for name, value in given.items() if name in ours}
    api_key, tokenizer = mine.pop("api_key", None), mine.pop("tokenizer", None)
    # All that can be wrong is found before a server is started, which takes minutes.
    checked_options(mine.get("read_timeout"), mine.get("max_retries"), mine.get("max_concurrency"))
    key = checked_key(api_key, _ANY_PORT)
    make_client(mine.get("client", "auto"), _ANY_PORT, None)
    loaded = LocalTokenizer.load(tokenizer)
    theirs: dict[str, Any] = {name: value for name, value in given.items() if name not in ours | serving}
    try:
        config = TGIConfig(
            model_id=model_id, speculate=speculate, api_key=None if key is None else SecretStr(key), **theirs
        )
    except ValidationError as error:
        # Values are left out: they may be secret.
        problems = [
            f"{'.'.join(map(str, problem['loc'])) or 'together'}: {problem['msg']}"
            for problem in error.errors(include_input=False, include_context=False, include_url=False)
        ]
        msg = f"The TGI server cannot be started so: {'; '.join(problems)}."
        raise InvalidParameterError(msg) from None
    try:
        server = TGIServer(config, **{name: value for name, value in given.items() if name in serving})
    except ValueError as error:
        raise InvalidParameterError(str(error)) from error
    server.start()
    try:
        tokenizer = None if loaded is None else loaded.private
        return TGIBackend(server.base_url, api_key=key, tokenizer=tokenizer, server=server, **mine)
    except BaseException:
        server.stop()
        raise
