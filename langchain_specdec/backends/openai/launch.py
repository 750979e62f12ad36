"""A server of vLLM, SGLang, llama.cpp or `specdec serve` that lives as long as the backend that uses it."""

from __future__ import annotations

from typing_extensions import Unpack

from langchain_specdec.backends.openai.backend import OpenAIBackend, check_model
from langchain_specdec.backends.openai.launch_options import EngineLaunchOptions, EngineName
from langchain_specdec.backends.remote.launch import Launch
from langchain_specdec.errors import InvalidParameterError


def launch_engine(model_id: str, *, engine: EngineName, **options: Unpack[EngineLaunchOptions]) -> OpenAIBackend:
    """Start a server and connect to it; closing the backend ends the server.

    Args:
        model_id: Model id, local folder or GGUF file.
        engine: What serves it.
        options: Parameters of `OpenAIBackend`, whose `api_key` the server is to ask for; fields of
            `tgi_launcher.EngineConfig`; and parameters of `tgi_launcher.Server`, such as `on_progress` and `restart`.

    Raises:
        InvalidParameterError: A parameter is unknown or out of its range, or the engine lacks what it asks for. Raised
            before anything is started.
        tgi_launcher.TGIError: The server did not start.
    """
    from tgi_launcher import EngineConfig, Server
    from tgi_launcher.engines.table import ENGINES

    if engine not in [*ENGINES]:
        msg = f"engine must be one of 'tgi', {', '.join(map(repr, ENGINES))}, got {engine!r}."
        raise InvalidParameterError(msg)
    title = f"server of {ENGINES[engine].title}"
    launch = Launch(OpenAIBackend, EngineConfig, Server, title, lambda options: check_model(options.get("model")))
    return launch.start(dict(options), model_id=model_id, engine=engine)
