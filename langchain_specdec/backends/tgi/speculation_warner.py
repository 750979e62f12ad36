"""Warns of a server that speculates before it is asked for an answer of a given form, which TGI then often breaks."""

from __future__ import annotations

import time
import warnings

from langchain_specdec.backends.remote.owned_server import OwnedServer
from langchain_specdec.backends.tgi.server_facts import ServerFacts
from langchain_specdec.errors import SpeculatingServerWarning

# A server shows that it speculates by the first draft that is right, which may come late.
_LOOK_AGAIN_SECONDS = 30.0


class SpeculationWarner:
    """One for each backend. For the connection's loop.

    Args:
        facts: Asks the server.
        url: Its address, for the message.
        server: The server, where it was started from here.
    """

    def __init__(self, facts: ServerFacts, url: str, server: OwnedServer | None) -> None:
        self._facts = facts
        self._url = url
        self._server = server
        self._next_look = 0.0
        self._has_warned = False

    async def warn_once(self) -> None:
        """Warn, once for all, if the server is known to speculate.

        Raises:
            SpeculatingServerWarning: The program has made errors of its warnings.
        """
        now = time.monotonic()
        if self._has_warned or now < self._next_look:
            return
        self._next_look = now + _LOOK_AGAIN_SECONDS
        number = 0 if self._server is None else self._server.config.num_speculative_tokens
        if number:
            why = f"it was started with speculate={number}"
        elif await self._facts.skipped_tokens() and not await self._facts.holds_grammars():
            why = "its /metrics count tokens that were drafted"
        else:
            return
        # Another request may have looked meanwhile.
        if self._has_warned:
            return
        self._has_warned = True
        msg = (
            f"The TGI server at {self._url} speculates ({why}), and TGI then breaks most grammars: many answers of a "
            f"given form will not fit and end with an error. Start it with speculate=0, use a second server with "
            f"speculate=0 for such answers, or run the model in this process (model=...), which holds grammars and "
            f"speculates."
        )
        warnings.warn(msg, SpeculatingServerWarning, stacklevel=2)
