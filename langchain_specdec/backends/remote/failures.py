"""What goes wrong between here and a server, in the errors of this package.

HTTP libraries have different exceptions for the same things, often without a common base class, and they change between
releases. So exceptions are told apart by the base classes of all of them, of which only those that are loaded count.

An exception of a client may hold the request with its headers, and so the key. It is read, and never handed on.
"""

from __future__ import annotations

import asyncio
import copy
import json
import socket
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from typing import ClassVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from langchain_specdec.errors import (
    AuthenticationError,
    BackendUnavailableError,
    GenerationError,
    InvalidParameterError,
    OverloadedError,
    RequestTimeoutError,
    SpecDecError,
)
from langchain_specdec.grammar.grammar import Grammar
from tgi_launcher.redaction import Redactor

_TIMEOUTS = ("httpx.TimeoutException", "httpx2.TimeoutException")
_NO_CONNECTION = ("httpx.ConnectError", "httpx2.ConnectError", "aiohttp.ClientConnectorError")
_NO_HTTP = ("httpx.RemoteProtocolError", "httpx2.RemoteProtocolError", "aiohttp.http_exceptions.HttpProcessingError")
_CONNECTION_ERRORS = ("httpx.TransportError", "httpx2.TransportError", "aiohttp.ClientError")
# Words of the HTTP libraries for an answer that ends early, which they take for a breach of the protocol too.
_ENDED_EARLY = ("disconnected", "closed connection", "not enough data")


class Failure(Exception):  # noqa: N818
    """An error for the caller, and what may be done about it. Never leaves the backend.

    Args:
        error: The error.
        is_transient: Whether the same request may succeed a moment later.
        is_of_model: Whether it is the model that failed, maybe by the request itself; so is every `GenerationError`.
    """

    def __init__(self, error: SpecDecError, *, is_transient: bool = False, is_of_model: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.is_transient = is_transient
        self.is_of_model = is_of_model or isinstance(error, GenerationError)

    def copy(self) -> Failure:
        """The same with an error of its own."""
        return Failure(copy.copy(self.error), is_transient=self.is_transient, is_of_model=self.is_of_model)


class Lost(Failure):
    """The end of an answer that did not say that it was its end."""


class Failures:
    """Makes failures of what clients raise and servers answer, the key masked wherever a server repeats it.

    Args:
        url: Address of the server, for messages.
        api_key: Its key, if it has one.
        read_timeout: The time-out in force, for messages.
    """

    kind: ClassVar[str] = "server"
    """What a server of this kind is called."""
    whose: ClassVar[str] = "of a known form"
    """What its answers are called."""
    root_hint: ClassVar[str] = "without /v1"
    """What its root address is."""

    def __init__(self, url: str, api_key: str | None, read_timeout: float) -> None:
        self._url = url
        self._redact = Redactor([api_key or ""])
        self._timeout = read_timeout

    def of(self, error: BaseException, grammar: Grammar | None = None) -> Failure:
        """The failure behind an exception; `grammar` is that of the request, if it has one."""
        if isinstance(error, Failure):
            return error
        if isinstance(error, SpecDecError):
            return Failure(error)
        return self._of_connection(error, no_http_of(error))

    def _of_connection(self, error: BaseException, no_http: BaseException | None) -> Failure:
        """The failure of a request that got no answer, or none of this kind of server."""
        why = f"{type(error).__name__}: {self._quote(str(error), 200)}"
        if isinstance(error, (TimeoutError, asyncio.TimeoutError)) or is_a(error, _TIMEOUTS):
            msg = (
                f"The {self.kind} at {self._url} sent nothing for {self._timeout:g} seconds. Raise read_timeout if it "
                f"needs longer."
            )
            return Failure(RequestTimeoutError(msg))
        if no_http is not None and not any(words in str(no_http).lower() for words in _ENDED_EARLY):
            # Of aiohttp's, the status in front is one that it made up.
            said = self._quote(str(getattr(no_http, "message", no_http)), 200)
            msg = f"The answer of the server at {self._url} is not valid HTTP ({type(no_http).__name__}: {said})."
            return Failure(BackendUnavailableError(msg).for_good())
        hint = _proxy_hint(self._url)
        if isinstance(error, (ConnectionRefusedError, socket.gaierror)) or is_a(error, _NO_CONNECTION):
            msg = f"The {self.kind} at {self._url} cannot be reached ({why}).{hint}"
            return Failure(BackendUnavailableError(msg), is_transient=True)
        if isinstance(error, OSError) or is_a(error, _CONNECTION_ERRORS):
            if no_http is not None:
                why = type(error).__name__
            msg = f"The {self.kind} at {self._url} broke the connection before its answer had ended ({why}).{hint}"
            return Failure(BackendUnavailableError(msg), is_transient=True)
        # A bad frame, or a client that does not understand this server.
        return self.foreign(f"gave an answer that is not {self.whose} ({why})")

    def foreign(self, what: str) -> Failure:
        """The failure of an answer that such a server would not give; `what` says what the server did."""
        return Failure(GenerationError(f"The server at {self._url} {self._quote(what)}.").for_good())

    def by_status(self, status: int, message: str) -> Failure:
        """The failure that an HTTP status stands for."""
        url = self._url
        detail = f" It says: {self._quote(message)}" if message else ""
        if status in (401, 403):
            msg = f"The server at {url} refuses access (HTTP {status}). Give its key as api_key=.{detail}"
            return Failure(AuthenticationError(msg))
        if status in (404, 405):
            return self._not_there(status, detail)
        if 300 <= status < 400:
            where = f" to {self._quote(message)}" if message else ""
            msg = f"The server at {url} redirects requests{where} (HTTP {status}). Give the final address."
            return Failure(BackendUnavailableError(msg).for_good())
        if status < 400:
            return self.foreign(f"gave an answer that is not {self.whose} (HTTP {status})")
        if status == 429:
            msg = f"The {self.kind} at {url} has more requests than it takes.{detail}"
            return Failure(OverloadedError(msg), is_transient=True)
        if status in (502, 503, 504):
            msg = f"The server at {url} is not ready (HTTP {status}).{detail}{_proxy_hint(url)}"
            return Failure(BackendUnavailableError(msg), is_transient=True)
        if status >= 500 or status == 424:
            failed = f"The server at {url} failed (HTTP {status}).{detail}"
            return self._failed(failed, message, is_transient=status == 424)
        return Failure(self._refused(message or f"HTTP {status}, for a reason that the client does not pass on."))

    def _not_there(self, status: int, detail: str) -> Failure:
        """The failure of a path that the server does not have."""
        msg = f"There is no {self.kind} at {self._url} (HTTP {status}). Give its root address, {self.root_hint}."
        return Failure(BackendUnavailableError(msg).for_good())

    def _failed(self, failed: str, said: str, *, is_transient: bool) -> Failure:
        """The failure of a request that the model did not complete, or of the model itself.

        Args:
            failed: What to tell.
            said: What the server says.
            is_transient: Whether the same request may succeed a moment later.
        """
        return Failure(GenerationError(failed), is_transient=is_transient)

    def _refused(self, message: str) -> InvalidParameterError:
        """The error of a request that the server refuses."""
        return InvalidParameterError(f"The {self.kind} refuses the request: {self._quote(message)}")

    def lost(self) -> Failure:
        """The failure of an answer that just ends."""
        msg = f"The connection to the {self.kind} at {self._url} ended before the answer did."
        return Lost(BackendUnavailableError(msg), is_transient=True)

    def late(self, path: str, seconds: float) -> Failure:
        """The failure of a short answer that takes too long."""
        msg = f"The server at {self._url} did not finish its answer to {path} within {seconds:g} seconds."
        return Failure(RequestTimeoutError(msg))

    def unreadable(self, path: str, why: str) -> Failure:
        """The failure of a short answer that cannot be of such a server."""
        msg = f"The server at {self._url} is not a {self.kind}: its answer to {path} {self._quote(why)}."
        return Failure(BackendUnavailableError(msg).for_good())

    def _quote(self, message: str, limit: int = 500) -> str:
        # Masked first: half a key would not be recognised.
        return in_short(self._redact(message), limit)


def in_short(text: str, limit: int = 500) -> str:
    """What somebody else says, on one line, and no more than so many characters of it."""
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[:limit]}…"


def error_text(body: str) -> str:
    """What the body of an error says: its `error`, that one's `message`, or a text that is no page of HTML."""
    try:
        said = json.loads(body)
        error = said["error"] if "error" in said else said["message"]
        return str(error["message"]) if isinstance(error, dict) and "message" in error else str(error)
    except (ValueError, KeyError, TypeError, RecursionError):
        return "" if "<html" in body.lower() else body


def is_loopback(url: str) -> bool:
    """Whether an address is one of this machine itself."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # the name of a host, which may begin like a number
        return False


def is_a(error: BaseException | None, names: tuple[str, ...]) -> bool:
    """Whether it is of one of these classes; libraries that nobody has imported cannot have raised it."""
    loaded = []
    for name in names:
        module, _, attribute = name.rpartition(".")
        if (kind := getattr(sys.modules.get(module), attribute, None)) is not None:
            loaded.append(kind)
    return isinstance(error, tuple(loaded))


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """The exception and what it came from: clients turn errors into others, or stumble over them."""
    source: BaseException | None = error
    for _ in range(4):
        if source is not None:
            yield source
            source = source.__cause__ or source.__context__


def no_http_of(error: BaseException) -> BaseException | None:
    """What of an exception or its sources says that an answer was no HTTP, if anything does."""
    return next((e for e in chain_of(error) if is_a(e, _NO_HTTP)), None)


def _proxy_hint(url: str) -> str:
    if not is_loopback(url) or not getproxies() or proxy_bypass(urlsplit(url).hostname or ""):
        return ""
    return " A proxy is set in the environment; if requests go there, set NO_PROXY=127.0.0.1,localhost."
