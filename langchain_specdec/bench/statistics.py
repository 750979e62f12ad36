"""From runs to figures. Each says which figure it is.

Rates: a run's *decode rate* is its tokens after the first delivery over the time after it; its *overall rate* is all
its tokens over its whole time. Tokens are counted as returned.

For a category, a rate is *total tokens over total time* of all its runs. For each group of prompts (a single one,
unless several are decoded at once) and repeat, contestant and baseline ran right after each other, and the ratio of
their two rates is taken; the median over the repeats is the group's ratio. A category has the *median ratio* of its
groups with quartiles, and the *ratio of totals*. The first weighs every prompt alike; the second weighs long answers
more, and is what one would wait less for all of them together.

Only runs that both have are compared, so that an interrupted measurement stays fair.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Literal

from langchain_specdec.bench.contestant import RunResult

ALL = "all"
"""Stands for all categories together."""

Rate = Literal["decode", "overall"]


@dataclass(frozen=True)
class Run:
    """One timed run.

    Attributes:
        contestant: Who ran.
        group: Number of the group of prompts.
        category: The group's category; "mixed" where it has several.
        repeat: Which time, from 0.
        order: Which of the contestants it was in this round, from 0.
        prompt_ids: The prompts of the group.
        prompt_tokens: Their tokens, together.
        result: What came of it.
    """

    contestant: str
    group: int
    category: str
    repeat: int
    order: int
    prompt_ids: tuple[str, ...]
    prompt_tokens: int
    result: RunResult


@dataclass(frozen=True)
class Spread:
    """Median and quartiles (inclusive method: linear between the values) of so many values."""

    low: float
    median: float
    high: float
    count: int


@dataclass(frozen=True)
class Figures:
    """What the runs of a contestant in a category come to.

    Attributes:
        num_groups: Groups of prompts that were run.
        num_tokens: Tokens returned, of all runs.
        tokens_per_second: Total tokens over total time; None where no run has a rate.
        rate: Spread over the groups of their median rates.
        ratio: Spread over the groups of their ratios to the baseline.
        ratio_of_totals: Total tokens over total time, against the baseline's.
        first_seconds: Spread over the groups of the time to the first delivery.
        tokens_per_step: All tokens over all target forwards that decoded.
        acceptance_rate: Accepted over drafted tokens; None where nothing was drafted.
        prefilled_tokens: Prompt tokens that went through the model, of all runs.
        prompt_tokens: Prompt tokens, of all runs.
        seconds: Spread over the groups of the time to the last token.
        drafted_per_position: Steps whose draft was so long, from 1 on; empty where it is not known.
        accepted_per_position: Those of them whose token at that place became text.
        drafted_by_source: Draft tokens by where they came from; empty where it is not known.
        accepted_by_source: Those of them that became text.
        prefill_per_second: Prompt tokens that went through the model over the time to the first delivery, of all runs;
            None where several prompts run at once, of which only one has that time.
    """

    num_groups: int
    num_tokens: int
    tokens_per_second: float | None
    rate: Spread | None
    ratio: Spread | None
    ratio_of_totals: float | None
    first_seconds: Spread | None
    tokens_per_step: float | None
    acceptance_rate: float | None
    prefilled_tokens: int | None
    prompt_tokens: int
    # Reports of earlier versions lack these.
    seconds: Spread | None = None
    drafted_per_position: tuple[int, ...] = ()
    accepted_per_position: tuple[int, ...] = ()
    drafted_by_source: Mapping[str, int] = field(default_factory=dict)
    accepted_by_source: Mapping[str, int] = field(default_factory=dict)
    prefill_per_second: float | None = None


@dataclass(frozen=True)
class Mismatches:
    """Prompts whose tokens differ from the baseline's.

    Attributes:
        num_prompts: Prompts compared.
        positions: For each prompt that differs, where it first does.
        num_beyond: Tokens returned beyond `max_new_tokens`, of all runs. They are not compared.
    """

    num_prompts: int
    positions: Mapping[str, int]
    num_beyond: int


def spread(values: Iterable[float]) -> Spread | None:
    """Median and quartiles; None of nothing."""
    ordered = sorted(values)
    if not ordered:
        return None
    if len(ordered) == 1:
        return Spread(ordered[0], ordered[0], ordered[0], 1)
    low, median, high = statistics.quantiles(ordered, n=4, method="inclusive")
    return Spread(low, median, high, len(ordered))


def figures(runs: Sequence[Run], contestant: str, baseline: str, category: str, rate: Rate) -> Figures:
    """The figures of a contestant in a category.

    Args:
        runs: All runs.
        contestant: Whose figures.
        baseline: Whom to compare with.
        category: Which category, or `ALL`.
        rate: Which rate.
    """
    mine = {(r.group, r.repeat): r for r in _runs_of(runs, contestant, category)}
    theirs = {(r.group, r.repeat): r for r in _runs_of(runs, baseline, category)}
    results = [run.result for run in mine.values()]
    both = [key for key in mine if key in theirs]
    ratios: dict[int, list[float]] = {}
    for key in both:
        pair = _rate(mine[key].result, rate), _rate(theirs[key].result, rate)
        if pair[0] is not None and pair[1] is not None:
            ratios.setdefault(key[0], []).append(pair[0] / pair[1])
    total, other = (total_rate([of[key].result for key in both], rate) for of in (mine, theirs))
    steps = [(r.num_tokens, r.num_steps) for r in results if r.num_steps]
    drafted = sum(r.drafted_tokens or 0 for r in results)
    prefilled = [r.prefilled_tokens for r in results if r.prefilled_tokens is not None]
    return Figures(
        num_groups=len({group for group, _ in mine}),
        num_tokens=sum(r.num_tokens for r in results),
        tokens_per_second=total_rate(results, rate),
        rate=spread(_medians(mine.values(), lambda result: _rate(result, rate))),
        ratio=spread(statistics.median(values) for values in ratios.values()),
        ratio_of_totals=total / other if total and other else None,
        first_seconds=spread(_medians(mine.values(), lambda result: result.first_seconds)),
        seconds=spread(_medians(mine.values(), lambda result: result.seconds)),
        tokens_per_step=sum(t for t, _ in steps) / sum(s for _, s in steps) if steps else None,
        acceptance_rate=sum(r.accepted_tokens or 0 for r in results) / drafted if drafted else None,
        prefilled_tokens=sum(prefilled) if prefilled else None,
        prompt_tokens=sum(run.prompt_tokens for run in mine.values()),
        drafted_per_position=_sums(r.drafted_per_position for r in results),
        accepted_per_position=_sums(r.accepted_per_position for r in results),
        drafted_by_source=_sums_by_name(r.drafted_by_source for r in results),
        accepted_by_source=_sums_by_name(r.accepted_by_source for r in results),
        prefill_per_second=_prefill_rate(results) if rate == "decode" else None,
    )


def mismatches(runs: Sequence[Run], contestant: str, baseline: str, max_new_tokens: int) -> Mismatches:
    """Compare a contestant's tokens with the baseline's, run by run."""
    theirs = {(r.group, r.repeat): r.result for r in _runs_of(runs, baseline, ALL)}
    compared: set[str] = set()
    positions: dict[str, int] = {}
    beyond = 0
    for run in _runs_of(runs, contestant, ALL):
        beyond += sum(max(len(tokens) - max_new_tokens, 0) for tokens in run.result.token_ids)
        other = theirs.get((run.group, run.repeat))
        if other is None:
            continue
        for prompt_id, one, two in zip(run.prompt_ids, run.result.token_ids, other.token_ids, strict=True):
            compared.add(prompt_id)
            at = first_difference(one[:max_new_tokens], two[:max_new_tokens])
            if at is not None:
                positions[prompt_id] = min(at, positions.get(prompt_id, at))
    return Mismatches(len(compared), positions, beyond)


def first_difference(one: Sequence[int], two: Sequence[int]) -> int | None:
    """Index of the first token that differs, the end of a text counting as one; None where they are equal."""
    for index, (a, b) in enumerate(zip(one, two, strict=False)):
        if a != b:
            return index
    return None if len(one) == len(two) else min(len(one), len(two))


def _runs_of(runs: Iterable[Run], contestant: str, category: str) -> list[Run]:
    return [run for run in runs if run.contestant == contestant and category in (ALL, run.category)]


def _medians(runs: Iterable[Run], value: Callable[[RunResult], float | None]) -> list[float]:
    """Each group's median over its repeats."""
    by_group: dict[int, list[float]] = {}
    for run in runs:
        measured = value(run.result)
        if measured is not None:
            by_group.setdefault(run.group, []).append(measured)
    return [statistics.median(values) for values in by_group.values()]


def _sums(counts: Iterable[Sequence[int]]) -> tuple[int, ...]:
    return tuple(map(sum, zip_longest(*counts, fillvalue=0)))


def _sums_by_name(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    totals: Counter[str] = Counter()
    for each in counts:
        totals.update(each)
    return dict(totals.most_common())


def _parts(result: RunResult, rate: Rate) -> tuple[int, float]:
    if rate == "overall":
        return result.num_tokens, result.seconds
    return result.decode_tokens, result.decode_seconds


def _prefill_rate(results: Sequence[RunResult]) -> float | None:
    parts = [(r.prefilled_tokens, r.first_seconds) for r in results if r.prefilled_tokens]
    seconds = sum(s for _, s in parts)
    return sum(t for t, _ in parts) / seconds if seconds > 0 else None


def _rate(result: RunResult, rate: Rate) -> float | None:
    """Tokens per second; None of an answer that came in one delivery."""
    tokens, seconds = _parts(result, rate)
    return tokens / seconds if tokens > 0 and seconds > 0 else None


def rate_of(batch: int) -> Rate:
    """Which rate the figures are: of groups, prompts are read while others decode, so it is that of the whole."""
    return "decode" if batch == 1 else "overall"


def total_rate(results: Sequence[RunResult], rate: Rate) -> float | None:
    """Total tokens over total time, per second; None where nothing has a rate."""
    parts = [_parts(result, rate) for result in results]
    tokens, seconds = sum(t for t, _ in parts), sum(s for _, s in parts)
    return tokens / seconds if tokens > 0 and seconds > 0 else None
