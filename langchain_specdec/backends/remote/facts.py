"""What a server tells of itself, asked for once however many wait for it, and again after some seconds of idling."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from abc import ABC, abstractmethod
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

from langchain_specdec.backends.remote.failures import Failure, Failures
from langchain_specdec.backends.remote.loop_thread import LoopThread
from langchain_specdec.errors import SpecDecError

# How long a caller waits for what it can do without, and how long a server is left alone that did not answer.
_KNOWN_SECONDS = 5.0
_ASK_AGAIN_SECONDS = 30.0
# No server of a model starts in less, so that none has taken the place of one that was heard of so lately.
_FRESH_SECONDS = 10.0


class ModelInfo(Protocol):
    """What is known of a server's model, of any kind of server."""

    @property
    def model_id(self) -> str:
        """Its name."""

    @property
    def model_sha(self) -> str | None:
        """Its revision, where the server tells."""

    @property
    def version(self) -> str | None:
        """The server's own version, where it tells."""

    @property
    def max_input_tokens(self) -> int | None:
        """Most tokens of a prompt alone, where they have a limit of their own."""

    @property
    def max_total_tokens(self) -> int | None:
        """Most tokens of a prompt and its completion together, where the server tells."""


InfoT = TypeVar("InfoT", bound=ModelInfo)


class Facts(ABC, Generic[InfoT]):
    """Asks a server for what is not part of a completion. Everything but `info` is for the connection's loop.

    Args:
        failures: Makes the errors.

    Attributes:
        info: What the server told; None until it was asked.
    """

    def __init__(self, failures: Failures) -> None:
        self._failures = failures
        self._asking: asyncio.Task[InfoT | Failure] | None = None
        self._heard_at = -math.inf
        self.info: InfoT | None = None

    @property
    def fresh(self) -> InfoT | None:
        """What it told; None once nothing came of the server for some seconds, for another may answer by now."""
        return self.info if time.monotonic() - self._heard_at <= _FRESH_SECONDS else None

    def heard(self) -> None:
        """Note that the server answers."""
        self._heard_at = time.monotonic()

    def forget(self) -> None:
        """Ask again: another server may answer at this address next."""
        self.info = None

    async def ask_info(self) -> InfoT:
        """What the server tells.

        Raises:
            Failure: There is no answer in time, or none that can be of such a server.
        """
        if (info := self.fresh) is not None:
            return info
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._ask())
        # One who is cancelled leaves the question to the others.
        outcome = await asyncio.shield(self._asking)
        if isinstance(outcome, Failure):
            # Each gets an error of its own: raised in many threads, one would collect the traces of all.
            raise outcome.copy()
        return outcome

    async def _ask(self) -> InfoT | Failure:
        try:
            self.info = info = await self._fetch_info()
            self.heard()
        except Exception as error:
            return self._failures.of(error)
        else:
            return info
        finally:
            self._asking = None

    @abstractmethod
    async def _fetch_info(self) -> InfoT:
        """Ask the server."""

    @abstractmethod
    async def token_ids(self, text: str) -> list[int]:
        """The tokens of a text alone, by the server.

        Raises:
            Failure: There is no answer in time, or none that can be of such a server.
        """


class SoonKnown(Generic[InfoT]):
    """What a server tells, for callers that can do without: it is asked for once in a while, and never for long.

    Args:
        loop: Where the server is asked.
        facts: Asks it.
    """

    def __init__(self, loop: LoopThread, facts: Facts[InfoT]) -> None:
        self._loop = loop
        self._facts = facts
        self._lock = threading.Lock()
        self._asked: Future[InfoT] | None = None
        self._wait_until = self._ask_again_at = -math.inf

    def get(self, max_seconds: float = _KNOWN_SECONDS) -> InfoT | None:
        """What it tells, or has told, or None. Waits so long at most; in an event loop not at all. Raises nothing.

        What one caller cannot wait for, the next ones do not wait for either.
        """
        if (info := self._facts.fresh) is not None:
            return info
        with self._lock:
            now = time.monotonic()
            if now >= self._ask_again_at:
                self._ask_again_at, self._wait_until = now + _ASK_AGAIN_SECONDS, now + _KNOWN_SECONDS
                try:
                    self._asked = self._loop.submit(self._facts.ask_info())
                except SpecDecError:  # closed
                    return None
            self._wait_until = min(self._wait_until, now + max_seconds)
            asked, seconds = self._asked, self._wait_until - now
        if asked is not None and not _is_in_event_loop():
            # Its error is that of a request too, which tells it.
            with suppress(Exception, CancelledError):
                asked.exception(max(0.0, seconds))
        return self._facts.info


def _is_in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
