"""Starts Text Generation Inference servers on this machine and ends them, with all they have started.

    from tgi_launcher import TGIConfig, TGIServer

    with TGIServer(TGIConfig(model_id="mistralai/Mistral-7B-Instruct-v0.3", speculate=4)) as server:
        print(server.base_url, server.info().max_total_tokens)

Needs neither PyTorch nor LangChain.
"""

import logging

from tgi_launcher.config import DEFAULT_IMAGE, TGIConfig
from tgi_launcher.endpoints import ServerInfo
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
from tgi_launcher.server import TGIServer
from tgi_launcher.server_run import Progress
from tgi_launcher.state import ServerExit, State

__all__ = [
    "DEFAULT_IMAGE",
    "Backoff",
    "Metrics",
    "NotRunningError",
    "Progress",
    "Reason",
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

# A library prints nothing of its log unless its user configures logging.
logging.getLogger("tgi_launcher").addHandler(logging.NullHandler())
