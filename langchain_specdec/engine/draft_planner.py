"""How many tokens to draft: the tree that maximises expected tokens per second.

With V(rows, width) the cost of a target forward, D the cost of a draft forward and r_i the chance that the target
reaches draft token i (that it and all its ancestors are accepted), a step whose trees have n tokens a row emits
``rows + sum(r_i)`` tokens in ``V(rows, 1 + n) + g * D`` seconds, where g is the number of draft forwards. A chain is
the simple tree: its r_i are the products a_1...a_i of its tokens' chances, and this is section 3.5 of Leviathan et al.
2023 with measured instead of constant costs. Tokens are taken in order of r_i, so that every number of them is the best
tree of that size. The best n may be 0. V and D are measured, the chances are estimated while running.

Clocks, costs and rates are known here, and beside it only in the pace at which prompts are read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from langchain_specdec.drafters.acceptance import DraftKind
from langchain_specdec.drafters.base import NOTHING, Draft, Drafter, DraftLimits, Proposal
from langchain_specdec.engine.request import Request
from langchain_specdec.engine.step_cost import StepCost, measure_step_cost
from langchain_specdec.runner.runner import Runner
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.runner.verify import Verdict
from langchain_specdec.sampling.noise import Noise
from langchain_specdec.sampling.params import SamplingParams

_logger = logging.getLogger(__name__)

# Tokens less likely than this are never drafted: finding them takes time too, even where checking them is free.
_MIN_REACH = 0.004
# A probe drafts so many tokens more than pay. All probes together may take this share of plain decoding's time.
_PROBE_TOKENS = 2
_PROBE_SHARE = 0.01
# While no draft pays, looking for one may take this share of plain decoding's time.
_LOOK_SHARE = 0.01
# How much one look moves what a look is taken to cost.
_LOOK_WEIGHT = 0.1
# What a step is taken to cost where width is free, until it is measured; only the ratios decide.
_ASSUMED_SECONDS = 0.02


@dataclass(frozen=True)
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
        self._costed_graphs = runner.graphs
        # What looking for a row's draft takes, the time saved up for it, and whether any draft paid at the last step.
        self._look_seconds = self._look_credit = 0.0
        self._is_drafting = True
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
        may_look = self._may_look(len(requests))
        offers = self._consider(requests, may_look=may_look)
        # Measuring what steps cost is no part of decoding.
        started += self._update_cost(requests[0], offers) if may_prepare else 0.0
        # Ranking a vocabulary for each row takes time, so a step in which nothing is looked for tells nothing either.
        # Where steps are captured it costs next to none, and their graphs are made for it.
        is_told = may_look or self._runner.is_width_free
        plan = replace(self._choose(requests, offers), num_candidates=self.num_candidates if is_told else 0)
        for request in requests:
            request.decode_started = request.decode_started or started
            request.plain_token_seconds = 0.0 if self._is_cost_given else plan.plain_seconds
        return plan

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
            self._cost.observe(rows, max(map(len, verdict.picks)), ended - self._verify_started)
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
            tokens = verdict.tokens(row)
            for guess in guesses:
                request.rates.observe(_outcomes(guess, tokens))
            stats = request.stats
            stats.predicted_seconds += plan.seconds
            stats.predicted_plain_seconds += plan.tokens[row] * plan.plain_seconds
            stats.decode_seconds = time.perf_counter() - (request.decode_started or 0.0)

    def _make_next_graph(self, request: Request) -> None:
        """Have a graph made that a coming step may need, at the end of a text, where what is left gets overwritten."""
        if self._cost is not None and not self._is_cost_given:
            noise = Noise.of([request.params], [request.seed])
            last = [request.token_ids[-1:]]
            batch = RowBatch([request.slot], [request.num_cached], last, None, noise, self.num_candidates)
            self._runner.make_next_graph(batch)

    def _consider(self, requests: Sequence[Request], *, may_look: bool) -> list[Sequence[Proposal]]:
        """All that could be drafted for each row; nothing where looking for it would cost more than noise."""
        rows = len(requests)
        started = time.perf_counter()
        offers: list[Sequence[Proposal]] = []
        for request in requests:
            # What a grammar forces is never passed over.
            if not may_look and request.constraint is None:
                offers.append(())
                continue
            # The target always adds one token of its own, so the last one need not be drafted.
            max_depth = min(self._max_draft_tokens, request.num_remaining - 1)
            limits = limits_that_pay(self._cost, rows, max_depth, self._max_tree_nodes)
            offers.append(self._drafter.consider(request, limits))
        if may_look:
            seconds = (time.perf_counter() - started) / rows
            self._look_seconds += (_LOOK_WEIGHT if self._look_seconds else 1.0) * (seconds - self._look_seconds)
        return offers

    def _may_look(self, rows: int) -> bool:
        """Whether to look for drafts: always while they pay, and else as often as a small share of the time allows.

        Where many rows share a step, nothing may pay for a long time. All of them are looked at in the same step, since
        they share its width.
        """
        if self._is_drafting or self._cost is None or self._is_cost_given or not self._is_adaptive:
            return True
        self._look_credit += _LOOK_SHARE * self._cost.verify_seconds(rows, 1)
        if self._look_credit < rows * self._look_seconds:
            return False
        self._look_credit = 0.0
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

    def _choose(self, requests: Sequence[Request], offers: Sequence[Sequence[Proposal]]) -> Plan:
        cost, rows = self._cost, len(requests)
        if not self._is_adaptive or cost is None:
            proposals = [offer[0] if offer else NOTHING for offer in offers]
            plain = cost.verify_seconds(rows, 1) if cost is not None else 0.0
            # Whether drafts pay is not known before costs are.
            fixed = tuple(0 if self._is_adaptive else len(p.reaches) for p in proposals)
            return Plan(fixed, (0.0,) * rows, 0.0, plain, offers, proposals)
        proposals = [_most_promising(offer, rows, cost) for offer in offers]
        plan = best_lengths([p.reaches for p in proposals], [p.steps_per_token for p in proposals], cost)
        lengths = list(plan.lengths)
        self._is_drafting = any(lengths)
        for row, request in enumerate(requests):
            proposals[row], lengths[row] = self._probe(request, offers[row], proposals[row], lengths[row], rows, cost)
        return replace(plan, lengths=tuple(lengths), offers=offers, proposals=proposals)

    def _probe(
        self, request: Request, offer: Sequence[Proposal], proposal: Proposal, length: int, rows: int, cost: StepCost
    ) -> tuple[Proposal, int]:
        """The draft as chosen, or now and then a longer one (a probe).

        Probes learn what is never tried otherwise: how good a draft model is by now, and what a wide step costs by now
        if the machine was busy when it was measured. Each step saves a small share of its time for probes. The rows
        share that budget, since one row's probe makes all of them wait.
        """
        computed = next((p for p in offer if p.steps_per_token), None)
        if computed is not None and computed.source != proposal.source:
            probe, longer = computed, min(_PROBE_TOKENS, len(computed.reaches))
        else:
            probe, longer = proposal, min(length + _PROBE_TOKENS, len(proposal.reaches))
            is_known = proposal.steps_per_token == 0 and self._is_cost_given
            if is_known or longer == length:
                return proposal, length
        plain = cost.verify_seconds(rows, 1)
        request.probe_credit += _PROBE_SHARE * plain / rows
        extra = max(cost.verify_seconds(rows, 1 + longer) - cost.verify_seconds(rows, 1 + length), 0.0)
        steps = probe.steps_per_token * (longer if probe is not proposal else longer - length)
        if request.probe_credit < min(extra, plain) + cost.draft_seconds(steps):
            return proposal, length
        request.probe_credit = 0.0
        return probe, longer


def limits_that_pay(cost: StepCost | None, rows: int, max_depth: int, max_nodes: int) -> DraftLimits:
    """How far it is worth looking for draft tokens.

    A plain step gives each row one token in ``V(rows, 1)``, so a node must be reached with a chance of at least the
    share of ``V(rows, 1)`` that it costs. Costs need not grow evenly, so half of a node's mean cost is asked for.
    """
    if cost is None or max_nodes < 1:
        return DraftLimits(max_depth, max_nodes, _MIN_REACH)
    plain = cost.verify_seconds(rows, 1)
    growth = (cost.verify_seconds(rows, 1 + max_nodes) - plain) / (max_nodes * plain)
    return DraftLimits(max_depth, max_nodes, max(0.5 * growth, _MIN_REACH))


def best_lengths(reaches: Sequence[Sequence[float]], steps_per_token: Sequence[int], cost: StepCost) -> Plan:
    """The numbers of draft tokens that maximise expected tokens per second of the coming step.

    Free drafts (lookups) and computed ones (a draft model) may have different lengths, because only the latter cost
    forwards of their own. All rows of a kind share a length, as a shorter row is padded to the widest anyway.

    Args:
        reaches: For each row its tokens' chances of being reached, in descending order.
        steps_per_token: For each row the draft forwards that a token costs: 0 or 1.
        cost: What steps cost.

    Returns:
        A plan without proposals. Each length is from 0 to `len(reaches[row])`, and of equally good ones the shortest.
    """
    rows = len(reaches)
    free = _expected_gains([r for r, s in zip(reaches, steps_per_token, strict=True) if s == 0])
    computed = _expected_gains([r for r, s in zip(reaches, steps_per_token, strict=True) if s > 0])
    plain_seconds = cost.verify_seconds(rows, 1)
    best, best_seconds, best_rate = (0, 0), plain_seconds, rows / plain_seconds
    for num_computed, computed_gain in enumerate(computed):
        draft_seconds = cost.draft_seconds(num_computed)
        for num_free, free_gain in enumerate(free):
            seconds = cost.verify_seconds(rows, 1 + max(num_free, num_computed)) + draft_seconds
            rate = (rows + free_gain + computed_gain) / seconds
            if rate > best_rate:
                best, best_rate, best_seconds = (num_free, num_computed), rate, seconds
    lengths = [min(best[s > 0], len(r)) for r, s in zip(reaches, steps_per_token, strict=True)]
    tokens = [1.0 + sum(r[:n]) for r, n in zip(reaches, lengths, strict=True)]
    return Plan(tuple(lengths), tuple(tokens), best_seconds, plain_seconds)


def _most_promising(offer: Sequence[Proposal], rows: int, cost: StepCost) -> Proposal:
    """The alternative that promises most per second, if all rows had the like; of equals the preferred one."""

    def promise(proposal: Proposal) -> float:
        plan = best_lengths([proposal.reaches] * rows, [proposal.steps_per_token] * rows, cost)
        return sum(plan.tokens) / plan.seconds

    if len(offer) < 2:
        return offer[0] if offer else NOTHING
    return max(offer, key=promise)


def _expected_gains(reaches: Sequence[Sequence[float]]) -> list[float]:
    """Expected accepted tokens of all rows together, by draft length from 0."""
    longest = max((len(r) for r in reaches), default=0)
    gains = [0.0] * (longest + 1)
    for row in reaches:
        totals = [0.0, *accumulate(row)]
        for length in range(longest + 1):
            gains[length] += totals[min(length, len(row))]
    return gains


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
