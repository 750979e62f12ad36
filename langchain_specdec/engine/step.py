"""What one turn of the engine does to its requests: start, prefill, and the draft-verify-accept step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from langchain_specdec.drafters.base import Draft, Drafter, Proposal
from langchain_specdec.engine.calibration import measure_step_cost
from langchain_specdec.engine.draft_length import StepCost, choose_lengths
from langchain_specdec.engine.request import Request
from langchain_specdec.engine.runner import ModelRunner
from langchain_specdec.engine.tree import TreeLayout
from langchain_specdec.engine.verify import accept
from langchain_specdec.events import FinishEvent, Token, TokenEvent
from langchain_specdec.sampling import SamplingTable, TokenHistory, pick_tokens

__all__ = ["Stepper"]

# Tokens that a probe drafts beyond what pays, and the share of plain decoding's time that probes may take.
_PROBE_TOKENS = 2
_PROBE_SHARE = 0.01


class Stepper:
    """Runs steps for the requests it is given. Which requests is not its business.

    Args:
        runner: The target model.
        drafter: Where drafts come from.
        max_draft_tokens: Most tokens to draft at a time.
        draft_length: `"auto"` or a fixed number.
        step_cost: What steps cost; None measures it before the first step that needs it.
    """

    def __init__(
        self,
        runner: ModelRunner,
        drafter: Drafter,
        max_draft_tokens: int,
        draft_length: int | Literal["auto"],
        step_cost: StepCost | None,
    ) -> None:
        self._runner = runner
        self._drafter = drafter
        self._max_draft_tokens = max_draft_tokens if draft_length == "auto" else draft_length
        self._is_adaptive = draft_length == "auto"
        self._cost = step_cost
        self._is_cost_given = step_cost is not None
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
        proposals = [self._consider(r) for r in requests]
        before = time.perf_counter()
        cost = self._step_cost(requests[0], proposals)
        started = time.perf_counter()
        for request in requests:
            # Measuring what steps cost is no part of decoding.
            request.decode_started = (request.decode_started or before) + (started - before)
        lengths = self._choose(requests, proposals, cost)
        drafts = self._drafter.propose(requests, proposals, lengths, self._history)
        drafted = time.perf_counter()
        nodes = [[r.token_ids[-1], *d.tokens] for r, d in zip(requests, drafts, strict=True)]
        layout = TreeLayout.of([[-1, *(p + 1 for p in d.parents)] for d in drafts], self._runner.device)
        slots, starts = [r.slot for r in requests], [r.num_cached for r in requests]
        logits = self._runner.forward(slots, starts, nodes, layout)
        picks, stands = self._verify(requests, nodes, layout, logits)
        ended = time.perf_counter()
        if cost is not None and not self._is_cost_given:
            cost.observe(len(requests), logits.shape[1], ended - drafted)
            steps = max((len(d) * p.steps_per_token for d, p in zip(drafts, proposals, strict=True)), default=0)
            cost.observe_draft(steps, drafted - started)
        failures: list[tuple[Request, Exception]] = []
        for row, (request, draft, proposal) in enumerate(zip(requests, drafts, proposals, strict=True)):
            try:
                self._emit(request, draft, proposal, picks[row], stands[row], logits[row])
            except Exception as error:  # noqa: PERF203 - whatever it is, it is this request's alone
                failures.append((request, error))
        return failures

    def _consider(self, request: Request) -> Proposal:
        # The last token always comes from the target, so drafting it would be wasted.
        limit = min(self._max_draft_tokens, request.num_remaining - 1)
        return self._drafter.consider(request, limit)

    def _step_cost(self, request: Request, proposals: Sequence[Proposal]) -> StepCost | None:
        if not self._is_adaptive or not any(p.kinds for p in proposals):
            return self._cost
        if self._cost is None:
            self._cost = measure_step_cost(self._runner, self._drafter, request)
        return self._cost

    def _choose(self, requests: Sequence[Request], proposals: Sequence[Proposal], cost: StepCost | None) -> list[int]:
        if not self._is_adaptive or cost is None:
            return [len(p.kinds) for p in proposals]
        rates = [[r.rates.rate(kind) for kind in p.kinds] for r, p in zip(requests, proposals, strict=True)]
        lengths = choose_lengths(rates, [p.steps_per_token for p in proposals], cost)
        return [self._probed(*row, len(requests), cost) for row in zip(requests, proposals, lengths, strict=True)]

    def _probed(self, request: Request, proposal: Proposal, length: int, rows: int, cost: StepCost) -> int:
        """The length, or now and then a longer one, to learn what is never tried otherwise.

        That is how good a draft model is, and what a wide step costs: a machine that was busy when it was measured
        would else seem so for good. Probes are paid from a small share of each step.
        """
        longer = min(length + _PROBE_TOKENS, len(proposal.kinds))
        is_known = proposal.steps_per_token == 0 and self._is_cost_given
        if is_known or longer == length:
            return length
        plain = cost.verify_seconds(rows, 1)
        request.probe_credit += _PROBE_SHARE * plain
        extra = cost.verify_seconds(rows, 1 + longer) - cost.verify_seconds(rows, 1 + length)
        steps = proposal.steps_per_token * (longer - length)
        if request.probe_credit < min(extra, plain) + cost.draft_seconds(steps):
            return length
        request.probe_credit = 0.0
        return longer

    def _verify(
        self, requests: Sequence[Request], nodes: list[list[int]], layout: TreeLayout, logits: Tensor
    ) -> tuple[list[list[int]], list[list[bool]]]:
        """The target's choice after every node and which nodes stand; one copy to the host."""
        device, width = logits.device, logits.shape[1]
        table = self._sampling_table(requests, logits)
        num_nodes = torch.tensor([len(n) for n in nodes], device=device)
        node_ids = torch.tensor([n + [0] * (width - len(n)) for n in nodes], device=device)
        positions = torch.tensor([[r.num_cached + 1] for r in requests], device=device) + layout.depths
        drafts, ancestors = node_ids[:, 1:], layout.ancestors[:, :, 1:]
        picks = pick_tokens(logits, table, positions, self._history, drafts, ancestors)
        stands = accept(node_ids, layout.parents, num_nodes, picks)
        both = torch.stack([picks, stands.to(picks.dtype)]).tolist()
        return both[0], [[bool(s) for s in row] for row in both[1]]

    def _sampling_table(self, requests: Sequence[Request], logits: Tensor) -> SamplingTable:
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
        self,
        request: Request,
        draft: Draft,
        proposal: Proposal,
        picks: list[int],
        stands: list[bool],
        logits: Tensor,
    ) -> None:
        """Take the accepted path and the bonus token into the request, up to where the text ends."""
        path = [node for node, is_standing in enumerate(stands) if is_standing]
        emitted: list[Token] = []
        for node, following in zip(path, [*path[1:], None], strict=True):
            token_id = picks[node]
            text = request.stopper.add(token_id)
            logprob, top = _logprobs(logits[node], token_id, request.params.logprobs)
            emitted.append(Token(token_id, text, following is not None, logprob, top))
            if request.is_finished:
                break
        token_ids = [token.id for token in emitted]
        self._learn(request, draft, proposal, token_ids)
        self._runner.cache.keep(request.slot, request.num_cached, path[: len(emitted)])
        request.token_ids.extend(token_ids)
        request.num_cached += len(token_ids)
        if request.params.needs_history and self._history is not None:
            self._history.append(request.slot, token_ids)
        stats = request.stats
        stats.num_steps += 1
        stats.drafted_tokens += len(draft)
        stats.accepted_tokens += sum(bool(token.drafted) for token in emitted)
        stats.emitted_tokens += len(emitted)
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
    def _learn(request: Request, draft: Draft, proposal: Proposal, emitted: list[int]) -> None:
        """Compare what was or could have been drafted with what came; a lookup's guesses cost nothing to check."""
        guess = proposal.draft if proposal.draft.tokens else draft
        outcomes = []
        for kind, guessed, token_id in zip(guess.kinds, guess.tokens, emitted, strict=False):
            outcomes.append((kind, guessed == token_id))
            if guessed != token_id:
                break
        request.rates.observe(outcomes)


def _logprobs(logits: Tensor, token_id: int, num_top: int | None) -> tuple[float | None, dict[int, float] | None]:
    if num_top is None:
        return None, None
    logprobs = logits.float().log_softmax(-1)
    top = logprobs.topk(num_top)
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return float(logprobs[token_id]), dict(pairs)
