"""Of TGI's log, what a person who waits for a server needs: warnings that mean something, and what errors come to."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from tgi_launcher.logs import INDENT

# TGI 3.3 says these at every start of an ordinary model, and nothing follows from them.
_HARMLESS = re.compile(
    r"WARN (?:\[shard \d+\] )?(?:Cannot determine GPU compute capability|Could not import Mamba|Tokenizer_config "
    r"|no pipeline tag found for model|Prefill chunking (?:does not support speculation yet|is only supported with)"
    r"|Offline mode active using cache defaults|Could not retrieve model info from the Hugging Face hub)"
)
_EXCEPTION = re.compile(rf"{INDENT}[\w.]+(?:Error|Exception|Timeout|Interrupt)\b")
# The lines of a record come at once, so that no more of it comes after so long.
_RECORD_SECONDS = 0.2
_KEPT_LINES = 1000


class BriefLog:
    """Shows warnings and errors, each as one line: its headline, and the last line of its traceback.

    Args:
        show: Called with each line to show.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._lock = threading.Lock()
        self._headline = ""
        self._end = ""
        self._time = 0.0
        self._told: deque[str] = deque(maxlen=_KEPT_LINES)

    def add(self, line: str) -> None:
        """Take a line of the log, as `TGIServer` gives it to `on_log`."""
        with self._lock:
            if line.startswith(INDENT) and self._headline:
                if not line[len(INDENT)].isspace() and (_EXCEPTION.match(line) or not _EXCEPTION.match(self._end)):
                    self._end = line
                self._told.append(line)
                return
            self._flush()
            if line.startswith(("WARN", "ERROR")) and not _HARMLESS.match(line):
                self._headline, self._time = line, time.monotonic()
                self._told.append(line)

    def flush(self, *, is_over: bool = False) -> None:
        """Show what waits for more lines of its record, if none are to be expected.

        Args:
            is_over: Whether nothing comes any more.
        """
        with self._lock:
            if is_over or time.monotonic() - self._time > _RECORD_SECONDS:
                self._flush()

    def untold(self, lines: Iterable[str]) -> list[str]:
        """Those of these lines of the log that are not of a record that was shown."""
        with self._lock:
            return [line for line in lines if line not in self._told]

    def _flush(self) -> None:
        if self._headline:
            headline = self._headline.rstrip()
            end = self._end.strip()
            self._show(f"{headline.rstrip(':.')}: {end}" if end else headline)
        self._headline = self._end = ""
