"""The errors this package raises on purpose.

Every one is a `TGIError`. Each also derives from the built-in class that fits, so that code which knows nothing of this
package can still catch it. What is wrong with a `TGIConfig` is told by pydantic's `ValidationError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum


class Reason(str, Enum):
    """Why a server did not start, or ended on its own."""

    UNSUPPORTED_SYSTEM = "unsupported_system"
    LAUNCHER_NOT_FOUND = "launcher_not_found"
    INCOMPLETE_INSTALLATION = "incomplete_installation"
    DOCKER_NOT_FOUND = "docker_not_found"
    DOCKER_FAILED = "docker_failed"
    PORT_TAKEN = "port_taken"
    LOCKS_UNUSABLE = "locks_unusable"
    FOLDER_UNUSABLE = "folder_unusable"
    INVALID_ARGUMENTS = "invalid_arguments"
    MODEL_NOT_FOUND = "model_not_found"
    MODEL_ACCESS_DENIED = "model_access_denied"
    DOWNLOAD_FAILED = "download_failed"
    NOT_ENOUGH_GPUS = "not_enough_gpus"
    OUT_OF_MEMORY = "out_of_memory"
    SPECULATE_EXCEEDS_HEADS = "speculate_exceeds_heads"
    SPECULATION_UNSUPPORTED = "speculation_unsupported"
    SHARD_CANNOT_START = "shard_cannot_start"
    SHARD_FAILED = "shard_failed"
    WEBSERVER_FAILED = "webserver_failed"
    KILLED = "killed"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    STOPPED = "stopped"
    EXITED = "exited"


class TGIError(Exception):
    """Base class of all errors that this package raises on purpose."""


class StartError(TGIError, RuntimeError):
    """A server did not become ready. Nothing of it is left running.

    Attributes:
        reason: What kind of failure it was.
        summary: One sentence, without the log lines that `str()` of the error adds.
        log_tail: The last lines of the log, secrets replaced.
        returncode: Exit code of the launcher, or minus the signal that ended it; None if it did not end by itself.
    """

    def __init__(
        self, reason: Reason, summary: str, *, log_tail: Sequence[str] = (), returncode: int | None = None
    ) -> None:
        self.reason = reason
        self.summary = summary
        self.log_tail = tuple(log_tail)
        self.returncode = returncode
        tail = "".join(f"\n  | {line}" for line in self.log_tail)
        super().__init__(f"{summary}\nThe last lines of the log:{tail}" if tail else summary)

    def __reduce__(self) -> tuple[object, ...]:
        # pickle would call the class with the message alone.
        return _rebuild, (self.reason, self.summary, self.log_tail, self.returncode)


def _rebuild(reason: Reason, summary: str, log_tail: Sequence[str], returncode: int | None) -> StartError:
    return StartError(reason, summary, log_tail=log_tail, returncode=returncode)


class StopError(TGIError, RuntimeError):
    """Processes of a server are left that even SIGKILL did not end; the message names them."""


class NotRunningError(TGIError, RuntimeError):
    """The server is not ready, or does not answer."""


class SpeculationInactiveWarning(UserWarning):
    """Speculation was asked for, yet every decode step yields a single token."""
