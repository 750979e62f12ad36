"""Has each step drafted what pays, and learns from what came of it.

How much pays is chosen by `draft_choice`. Clocks, costs and rates are known there and here, and beside it only where
rows are chosen and in the pace at which prompts are read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from langchain_specdec.drafters.base import Draft, Drafter, DraftLimits, Proposal
from langchain_specdec.drafters.outcomes import outcomes
from langchain_specdec.engine.draft_choice import DraftChooser, Plan, fixed_plan, idle_plan
from langchain_specdec.engine.drafting_rows import depths_of_all, depths_unpadded
from langchain_specdec.engine.request import Request
from langchain_specdec.engine.spare_time import SpareTime
from langchain_specdec.engine.step_cost import StepCost, measure_step_cost
from langchain_specdec.runner.runner import Runner
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.runner.verify import Verdict
from langchain_specdec.sampling.noise import Noise
from langchain_specdec.sampling.params import SamplingParams

# Once no draft has paid for so many steps, looking for one may take this share of plain decoding's time.
_LOOK_STEPS = 4
_LOOK_SHARE = 0.004
# How much one look moves what a look is taken to cost.
_LOOK_WEIGHT = 0.1
# What a step is taken to cost where width is free, until it is measured; only the ratios decide.
_ASSUMED_SECONDS = 0.02


class DraftPlanner:
    """Decides what to draft, has it drafted, and learns from what came of it.

    Args:
        runner: The target model.
        drafter: Where drafts come from. It does not fail; see `GuardedDrafter`.
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
        self._is_cost_given = step_cost is not None
        takes_trees = self._is_adaptive and runner.takes_trees
        self._chooser = DraftChooser(max_tree_nodes if takes_trees else 0, probes_width=not self._is_cost_given)
        self._is_cost_measured = False
        if step_cost is None and self._is_adaptive and runner.is_width_free:
            # Where launching bounds a step, a draft forward costs by its layers.
            step_cost = StepCost.flat(_ASSUMED_SECONDS, drafter.num_layers / len(runner.cache))
        self._cost = step_cost
        self._is_padded = runner.pads_rows
        self._costed_graphs = runner.graphs
        # What looking for a row's draft takes, the time saved up for it, and for how many steps no draft has paid.
        self._look_seconds = 0.0
        self._look_time = SpareTime(_LOOK_SHARE)
        self._num_idle = 0
        # Clock at the start of verification in the current step, and what its draft forwards took.
        self._verify_started = self._draft_seconds = 0.0
        # Whether the step before ran draft forwards, so that those of this one have nothing to catch up with.
        self._is_drafting = False

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
        # A length that is fixed is drafted whatever it costs.
        limits = self._chooser.limits(self._cost if self._is_adaptive else None, len(rows) or 1)
        offers = self._consider(requests, rows, limits, may_look=may_look)
        # Measuring what steps cost is no part of decoding.
        started += self._update_cost(requests[0], offers) if may_prepare else 0.0
        # Ranking a vocabulary for each row takes time, so a step in which nothing is looked for tells nothing either.
        # Where steps are captured it costs next to none, and their graphs are made for it.
        is_told = may_look or self._runner.is_width_free
        plan = self._choose(requests, offers, list(rows), limits.min_reach)
        plan.num_candidates = self.num_candidates if is_told else 0
        for request in requests:
            request.decode_started = request.decode_started or started
            request.plain_token_seconds = 0.0 if self._is_cost_given else plan.plain_seconds
        return plan

    def _choose(
        self, requests: Sequence[Request], offers: Sequence[Sequence[Proposal]], rows: Sequence[int], least: float
    ) -> Plan:
        plain = self._cost.verify_seconds(len(requests), 1) if self._cost is not None else 0.0
        if not self._is_adaptive:
            return fixed_plan(offers, plain)
        # Whether drafts pay is not known before costs are.
        if self._cost is None:
            return idle_plan(offers)
        plan = self._chooser.choose(requests, offers, rows, least, self._cost, is_resumed=not self._is_drafting)
        self._num_idle = self._num_idle + 1 if plan.is_idle else 0
        return plan

    def _drafting_rows(self, requests: Sequence[Request]) -> dict[int, int]:
        """The rows that may draft, with how far."""
        if self._is_padded or self._is_cost_given or not self._is_adaptive:
            return depths_of_all(requests, self._max_draft_tokens)
        return depths_unpadded(requests, self._max_draft_tokens, self._cost)

    def propose(self, requests: Sequence[Request], plan: Plan) -> list[Draft]:
        """Have the drafts made that were planned; each row's becomes one tree of all that is proposed for it."""
        started, num_before = self._runner.clock(), self._drafter.num_forwards
        drafts = self._drafter.propose(requests, plan.proposals, plan.lengths)
        plan.num_forwards = self._drafter.num_forwards - num_before
        self._verify_started = self._runner.clock()
        self._draft_seconds = self._verify_started - started
        plan.guesses = [[p.draft for p in offer if p.draft.tokens] for offer in plan.offers]
        if plan.num_forwards:
            for guesses, draft, proposal in zip(plan.guesses, drafts, plan.proposals, strict=True):
                guesses += [draft] * bool(proposal.steps_per_token)
            if self._is_adaptive and self._cost is not None:
                drafts = self._chooser.merge(requests, plan, drafts, self._cost)
                # Making one tree of them is neither drafting nor checking.
                self._verify_started = self._runner.clock()
        return drafts

    def learn(self, requests: Sequence[Request], plan: Plan, verdict: Verdict) -> None:
        """Learn what the step cost and which guesses were right, before the requests' texts grow."""
        ended, rows = self._runner.clock(), len(requests)
        if self._cost is not None and not self._is_cost_given:
            width = max(map(len, verdict.picks))
            # Rows that are not padded would each have a width of their own.
            if width == 1 or rows == 1 or self._is_padded:
                self._cost.observe(rows, width, ended - self._verify_started)
            if self._drafter.num_layers:
                self._cost.observe_draft(plan.num_forwards, self._draft_seconds, is_resumed=plan.is_resumed)
        self._is_drafting = plan.num_forwards > 0
        self._chooser.learn(plan, verdict)
        if self._is_adaptive and plan.num_candidates == self.num_candidates:
            self._drafter.observe(requests, verdict)
        for row, request in enumerate(requests):
            # Guesses that were offered but not drafted count too: comparing them costs nothing.
            for guess in plan.guesses[row]:
                request.rates.observe(outcomes(guess, verdict.tokens(row)))
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
        self, requests: Sequence[Request], rows: Mapping[int, int], limits: DraftLimits, *, may_look: bool
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
                offers[row] = self._drafter.consider(request, replace(limits, max_depth=max_depth))
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
        if self._chooser.may_run(self._cost):
            return True
        self._look_time.save(self._cost.verify_seconds(rows, 1))
        return self._look_time.spend(num_drafting * self._look_seconds)

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
