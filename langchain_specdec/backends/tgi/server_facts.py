"""What a server tells of itself: its model and limits, the tokens of a text, its health, its drafts."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from langchain_specdec.backends.tgi.client import TGIClient
from langchain_specdec.backends.tgi.errors import Failure, Failures
from langchain_specdec.backends.tgi.loop_thread import LoopThread
from langchain_specdec.backends.tgi.short_request import ShortRequest
from langchain_specdec.errors import SpecDecError
from tgi_launcher.endpoints import ServerInfo, problems
from tgi_launcher.metrics import parse_metrics

_INFO_BYTES = 2**20
_METRICS_BYTES = 4 * 2**20
# How long a caller waits for what it can do without, and how long a server is left alone that did not answer.
_KNOWN_SECONDS = 5.0
_ASK_AGAIN_SECONDS = 30.0
# No server of a model starts in less, so that none has taken the place of one that was heard of so lately.
_FRESH_SECONDS = 10.0
# Nobody's answer waits for these two for longer.
_HEALTH_SECONDS = 5.0
_METRICS_SECONDS = 5.0
# Of an answer to /tokenize, for each byte of the text: a token has four fields, and each byte may be a token.
_TOKEN_BYTES = 256


class _ServerToken(BaseModel):
    """A token as `/tokenize` gives it."""

    model_config = ConfigDict(frozen=True)

    id: int = Field(ge=0, strict=True)
    start: int = Field(default=0, strict=True)
    stop: int = Field(default=0, strict=True)


_server_tokens = TypeAdapter(list[_ServerToken])


class ServerFacts:
    """Asks a server for what is not part of a completion. Everything but `info` is for the connection's loop.

    Args:
        client: Sends the requests.
        failures: Makes the errors.
        loop: Where that happens.
        read_timeout: Most seconds until the last byte of an answer.

    Attributes:
        info: What `/info` told; None until it was asked for.
    """

    def __init__(self, client: TGIClient, failures: Failures, loop: LoopThread, read_timeout: float) -> None:
        self._client = client
        self._loop = loop
        self._failures = failures
        self._timeout = read_timeout
        self._asking: asyncio.Task[ServerInfo | Failure] | None = None
        self._heard_at = -math.inf
        self.info: ServerInfo | None = None

    @property
    def fresh(self) -> ServerInfo | None:
        """What `/info` told; None once nothing came of the server for some seconds, for another may answer by now."""
        return self.info if time.monotonic() - self._heard_at <= _FRESH_SECONDS else None

    def heard(self) -> None:
        """Note that the server answers."""
        self._heard_at = time.monotonic()

    def forget(self) -> None:
        """Ask again: another server may answer at this address next."""
        self.info = None

    async def ask_info(self) -> ServerInfo:
        """What `/info` tells, asked for once however many wait for it, and again after some seconds of idling.

        Raises:
            Failure: There is no answer in time, or none that can be TGI's.
        """
        if (info := self.fresh) is not None:
            return info
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._fetch_info())
        # One who is cancelled leaves the question to the others.
        outcome = await asyncio.shield(self._asking)
        if isinstance(outcome, Failure):
            # Each gets an error of its own: raised in many threads, one would collect the traces of all.
            raise outcome.copy()
        return outcome

    async def _fetch_info(self) -> ServerInfo | Failure:
        try:
            answer = await self._client.fetch(ShortRequest("/info", self._timeout, _INFO_BYTES), self._failures)
            self.info = ServerInfo.model_validate_json(answer)
            self.heard()
        except ValidationError as error:
            return self._unreadable("/info", error)
        except Exception as error:
            return self._failures.of(error)
        else:
            return self.info
        finally:
            self._asking = None

    async def is_healthy(self) -> bool:
        """Whether the server and its model answer."""
        try:
            await self._client.fetch(
                ShortRequest("/health", min(self._timeout, _HEALTH_SECONDS), 2**16), self._failures
            )
        except Exception:
            return False
        return True

    async def skipped_tokens(self) -> float:
        """How many tokens needed no pass of their own, by `/metrics`: more than 0 is a server that speculates.

        A server that does not tell counts as one that does not speculate.
        """
        request = ShortRequest("/metrics", min(self._timeout, _METRICS_SECONDS), _METRICS_BYTES)
        try:
            text = (await self._client.fetch(request, self._failures)).decode("utf-8", "replace")
            return (await self._loop.run_blocking(lambda: parse_metrics(text, time=0.0))).skipped_sum
        except Exception:
            return 0.0

    async def holds_grammars(self) -> bool:
        """Whether it is `specdec serve`, whose texts keep to their grammars also where it speculates."""
        try:
            return (await self.ask_info()).router == "specdec"
        except Exception:
            return False

    async def prompt_ids(self, text: str) -> list[int]:
        """The tokens that the server makes of a prompt, with those that it puts in front.

        Raises:
            Failure: There is no answer in time, or none that can be TGI's.
        """
        return [token.id for token in await self._ask_tokens(text)]

    async def token_ids(self, text: str) -> list[int]:
        """The tokens of a text alone.

        Raises:
            Failure: There is no answer in time, or none that can be TGI's.
        """
        return _without_added(await self._ask_tokens(text))

    async def _ask_tokens(self, text: str) -> list[_ServerToken]:
        # Servers of other kinds have a /tokenize too, which refuses what TGI takes.
        await self.ask_info()
        max_bytes = _INFO_BYTES + _TOKEN_BYTES * len(text.encode())
        request = ShortRequest("/tokenize", self._timeout, max_bytes, {"inputs": text})
        answer = await self._client.fetch(request, self._failures)
        try:
            return _server_tokens.validate_json(answer)
        except ValidationError as error:
            failure = self._unreadable("/tokenize", error)
        raise failure

    def _unreadable(self, path: str, error: ValidationError) -> Failure:
        return self._failures.unreadable(path, f"is not TGI's: {problems(error)}")


class SoonKnown:
    """What `/info` tells, for callers that can do without: it is asked for once in a while, and never for long.

    Args:
        loop: Where the server is asked.
        facts: Asks it.
    """

    def __init__(self, loop: LoopThread, facts: ServerFacts) -> None:
        self._loop = loop
        self._facts = facts
        self._lock = threading.Lock()
        self._asked: Future[ServerInfo] | None = None
        self._wait_until = self._ask_again_at = -math.inf

    def get(self, max_seconds: float = _KNOWN_SECONDS) -> ServerInfo | None:
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


def _without_added(tokens: Sequence[_ServerToken]) -> list[int]:
    """The tokens of a text, without those around it that stand for none of its characters, such as BOS."""
    covering = [index for index, token in enumerate(tokens) if token.start < token.stop]
    # A server may tell of no places at all.
    shown = tokens[covering[0] : covering[-1] + 1] if covering else tokens
    return [token.id for token in shown]
