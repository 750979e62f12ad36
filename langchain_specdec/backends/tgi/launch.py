"""A TGI server on this machine that lives as long as the backend that uses it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import Unpack

from langchain_specdec.backends.remote.launch import Launch
from langchain_specdec.backends.tgi.backend import TGIBackend
from langchain_specdec.backends.tgi.client import make_client
from langchain_specdec.backends.tgi.launch_options import LaunchOptions


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

    launch = Launch(TGIBackend, TGIConfig, TGIServer, "TGI server", _check_client)
    return launch.start(dict(options), model_id=model_id, speculate=speculate)


def _check_client(options: Mapping[str, Any]) -> None:
    make_client(options.get("client", "auto"), "http://127.0.0.1", None)
