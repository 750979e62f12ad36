"""TGIServer: a server of Text Generation Inference."""

from __future__ import annotations

from typing import cast

from tgi_launcher.config import TGIConfig
from tgi_launcher.endpoints import ServerInfo
from tgi_launcher.server import Server


class TGIServer(Server):
    """A Text Generation Inference server on this machine: a `Server` with a `TGIConfig`."""

    config: TGIConfig

    def info(self) -> ServerInfo:
        """What `/info` says: the model and the limits as they really are.

        Raises:
            NotRunningError: It does not answer.
        """
        return cast("ServerInfo", super().info())

    async def ainfo(self) -> ServerInfo:
        """As `info`, without blocking the event loop."""
        return cast("ServerInfo", await super().ainfo())
