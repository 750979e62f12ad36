"""A measurement as one object: plain values for JSON, from which the table and the plot are made too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pydantic import TypeAdapter

from langchain_specdec.bench.measure import Measurement
from langchain_specdec.bench.statistics import ALL, Figures, Mismatches, Rate, Run, figures, mismatches, rate_of


@dataclass(frozen=True)
class ContestantReport:
    """One contestant's results.

    Attributes:
        name: As asked for.
        note: How it ran.
        warm_up_seconds: What its warm-up took; None where it was not reached.
        failure: Why it dropped out; "" where it did not.
        by_category: Figures by category, and of `ALL`.
        mismatches: Tokens that differ from the baseline's; None where they may (another kind of sampling).
    """

    name: str
    note: str
    warm_up_seconds: float | None
    failure: str
    by_category: Mapping[str, Figures]
    mismatches: Mismatches | None


@dataclass(frozen=True)
class Report:
    """A measurement and what it was made with.

    Attributes:
        header: Command, machine, versions, models and settings, as plain values.
        baseline: Whom ratios and mismatches refer to.
        rate: Which rate the figures are: "decode" for single prompts, "overall" for groups.
        categories: Those of the runs, in the order of the workload.
        contestants: Their results, in the order asked for.
        runs: Every timed run.
        is_interrupted: Whether it was ended early.
        roofline: How near the baseline is to what memory bandwidth allows, as plain values; empty where unknown.
    """

    header: Mapping[str, Any]
    baseline: str
    rate: Rate
    categories: Sequence[str]
    contestants: Sequence[ContestantReport]
    runs: Sequence[Run]
    is_interrupted: bool
    roofline: Mapping[str, float] = field(default_factory=dict)

    @property
    def beside(self) -> str:
        """What kept the machine busy meanwhile, in words; "" where nothing of ours did."""
        neighbours = self.header.get("neighbours") or {}
        busy = neighbours.get("busy", 0)
        parts = [f"{busy} busy process{'' if busy == 1 else 'es'}"] * bool(busy)
        for rate in neighbours.get("engines", ()):
            parts.append(f"an engine that decoded plainly{'' if rate is None else f' at {rate:.1f} tokens/s'}")
        return ", ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, every run included."""
        return {
            **self.header,
            "baseline": self.baseline,
            "rate": self.rate,
            "is_interrupted": self.is_interrupted,
            "roofline": dict(self.roofline),
            "contestants": [asdict(contestant) for contestant in self.contestants],
            "runs": [asdict(run) for run in self.runs],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """A report of what `as_dict` gave, as read from JSON.

        Raises:
            pydantic.ValidationError: It has another form.
        """
        parts = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        header = {name: value for name, value in values.items() if name not in parts}
        categories = list(dict.fromkeys(run["category"] for run in values["runs"]))
        return TypeAdapter(cls).validate_python({**parts, "header": header, "categories": categories})


def make_report(
    measurement: Measurement,
    notes: Mapping[str, str],
    header: Mapping[str, Any],
    *,
    baseline: str,
    batch: int,
    max_new_tokens: int,
    comparable: Sequence[str],
    step_bytes: int = 0,
    bandwidth: float | None = None,
) -> Report:
    """Make figures of a measurement.

    Args:
        measurement: The runs.
        notes: The contestants by name, with how they ran.
        header: What it was made with.
        baseline: Name of the contestant to compare with.
        batch: Prompts of a group.
        max_new_tokens: Most tokens that were asked for.
        comparable: Contestants whose tokens have to be the baseline's.
        step_bytes: Bytes of weights that a step reads.
        bandwidth: Bytes per second that the device can read.
    """
    runs = measurement.runs
    rate = rate_of(batch)
    categories = list(dict.fromkeys(run.category for run in runs))
    contestants = [
        ContestantReport(
            name,
            note,
            measurement.warm_up_seconds.get(name),
            measurement.failures.get(name, ""),
            {category: figures(runs, name, baseline, category, rate) for category in (*categories, ALL)},
            mismatches(runs, name, baseline, max_new_tokens) if name in comparable else None,
        )
        for name, note in notes.items()
    ]
    plain = next((c.by_category[ALL].tokens_per_second for c in contestants if c.name == "plain"), None)
    roofline = {}
    if bandwidth and plain and batch == 1:
        least = step_bytes / bandwidth
        roofline = {
            "step_bytes": step_bytes,
            "bytes_per_second": bandwidth,
            "least_step_seconds": least,
            "plain_step_seconds": 1 / plain,
            "share": least * plain,
        }
    return Report(header, baseline, rate, categories, contestants, runs, measurement.is_interrupted, roofline)
