"""The errors this package raises on purpose.

Every one is a `SpecDecError`, and every message says what was wrong, what is allowed and what to do. Each also
derives from the built-in class that fits, and from LangChain's class for the same failure of any model, so that code
which knows nothing of this package can still catch it, retry it where that helps, or shorten a history.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_core import exceptions
from typing_extensions import Self

if TYPE_CHECKING:
    from langchain_core.exceptions import (
        ContextOverflowError,
        ModelAPIError,
        ModelAuthenticationError,
        ModelConnectionError,
        ModelError,
        ModelInvalidRequestError,
        ModelNotFoundError,
        ModelPermissionDeniedError,
        ModelRateLimitError,
        ModelTimeoutError,
    )
else:

    def _of_langchain(name: str, base: type | None = None, *, is_retryable: bool = False) -> type:
        """LangChain's class, or one in its place: before 1.6 it has `ContextOverflowError` alone, or none."""
        stand_in = {"is_retryable": is_retryable, "__module__": __name__}
        return getattr(exceptions, name, None) or type(name, (base or exceptions.LangChainException,), stand_in)

    ModelError = _of_langchain("ModelError")
    ContextOverflowError = _of_langchain("ContextOverflowError", ModelError)
    ModelAuthenticationError = _of_langchain("ModelAuthenticationError", ModelError)
    ModelInvalidRequestError = _of_langchain("ModelInvalidRequestError", ModelError)
    ModelNotFoundError = _of_langchain("ModelNotFoundError", ModelError)
    ModelPermissionDeniedError = _of_langchain("ModelPermissionDeniedError", ModelError)
    ModelAPIError = _of_langchain("ModelAPIError", ModelError, is_retryable=True)
    ModelConnectionError = _of_langchain("ModelConnectionError", ModelError, is_retryable=True)
    ModelRateLimitError = _of_langchain("ModelRateLimitError", ModelError, is_retryable=True)
    ModelTimeoutError = _of_langchain("ModelTimeoutError", ModelError, is_retryable=True)

__all__ = [
    "AuthenticationError",
    "BackendUnavailableError",
    "CompletionTimeoutError",
    "EngineClosedError",
    "GenerationError",
    "InvalidParameterError",
    "MalformedAnswerError",
    "MissingDependencyError",
    "ModelLoadError",
    "OverloadedError",
    "PromptTooLongError",
    "RelaxedSchemaWarning",
    "RequestTimeoutError",
    "SpecDecError",
    "SpeculatingServerWarning",
    "UnsupportedModelError",
]


class SpecDecError(ModelError):
    """Base class of all errors that this package raises on purpose.

    Attributes:
        is_retryable: Whether the same call may succeed later. LangChain's retries by default ask this.
    """

    def for_good(self) -> Self:
        """The error, as one that no retry of the call mends."""
        self.is_retryable = False
        return self


class InvalidParameterError(SpecDecError, ModelInvalidRequestError, ValueError):
    """A parameter is unknown, of the wrong type, or out of its range. Raised before any work starts."""


class PromptTooLongError(InvalidParameterError, ContextOverflowError):
    """The prompt and the tokens asked for do not fit into what the model, or its server, has room for."""


class ModelLoadError(SpecDecError, ModelNotFoundError, OSError):
    """A model or its tokenizer cannot be found or read."""


class UnsupportedModelError(SpecDecError, ValueError):
    """The model, or the pair of target and draft model, cannot be run by this engine."""


class MissingDependencyError(SpecDecError, ImportError):
    """An optional package is not installed; the message holds the command that installs it."""


class GenerationError(SpecDecError, ModelAPIError, RuntimeError):
    """One request failed while it ran. Other requests of the same backend are not affected."""


class MalformedAnswerError(GenerationError):
    """An answer does not have the form that was asked for: it was cut at a limit, or a server broke its grammar.

    It is not to be retried by default: the same call most often gets the same answer.
    """

    is_retryable = False


class CompletionTimeoutError(GenerationError, ModelTimeoutError, TimeoutError):
    """A completion took longer than its `timeout`. It was stopped."""


class EngineClosedError(SpecDecError, RuntimeError):
    """The engine, or the connection to a server, was closed before or while the request ran."""


class BackendUnavailableError(SpecDecError, ModelConnectionError, ConnectionError):
    """The server cannot be reached, is not ready, is of another kind, or broke the connection.

    Where the address or the kind of server is wrong, or a server has ended for good, no retry mends it.
    """


class AuthenticationError(SpecDecError, ModelAuthenticationError, ModelPermissionDeniedError, PermissionError):
    """The server wants a key, or another one."""


class OverloadedError(SpecDecError, ModelRateLimitError, RuntimeError):
    """The server has more requests than it takes, and still had after the last retry."""


class RequestTimeoutError(SpecDecError, ModelTimeoutError, TimeoutError):
    """The server was silent for longer than the time-out."""


class RelaxedSchemaWarning(UserWarning):
    """A grammar holds only a part of a tool's schema. A forced call may break the rest, so the tool has to look."""


class SpeculatingServerWarning(UserWarning):
    """A TGI server that speculates is asked for an answer of a given form. It often breaks the form then."""
