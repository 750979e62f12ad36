"""Text Generation Inference as an engine: the modules of this package that know it."""

from __future__ import annotations

import time

from tgi_launcher.command import Addresses, Command
from tgi_launcher.config import TGIConfig
from tgi_launcher.diagnosis import Diagnosis, Evidence, diagnose
from tgi_launcher.endpoints import ServerInfo, get_info, get_text
from tgi_launcher.engines.base import Engine
from tgi_launcher.logs import LogRecord, Stage, parse_line, stage_of
from tgi_launcher.metrics import Metrics, SpeculationReport, parse_metrics
from tgi_launcher.plan import LaunchPlan, make_plan, preview_command
from tgi_launcher.ports import PortLocks


class TGI(Engine):
    """Text Generation Inference 3.3.

    Args:
        config: The server.
    """

    title = "TGI"

    def __init__(self, config: TGIConfig) -> None:
        self._config = config

    def make_plan(self, locks: PortLocks, *, earlier: Addresses | None = None) -> LaunchPlan:
        """See `Engine`."""
        return make_plan(self._config, locks, earlier=earlier)

    def preview_command(self) -> Command:
        """See `Engine`."""
        return preview_command(self._config)

    def parse_line(self, line: str) -> LogRecord:
        """See `Engine`."""
        return parse_line(line)

    def stage_of(self, record: LogRecord) -> Stage | None:
        """See `Engine`."""
        return stage_of(record)

    def begins_serving(self, record: LogRecord) -> bool:
        """See `Engine`."""
        return record.begins_serving

    def diagnose(self, evidence: Evidence) -> Diagnosis:
        """See `Engine`."""
        return diagnose(evidence)

    def read_model(self, base_url: str, *, timeout: float) -> ServerInfo:
        """See `Engine`."""
        return get_info(base_url, timeout=timeout)

    def read_metrics(self, base_url: str, *, timeout: float) -> Metrics:
        """See `Engine`."""
        return parse_metrics(get_text(f"{base_url}/metrics", timeout=timeout), time=time.monotonic())

    def report(self, now: Metrics, since: Metrics) -> SpeculationReport:
        """See `Engine`."""
        return now.report(since, self._config.num_speculative_tokens, self._config.model_info)
