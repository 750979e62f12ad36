"""Starts servers of language models on this machine and ends them, with all they have started.

    from tgi_launcher import TGIConfig, TGIServer

    with TGIServer(TGIConfig(model_id="mistralai/Mistral-7B-Instruct-v0.3", speculate=4)) as server:
        print(server.base_url, server.info().max_total_tokens)

`EngineConfig` and `Server` do the same for vLLM, SGLang, llama.cpp and `specdec serve`.

Needs neither PyTorch nor LangChain.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tgi_launcher.config import DEFAULT_IMAGE, TGIConfig
    from tgi_launcher.endpoints import ServedModel, ServerInfo
    from tgi_launcher.engine_config import EngineConfig
    from tgi_launcher.engines.facts import Method
    from tgi_launcher.errors import (
        NotRunningError,
        Reason,
        SpeculationInactiveWarning,
        StartError,
        StopError,
        TGIError,
    )
    from tgi_launcher.logs import Stage
    from tgi_launcher.metrics import Metrics, SpeculationReport
    from tgi_launcher.restart import Backoff
    from tgi_launcher.server import Server
    from tgi_launcher.server_run import Progress
    from tgi_launcher.state import ServerExit, State
    from tgi_launcher.tgi_server import TGIServer

__all__ = [
    "DEFAULT_IMAGE",
    "Backoff",
    "EngineConfig",
    "Method",
    "Metrics",
    "NotRunningError",
    "Progress",
    "Reason",
    "ServedModel",
    "Server",
    "ServerExit",
    "ServerInfo",
    "SpeculationInactiveWarning",
    "SpeculationReport",
    "Stage",
    "StartError",
    "State",
    "StopError",
    "TGIConfig",
    "TGIError",
    "TGIServer",
]

# Imported on first use: they take half a second, in which Ctrl-C would show a traceback of `tgi-launch`.
_HOMES = {
    "DEFAULT_IMAGE": "tgi_launcher.config",
    "Backoff": "tgi_launcher.restart",
    "EngineConfig": "tgi_launcher.engine_config",
    "Method": "tgi_launcher.engines.facts",
    "Metrics": "tgi_launcher.metrics",
    "NotRunningError": "tgi_launcher.errors",
    "Progress": "tgi_launcher.server_run",
    "Reason": "tgi_launcher.errors",
    "ServedModel": "tgi_launcher.endpoints",
    "Server": "tgi_launcher.server",
    "ServerExit": "tgi_launcher.state",
    "ServerInfo": "tgi_launcher.endpoints",
    "SpeculationInactiveWarning": "tgi_launcher.errors",
    "SpeculationReport": "tgi_launcher.metrics",
    "Stage": "tgi_launcher.logs",
    "StartError": "tgi_launcher.errors",
    "State": "tgi_launcher.state",
    "StopError": "tgi_launcher.errors",
    "TGIConfig": "tgi_launcher.config",
    "TGIError": "tgi_launcher.errors",
    "TGIServer": "tgi_launcher.tgi_server",
}

# A library prints nothing of its log unless its user configures logging.
logging.getLogger("tgi_launcher").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
