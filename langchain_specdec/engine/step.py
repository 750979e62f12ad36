"""What one turn of the engine does to its requests: start, prefill, and the draft-verify-accept step."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from langchain_specdec.completions.events import FinishEvent, Token, TokenEvent
from langchain_specdec.drafters.base import FORCED, Draft, Drafter, DraftKind, Proposal
from langchain_specdec.engine.draft_planner import Choice, best_first, choose_lengths, limits_that_pay
from langchain_specdec.engine.request import Request
from langchain_specdec.engine.step_cost import StepCost, measure_step_cost
from langchain_specdec.grammar.constraint import Constraint
from langchain_specdec.grammar.token_masks import allowed_tensor
from langchain_specdec.runner.kv_cache import is_gapless
from langchain_specdec.runner.model_runner import ModelRunner
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.runner.step_logits import StepLogits
from langchain_specdec.runner.verify import Verification, accept_picks
from langchain_specdec.sampling.choice import SamplingTable, TokenHistory, pick_tokens
from langchain_specdec.sampling.noise import Noise

__all__ = ["Stepper"]

_logger = logging.getLogger(__name__)

# Tokens that a probe drafts beyond what pays, and the share of plain decoding's time that probes may take.
_PROBE_TOKENS = 2
_PROBE_SHARE = 0.01


@dataclass(frozen=True)
class _Plan:
    """What a step does for one request, and what was expected of it.

    Attributes:
        draft: What is verified.
        offer: All that could have been.
        proposal: The part of it that the draft was taken from.
        tokens: Expected tokens.
        seconds: Expected cost of the step; 0 where no choice was made by cost.
        plain: Cost of a step without drafts; 0 where it is not known.
    """

    draft: Draft
    offer: Proposal
    proposal: Proposal
    tokens: float
    seconds: float
    plain: float


class Stepper:
    """Runs steps for the requests it is given. Which requests is not its business.

    Args:
        runner: The target model.
        drafter: Where drafts come from.
        max_draft_tokens: Most tokens to draft at a time.
        max_tree_nodes: Most tokens of a draft that is a tree; 0: chains only.
        draft_length: `"auto"` or a fixed number, of chains then.
        step_cost: What steps cost; None measures it before the first step that needs it, and whenever graphs take
            over or fail.
    """

    def __init__(
        self,
        runner: ModelRunner,
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
        self._max_tree_nodes = max_tree_nodes if self._is_adaptive else 0
        self._cost = step_cost
        self._is_cost_given = step_cost is not None
        self._costed_graphs = runner.graphs
        self._history: TokenHistory | None = None
        self._table: SamplingTable | None = None
        self._table_ids: tuple[int, ...] = ()
        self.num_prefill_tokens = 0

    def start(self, requests: Sequence[Request]) -> None:
        """Set up what new requests need beside their slot."""
        for request in requests:
            if request.params.needs_history:
                if self._history is None:
                    slots = self._runner.cache.num_slots
                    self._history = TokenHistory(slots, self._runner.vocab_size, self._runner.device)
                self._history.start(request.slot, request.prompt_ids)

    def prefill(self, requests: Sequence[Request], stops: Sequence[int]) -> None:
        """Take each request's prompt tokens up to its stop into its slot."""
        starts = [r.num_cached for r in requests]
        tokens = [r.token_ids[r.num_cached : stop] for r, stop in zip(requests, stops, strict=True)]
        self._runner.prefill([r.slot for r in requests], starts, tokens)
        self._drafter.prefill(requests, starts, stops)
        self.num_prefill_tokens += sum(len(t) for t in tokens)
        for request, stop in zip(requests, stops, strict=True):
            request.num_cached = stop

    def decode(self, requests: Sequence[Request]) -> list[tuple[Request, Exception]]:
        """Draft, verify in one forward, accept, and hand out what was emitted.

        Returns:
            Requests whose tokens could not be handed out, with the error; the others went on.
        """
        started = time.perf_counter()
        self._runner.begin_turn()
        offers = [self._consider(r, len(requests)) for r in requests]
        measuring = time.perf_counter()
        cost = self._step_cost(requests[0], offers)
        # Measuring what steps cost is no part of decoding.
        started += time.perf_counter() - measuring
        for request in requests:
            request.decode_started = request.decode_started or started
        proposals, choice = self._choose(requests, offers, cost)
        drafting = self._runner.clock()
        drafts = self._drafter.propose(requests, proposals, choice.lengths, self._history)
        drafted = self._runner.clock()
        batch = RowBatch(
            [r.slot for r in requests],
            [r.num_cached for r in requests],
            [[r.token_ids[-1], *d.tokens] for r, d in zip(requests, drafts, strict=True)],
            [[-1, *(p + 1 for p in d.parents)] for d in drafts],
            Noise.of([r.params for r in requests], [r.seed for r in requests]),
        )
        found = self._runner.verify(batch)
        logits = found.logits
        verdict = found.verdict if found.verdict is not None else self._verdict(requests, drafts, found)
        picks, stands = verdict.tolist()
        ended = self._runner.clock()
        plain = cost.verify_seconds(len(requests), 1) if cost is not None else 0.0
        if cost is not None and not self._is_cost_given:
            cost.observe(len(requests), logits.shape[1], ended - drafted)
            steps = max((len(d) * p.steps_per_token for d, p in zip(drafts, proposals, strict=True)), default=0)
            cost.observe_draft(steps, drafted - drafting)
        paths = [[node for node, is_standing in enumerate(row) if is_standing] for row in stands]
        for row, request in enumerate(requests):
            if request.constraint is not None:
                paths[row] = _in_time(request.constraint, picks[row], paths[row], request.num_remaining)
        # On the device, so that closing the gaps of trees takes no further copy to it.
        order = None if all(map(is_gapless, paths)) else verdict[1].argsort(dim=-1, descending=True, stable=True)
        if self._is_adaptive:
            self._observe(requests, batch.tokens, paths, logits.tensor)
        failures: list[tuple[Request, Exception]] = []
        for row, request in enumerate(requests):
            plan = _Plan(drafts[row], offers[row], proposals[row], choice.tokens[row], choice.seconds, plain)
            try:
                index = order[row] if order is not None else None
                self._emit(request, plan, picks[row], paths[row], logits[row], index)
            except Exception as error:
                failures.append((request, error))
        if cost is not None and not self._is_cost_given:
            self._make_next_graph(requests)
        return failures

    def _make_next_graph(self, requests: Sequence[Request]) -> None:
        """Have a graph made that a coming step may need, at the end of a text, where what is left gets overwritten."""
        if self._runner.captured is None:
            return
        request = next((r for r in requests if not r.is_finished), None)
        if request is not None:
            noise = Noise.of([request.params], [request.seed])
            self._runner.make_next_graph(
                RowBatch([request.slot], [request.num_cached], [request.token_ids[-1:]], noise=noise)
            )

    def _consider(self, request: Request, rows: int) -> Proposal:
        # The last token always comes from the target, so drafting it would be wasted.
        max_depth = min(self._max_draft_tokens, request.num_remaining - 1)
        limits = limits_that_pay(self._cost, rows, max_depth, self._max_tree_nodes)
        return self._drafter.consider(request, limits)

    def _step_cost(self, request: Request, offers: Sequence[Proposal]) -> StepCost | None:
        graphs = self._runner.graphs
        # Where graphs take over, or fail, steps cost something else from then on.
        is_stale = self._cost is not None and not self._is_cost_given and graphs != self._costed_graphs
        is_missing = self._cost is None and self._is_adaptive and any(p.kinds for p in offers)
        if is_missing or is_stale:
            self._cost = measure_step_cost(self._runner, self._drafter, request)
            self._costed_graphs = graphs
        return self._cost

    def _choose(
        self, requests: Sequence[Request], offers: Sequence[Proposal], cost: StepCost | None
    ) -> tuple[list[Proposal], Choice]:
        """Which proposal each request's draft is taken from, its tokens in the order to take them, and how many."""
        if not self._is_adaptive or cost is None:
            return list(offers), Choice(tuple(len(p.kinds) for p in offers), (0.0,) * len(offers), 0.0)
        ranked = [self._best_offer(r, p, len(requests), cost) for r, p in zip(requests, offers, strict=True)]
        proposals, reaches = [p for p, _ in ranked], [r for _, r in ranked]
        choice = choose_lengths(reaches, [p.steps_per_token for p in proposals], cost)
        lengths = list(choice.lengths)
        for row, request in enumerate(requests):
            proposals[row], lengths[row] = self._probed(
                request, offers[row], proposals[row], lengths[row], len(requests), cost
            )
        return proposals, replace(choice, lengths=tuple(lengths))

    @staticmethod
    def _best_offer(request: Request, offer: Proposal, rows: int, cost: StepCost) -> tuple[Proposal, list[float]]:
        """The alternative that promises most per second, if all rows had the like; its tokens' reaches."""
        ranked = []
        for proposal in (offer, *offer.alternatives):
            draft, reaches = best_first(proposal.draft, proposal.kinds, request.rates)
            if draft is not proposal.draft:
                proposal = replace(proposal, draft=draft, kinds=draft.kinds)
            ranked.append((proposal, reaches))
        if len(ranked) == 1:
            return ranked[0]

        def promise(option: tuple[Proposal, list[float]]) -> float:
            proposal, reaches = option
            choice = choose_lengths([reaches] * rows, [proposal.steps_per_token] * rows, cost)
            return sum(choice.tokens) / choice.seconds

        # max() takes the first of equals: the preferred one.
        return max(ranked, key=promise)

    def _probed(
        self, request: Request, offer: Proposal, proposal: Proposal, length: int, rows: int, cost: StepCost
    ) -> tuple[Proposal, int]:
        """The draft as chosen, or now and then a longer one, to learn what is never tried otherwise.

        That is how good a draft model is, and what a wide step costs: a machine that was busy when it was measured
        would else seem so for good. Probes are paid from a small share of each step, which its rows have in common, as
        one row's probe makes all of them wait.
        """
        computed = next((p for p in (offer, *offer.alternatives) if p.steps_per_token), None)
        if computed is not None and computed.source != proposal.source:
            probe, longer = computed, min(_PROBE_TOKENS, len(computed.kinds))
        else:
            probe, longer = proposal, min(length + _PROBE_TOKENS, len(proposal.kinds))
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

    def _observe(
        self, requests: Sequence[Request], nodes: Sequence[Sequence[int]], paths: list[list[int]], logits: Tensor
    ) -> None:
        """Let the drafter learn. Drafts are a matter of speed alone, so what it fails to learn is no request's loss."""
        try:
            self._drafter.observe(requests, nodes, paths, logits)
        except Exception:
            _logger.exception("The drafter failed to learn from a step")

    def _verdict(self, requests: Sequence[Request], drafts: Sequence[Draft], found: Verification) -> Tensor:
        """The target's picks and which nodes stand by them, where more than noise decides; see `accept_picks`."""
        logits, inputs = found.logits, found.inputs
        masks = [
            r.constraint.masks(d.tokens, d.parents) if r.constraint else None
            for r, d in zip(requests, drafts, strict=True)
        ]
        allowed = allowed_tensor(masks, logits.shape[1], logits.shape[2], logits.device)
        table = self._sampling_table(requests, logits)
        draft_ids, ancestors = inputs.tokens[:, 1:], inputs.layout.ancestors[:, :, 1:]
        picks = pick_tokens(logits.tensor, table, inputs.next_positions, self._history, draft_ids, ancestors, allowed)
        return accept_picks(picks, inputs)

    def _sampling_table(self, requests: Sequence[Request], logits: StepLogits) -> SamplingTable:
        ids = tuple(r.request_id for r in requests)
        if self._table is None or self._table_ids != ids:
            self._table = SamplingTable(
                [r.params for r in requests],
                [r.seed for r in requests],
                [r.slot for r in requests],
                logits.shape[-1],
                logits.device,
            )
            self._table_ids = ids
        return self._table

    def _emit(
        self, request: Request, plan: _Plan, picks: list[int], path: list[int], logits: Tensor, order: Tensor | None
    ) -> None:
        """Take the accepted path and the bonus token into the request, up to where the text ends.

        Args:
            request: The request.
            plan: What was done for it.
            picks: The target's choice after each node.
            path: The nodes that stand.
            logits: The target's, `[width, vocab]`.
            order: The nodes on the device, those that stand first; None where no row's path has gaps.
        """
        emitted: list[Token] = []
        for node, following in zip(path, [*path[1:], None], strict=True):
            token_id = picks[node]
            text = request.stopper.add(token_id)
            logprob, top = _logprobs(logits[node], token_id, request.params.logprobs)
            emitted.append(Token(token_id, text, following is not None, logprob, top))
            if request.is_finished:
                break
        token_ids = [token.id for token in emitted]
        self._learn(request, plan, token_ids)
        count = len(emitted)
        index = order[:count] if order is not None else None
        self._runner.cache.keep(request.slot, request.num_cached, path[:count], index)
        request.token_ids.extend(token_ids)
        if request.constraint is not None:
            request.constraint.advance(token_ids)
        request.num_cached += len(token_ids)
        if request.params.needs_history and self._history is not None:
            self._history.append(request.slot, token_ids)
        stats = request.stats
        stats.num_steps += 1
        stats.drafted_tokens += len(plan.draft)
        stats.accepted_tokens += sum(bool(token.drafted) for token in emitted)
        stats.forced_tokens += sum(plan.draft.kinds[node - 1] == FORCED for node in path[1 : len(emitted) + 1])
        stats.emitted_tokens += len(emitted)
        stats.predicted_seconds += plan.seconds
        stats.predicted_plain_seconds += plan.tokens * plan.plain if plan.seconds else 0.0
        if not self._is_cost_given:
            stats.plain_seconds += len(emitted) * plan.plain
        stats.decode_seconds = time.perf_counter() - (request.decode_started or 0.0)
        request.stream.put(TokenEvent(tuple(emitted)))
        if request.stopper.finish_reason is not None:
            request.stream.put(
                FinishEvent(
                    request.stopper.finish_reason,
                    request.num_prompt_tokens,
                    request.num_output_tokens,
                    request.seed,
                    stats,
                    request.num_reused,
                )
            )

    @staticmethod
    def _learn(request: Request, plan: _Plan, emitted: list[int]) -> None:
        """Compare what was or could have been drafted with what came; a lookup's guesses cost nothing to check."""
        guesses = [p.draft for p in (plan.offer, *plan.offer.alternatives) if p.draft.tokens]
        if plan.draft.tokens and not plan.proposal.draft.tokens:
            guesses.append(plan.draft)
        for guess in guesses:
            request.rates.observe(_outcomes(guess, emitted))


def _in_time(constraint: Constraint, picks: list[int], path: list[int], remaining: int) -> list[int]:
    """The path up to where the answer has to begin to end; the pick there is replaced."""
    kept = constraint.in_time([picks[node] for node in path], remaining)
    path = path[: len(kept)]
    picks[path[-1]] = kept[-1]
    return path


def _outcomes(draft: Draft, emitted: Sequence[int]) -> list[tuple[DraftKind, bool]]:
    """Which tokens along the text were right; siblings after the right one were not tried, nor what is below."""
    outcomes: list[tuple[DraftKind, bool]] = []
    parent, depth = -1, 0
    for node, (token, above, kind) in enumerate(zip(draft.tokens, draft.parents, draft.kinds, strict=True)):
        # Parents stand before children, and siblings in the order in which they count.
        if above == parent and depth < len(emitted):
            is_right = token == emitted[depth]
            outcomes.append((kind, is_right))
            if is_right:
                parent, depth = node, depth + 1
    return outcomes


def _logprobs(logits: Tensor, token_id: int, num_top: int | None) -> tuple[float | None, dict[int, float] | None]:
    if num_top is None:
        return None, None
    logprobs = logits.float().log_softmax(-1)
    top = logprobs.topk(num_top)
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return float(logprobs[token_id]), dict(pairs)
