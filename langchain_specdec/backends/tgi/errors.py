"""What goes wrong between here and a TGI server, in the errors of this package.

The two clients have different exceptions for the same things, often without a common base class and from HTTP libraries
that change between their releases. So exceptions are told apart by what all of them have: an HTTP status, TGI's
`error_type` in the class's name, and the base classes of the HTTP libraries.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

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

# Every refusal's message begins so; see InferError in TGI's router/src/infer/mod.rs.
_REFUSAL = "Input validation error: "
_TOO_LONG = ("`inputs` tokens + `max_new_tokens` must be", "`inputs` must have less than")


class Failure(Exception):  # noqa: N818
    """An error for the caller, and whether the same request may succeed a moment later. Never leaves the backend."""

    def __init__(self, error: SpecDecError, *, is_transient: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.is_transient = is_transient


def failure_of(error: BaseException, url: str, timeout: float) -> Failure:
    """The failure behind an exception of a client.

    Args:
        error: What the client raised.
        url: Address of the server, for the message.
        timeout: The time-out in force, for the message.
    """
    if isinstance(error, Failure):
        return error
    if isinstance(error, SpecDecError):
        return Failure(error)
    name = type(error).__name__
    message = _message(error)
    module = type(error).__module__
    if name in ("ValidationError", "BadRequestError") and module.startswith(("text_generation", "huggingface_hub")):
        return Failure(_refused(message))
    if name in ("OverloadedError", "RateLimitExceededError"):
        return status_failure(429, message, url)
    if name in ("GenerationError", "IncompleteGenerationError", "UnknownError"):
        return Failure(GenerationError(f"The TGI server at {url} failed to complete the request: {message}"))
    if name in ("ShardNotReadyError", "ShardTimeoutError"):
        return status_failure(503, message, url)
    if name == "NotFoundError":
        return status_failure(404, message, url)
    status = _status(error)
    if status is not None and status >= 400:
        return status_failure(status, _body(error), url)
    if name == "OfflineModeIsEnabled":
        msg = (
            f"huggingface_hub refuses to reach {url}: it refuses every address while HF_HUB_OFFLINE is set. Unset it, "
            f"or use the other client, which takes no notice: client='text-generation'."
        )
        return Failure(BackendUnavailableError(msg))
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)) or _is_a(error, _TIMEOUTS):
        msg = f"The TGI server at {url} sent nothing for {timeout:g} seconds. Raise read_timeout if it needs longer."
        return Failure(RequestTimeoutError(msg))
    if isinstance(error, OSError) or _is_a(error, _CONNECTION_ERRORS):
        msg = (
            f"The TGI server at {url} cannot be reached, or broke the connection ({name}: {message}).{_proxy_hint(url)}"
        )
        return Failure(BackendUnavailableError(msg), is_transient=True)
    if error.__context__ is not None and _status(error.__context__) is not None:
        # The server answered with an error that is no JSON, and the client failed to read it.
        return failure_of(error.__context__, url, timeout)
    # A bad frame, or a client that does not understand this server.
    return Failure(GenerationError(f"The server at {url} gave an answer that is not TGI's ({name}: {message})."))


def status_failure(status: int, message: str, url: str) -> Failure:
    """The failure that an HTTP status stands for."""
    detail = f" It says: {_shorten(message)}" if message else ""
    if status in (401, 403):
        msg = f"The server at {url} refuses access (HTTP {status}). Give its key as api_key=.{detail}"
        return Failure(AuthenticationError(msg))
    if status in (404, 405):
        msg = f"There is no TGI server at {url} (HTTP {status}). Give its root address, without /generate or /v1."
        return Failure(BackendUnavailableError(msg))
    if status == 429:
        msg = f"The TGI server at {url} has more requests than it takes.{detail}"
        return Failure(OverloadedError(msg), is_transient=True)
    if status in (502, 503, 504):
        msg = f"The server at {url} is not ready (HTTP {status}).{detail}{_proxy_hint(url)}"
        return Failure(BackendUnavailableError(msg), is_transient=True)
    if status >= 500 or status == 424:
        return Failure(GenerationError(f"The server at {url} failed (HTTP {status}).{detail}"))
    return Failure(_refused(message or f"HTTP {status}, for a reason that the client does not pass on."))


def connection_lost(url: str) -> Failure:
    """The failure of an answer that just ends."""
    msg = f"The connection to the TGI server at {url} ended before the answer did."
    return Failure(BackendUnavailableError(msg), is_transient=True)


def _refused(message: str) -> InvalidParameterError:
    message = message.removeprefix(_REFUSAL)
    kind = PromptTooLongError if message.startswith(_TOO_LONG) else InvalidParameterError
    return kind(f"The TGI server refuses the request: {_shorten(message)}")


_TIMEOUTS = (("httpx", "TimeoutException"), ("httpx2", "TimeoutException"), ("requests", "Timeout"))
_CONNECTION_ERRORS = (
    ("httpx", "TransportError"),
    ("httpx2", "TransportError"),
    ("aiohttp", "ClientError"),
    ("requests", "RequestException"),
)


def _is_a(error: BaseException, classes: tuple[tuple[str, str], ...]) -> bool:
    """Whether it is of one of these classes; libraries that nobody has imported cannot have raised it."""
    loaded = [getattr(sys.modules[module], name, None) for module, name in classes if module in sys.modules]
    return isinstance(error, tuple(cls for cls in loaded if isinstance(cls, type)))


def is_loopback(url: str) -> bool:
    """Whether an address is one of this machine itself."""
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _proxy_hint(url: str) -> str:
    if not is_loopback(url) or not getproxies() or proxy_bypass(urlsplit(url).hostname or ""):
        return ""
    return " A proxy is set in the environment; if requests go there, set NO_PROXY=127.0.0.1,localhost."


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None) or getattr(error, "status", None)
    return status if isinstance(status, int) else None


def _body(error: BaseException) -> str:
    """Text of the answer, where the client kept it."""
    payload: Any = getattr(error, "response_error_payload", None)
    if isinstance(payload, dict):
        return str(payload.get("error", ""))
    try:
        text = getattr(getattr(error, "response", None), "text", "")
    except Exception:  # an answer that was streamed and not read
        return ""
    return text if isinstance(text, str) and "<html" not in text.lower() else ""


def _message(error: BaseException) -> str:
    return _shorten(str(error), 200)


def _shorten(message: str, limit: int = 500) -> str:
    message = " ".join(message.split())
    return message if len(message) <= limit else f"{message[:limit]}…"
