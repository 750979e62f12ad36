"""The errors this package raises on purpose.

Every one is a `SpecDecError`, and every message says what was wrong, what is allowed and what to do. Each also
derives from the built-in class that fits, so that code which knows nothing of this package can still catch it.
"""

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


class SpecDecError(Exception):
    """Base class of all errors that this package raises on purpose."""


class InvalidParameterError(SpecDecError, ValueError):
    """A parameter is unknown, of the wrong type, or out of its range. Raised before any work starts."""


class PromptTooLongError(InvalidParameterError):
    """The prompt and the tokens asked for do not fit into what the model, or its server, has room for."""


class ModelLoadError(SpecDecError, OSError):
    """A model or its tokenizer cannot be found or read."""


class UnsupportedModelError(SpecDecError, ValueError):
    """The model, or the pair of target and draft model, cannot be run by this engine."""


class MissingDependencyError(SpecDecError, ImportError):
    """An optional package is not installed; the message holds the command that installs it."""


class GenerationError(SpecDecError, RuntimeError):
    """One request failed while it ran. Other requests of the same backend are not affected."""


class MalformedAnswerError(GenerationError):
    """An answer does not have the form that was asked for: it was cut at a limit, or a server broke its grammar."""


class CompletionTimeoutError(GenerationError, TimeoutError):
    """A completion took longer than its `timeout`. It was stopped."""


class EngineClosedError(SpecDecError, RuntimeError):
    """The engine, or the connection to a server, was closed before or while the request ran."""


class BackendUnavailableError(SpecDecError, ConnectionError):
    """The server cannot be reached, is not ready, is of another kind, or broke the connection."""


class AuthenticationError(SpecDecError, PermissionError):
    """The server wants a key, or another one."""


class OverloadedError(SpecDecError, RuntimeError):
    """The server has more requests than it takes, and still had after the last retry."""


class RequestTimeoutError(SpecDecError, TimeoutError):
    """The server was silent for longer than the time-out."""


class RelaxedSchemaWarning(UserWarning):
    """A grammar holds only a part of a tool's schema. A forced call may break the rest, so the tool has to look."""


class SpeculatingServerWarning(UserWarning):
    """A TGI server that speculates is asked for an answer of a given form. It often breaks the form then."""
