"""When to start a server again that has ended on its own, and how long to wait before."""

from __future__ import annotations

from dataclasses import dataclass

from tgi_launcher.errors import Reason

# Failures that would only repeat themselves.
_HOPELESS = {
    Reason.DOCKER_NOT_FOUND,
    Reason.INCOMPLETE_INSTALLATION,
    Reason.INVALID_ARGUMENTS,
    Reason.LAUNCHER_NOT_FOUND,
    Reason.LOCKS_UNUSABLE,
    Reason.MODEL_ACCESS_DENIED,
    Reason.MODEL_NOT_FOUND,
    Reason.SPECULATE_EXCEEDS_HEADS,
    Reason.SPECULATION_UNSUPPORTED,
    Reason.STOPPED,
    Reason.UNSUPPORTED_SYSTEM,
}


@dataclass(frozen=True)
class Backoff:
    """How long to wait before a restart: longer each time, up to a bound.

    Attributes:
        first_seconds: Before the first restart.
        factor: By how much longer each further one takes.
        max_seconds: The longest wait.
        max_restarts: Restarts in a row before giving up.
        stable_seconds: A server that was ready for so long has its restarts forgiven.
    """

    first_seconds: float = 1.0
    factor: float = 2.0
    max_seconds: float = 60.0
    max_restarts: int = 5
    stable_seconds: float = 300.0

    def __post_init__(self) -> None:
        is_valid = self.first_seconds >= 0 and self.factor >= 1 and self.max_seconds >= 0 and self.max_restarts >= 0
        if not is_valid or self.stable_seconds < 0:
            msg = f"Times and numbers of restarts must not be negative, and factor must be at least 1, got {self}."
            raise ValueError(msg)

    def seconds_before(self, restart: int) -> float:
        """The wait before the `restart`-th restart in a row, counted from 1."""
        # A larger exponent would overflow a float.
        return min(self.max_seconds, self.first_seconds * self.factor ** min(restart - 1, 64))


class RestartPolicy:
    """Counts restarts of one server.

    Args:
        mode: `"never"` or `"on-failure"`.
        backoff: Waits and bounds.
    """

    def __init__(self, mode: str, backoff: Backoff) -> None:
        if mode not in ("never", "on-failure"):
            msg = f"restart must be 'never' or 'on-failure', got {mode!r}."
            raise ValueError(msg)
        self._mode = mode
        self._backoff = backoff
        self._restarts = 0

    def next_wait(self, reason: Reason, ready_seconds: float) -> float | None:
        """What to do after an end nobody asked for.

        Args:
            reason: Why it ended.
            ready_seconds: How long it was ready before.

        Returns:
            Seconds to wait before a restart; None for no restart.
        """
        if self._mode == "never" or reason in _HOPELESS:
            return None
        if ready_seconds >= self._backoff.stable_seconds:
            self._restarts = 0
        if self._restarts >= self._backoff.max_restarts:
            return None
        self._restarts += 1
        return self._backoff.seconds_before(self._restarts)
