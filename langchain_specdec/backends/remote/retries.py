"""Whether a request that failed is sent to a server again, and when."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any, Protocol

from langchain_specdec.backends.remote.failures import Failure

_FIRST_DELAY = 0.5
# A model that fails may do so because of the request itself.
_MODEL_RETRIES = 2
# Not the generator of Python's functions, which is the program's own: its sequence and its seed are for it alone.
_RANDOM = random.SystemRandom()


class Watch(Protocol):
    """Looks after a server that is this process's own."""

    @property
    def last_exit(self) -> Any:
        """The latest end that nobody asked for."""

    async def explain(self, failure: Failure, earlier: Any) -> tuple[Failure, Any]:
        """The failure, told by the server's end where it has ended since the exit that was known; and the latest."""

    async def wait_for_restart(self, deadline: float) -> None:
        """Wait while the server is started again, until that time by `time.monotonic`."""


class Retries:
    """The attempts at one request. Made before the first.

    Args:
        max_retries: How often it may be sent again.
        read_timeout: Most seconds to wait for the restart of an own server, from the first failure on.
        watch: Looks after the own server, where there is one.
    """

    def __init__(self, max_retries: int, read_timeout: float, watch: Watch | None) -> None:
        self._max_retries = max_retries
        self._read_timeout = read_timeout
        self._watch = watch
        self._last_exit = None if watch is None else watch.last_exit
        self._deadline: float | None = None
        self._num_failed = 0

    async def wait_or_raise(self, failure: Failure, *, is_started: bool = False) -> None:
        """Wait before the next attempt, or raise the error if there shall be none.

        Args:
            failure: What came of the latest attempt.
            is_started: Whether a part of the answer was handed on.
        """
        if self._watch is not None:
            failure, self._last_exit = await self._watch.explain(failure, self._last_exit)
        self._num_failed += 1
        limit = self._max_retries
        if failure.is_of_model:
            limit = min(limit, _MODEL_RETRIES)
        if is_started or not failure.is_transient or self._num_failed > limit:
            raise failure.error
        if self._watch is not None:
            self._deadline = self._deadline or time.monotonic() + self._read_timeout
            await self._watch.wait_for_restart(self._deadline)
        await asyncio.sleep(_FIRST_DELAY * 2 ** (self._num_failed - 1) * _RANDOM.uniform(0.8, 1.2))
