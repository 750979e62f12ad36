"""The engine that a config is for."""

from __future__ import annotations

from tgi_launcher.config import TGIConfig
from tgi_launcher.engine_config import EngineConfig
from tgi_launcher.engines.base import Engine
from tgi_launcher.engines.served import ServedEngine
from tgi_launcher.engines.tgi import TGI


def engine_of(config: TGIConfig | EngineConfig) -> Engine:
    """The engine that a config is for, with that config."""
    return TGI(config) if isinstance(config, TGIConfig) else ServedEngine(config)
