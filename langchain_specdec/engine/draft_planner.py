"""What each step drafts: which proposals, how many tokens of them, and what is learned from what came of it.

How many tokens pay is the rule of `draft_length`. Clocks, costs and rates are known here, and beside it only in the
pace at which prompts are read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from langchain_specdec.drafters.acceptance import DraftKind
from langchain_specdec.drafters.base import NOTHING, Draft, Drafter, DraftLimits, Proposal
from langchain_specdec.engine.draft_length import best_lengths, least_reach, most_promising
from langchain_specdec.engine.request import Request
from langchain_specdec.engine.step_cost import StepCost, measure_step_cost
from langchain_specdec.runner.runner import Runner
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.runner.verify import Verdict
from langchain_specdec.sampling.noise import Noise
from langchain_specdec.sampling.params import SamplingParams

_logger = logging.getLogger(__name__)

# Drafts that promise less than this over a plain step are left: the promise is an estimate.
_LEAST_GAIN = 0.02
# Tokens at least this likely are looked for whatever they are taken to cost: that may be wrong.
_MOST_LEAST_REACH = 0.4
# A probe drafts so many tokens more than pay, the first of them at least this likely. All probes together may lose this
# share of plain decoding's time.
_PROBE_TOKENS = 2
_PROBE_REACH = 0.5
_PROBE_SHARE = 0.005
_MOST_PROBE_STEPS = 2
# Once no draft has paid for so many steps, looking for one may take this share of plain decoding's time.
_LOOK_STEPS = 4
_LOOK_SHARE = 0.004
# How much one look moves what a look is taken to cost.
_LOOK_WEIGHT = 0.1
# So many rows that are not padded draft in turn.
_FEW = 2
# All of them draft where a token more in each costs less than this share of the step.
_DEAR_TOKENS = 0.6
# What a step is taken to cost where width is free, until it is measured; only the ratios decide.
_ASSUMED_SECONDS = 0.02


@dataclass
class Plan:
    """What a step does, and what is expected of it.

    Attributes:
        lengths: Draft tokens of each row.
        tokens: Expected tokens of each row, the target's own included; 0 where no choice was made by cost.
        seconds: Expected cost of the step; 0 where no choice was made by cost.
        plain_seconds: Cost of a step without drafts; 0 where it is not known.
        offers: All that could be drafted for each row.
        proposals: What each row's draft is taken from.
        num_candidates: How many of the target's best tokens after each token are to be learned from.
    """

    lengths: tuple[int, ...]
    tokens: tuple[float, ...]
    seconds: float
    plain_seconds: float
    offers: Sequence[Sequence[Proposal]] = ()
    proposals: Sequence[Proposal] = ()
    num_candidates: int = 0


class DraftPlanner:
    """Decides what to draft, has it drafted, and learns from what came of it.

    Args:
        runner: The target model.
        drafter: Where drafts come from.
        max_draft_tokens: Most tokens to draft one after the other.
        max_tree_nodes: Most tokens of a draft that is a tree; 0: chains only.
        draft_length: `"auto"` or a fixed number, of chains then.
        step_cost: What steps cost; None measures it, and again whenever graphs take over or fail, but never before a
            first token. Where width is free, that is assumed until then.
    """

    def __init__(
        self,
        runner: Runner,
        drafter: Drafter,
        max_draft_tokens: int,
        max_tree_nodes: int,
        draft_length: int | Literal["auto"],
        step_cost: StepCost | None,
    ) -> None:
        self._runner = runner
        self._drafter = drafter
        self._max_draft_tokens = max_draft_tokens if draft_length == "auto" else draft_length
        self._is_adaptive = draft_length == "auto"
        self._max_tree_nodes = max_tree_nodes if self._is_adaptive and runner.takes_trees else 0
        self._is_cost_given = step_cost is not None
        self._is_cost_measured = False
        if step_cost is None and self._is_adaptive and runner.is_width_free:
            # Where launching bounds a step, a draft forward costs by its layers.
            step_cost = StepCost.flat(_ASSUMED_SECONDS, drafter.num_layers / len(runner.cache))
        self._cost = step_cost
        self._is_padded = runner.pads_rows
        self._costed_graphs = runner.graphs
        # What looking for a row's draft takes, the time saved up for it, and for how many steps no draft has paid.
        self._look_seconds = self._look_credit = 0.0
        self._num_idle = 0
        # Seconds saved up for probes.
        self._probe_credit = 0.0
        # Clock at the start of drafting and of verification in the current step.
        self._draft_started = self._verify_started = 0.0

    @property
    def num_candidates(self) -> int:
        """How many of the target's best tokens after each token the drafter learns from."""
        return self._drafter.num_candidates if self._is_adaptive else 0

    def prepare(self, rows: int, lengths: range, params: SamplingParams) -> None:
        """Make all graphs that decoding certain texts uses, and none later, so that runs can be compared.

        Args:
            rows: Most texts at a time.
            lengths: How many tokens they may have.
            params: What decides their tokens.
        """
        is_sampled = params.needs_only_noise and params.temperature > 0
        self._runner.prepare(rows, lengths, is_sampled=is_sampled, num_candidates=self.num_candidates)
        self._drafter.prepare(rows, lengths, is_sampled=is_sampled)
        if not self._is_cost_given:
            # Measured at the next step, not assumed: nobody waits, and no run may begin beside a measurement.
            self._cost = None

    def plan(self, requests: Sequence[Request]) -> Plan:
        """Which proposal each request's draft is taken from, and how many tokens of it."""
        # Nobody waits for a graph or a measurement before the first token.
        may_prepare = all(request.num_output_tokens for request in requests)
        if may_prepare:
            self._make_next_graph(requests[0])
        self._runner.begin_turn(may_capture=may_prepare)
        started = time.perf_counter()
        rows = self._drafting_rows(requests)
        may_look = self._may_look(len(requests), len(rows))
        least = min(least_reach(self._cost, len(rows) or 1, self._max_tree_nodes), _MOST_LEAST_REACH)
        offers = self._consider(requests, rows, least, may_look=may_look)
        # Measuring what steps cost is no part of decoding.
        started += self._update_cost(requests[0], offers) if may_prepare else 0.0
        # Ranking a vocabulary for each row takes time, so a step in which nothing is looked for tells nothing either.
        # Where steps are captured it costs next to none, and their graphs are made for it.
        is_told = may_look or self._runner.is_width_free
        plan = self._choose(requests, offers, rows, least)
        plan.num_candidates = self.num_candidates if is_told else 0
        for request in requests:
            request.decode_started = request.decode_started or started
            request.plain_token_seconds = 0.0 if self._is_cost_given else plan.plain_seconds
        return plan

    def _drafting_rows(self, requests: Sequence[Request]) -> dict[int, int]:
        """The rows that may draft, with how far: all, or where nearly all of a step is for its tokens, the last to end.

        There a token costs its row as much as the place in a later step that it may save. What a step costs beside its
        rows is saved only where the text that ends last gets on, and until another one ends last.
        """
        # The target always adds one token of its own, so the last one need not be drafted.
        depths = {row: min(self._max_draft_tokens, r.num_remaining - 1) for row, r in enumerate(requests)}
        if self._is_padded or self._is_cost_given or not self._is_adaptive or len(requests) == 1:
            return depths
        if self._cost is not None:
            plain, wide = (self._cost.verify_seconds(len(requests), width) for width in (1, 2))
            if wide < (1 + _DEAR_TOKENS) * plain:
                return depths
        remaining = [request.num_remaining for request in requests]
        last, *others = sorted(remaining, reverse=True)
        leader = remaining.index(last)
        if len(requests) > _FEW and requests[leader].constraint is None:
            # Of few, another one soon gets on by drafts of its own.
            depths[leader] = min(depths[leader], last - others[0])
        # What a grammar forces is never passed over.
        return {row: depth for row, depth in depths.items() if (row == leader and depth) or requests[row].constraint}

    def propose(self, requests: Sequence[Request], plan: Plan) -> list[Draft]:
        """Have the drafts made that were planned."""
        self._draft_started = self._runner.clock()
        drafts = self._drafter.propose(requests, plan.proposals, plan.lengths)
        self._verify_started = self._runner.clock()
        return drafts

    def learn(self, requests: Sequence[Request], plan: Plan, drafts: Sequence[Draft], verdict: Verdict) -> None:
        """Learn what the step cost and which guesses were right, before the requests' texts grow."""
        ended, rows = self._runner.clock(), len(requests)
        if self._cost is not None and not self._is_cost_given:
            width = max(map(len, verdict.picks))
            # Rows that are not padded would each have a width of their own.
            if width == 1 or rows == 1 or self._is_padded:
                self._cost.observe(rows, width, ended - self._verify_started)
            if self._drafter.num_layers:
                forwards = max(len(d) * p.steps_per_token for d, p in zip(drafts, plan.proposals, strict=True))
                self._cost.observe_draft(forwards, self._verify_started - self._draft_started)
        if self._is_adaptive and plan.num_candidates == self.num_candidates:
            try:
                self._drafter.observe(requests, verdict)
            except Exception:
                # Drafts only change the speed, so a drafter that cannot learn must not fail a request.
                _logger.exception("The drafter failed to learn from a step")
        for row, request in enumerate(requests):
            # Guesses that were offered but not drafted count too: comparing them costs nothing.
            guesses = [p.draft for p in plan.offers[row] if p.draft.tokens]
            if drafts[row].tokens and not plan.proposals[row].draft.tokens:
                guesses.append(drafts[row])
            for guess in guesses:
                request.rates.observe(_outcomes(guess, verdict.tokens(row)))
            stats = request.stats
            stats.predicted_seconds += plan.seconds
            stats.predicted_plain_seconds += plan.tokens[row] * plan.plain_seconds
            stats.decode_seconds = time.perf_counter() - (request.decode_started or 0.0)

    def _make_next_graph(self, request: Request) -> None:
        """Have a graph made that a coming step may need, at the end of a text, where what is left gets overwritten."""
        if self._cost is not None and not self._is_cost_given and self._runner.is_width_free:
            noise = Noise.of([request.params], [request.seed])
            last = [request.token_ids[-1:]]
            batch = RowBatch([request.slot], [request.num_cached], last, None, noise, self.num_candidates)
            self._runner.make_next_graph(batch)

    def _consider(
        self, requests: Sequence[Request], rows: Mapping[int, int], least: float, *, may_look: bool
    ) -> list[Sequence[Proposal]]:
        """All that could be drafted for each row; nothing where looking for it would cost more than noise."""
        offers: list[Sequence[Proposal]] = [()] * len(requests)
        if not may_look and all(requests[row].constraint is None for row in rows):
            return offers
        started = time.perf_counter()
        for row, max_depth in rows.items():
            request = requests[row]
            # What a grammar forces is never passed over.
            if may_look or request.constraint is not None:
                offers[row] = self._drafter.consider(request, DraftLimits(max_depth, self._max_tree_nodes, least))
        if may_look:
            seconds = (time.perf_counter() - started) / len(rows)
            self._look_seconds += (_LOOK_WEIGHT if self._look_seconds else 1.0) * (seconds - self._look_seconds)
        return offers

    def _may_look(self, rows: int, num_drafting: int) -> bool:
        """Whether to look for drafts: always while they pay, and else as often as a small share of the time allows.

        Where many rows share a step, nothing may pay for a long time. All that may draft are looked at in the same
        step, since they share its width.
        """
        if not num_drafting:
            return False
        if self._num_idle < _LOOK_STEPS or self._cost is None or self._is_cost_given or not self._is_adaptive:
            return True
        self._look_credit += _LOOK_SHARE * self._cost.verify_seconds(rows, 1)
        if self._look_credit < num_drafting * self._look_seconds:
            return False
        self._look_credit -= num_drafting * self._look_seconds
        return True

    def _update_cost(self, request: Request, offers: Sequence[Sequence[Proposal]]) -> float:
        """Measure what steps cost where that is not known, or not any more; the seconds that it took."""
        graphs = self._runner.graphs
        # A step costs something else once graphs have taken over or failed.
        is_stale = self._cost is not None and not self._is_cost_given and graphs != self._costed_graphs
        is_missing = self._cost is None and self._is_adaptive and any(offers)
        if not is_missing and not is_stale:
            return 0.0
        started = time.perf_counter()
        self._measure(request)
        return time.perf_counter() - started

    def measure_idle(self, request: Request, is_idle: Callable[[], bool]) -> None:
        """Measure what steps cost where that was only assumed so far, while nobody waits.

        Args:
            request: One that has just ended; its slot is still its own.
            is_idle: Whether there is still nothing else to do.
        """
        is_assumed = self._cost is not None and not self._is_cost_given and not self._is_cost_measured
        if is_assumed and not self._runner.awaits_graphs:
            self._measure(request, is_idle)

    def _measure(self, request: Request, is_wanted: Callable[[], bool] = lambda: True) -> None:
        graphs = self._runner.graphs
        cost = measure_step_cost(self._runner, self._drafter, request, is_wanted)
        if cost is not None:
            self._cost, self._costed_graphs, self._is_cost_measured = cost, graphs, True

    def _choose(
        self, requests: Sequence[Request], offers: list[Sequence[Proposal]], rows: Collection[int], least: float
    ) -> Plan:
        cost, count = self._cost, len(requests)
        plain = cost.verify_seconds(count, 1) if cost is not None else 0.0
        if not self._is_adaptive or cost is None:
            proposals = [offer[0] if offer else NOTHING for offer in offers]
            # Whether drafts pay is not known before costs are.
            fixed = tuple(0 if self._is_adaptive else len(p.reaches) for p in proposals)
            return Plan(fixed, (0.0,) * count, 0.0, plain, offers, proposals)
        self._probe_credit = min(self._probe_credit + _PROBE_SHARE * plain, _MOST_PROBE_STEPS * plain)
        if not any(p.steps_per_token or p.reaches[0] >= least for offer in offers for p in offer if p.reaches):
            self._num_idle += 1
            return Plan((0,) * count, (1.0,) * count, plain, plain, offers, [NOTHING] * count)
        proposals = [most_promising(offer, len(rows), cost) for offer in offers]
        drafting = [proposals[row] for row in rows]
        choice = best_lengths([p.reaches for p in drafting], [p.steps_per_token for p in drafting], cost)
        self._num_idle = 0 if any(choice.lengths) else self._num_idle + 1
        lengths, tokens, seconds = [0] * count, [1.0] * count, plain
        if choice.gain >= 1 + _LEAST_GAIN:
            seconds += choice.seconds - choice.plain_seconds
            for row, length, expected in zip(rows, choice.lengths, choice.tokens, strict=True):
                lengths[row], tokens[row] = length, expected
        for row in rows:
            proposals[row], lengths[row] = self._probe(offers[row], proposals[row], lengths[row], len(rows), cost)
        return Plan(tuple(lengths), tuple(tokens), seconds, plain, offers, proposals)

    def _probe(
        self, offer: Sequence[Proposal], proposal: Proposal, length: int, rows: int, cost: StepCost
    ) -> tuple[Proposal, int]:
        """The draft as chosen, or now and then a longer one (a probe).

        Probes learn what is never tried otherwise: how good a draft model is by now, and what a wide step costs by now
        if the machine was busy when it was measured. Each step saves a small share of its time for what they are
        expected to lose, whichever row it is that probes: all of them wait for it.
        """
        computed = next((p for p in offer if p.steps_per_token), None)
        probe, begin = proposal, length
        if computed is not None and computed.source != proposal.source:
            probe, begin = computed, 0
        tried = probe.reaches[begin : begin + _PROBE_TOKENS]
        is_likely = bool(tried) and tried[0] >= _PROBE_REACH and not self._is_cost_given
        if not tried or not (is_likely or probe.steps_per_token):
            return proposal, length
        plain, longer = cost.verify_seconds(rows, 1), begin + len(tried)
        extra = max(cost.verify_seconds(rows, 1 + longer) - cost.verify_seconds(rows, 1 + length), 0.0)
        loss = extra + cost.draft_seconds(probe.steps_per_token * len(tried)) - sum(tried) * plain / rows
        if self._probe_credit < loss:
            return proposal, length
        self._probe_credit -= max(loss, 0.0)
        return probe, longer


def _outcomes(draft: Draft, tokens: Sequence[int]) -> list[tuple[DraftKind, bool]]:
    """Which guesses along the text were right. Siblings after the right one, and all below them, count as not tried."""
    outcomes: list[tuple[DraftKind, bool]] = []
    parent, depth = -1, 0
    for node, (token, above, kind) in enumerate(zip(draft.tokens, draft.parents, draft.kinds, strict=True)):
        # Parents stand before children, and earlier siblings were tried first.
        if above == parent and depth < len(tokens):
            is_right = token == tokens[depth]
            outcomes.append((kind, is_right))
            if is_right:
                parent, depth = node, depth + 1
    return outcomes
