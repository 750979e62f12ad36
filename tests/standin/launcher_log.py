"""Logs as TGI's launcher and router do: plain or JSON, nested by the one and flattened by the other."""

from __future__ import annotations

import json
import sys
import threading
from datetime import datetime, timezone
from typing import Any

_lock = threading.Lock()


class Log:
    """Writes records to standard output.

    Args:
        is_json: As with `--json-output`.
        target: Who writes.
        is_router: Flattened JSON, and the place in the source in plain text.
    """

    def __init__(self, *, is_json: bool, target: str = "text_generation_launcher", is_router: bool = False) -> None:
        self._is_json = is_json
        self._target = target
        self._is_router = is_router

    def __call__(self, message: str, level: str = "INFO", **span: Any) -> None:
        """One record; `span` is `name=` and its fields."""
        timestamp = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        if self._is_json:
            record: dict[str, Any] = {"timestamp": timestamp, "level": level}
            record |= {"message": message} if self._is_router else {"fields": {"message": message}}
            record["target"] = self._target
            if self._is_router:
                record |= {"filename": "router/src/server.rs", "line_number": 1}
            if span:
                record |= {"span": span, "spans": [span]}
            text = json.dumps(record)
        else:
            head = f"{span['name']}: " if span else ""
            place = " router/src/server.rs:1:" if self._is_router else ""
            fields = "".join(f" {key}={value}" for key, value in span.items() if key != "name")
            text = f"{timestamp} {level:>5} {head}{self._target}:{place} {message}{fields}"
        with _lock:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
