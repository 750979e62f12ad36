"""Drafts whose agreement with the target and whose cost are set, to see what speculation is worth by these two.

The drafter is told what the target will write, and proposes it with each token replaced by a wrong one by a set
chance. A draft token takes a set share of a plain step of the target, spent waiting; or it takes what a real draft
model's forward takes, whose tokens are thrown away.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from langchain_specdec.bench.contestant import Prompt, RunResult
from langchain_specdec.bench.contestant_engine import EngineContestant
from langchain_specdec.drafters.base import Draft, Drafter, DraftingRequest, DraftLimits, Proposal
from langchain_specdec.drafters.draft_model import model_kinds
from langchain_specdec.runner.head_runner import HeadRunner
from langchain_specdec.runner.runner import Runner


class AgreementDrafter(Drafter):
    """Proposes each request's known continuation, each token right by a set chance. Nothing where none is known.

    Args:
        agreement: Chance that a draft token is right, from 0 to 1, at each position independently.
        vocab_size: Number of tokens; a wrong one is one of them.
        paid_by: A drafter that is asked as well, for what it costs; None waits instead.
    """

    def __init__(self, agreement: float, vocab_size: int, paid_by: Drafter | None = None) -> None:
        self._agreement = agreement
        self._vocab_size = vocab_size
        self._paid_by = paid_by
        # Prompt and continuation, by prompt; and what each running request turned out to be.
        self._texts: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._running: dict[int, tuple[int, ...]] = {}
        self.token_seconds = 0.0
        """What a draft token takes where nobody else pays."""

    def learn(self, prompt: Sequence[int], continuation: Sequence[int]) -> None:
        """Remember what the target writes after a prompt."""
        self._texts[tuple(prompt)] = (*prompt, *continuation)

    def knows(self, prompt: Sequence[int]) -> bool:
        """Whether the continuation of a prompt is known."""
        return tuple(prompt) in self._texts

    @property
    def runners(self) -> Sequence[Runner | HeadRunner]:
        """Those of who pays."""
        return self._paid_by.runners if self._paid_by is not None else ()

    def prepare(self, rows: int, lengths: range, *, is_sampled: bool) -> None:
        """Have who pays make its graphs."""
        if self._paid_by is not None:
            self._paid_by.prepare(rows, lengths, is_sampled=is_sampled)

    def prefill(self, requests: Sequence[DraftingRequest], starts: Sequence[int], stops: Sequence[int]) -> None:
        """Only who pays has something to take in."""
        if self._paid_by is not None:
            self._paid_by.prefill(requests, starts, stops)

    def consider(self, request: DraftingRequest, limits: DraftLimits) -> Sequence[Proposal]:
        """As many tokens as the known text still has."""
        kinds = model_kinds(len(self._rest(request, max(limits.max_depth, 0))))
        return [Proposal(reaches=request.rates.chain(kinds), steps_per_token=1)] if kinds else []

    def propose(
        self, requests: Sequence[DraftingRequest], proposals: Sequence[Proposal], lengths: Sequence[int]
    ) -> list[Draft]:
        """The known tokens, some of them spoilt, after the time that they cost."""
        started = time.perf_counter()
        if self._paid_by is not None:
            self._paid_by.propose(requests, proposals, lengths)
        drafts = []
        for request, length in zip(requests, lengths, strict=True):
            at = len(request.token_ids)
            tokens = [self._spoilt(at + i, token) for i, token in enumerate(self._rest(request, length))]
            drafts.append(Draft.chain(tokens, model_kinds(len(tokens))))
        if self._paid_by is None:
            # Sleeping is too coarse for fractions of a millisecond.
            until = started + max(lengths, default=0) * self.token_seconds
            while time.perf_counter() < until:
                pass
        return drafts

    def measure_step(self, request: DraftingRequest) -> float:
        """What a draft token costs."""
        return self.token_seconds if self._paid_by is None else self._paid_by.measure_step(request)

    def release(self, request: DraftingRequest) -> None:
        """The request goes; the texts stay."""
        self._running.pop(request.request_id, None)
        if self._paid_by is not None:
            self._paid_by.release(request)

    def _rest(self, request: DraftingRequest, count: int) -> tuple[int, ...]:
        """The next tokens of the request's text, at most so many; none where it is not known."""
        tokens = tuple(request.token_ids)
        if request.request_id not in self._running:
            # The first time, the request is its prompt and nothing else.
            self._running[request.request_id] = self._texts.get(tokens, ())
        text = self._running[request.request_id]
        return text[len(tokens) : len(tokens) + max(count, 0)] if text[: len(tokens)] == tokens else ()

    def _spoilt(self, position: int, token: int) -> int:
        # By the place alone, so that every repeat meets the same drafts, however they are cut.
        chance = random.Random(hash((position, token))).random()
        return token if chance < self._agreement else (token + 1) % self._vocab_size


class SyntheticContestant(EngineContestant):
    """An engine with an `AgreementDrafter`, which it tells, before the clock starts, what the target will write.

    Args:
        cost: A draft token's cost in plain steps of the target; None where a draft model pays.
        drafter: The engine's drafter.
        args: As `EngineContestant`.
        kwargs: As `EngineContestant`.
    """

    def __init__(self, *args: object, cost: float | None, drafter: AgreementDrafter, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._cost = cost
        self._drafter = drafter

    def warm_up(self, groups: Sequence[Sequence[Prompt]]) -> None:
        """Decode without drafts for the time of a plain step, and then with them for the calibration."""
        super().warm_up(groups)
        shortest = min((p for group in groups for p in group), key=lambda p: len(p.token_ids))
        plain = self._decode([shortest.token_ids], self._params)
        if self._cost is not None and plain.decode_tokens:
            self._drafter.token_seconds = self._cost * plain.decode_seconds / plain.decode_tokens
        self._drafter.learn(shortest.token_ids, plain.token_ids[0])
        self._decode([shortest.token_ids], self._params)

    def run(self, prompts: Sequence[Prompt]) -> RunResult:
        """Decode the prompts; each for the first time without drafts and without the clock."""
        for prompt in prompts:
            if not self._drafter.knows(prompt.token_ids):
                self._drafter.learn(prompt.token_ids, self._decode([prompt.token_ids], self._params).token_ids[0])
        return super().run(prompts)
