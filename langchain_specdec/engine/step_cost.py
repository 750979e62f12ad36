"""What a step costs: measured at the start, refined while running."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping

from langchain_specdec.drafters.base import Drafter
from langchain_specdec.engine.request import Request
from langchain_specdec.runner.device_time import seconds_of
from langchain_specdec.runner.runner import Runner
from langchain_specdec.runner.step_inputs import WIDTHS, RowBatch
from langchain_specdec.sampling.noise import Noise

# How much one observation moves the common factor, and how much what steps of its kind cost beside the others.
_DRIFT_WEIGHT = 0.2
_OWN_WEIGHT = 0.05
# How much one observation moves what draft forwards cost, and what it costs to begin with them again.
_DRAFT_WEIGHT = 0.1
_RESUMPTION_WEIGHT = 0.3
# Wide steps so soon after a plain one tell what further tokens cost. What was measured counts as so many of them, and
# of those that ran so many of the latest do; where costs hardly grow, so much of a plain step counts as well.
_SOON = 8
_MEASURED_STEPS = 2
_MEMORY = 64
_LEAST_GROWN = 0.5
# Costs between the observed ones are interpolated anew after so many observations: one observation changes little,
# and interpolating takes as long as choosing by them.
_REFRESH_INTERVAL = 16
# How much is left meanwhile of what the steps of a kind were seen to cost beside the others: they may not run again.
_OWN_KEPT = 0.98


class StepCost:
    """V(rows, width) and D in seconds, from measurements.

    Only their ratios decide, and a machine that gets slower gets slower at every width. So an observation first moves
    one common factor, then what further tokens cost at every width alike, which may have been measured on a busy
    machine, and only slowly the cost of its own width beside the others. The last two are held by what was measured:
    changes by one noisy step after the other would add up without end, and a width that seems dear is not tried again.

    Args:
        verify: Measured seconds by (rows, width); at least one entry with width 1.
        draft: Seconds of one draft forward.
    """

    def __init__(self, verify: Mapping[tuple[int, int], float], draft: float = 0.0) -> None:
        # What was measured, or estimated when a step of that kind first ran; and what its own steps have made of it.
        self._measured = {key: max(seconds, 1e-9) for key, seconds in verify.items()}
        self._table = dict(self._measured)
        self._growths: dict[int, _Growth] = {}  # By rows
        self._draft = draft
        # What the first draft forward takes beyond another, where the text went on without any.
        self._resumption = 0.0
        self._drift = 1.0
        self._num_observed = 0
        # For how many more wide steps a plain one tells what was common to all.
        self._plain_tells = 0
        self._cache: dict[tuple[int, int], float] = {}

    @classmethod
    def flat(cls, seconds: float = 1.0, draft: float = 0.0) -> StepCost:
        """Every width costs the same, as on a GPU with few rows.

        Args:
            seconds: What a step costs.
            draft: What a draft forward costs, as a share of it; 0: drafting is free.
        """
        return cls({(1, 1): seconds, (1, 1024): seconds}, draft * seconds)

    def verify_seconds(self, rows: int, width: int) -> float:
        """Cost of a target forward of `rows` rows and `width` tokens each."""
        key = (rows, width)
        seconds = self._cache.get(key)
        if seconds is None:
            seconds = self._known(rows, width)
            if width > 1 and rows in self._growths:
                plain = self._known(rows, 1)
                seconds = plain + max(seconds - plain, 0.0) * self._growths[rows].factor
            self._cache[key] = seconds
        return seconds * self._drift

    def draft_seconds(self, steps: float, *, is_resumed: bool = False) -> float:
        """Cost of `steps` forwards of the draft model.

        Args:
            steps: How many.
            is_resumed: Whether the step before ran none, so that there is more to read than the latest tokens.
        """
        return (self._draft * steps + (self._resumption if is_resumed and steps else 0.0)) * self._drift

    def observe(self, rows: int, width: int, seconds: float) -> None:
        """Refine by what a target forward took."""
        key, expected = (rows, width), self.verify_seconds(rows, width)
        ratio = min(max(seconds / expected, 0.5), 2.0)
        if key not in self._table:
            self._measured[key] = self._table[key] = self._known(rows, width)
        if width == 1:
            self._plain_tells = _SOON
        elif self._plain_tells:
            self._plain_tells -= 1
            # Both in plain steps.
            seen = expected * ratio / self.verify_seconds(rows, 1) - 1.0
            measured = self._measured[key] / self._measured.get((rows, 1), self._known(rows, 1)) - 1.0
            self._growths.setdefault(rows, _Growth()).observe(seen, measured)
        self._table[key] *= ratio**_OWN_WEIGHT
        self._drift *= ratio**_DRIFT_WEIGHT
        self._num_observed += 1
        if self._num_observed % _REFRESH_INTERVAL == 0:
            self._cache.clear()
            for each, measured in self._measured.items():
                self._table[each] = measured * (self._table[each] / measured) ** _OWN_KEPT
        self._cache.pop(key, None)

    def observe_draft(self, steps: int, seconds: float, *, is_resumed: bool = False) -> None:
        """Refine by what `steps` forwards of the draft model took."""
        if steps and is_resumed:
            more = max(seconds / self._drift - self._draft * steps, 0.0)
            self._resumption += _RESUMPTION_WEIGHT * (more - self._resumption)
        elif steps:
            self._draft += _DRAFT_WEIGHT * (seconds / steps / self._drift - self._draft)

    def _known(self, rows: int, width: int) -> float:
        """By what is known of as many rows; else, and for the shape beyond it, by the number of tokens alone."""
        if (seconds := self._table.get((rows, width))) is not None:
            return seconds
        own = sorted(w for r, w in self._table if r == rows)
        if not own:
            return self._interpolate(rows * width)
        if own[0] < width < own[-1]:
            right = bisect_left(own, width)
            low, high = own[right - 1], own[right]
            y0, y1 = self._table[rows, low], self._table[rows, high]
            return y0 + (y1 - y0) * (width - low) / (high - low)
        nearest = own[0] if width < own[0] else own[-1]
        return self._table[rows, nearest] * self._interpolate(rows * width) / self._interpolate(rows * nearest)

    def _interpolate(self, tokens: int) -> float:
        """What a forward of that many tokens costs, by the nearest measured ones; linear between and beyond."""
        points = sorted((rows * width, seconds) for (rows, width), seconds in self._table.items())
        if len(points) == 1 or tokens <= points[0][0]:
            return points[0][1]
        (x0, y0), (x1, y1) = points[0], points[-1]
        if tokens <= x1:
            right = bisect_left(points, (tokens, 0.0))
            (x0, y0), (x1, y1) = points[right - 1], points[right]
        if x1 == x0:
            return y1
        return max(y0 + (y1 - y0) * (tokens - x0) / (x1 - x0), y0)


class _Growth:
    """How much more further tokens cost than was measured, at every width alike: a ratio of two sums."""

    def __init__(self) -> None:
        self._seen = self._measured = 0.0
        self._is_new = True

    @property
    def factor(self) -> float:
        """What the measured cost of further tokens is multiplied by."""
        return max(self._seen + _LEAST_GROWN, 0.0) / (self._measured + _LEAST_GROWN)

    def observe(self, seen: float, measured: float) -> None:
        """Count a wide step.

        Args:
            seen: What it took beyond a plain one, in plain steps.
            measured: What was measured of that.
        """
        measured = max(measured, 0.0)
        if self._is_new:
            self._seen = self._measured = _MEASURED_STEPS * measured
            self._is_new = False
        kept = 1.0 - 1.0 / _MEMORY
        self._seen, self._measured = self._seen * kept + seen, self._measured * kept + measured


# Measuring may take the time of so many plain steps, within these bounds in seconds.
_BUDGET_STEPS = 60
_LEAST_BUDGET, _MOST_BUDGET = 0.3, 2.0
_MAX_ROUNDS = 5
# Wider forwards than those that take so many plain steps are not tried: no draft pays for them.
_MOST_STEPS = 6
# What each further token of a row is taken to add to a plain step, as a share of it, where only two widths were tried.
_ASSUMED_GROWTH = 0.1


def measure_step_cost(
    runner: Runner, drafter: Drafter, request: Request, is_wanted: Callable[[], bool] = lambda: True
) -> StepCost | None:
    """Time target forwards of several widths, interleaved, and a draft forward.

    They run in the request's own slot beyond its text, where whatever they leave is overwritten. Widths that the time
    does not suffice for, and several rows at once, are extrapolated until steps of that kind have run.

    Args:
        runner: The target model.
        drafter: The drafter in use.
        request: A request whose text its slot holds.
        is_wanted: Asked before each forward whether to go on.

    Returns:
        None where it became unwanted. Else
        the least costs, since whatever else the machine does only adds to them; and none above that of a wider
        forward, for the same reason. At most 5 rounds of at most 9 forwards. They take the time of 60 plain steps, 0.3
        seconds at least and 2 at most: a forward starts only if it will be over by then, by the ones before it, or if
        it is the first of one of the two narrowest widths.
    """
    widths = sorted({w for w in WIDTHS if w < runner.max_width} | {runner.max_width})
    token = request.token_ids[-1]
    noise = Noise.of([request.params], [request.seed])
    # The first round counts only where there is no other: it pays for allocations and for the choice of kernels.
    warm: dict[int, list[float]] = {}
    counted: dict[int, list[float]] = {}
    draft_seconds = []
    began, budget = time.perf_counter(), _MOST_BUDGET
    for round_number in range(_MAX_ROUNDS):
        # What is left of it is the other rounds', so that they can compare the same widths.
        share = budget if round_number else budget / 2
        latest, previous = 0.0, 1
        for width in list(widths):
            is_needed = not round_number and width in widths[:2]
            expected = min(warm[width]) if width in warm else latest * width / previous
            is_dear = not round_number and latest > _MOST_STEPS * min(warm.get(1, [latest]))
            if not is_needed and (is_dear or time.perf_counter() - began + expected > share):
                if round_number < 2:
                    del widths[max(widths.index(width), 2) :]
                break
            if not is_wanted():
                return None
            tokens = [token] * width

            def verify(tokens: list[int] = tokens) -> None:
                batch = RowBatch([request.slot], [request.num_cached], [tokens], None, noise, drafter.num_candidates)
                runner.verify(batch)

            latest, previous = seconds_of(verify, runner.device), width
            (counted if round_number else warm).setdefault(width, []).append(latest)
            if not round_number and width == widths[0]:
                budget = min(max(_BUDGET_STEPS * latest, _LEAST_BUDGET), _MOST_BUDGET)
                share = budget / 2
        draft_seconds.append(drafter.measure_step(request))
        if time.perf_counter() - began > budget:
            break
    seconds = counted if all(width in counted for width in widths) else warm
    least = {(1, width): min(min(seconds[w]) for w in widths if w >= width) for width in widths}
    if len(widths) == 2 and widths[-1] < runner.max_width:
        # Two forwards on a busy machine say little of the width.
        plain, wider = least[1, widths[0]], least[1, widths[1]]
        growth = max(wider - plain, _ASSUMED_GROWTH * plain)
        least[1, runner.max_width] = plain + growth * (runner.max_width - 1)
    cost = StepCost(least, min(draft_seconds))
    # The plain steps of just now are what the first drafts are judged by.
    cost.observe(1, 1, least[1, 1])
    return cost
