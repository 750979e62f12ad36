"""What runs in the process of a part."""

from __future__ import annotations

import sys
import traceback
from importlib import import_module
from pathlib import Path

from tools.gpu_check.records import note

LEFT_OUT = 77
"""Exit code of a part that cannot be run here."""


class LeftOutError(Exception):
    """A part cannot be run here, for a reason that is no failure."""


def run_part(name: str, function: str, out: Path, is_rehearsal: bool) -> None:
    """Run a part, and end the process with its exit code; why a part failed is the last line that it prints.

    Args:
        name: Its name in records.
        function: `module:function`, called with a `Check`.
        out: Where records go.
        is_rehearsal: See `Check`.
    """
    from tools.gpu_check.check import Check

    check = Check(name, out, is_rehearsal=is_rehearsal)
    module, _, attribute = function.partition(":")
    try:
        getattr(import_module(module), attribute)(check)
    except LeftOutError as reason:
        note(out, part=name, left_out=str(reason))
        sys.exit(LEFT_OUT)
    except BaseException as error:
        told = f"{type(error).__name__}: {error}"
        note(out, part=name, raised=told[:1000])
        traceback.print_exc()
        sys.exit(told.splitlines()[0])
    sys.exit(f"{len(check.unmet)} unmet, first: {check.unmet[0]}" if check.unmet else 0)
