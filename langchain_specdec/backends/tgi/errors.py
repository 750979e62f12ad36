"""What goes wrong between here and a TGI server, in the errors of this package.

The two clients have different exceptions for the same things, often without a common base class and from HTTP libraries
that change between their releases. So exceptions are told apart by what all of them have: an HTTP status, TGI's
`error_type` in the class's name, and the base classes of the HTTP libraries.

A client's exception holds the request with its headers, and so the key. It is read, and never handed on.
"""

from __future__ import annotations

import asyncio
import copy
import json
import socket
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from langchain_specdec.completions.room import IN_PIECES
from langchain_specdec.errors import (
    AuthenticationError,
    BackendUnavailableError,
    GenerationError,
    InvalidParameterError,
    OverloadedError,
    PromptTooLongError,
    RequestTimeoutError,
    SpecDecError,
)
from langchain_specdec.grammar.grammar import Grammar
from tgi_launcher.redaction import Redactor

# Every refusal's message begins so; see InferError in TGI's router/src/infer/mod.rs.
_REFUSAL = "Input validation error: "
_TOO_LONG = ("`inputs` tokens + `max_new_tokens` must be", "`inputs` must have less than")
# A router's words, those of its gRPC library, where it does not reach the process with the model; see ClientError in
# TGI's backends/client/src/lib.rs.
_MODEL_GONE = (
    "Could not connect to Text Generation server: ",
    "Server error: transport error",
    "Server error: error trying to connect",
    "Server error: h2 protocol error",
    "Server error: tcp connect error",
)
# What follows are an exception's words in the process of the model.
_FAILURE = "Request failed during generation: Server error: "
# All of those by which interegular 0.3 and outlines-core 0.1, which TGI 3.3 makes grammars with, refuse one. A syntax
# error has none.
_GRAMMAR_WORDS = (
    *("is not implemented", "are not implemented", "Invalid Character-range: ", "Unknown group-extension: "),
    *("regex module unicode properties are not supported", "Can't multiply an FSM by ", "REFlags.", "'^'", "'$'"),
    *("lookbacks have to have fixed length", "Group can not have lookbacks/lookaheads", "attribute 'simplify'"),
    *("The vocabulary does not allow us to build a sequence", "maximum recursion depth exceeded"),
    *("max() arg is an empty sequence", "int too large"),
)
# The clients' names for TGI's error_type, and for a status where there is no error_type.
_REFUSED = ("ValidationError", "BadRequestError")
_FAILED = ("GenerationError", "IncompleteGenerationError", "UnknownError")
_STATUS = {
    "OverloadedError": 429,
    "RateLimitExceededError": 429,
    "ShardNotReadyError": 503,
    "ShardTimeoutError": 503,
    "NotFoundError": 404,
}
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


class Failures:
    """Makes failures of what clients raise and servers answer, the key masked wherever a server repeats it.

    Args:
        url: Address of the server, for messages.
        api_key: Its key, if it has one.
        read_timeout: The time-out in force, for messages.
    """

    def __init__(self, url: str, api_key: str | None, read_timeout: float) -> None:
        self._url = url
        self._redact = Redactor([api_key or ""])
        self._timeout = read_timeout

    def of(self, error: BaseException, grammar: Grammar | None = None) -> Failure:
        """The failure behind an exception; `grammar` is that of the request, if it has one."""
        failure = self._of(error)
        # Typed errors of the clients say what the server says; others may hold its answer.
        said = _body(error) or str(error)
        if grammar is None or type(failure.error) is not GenerationError or not _refuses_grammar(said):
            return failure
        reason = said.removeprefix(_FAILURE).strip()
        why = f"It says: {self._quote(reason)}" if reason else "It does not say why; most often it is no valid one."
        msg = f"The TGI server refuses the {grammar.kind} of the request. {why}"
        return Failure(InvalidParameterError(msg), is_transient=failure.is_transient, is_of_model=True)

    def _of(self, error: BaseException) -> Failure:
        if isinstance(error, Failure):
            return error
        if isinstance(error, SpecDecError):
            return Failure(error)
        name = type(error).__name__
        is_clients = type(error).__module__.startswith(("text_generation", "huggingface_hub"))
        no_http = next((e for e in _chain(error) if _is_a(e, _NO_HTTP)), None)
        if no_http is None and (status := _status(error)) is not None:
            is_typed = is_clients and name in (*_REFUSED, *_FAILED, *_STATUS)
            return self.by_status(status, str(error) if is_typed else _body(error))
        if is_clients and name in _REFUSED:
            return Failure(self._refused(str(error)))
        if is_clients and name in _STATUS:
            return self.by_status(_STATUS[name], str(error))
        if is_clients and name in _FAILED:
            message = f"The TGI server at {self._url} failed to complete the request: {self._quote(str(error), 200)}"
            return self._failed(message, str(error), is_transient=name == "GenerationError")
        if name == "OfflineModeIsEnabled":
            msg = (
                f"huggingface_hub refuses to reach {self._url}: it refuses every address while HF_HUB_OFFLINE is set. "
                f"Unset it, or use the other client, which takes no notice: client='text-generation'."
            )
            return Failure(BackendUnavailableError(msg).for_good())
        return self._of_connection(error, no_http)

    def _of_connection(self, error: BaseException, no_http: BaseException | None) -> Failure:
        """The failure of a request that got no answer, or none that is TGI's."""
        why = f"{type(error).__name__}: {self._quote(str(error), 200)}"
        if isinstance(error, (TimeoutError, asyncio.TimeoutError)) or _is_a(error, _TIMEOUTS):
            msg = (
                f"The TGI server at {self._url} sent nothing for {self._timeout:g} seconds. Raise read_timeout if it "
                f"needs longer."
            )
            return Failure(RequestTimeoutError(msg))
        if no_http is not None and not any(words in str(no_http).lower() for words in _ENDED_EARLY):
            # Of aiohttp's, the status in front is one that it made up.
            said = self._quote(str(getattr(no_http, "message", no_http)), 200)
            msg = f"The answer of the server at {self._url} is not valid HTTP ({type(no_http).__name__}: {said})."
            return Failure(BackendUnavailableError(msg).for_good())
        hint = _proxy_hint(self._url)
        if isinstance(error, (ConnectionRefusedError, socket.gaierror)) or _is_a(error, _NO_CONNECTION):
            msg = f"The TGI server at {self._url} cannot be reached ({why}).{hint}"
            return Failure(BackendUnavailableError(msg), is_transient=True)
        if isinstance(error, OSError) or _is_a(error, _CONNECTION_ERRORS):
            if no_http is not None:
                why = type(error).__name__
            msg = f"The TGI server at {self._url} broke the connection before its answer had ended ({why}).{hint}"
            return Failure(BackendUnavailableError(msg), is_transient=True)
        # A bad frame, or a client that does not understand this server.
        return self.not_tgi(f"gave an answer that is not TGI's ({why})")

    def not_tgi(self, what: str) -> Failure:
        """The failure of an answer that TGI would not give; `what` says what the server did."""
        return Failure(GenerationError(f"The server at {self._url} {what}.").for_good())

    def by_status(self, status: int, message: str) -> Failure:
        """The failure that an HTTP status stands for."""
        url = self._url
        detail = f" It says: {self._quote(message)}" if message else ""
        if status in (401, 403):
            msg = f"The server at {url} refuses access (HTTP {status}). Give its key as api_key=.{detail}"
            return Failure(AuthenticationError(msg))
        if status in (404, 405):
            msg = f"There is no TGI server at {url} (HTTP {status}). Give its root address, without /generate or /v1."
            return Failure(BackendUnavailableError(msg).for_good())
        if 300 <= status < 400:
            where = f" to {self._quote(message)}" if message else ""
            msg = f"The server at {url} redirects requests{where} (HTTP {status}). Give the final address."
            return Failure(BackendUnavailableError(msg).for_good())
        if status < 400:
            return self.not_tgi(f"gave an answer that is not TGI's (HTTP {status})")
        if status == 429:
            msg = f"The TGI server at {url} has more requests than it takes.{detail}"
            return Failure(OverloadedError(msg), is_transient=True)
        if status in (502, 503, 504):
            msg = f"The server at {url} is not ready (HTTP {status}).{detail}{_proxy_hint(url)}"
            return Failure(BackendUnavailableError(msg), is_transient=True)
        if status >= 500 or status == 424:
            failed = f"The server at {url} failed (HTTP {status}).{detail}"
            return self._failed(failed, message, is_transient=status == 424)
        return Failure(self._refused(message or f"HTTP {status}, for a reason that the client does not pass on."))

    def _failed(self, failed: str, said: str, *, is_transient: bool) -> Failure:
        """The failure of a request that the model did not complete, or of the model itself.

        Args:
            failed: What to tell.
            said: What the server says.
            is_transient: Whether the same request may succeed a moment later.
        """
        if not any(words in said for words in _MODEL_GONE):
            return Failure(GenerationError(failed), is_transient=is_transient)
        msg = (
            f"{failed.rstrip('.')}. So the process that runs its model has ended. If the server is started again, "
            f"max_retries=6 waits half a minute for it, and each one more twice as long."
        )
        return Failure(BackendUnavailableError(msg), is_transient=True)

    def lost(self) -> Failure:
        """The failure of an answer that just ends."""
        msg = f"The connection to the TGI server at {self._url} ended before the answer did."
        return Failure(BackendUnavailableError(msg), is_transient=True)

    def late(self, path: str, seconds: float) -> Failure:
        """The failure of a short answer that takes too long."""
        msg = f"The server at {self._url} did not finish its answer to {path} within {seconds:g} seconds."
        return Failure(RequestTimeoutError(msg))

    def unreadable(self, path: str, why: str) -> Failure:
        """The failure of a short answer that cannot be TGI's."""
        msg = f"The server at {self._url} is not a TGI server: its answer to {path} {self._quote(why)}."
        return Failure(BackendUnavailableError(msg).for_good())

    def _refused(self, message: str) -> InvalidParameterError:
        message = message.removeprefix(_REFUSAL)
        refused = f"The TGI server refuses the request: {self._quote(message)}"
        if not message.startswith(_TOO_LONG):
            return InvalidParameterError(refused)
        advice = f"Lower max_new_tokens, or shorten the prompt, or {larger_server()}. {IN_PIECES}"
        return PromptTooLongError(f"{refused.rstrip('.')}. {advice}")

    def _quote(self, message: str, limit: int = 500) -> str:
        # Masked first: half a key would not be recognised.
        return in_short(self._redact(message), limit)


def larger_server(num_tokens: int | None = None) -> str:
    """How to start a TGI server with room for so many tokens of a prompt and its completion, or for more."""
    if num_tokens is None:
        return "start the server with a larger --max-total-tokens (launch_tgi: max_total_tokens=)"
    return f"start the server with --max-total-tokens {num_tokens} or more (launch_tgi: max_total_tokens={num_tokens})"


def _refuses_grammar(said: str) -> bool:
    """Whether a failure of the model is a grammar that cannot be made."""
    reason = said.removeprefix(_FAILURE.rstrip()).strip()
    return said.startswith(_FAILURE.rstrip()) and (not reason or any(words in reason for words in _GRAMMAR_WORDS))


def in_short(text: str, limit: int = 500) -> str:
    """What somebody else says, on one line, and no more than so many characters of it."""
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[:limit]}…"


def error_text(body: str) -> str:
    """What the body of an error says: TGI's `error`, or a text that is no page of HTML."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "" if "<html" in body.lower() else body


def is_loopback(url: str) -> bool:
    """Whether an address is one of this machine itself."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # the name of a host, which may begin like a number
        return False


def _is_a(error: BaseException | None, names: tuple[str, ...]) -> bool:
    """Whether it is of one of these classes; libraries that nobody has imported cannot have raised it."""
    loaded = []
    for name in names:
        module, _, attribute = name.rpartition(".")
        if (kind := getattr(sys.modules.get(module), attribute, None)) is not None:
            loaded.append(kind)
    return isinstance(error, tuple(loaded))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and what it came from: clients turn errors into others, or stumble over them."""
    source: BaseException | None = error
    for _ in range(4):
        if source is not None:
            yield source
            source = source.__cause__ or source.__context__


def _proxy_hint(url: str) -> str:
    if not is_loopback(url) or not getproxies() or proxy_bypass(urlsplit(url).hostname or ""):
        return ""
    return " A proxy is set in the environment; if requests go there, set NO_PROXY=127.0.0.1,localhost."


def _status(error: BaseException) -> int | None:
    """The HTTP status of an answer that was refused: of the exception, of what it came from, or of who raised it."""
    for source in _chain(error):
        response = getattr(source, "response", None)
        status = getattr(response, "status_code", None) or getattr(source, "status", None)
        if isinstance(status, int) and status != 200:
            return status
    # text_generation keeps neither status nor response, and calls a 403 a shard that is not ready.
    trace = error.__traceback__
    while trace is not None:
        status = getattr(trace.tb_frame.f_locals.get("resp"), "status", None)
        if isinstance(status, int) and status != 200:
            return status
        trace = trace.tb_next
    return None


def _body(error: BaseException) -> str:
    """What the answer says, where the client kept it."""
    for source in _chain(error):
        payload: Any = getattr(source, "response_error_payload", None)
        if isinstance(payload, dict):
            return str(payload.get("error", ""))
        try:
            text = getattr(getattr(source, "response", None), "text", None)
        except Exception:  # an answer that was streamed and not read
            return ""
        if isinstance(text, str):
            return error_text(text)
    return ""
