"""Runs contestants in turns: group by group, each of them on the same prompts right after the others."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from langchain_specdec.bench.contestant import Contestant, Prompt
from langchain_specdec.bench.statistics import Run

MIXED = "mixed"
"""Category of a group whose prompts have several."""

Progress = Callable[[str, int, int], None]


@dataclass
class Measurement:
    """What was measured; it grows run by run, so that an interruption loses nothing.

    Attributes:
        runs: Every timed run, in the order in which they were made.
        warm_up_seconds: What each contestant's warm-up took: allocation, compilation, calibration.
        failures: Contestants that failed, and why. They take no part after that.
        is_interrupted: Whether it was ended early.
    """

    runs: list[Run] = field(default_factory=list)
    warm_up_seconds: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    is_interrupted: bool = False


def grouped(prompts: Sequence[Prompt], batch: int) -> list[tuple[Prompt, ...]]:
    """Groups of so many prompts, in order; the last one may be smaller."""
    return [tuple(prompts[i : i + batch]) for i in range(0, len(prompts), batch)]


def measure(
    contestants: Sequence[Contestant],
    groups: Sequence[Sequence[Prompt]],
    repeats: int,
    progress: Progress | None = None,
) -> Measurement:
    """Warm all up, then run every group with each contestant in turn, and all that again for each repeat.

    Who is first rotates from group to group. The repeats are the outer loop, so that a slow minute of the machine does
    not hit all runs of one prompt. Ctrl-C ends the measurement; what was measured stays.

    Args:
        contestants: Who takes part.
        groups: Prompts; those of a group are handed over together.
        repeats: How often each group is run.
        progress: Told what is going on, the steps done, and all steps.
    """
    measurement = Measurement()
    total = len(contestants) * (1 + len(groups) * repeats)
    done = 0

    def tell(what: str) -> None:
        if progress is not None:
            progress(what, done, total)

    try:
        for contestant in contestants:
            tell(f"warming up {contestant.name}")
            started = time.perf_counter()
            _guarded(contestant, measurement, lambda c=contestant: c.warm_up(groups))  # type: ignore[misc]
            measurement.warm_up_seconds[contestant.name] = time.perf_counter() - started
            done += 1
        # Frozen objects are not looked at again: all that was loaded would make each collection below slow.
        gc.collect()
        gc.freeze()
        for repeat in range(repeats):
            for number, group in enumerate(groups):
                for order, contestant in enumerate(_rotated(contestants, number + repeat)):
                    tell(contestant.name)
                    _run(contestant, group, (number, repeat, order), measurement)
                    done += 1
        tell("done")
    except KeyboardInterrupt:
        measurement.is_interrupted = True
    finally:
        gc.unfreeze()
    return measurement


def _run(
    contestant: Contestant, group: Sequence[Prompt], place: tuple[int, int, int], measurement: Measurement
) -> None:
    number, repeat, order = place
    # Python must not collect garbage within a timed run.
    gc.collect()

    def run() -> None:
        result = contestant.run(group)
        categories = {prompt.category for prompt in group}
        measurement.runs.append(
            Run(
                contestant.name,
                number,
                categories.pop() if len(categories) == 1 else MIXED,
                repeat,
                order,
                tuple(prompt.prompt_id for prompt in group),
                sum(len(prompt.token_ids) for prompt in group),
                result,
            )
        )

    _guarded(contestant, measurement, run)


def _guarded(contestant: Contestant, measurement: Measurement, action: Callable[[], None]) -> None:
    """A contestant that fails drops out; the others go on."""
    if contestant.name in measurement.failures:
        return
    try:
        action()
    except Exception as error:
        measurement.failures[contestant.name] = " ".join(f"{type(error).__name__}: {error}".split())


def _rotated(contestants: Sequence[Contestant], by: int) -> list[Contestant]:
    by %= len(contestants)
    return [*contestants[by:], *contestants[:by]]
