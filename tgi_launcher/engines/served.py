"""Engines other than TGI, each by its facts."""

from __future__ import annotations

import time

from tgi_launcher.command import Addresses, Command
from tgi_launcher.diagnosis import Diagnosis, Evidence
from tgi_launcher.endpoints import ServedModel, get_model, get_text
from tgi_launcher.engine_config import EngineConfig
from tgi_launcher.engines.base import Engine
from tgi_launcher.engines.failures import diagnose
from tgi_launcher.engines.program import make_plan, preview_command
from tgi_launcher.logs import LogRecord, Stage, printable, without_colours
from tgi_launcher.metrics import Metrics, SpeculationReport, parse_metrics_of
from tgi_launcher.plan import LaunchPlan
from tgi_launcher.ports import PortLocks

_LEVELS = {"WARNING": "WARN", "CRITICAL": "ERROR", "W": "WARN", "E": "ERROR", "I": "INFO", "D": "DEBUG"}
# A line that is longer holds what somebody sent.
_MAX_LINE = 2000


class ServedEngine(Engine):
    """An engine whose server has `/health`, `/v1/models` and `/metrics`.

    Args:
        config: The server.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._facts = config.facts
        self.title = self._facts.title

    def make_plan(self, locks: PortLocks, *, earlier: Addresses | None = None) -> LaunchPlan:
        """See `Engine`."""
        return make_plan(self._config, locks, earlier)

    def preview_command(self) -> Command:
        """See `Engine`."""
        return preview_command(self._config)

    def parse_line(self, line: str) -> LogRecord:
        """See `Engine`."""
        text = printable(without_colours(line).rstrip("\r\n"))
        match = self._facts.record.fullmatch(text[:_MAX_LINE])
        if match is None:
            return LogRecord(text)
        level = match["level"] or ""
        return LogRecord(match["message"], level=_LEVELS.get(level, level))

    def stage_of(self, record: LogRecord) -> Stage | None:
        """See `Engine`."""
        line = record.message[:_MAX_LINE]
        return next((stage for pattern, stage in self._facts.stages if pattern.search(line)), None)

    def begins_serving(self, record: LogRecord) -> bool:
        """See `Engine`."""
        return self._facts.serving.search(record.message[:_MAX_LINE]) is not None

    def diagnose(self, evidence: Evidence) -> Diagnosis:
        """See `Engine`."""
        return diagnose(self._facts, evidence)

    def read_model(self, base_url: str, *, timeout: float) -> ServedModel:
        """See `Engine`."""
        return get_model(base_url, timeout=timeout, key=self._config.api_key)

    def read_metrics(self, base_url: str, *, timeout: float) -> Metrics:
        """See `Engine`."""
        text = get_text(f"{base_url}/metrics", timeout=timeout, key=self._config.api_key)
        return parse_metrics_of(self._facts.metrics, self.title, text, time=time.monotonic())

    def report(self, now: Metrics, since: Metrics) -> SpeculationReport:
        """See `Engine`."""
        drafts = self._config.drafts
        method = drafts.method if drafts is not None else None
        return now.report(since, self._config.num_speculative_tokens, method=method)
