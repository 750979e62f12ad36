"""What a step drafts: how many tokens of what is offered, and how many draft forwards beside them.

How much pays is the rule of `draft_length`; here it is applied to the rows of a step, twice where drafts are computed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from langchain_specdec.drafters.base import NOTHING, Draft, DraftLimits, Proposal
from langchain_specdec.drafters.merged import merge
from langchain_specdec.drafters.outcomes import num_right
from langchain_specdec.engine.draft_length import DraftLengths, best_forwards, best_lengths, least_reach, lengths_worth
from langchain_specdec.engine.forward_worth import ForwardWorth
from langchain_specdec.engine.request import Request
from langchain_specdec.engine.spare_time import SpareTime
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.runner.verify import Verdict

# Drafts that promise less than this over a plain step are left, and so are draft forwards over a step without them:
# the promise is an estimate.
_LEAST_GAIN = 0.02
# Tokens at least this likely are looked for whatever they are taken to cost: that may be wrong.
_MOST_LEAST_REACH = 0.4
# A probe of free drafts has so many tokens more than pay, the first of them at least this likely. All probes together
# may lose this share of plain decoding's time.
_PROBE_TOKENS = 2
_PROBE_REACH = 0.5
_PROBE_SHARE = 0.005
_MOST_PROBE_STEPS = 2
# Runs of forwards whose worth is not known, or was not much lately, may take this share.
_RUN_SHARE = 0.005


@dataclass
class Plan:
    """What a step does, and what is expected of it.

    Attributes:
        lengths: Draft tokens of each row; levels, where they are to be computed.
        tokens: Expected tokens of each row, the target's own included; 0 where no choice was made by cost.
        seconds: Expected cost of the step; 0 where no choice was made by cost.
        plain_seconds: Cost of a step without drafts; 0 where it is not known.
        offers: All that could be drafted for each row.
        proposals: What each row's draft is taken from.
        num_candidates: How many of the target's best tokens after each token are to be learned from.
        num_forwards: Draft forwards; the rows share them.
        free: What each row could draft without them.
        rows: The rows that may draft.
        is_idle: Whether no draft is expected to save time.
        is_resumed: Whether draft forwards would be the first after a step without.
        free_gain: Tokens beyond the target's own that free drafts promise a row.
        alone: Where draft forwards ran, what would have been checked without them, of the rows that may draft.
        checking: What it takes longer to check what they gave beside that, in the tokens that the time would bring.
        guesses: What each row's sources proposed, each by itself, checked or not.
    """

    lengths: tuple[int, ...]
    tokens: tuple[float, ...]
    seconds: float
    plain_seconds: float
    offers: Sequence[Sequence[Proposal]] = ()
    proposals: Sequence[Proposal] = ()
    num_candidates: int = 0
    num_forwards: int = 0
    free: Sequence[Proposal] = ()
    rows: Sequence[int] = ()
    is_idle: bool = True
    is_resumed: bool = False
    free_gain: float = 0.0
    alone: Sequence[Draft] = ()
    checking: float = 0.0
    guesses: list[list[Draft]] = field(default_factory=list)


class DraftChooser:
    """Chooses drafts by what steps cost and what is likely to stand.

    Args:
        max_nodes: Most tokens of a draft that is a tree; 0: chains only.
        probes_width: Whether wider steps than pay are tried now and then, to see what they cost by now.
    """

    def __init__(self, max_nodes: int, *, probes_width: bool) -> None:
        self._max_nodes = max_nodes
        self._probes_width = probes_width
        self._probe_time = SpareTime(_PROBE_SHARE, _MOST_PROBE_STEPS)
        self._run_time = SpareTime(_RUN_SHARE, _MOST_PROBE_STEPS)
        self._worth = ForwardWorth()
        # Whether there were drafts of which only a run tells what they bring.
        self._has_grown = False

    def limits(self, cost: StepCost | None, rows: int) -> DraftLimits:
        """How many tokens drafts of so many rows may have, and how unlikely they may be; how deep is not said."""
        least = min(least_reach(cost, rows, self._max_nodes), _MOST_LEAST_REACH)
        # A plain step brings each row one token.
        gain = 0.0 if cost is None else rows * cost.draft_seconds(1) / cost.verify_seconds(rows, 1)
        return DraftLimits(0, self._max_nodes, least, gain)

    def choose(
        self,
        requests: Sequence[Request],
        offers: Sequence[Sequence[Proposal]],
        rows: Collection[int],
        least: float,
        cost: StepCost,
        *,
        is_resumed: bool = False,
    ) -> Plan:
        """Choose what to have computed and, of what is known already, what to have checked.

        Args:
            requests: The rows of the step.
            offers: What could be drafted for each.
            rows: Which of them may draft.
            least: The chance of being reached below which a token was not looked for.
            cost: What steps cost.
            is_resumed: Whether draft forwards would be the first after a step without.
        """
        count, plain = len(requests), cost.verify_seconds(len(requests), 1)
        plan = Plan(
            (0,) * count,
            (1.0,) * count,
            plain,
            plain,
            offers,
            [NOTHING] * count,
            rows=tuple(rows),
            is_resumed=is_resumed,
        )
        self._probe_time.save(plain)
        self._run_time.save(plain)
        if not any(p.steps_per_token or p.reaches[0] >= least for offer in offers for p in offer if p.reaches):
            return plan
        plan.free = plan.proposals = [self._free(*each) for each in zip(requests, offers, strict=True)]
        computed = [next((p for p in offer if p.steps_per_token), NOTHING) for offer in offers]
        choice = best_lengths([plan.free[row].reaches for row in rows], cost)
        plan.free_gain = sum(choice.tokens) / len(choice.tokens) - 1.0
        if is_computed := any(p.reaches for p in computed):
            choice = self._with_forwards(plan, computed, choice, cost)
        plan.is_idle = not any(choice.lengths)
        if choice.gain >= 1 + _LEAST_GAIN:
            _expect(plan, choice)
            if choice.num_forwards:
                _compute(plan, computed, choice.num_forwards)
        if is_computed:
            self._probe_computed(plan, computed, cost)
        if self._probes_width and not plan.num_forwards:
            self._probe_free(plan, cost)
        return plan

    def merge(self, requests: Sequence[Request], plan: Plan, drafts: Sequence[Draft], cost: StepCost) -> list[Draft]:
        """One tree for each row of what was computed and what is free, as large as pays now that it is known."""
        limits = self.limits(cost, len(plan.rows))
        trees = {row: merge([drafts[row], plan.free[row].draft], requests[row].rates, limits) for row in plan.rows}
        spent = cost.draft_seconds(plan.num_forwards, is_resumed=plan.is_resumed)
        # What the rows that draft take by themselves.
        seconds = plan.seconds - plan.plain_seconds + cost.verify_seconds(len(plan.rows), 1)
        worth = sum(plan.tokens[row] for row in plan.rows) / seconds
        chosen = lengths_worth([reaches for _, reaches in trees.values()], cost, spent, worth)
        _expect(plan, chosen)
        alone = lengths_worth([plan.free[row].reaches for row in plan.rows], cost, spent, worth)
        plan.alone = [plan.free[row].draft.cut(length) for row, length in zip(plan.rows, alone.lengths, strict=True)]
        plan.checking = worth * (chosen.seconds - alone.seconds)
        return [trees[row][0].cut(plan.lengths[row]) if row in trees else draft for row, draft in enumerate(drafts)]

    def learn(self, plan: Plan, verdict: Verdict) -> None:
        """Count what draft forwards brought: tokens beyond those of free drafts, less the time of checking them."""
        if not plan.alone:
            return
        brought = -plan.checking
        for row, draft in zip(plan.rows, plan.alone, strict=True):
            tokens = verdict.tokens(row)
            # One of them is the target's own; a row whose scores are not sound has none.
            brought += max(len(tokens) - 1, 0) - num_right(draft, tokens)
        self._worth.observe(plan.free_gain, brought / len(plan.rows), plan.num_forwards)

    def _free(self, request: Request, offer: Sequence[Proposal]) -> Proposal:
        """All that can be drafted for a row without a forward, as one proposal."""
        if len(offer) == 1 and not offer[0].steps_per_token:
            return offer[0]
        free = [p for p in offer if not p.steps_per_token]
        if len(free) < 2:
            return free[0] if free else NOTHING
        # None of the drafters proposes it by itself.
        return Proposal(*merge([p.draft for p in free], request.rates, DraftLimits(0, self._max_nodes)), source=-1)

    def _with_forwards(
        self, plan: Plan, computed: Sequence[Proposal], alone: DraftLengths, cost: StepCost
    ) -> DraftLengths:
        """The forwards that pay beside free drafts; or those alone, where none does."""
        own = [computed[row] for row in plan.rows]
        if any(p.grows for p in own):
            beside = self._run(plan, own, alone, cost)
        else:
            free = [plan.free[row] for row in plan.rows]
            beside = best_forwards(free, own, cost, self._max_nodes, is_resumed=plan.is_resumed)
        return alone if beside is None or beside.gain < (1 + _LEAST_GAIN) * alone.gain else beside

    def _run(self, plan: Plan, own: Sequence[Proposal], alone: DraftLengths, cost: StepCost) -> DraftLengths | None:
        """A run of forwards that ends by what it sees, as those before it; None: there were none to judge by."""
        if (expected := self._worth.expected(plan.free_gain)) is None:
            return None
        brought, forwards = expected
        count = max(round(forwards), 1)
        return DraftLengths(
            tuple([min(count, len(p.reaches)) for p in own]),
            tuple([tokens + brought for tokens in alone.tokens]),
            alone.seconds + cost.draft_seconds(forwards, is_resumed=plan.is_resumed),
            alone.plain_seconds,
            count,
        )

    def _probe_computed(self, plan: Plan, computed: Sequence[Proposal], cost: StepCost) -> None:
        """Now and then compute a level more than pays, to learn how good it is by now.

        That takes no more than the forward: whether its tokens are right is seen without having them checked.
        """
        count = plan.num_forwards + 1
        seconds = cost.draft_seconds(1, is_resumed=plan.is_resumed and count == 1)
        if any(p.grows for p in computed):
            self._has_grown = True
            # What grows goes as far as it is promising by itself.
            if count == 1 and self.may_run(cost):
                self._run_time.owe(seconds)
                _compute(plan, computed, 1)
        elif count <= max(len(p.reaches) for p in computed) and self._probe_time.spend(seconds):
            _compute(plan, computed, count)

    def may_run(self, cost: StepCost) -> bool:
        """Whether a run of forwards is due by which it is seen what they bring by now."""
        if not self._has_grown:
            return False
        return not self._worth.is_known or self._run_time.holds(cost.draft_seconds(1))

    def _probe_free(self, plan: Plan, cost: StepCost) -> None:
        """Now and then draft more tokens than pay, to learn what a wide step costs by now.

        The machine may have been busy when it was measured. Each step saves a small share of its time for what these
        are expected to lose, whichever row it is that probes: all of them wait for it.
        """
        lengths, rows = list(plan.lengths), len(plan.rows)
        plain = cost.verify_seconds(rows, 1)
        for row in plan.rows:
            begin, reaches = lengths[row], plan.free[row].reaches
            tried = reaches[begin : begin + _PROBE_TOKENS]
            if tried and tried[0] >= _PROBE_REACH:
                wide, wider = (cost.verify_seconds(rows, 1 + begin + more) for more in (0, len(tried)))
                if self._probe_time.spend(max(wider - wide, 0.0) - sum(tried) * plain / rows):
                    lengths[row] += len(tried)
        plan.lengths = tuple(lengths)


def idle_plan(offers: Sequence[Sequence[Proposal]]) -> Plan:
    """A plan that drafts nothing, before costs are known."""
    rows = len(offers)
    return Plan((0,) * rows, (0.0,) * rows, 0.0, 0.0, offers, [NOTHING] * rows)


def fixed_plan(offers: Sequence[Sequence[Proposal]], plain_seconds: float) -> Plan:
    """A plan that takes all of each row's preferred proposal, whatever that costs."""
    proposals = [offer[0] if offer else NOTHING for offer in offers]
    return Plan(
        tuple([len(p.reaches) for p in proposals]),
        (0.0,) * len(offers),
        0.0,
        plain_seconds,
        offers,
        proposals,
        num_forwards=max(len(p.reaches) * p.steps_per_token for p in proposals),
    )


def _expect(plan: Plan, choice: DraftLengths) -> None:
    """Take a choice over as what the step does and is expected to bring."""
    lengths, tokens = [0] * len(plan.lengths), [1.0] * len(plan.lengths)
    for row, length, expected in zip(plan.rows, choice.lengths, choice.tokens, strict=True):
        lengths[row], tokens[row] = length, expected
    plan.lengths, plan.tokens = tuple(lengths), tuple(tokens)
    plan.seconds = plan.plain_seconds + choice.seconds - choice.plain_seconds


def _compute(plan: Plan, computed: Sequence[Proposal], num_forwards: int) -> None:
    """Have so many levels computed for all rows where that can be done; the others have all at hand that is free."""
    plan.num_forwards = num_forwards
    plan.proposals = [p if p.reaches else free for p, free in zip(computed, plan.free, strict=True)]
    most = [num_forwards if p.steps_per_token else len(p.reaches) for p in plan.proposals]
    plan.lengths = tuple([min(n, len(p.reaches)) for n, p in zip(most, plan.proposals, strict=True)])
