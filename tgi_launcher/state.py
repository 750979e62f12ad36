"""What a server is doing, and how it ended when nobody asked it to."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tgi_launcher.errors import Reason


class State(str, Enum):
    """What a server is doing."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    FAILED = "failed"


@dataclass(frozen=True)
class ServerExit:
    """An end of a server that nobody asked for.

    Attributes:
        reason: What kind of failure it was.
        summary: One sentence.
        returncode: Exit code of the launcher, or minus the signal that ended it; None if unknown.
        log_tail: The last lines of the log, secrets replaced.
        restart_in: Seconds until it is started again; None if it is not.
    """

    reason: Reason
    summary: str
    returncode: int | None
    log_tail: tuple[str, ...]
    restart_in: float | None
