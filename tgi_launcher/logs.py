"""Reads TGI's log: records out of lines, and the stage of a start out of records."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import IO, Any

# Colours, and titles and links of a terminal.
_ANSI = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|\][^\x07\x1b]*(?:\x07|\x1b\\))")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_PLAIN = re.compile(
    r"^(?P<time>\d{4}-\d\d-\d\dT[\d:.]+Z)\s+(?P<level>TRACE|DEBUG|INFO|WARN|ERROR)\s+(?P<rest>.*)$", re.DOTALL
)
_TARGET = re.compile(
    r"^(?P<spans>(?:[\w-]+(?:\{[^}]*\})?:\s?)*?)(?P<target>text_generation_\w+(?:::\w+)*|\w+(?:::\w+)+):\s"
)
_CONNECTED = re.compile(r"(?:^|: )Connected$")
# Of the further lines of a record.
INDENT = "    "
_LEVEL_NAME = re.compile(r"[A-Za-z]{1,9}")
# The level of a record of JSON that cannot be read as a whole.
_LEVEL = re.compile(r'"level"\s*:\s*"(TRACE|DEBUG|INFO|WARN|ERROR)"')
# Bytes that are kept of a line, and characters of a message: the log is in memory, 2000 records of it.
_MAX_BYTES = 2**18
_MAX_MESSAGE = 2**14
_MAX_LINE = 2000


@dataclass(frozen=True)
class LogRecord:
    """One record of the log.

    Attributes:
        message: Its text, which may have several lines.
        level: `INFO`, `WARN`, `ERROR` and so on; empty where a line is no record, such as one of a traceback.
        target: Who wrote it, such as `text_generation_launcher`.
        rank: Shard that it is about.
        while_serving: Whether clients could be heard when it was written, so that it may hold any text of theirs.
    """

    message: str
    level: str = ""
    target: str = ""
    rank: int | None = None
    while_serving: bool = False

    @property
    def begins_serving(self) -> bool:
        """Whether the router opens its port next."""
        return self.target.startswith("text_generation_router") and _CONNECTED.search(self.message) is not None

    def lines(self) -> list[str]:
        """The record for a person, one entry a line; all but the first are indented."""
        rank = f" [shard {self.rank}]" if self.rank is not None else ""
        head = f"{self.level}{rank} " if self.level else ""
        first, *others = self._split()
        return [head + first[:_MAX_LINE], *(INDENT + line[:_MAX_LINE] for line in others)]

    def _split(self) -> list[str]:
        if self.message.startswith("Args {"):
            return ["Args { … }"]  # all its options, sixty lines of them
        lines = [printable(line) for line in self.message.splitlines()]
        return [line for line in lines if line.strip()] or [""]


def printable(line: str) -> str:
    """The line without what a terminal would obey, would show in another order, or cannot show."""
    return _CONTROLS.sub("", line)


def read_lines(output: IO[bytes]) -> Iterator[tuple[str, bool]]:
    """The lines of a log as they come, and whether the end of a line was too long to keep."""
    while line := output.readline(_MAX_BYTES):
        is_cut = False
        rest = line
        while not rest.endswith(b"\n") and (rest := output.readline(_MAX_BYTES)):
            is_cut = True
        yield line.decode("utf-8", "replace").rstrip("\r\n"), is_cut


def without_colours(line: str) -> str:
    """The line without a terminal's colours, titles and links."""
    return _ANSI.sub("", line)


def parse_line(line: str) -> LogRecord:
    """Read one line: JSON of launcher or router, plain text, coloured or not, or anything else as it is."""
    text = _ANSI.sub("", line).rstrip("\r\n")
    if text.startswith("{"):
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            level = _LEVEL.search(text)
            return LogRecord(text, level=level[1] if level else "")
        return _from_json(data) if "level" in data else LogRecord(text)
    if match := _PLAIN.match(text):
        rest = match["rest"]
        rank = re.search(r"\brank=(\d{1,6})\b", rest)
        # It stands at the begin, and looking further takes time that grows with the square of the length.
        target = _TARGET.match(rest, 0, _MAX_LINE)
        return LogRecord(
            message=rest[target.end() :].strip() if target else rest.strip(),
            level=match["level"],
            target=target["target"] if target else "",
            rank=int(rank[1]) if rank else None,
        )
    return LogRecord(text)


def _from_json(data: dict[str, Any]) -> LogRecord:
    # The launcher nests the message in `fields`, the router does not.
    fields = data.get("fields")
    message = fields.get("message") if isinstance(fields, dict) else data.get("message")
    spans = data.get("spans")
    spans = [data.get("span"), *(spans if isinstance(spans, list) else [])]
    ranks = [span["rank"] for span in spans if isinstance(span, dict) and type(span.get("rank")) is int]
    return LogRecord(
        message=_ANSI.sub("", _text(message)),
        level=level if _LEVEL_NAME.fullmatch(level := _text(data["level"])) else "",
        target=_text(data.get("target")),
        rank=ranks[0] if ranks else None,
    )


def _text(value: object) -> str:
    """A value that should be text. What is neither text nor a number could be nested too deep to be shown."""
    return value if isinstance(value, str) else str(value) if isinstance(value, (int, float)) else ""


def shortened(message: str, limit: int = _MAX_MESSAGE) -> str:
    """Begin and end of a message that is too long to keep: what happened, and the exception of a traceback."""
    half = limit // 2
    if len(message) <= limit:
        return message
    return f"{message[:half]}\n… ({len(message) - 2 * half} characters) …\n{message[-half:]}"


class Stage(str, Enum):
    """How far a start has come, in order."""

    PULL = "pulling the image"
    LAUNCH = "starting the launcher"
    CHECK = "looking for the weights"
    DOWNLOAD = "downloading the weights"
    CONVERT = "converting the weights"
    SHARDS = "loading the model"
    WARM_UP = "warming up"
    ROUTER = "starting the router"
    READY = "ready"

    @property
    def position(self) -> int:
        """Place in the order."""
        return list(Stage).index(self)


# From TGI 3.3's sources, launcher/src/main.rs and router/src/server.rs.
_STAGES = (
    (re.compile(r"^Unable to find image|: Pulling from |^Status: Downloaded newer image"), Stage.PULL),
    (re.compile(r"^Args \{|^Using attention|^Sharding model on"), Stage.LAUNCH),
    (re.compile(r"^Starting check and download process|^Files are already present"), Stage.CHECK),
    (re.compile(r"^Download file: |^Downloaded |^Downloading "), Stage.DOWNLOAD),
    (re.compile(r"^No safetensors weights found.*Converting |^Convert: "), Stage.CONVERT),
    (re.compile(r"^Starting shard|^Successfully downloaded weights|^Waiting for shard|^Shard ready"), Stage.SHARDS),
    (re.compile(r"^Starting Webserver|^Warming up model"), Stage.WARM_UP),
    (re.compile(r"^Setting max batch total tokens|^Using backend|^Connected$"), Stage.ROUTER),
)


def stage_of(record: LogRecord) -> Stage | None:
    """The stage that a record tells of, None if it tells nothing."""
    return next((stage for pattern, stage in _STAGES if pattern.search(record.message)), None)
