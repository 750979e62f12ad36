"""What one turn of the engine does to its requests: start, prefill, and the speculative decoding step."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from langchain_specdec.drafters.base import EMPTY_DRAFT, Draft, Drafter
from langchain_specdec.engine.draft_planner import DraftPlanner
from langchain_specdec.engine.emission import Emitter
from langchain_specdec.engine.request import Request
from langchain_specdec.engine.verification import Verifier
from langchain_specdec.errors import GenerationError
from langchain_specdec.runner.cpu.worker_threads import use_one_worker
from langchain_specdec.runner.runner import Runner
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.runner.verify import Verdict
from langchain_specdec.sampling.choice import TokenHistory

_logger = logging.getLogger(__name__)


class Stepper:
    """Runs steps for the requests it is given. Which requests is not its business.

    Args:
        runner: The target model.
        drafter: Where drafts come from. It does not fail; see `GuardedDrafter`.
        planner: Decides how many tokens to draft.
    """

    def __init__(self, runner: Runner, drafter: Drafter, planner: DraftPlanner) -> None:
        self._runner = runner
        self._drafter = drafter
        self._planner = planner
        self._verifier = Verifier(runner)
        self._emitter = Emitter(runner.cache)
        self._history: TokenHistory | None = None
        self.num_prefill_tokens = 0

    def begin_thread(self) -> None:
        """Say that the calling thread is going to run all forwards. PyTorch's threads would be in the way of others."""
        if all(runner.has_own_threads for runner in (self._runner, *self._drafter.runners)):
            use_one_worker()

    def start(self, requests: Sequence[Request]) -> None:
        """Set up what new requests need beside their slot."""
        for request in requests:
            if self._runner.adapters is not None:
                self._runner.adapters.set(request.slot, request.params.adapter)
            if self._runner.images is not None:
                self._runner.images.put(request.slot, request.prompt_ids, request.images)
            if request.params.needs_history:
                if self._history is None:
                    slots = self._runner.cache.num_slots
                    self._history = TokenHistory(slots, self._runner.vocab_size, self._runner.device)
                self._history.start(request.slot, request.prompt_ids)
                request.history = self._history

    def let_go(self, slot: int, start: int) -> None:
        """Give back the memory of what a slot holds from a position on."""
        self._drafter.let_go(slot, start)
        try:
            self._runner.cache.wipe(slot, start)
        except Exception:
            # Memory that is not given back fails nobody by itself.
            _logger.exception("The memory of a slot could not be given back")

    def prefill(self, requests: Sequence[Request], stops: Sequence[int]) -> None:
        """Take each request's prompt tokens up to its stop into its slot."""
        starts = [r.num_cached for r in requests]
        tokens = [r.token_ids[r.num_cached : stop] for r, stop in zip(requests, stops, strict=True)]
        self._runner.prefill(RowBatch([r.slot for r in requests], starts, tokens))
        self._drafter.prefill(requests, starts, stops)
        self.num_prefill_tokens += sum(len(t) for t in tokens)
        for request, stop in zip(requests, stops, strict=True):
            request.num_cached = stop

    def decode(self, requests: Sequence[Request]) -> list[tuple[Request, Exception]]:
        """Give each request's text its next tokens, at least one.

        Returns:
            Requests whose tokens could not be handed out, with the error, `UnsoundScoresError` where a step without a
            draft may have them yet; the others went on.
        """
        plan = self._planner.plan(requests)
        drafts = self._planner.propose(requests, plan)
        verdict = self._verify(requests, drafts, plan.num_candidates)
        self._planner.learn(requests, plan, verdict)
        return self._emitter.emit(requests, drafts, verdict)

    def decode_plainly(self, request: Request) -> None:
        """Give a text its next token without a draft, where its scores were not sound: its draft may have caused that.

        What a text does not see counts as 0 times its value, and 0 times NaN is NaN.

        Raises:
            GenerationError: They are not sound without a draft either.
        """
        self._runner.cache.wipe(request.slot, request.num_cached)
        verdict = self._verify([request], [EMPTY_DRAFT], 0)
        if not verdict.paths[0]:
            raise unsound_error(self._runner.model.dtype)
        for _, error in self._emitter.emit([request], [EMPTY_DRAFT], verdict):
            raise error

    def _verify(self, requests: Sequence[Request], drafts: Sequence[Draft], num_candidates: int) -> Verdict:
        """The target's verdict on the drafts; the drafter takes in what it needs of the forward."""
        verdict = self._verifier.verify(requests, drafts, num_candidates)
        self._drafter.follow(requests, verdict)
        return verdict


def unsound_error(dtype: torch.dtype) -> GenerationError:
    """Says that a model of this type computed no scores by which a token could be picked."""
    if dtype == torch.float16:
        advice = "Numbers of this model overflow float16: load it with dtype='bfloat16' or 'float32'."
    elif dtype == torch.float32:
        advice = "Its weights may be damaged, or its numbers overflow: check the weights."
    else:
        advice = "Its weights may be damaged, or its numbers overflow: check the weights, or try dtype='float32'."
    name = str(dtype).removeprefix("torch.")
    return GenerationError(
        f"The model computed no usable scores for the next token: they are NaN or infinite ({name}). {advice}"
    ).for_good()
