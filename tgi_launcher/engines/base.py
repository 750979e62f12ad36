"""Engine: what the supervision of a server asks of the engine that it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod

from tgi_launcher.command import Addresses, Command
from tgi_launcher.diagnosis import Diagnosis, Evidence
from tgi_launcher.endpoints import ServedModel
from tgi_launcher.logs import LogRecord, Stage
from tgi_launcher.metrics import Metrics, SpeculationReport
from tgi_launcher.plan import LaunchPlan
from tgi_launcher.ports import PortLocks


class Engine(ABC):
    """An engine with the config of one server of it."""

    title: str
    """What its makers call it."""

    @abstractmethod
    def make_plan(self, locks: PortLocks, *, earlier: Addresses | None = None) -> LaunchPlan:
        """Choose everything that is left open.

        Args:
            locks: Takes the ports.
            earlier: Where the server was before a restart; it stays there, its ports locked already.

        Raises:
            StartError: A port is taken, or there is nothing to run.
        """

    @abstractmethod
    def preview_command(self) -> Command:
        """The command that `make_plan` would make now, to read or to paste. Nothing stays locked, or need be there."""

    @abstractmethod
    def parse_line(self, line: str) -> LogRecord:
        """Read one line of its log."""

    @abstractmethod
    def stage_of(self, record: LogRecord) -> Stage | None:
        """The stage of a start that a record tells of, None if it tells nothing."""

    @abstractmethod
    def begins_serving(self, record: LogRecord) -> bool:
        """Whether clients can be heard from this record on."""

    @abstractmethod
    def diagnose(self, evidence: Evidence) -> Diagnosis:
        """Say why it ended, or failed to come up."""

    @abstractmethod
    def read_model(self, base_url: str, *, timeout: float) -> ServedModel:
        """What a server of it tells of its model.

        Raises:
            NotRunningError: It does not answer.
        """

    @abstractmethod
    def read_metrics(self, base_url: str, *, timeout: float) -> Metrics:
        """What a server of it counts.

        Raises:
            NotRunningError: It does not answer.
        """

    @abstractmethod
    def report(self, now: Metrics, since: Metrics) -> SpeculationReport:
        """What speculation did between two readings."""
