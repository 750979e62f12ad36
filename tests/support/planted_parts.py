"""Parts of the check on a GPU that end in every way that a part can end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from tools.gpu_check.check import Check
from tools.gpu_check.child import LeftOutError

_LONG = 600.0


def works(check: Check) -> None:
    check.note(worked=True)
    check.expect(True, "nothing")


def fails(check: Check) -> None:
    check.note(before=1)
    msg = "planted"
    raise ValueError(msg)


def falls_short(check: Check) -> None:
    check.expect(False, "the planted expectation")
    check.note(after=1)


def is_left_out(check: Check) -> None:
    msg = "there is none here"
    raise LeftOutError(msg)


def hangs(check: Check) -> None:
    check.note(before=1)
    time.sleep(_LONG)


def hangs_for_good(check: Check) -> None:
    """Neither this process nor the one that it starts ends when it is told to."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hangs_with_a_child(check)


def hangs_with_a_child(check: Check) -> None:
    """It ends when it is told to, its child does not hear of it."""
    child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({_LONG})"])  # noqa: S603
    check.note(child=child.pid)
    time.sleep(_LONG)


def dies(check: Check) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
