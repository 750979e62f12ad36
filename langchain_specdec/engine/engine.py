"""The engine: one thread that runs the model for every request at once."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Collection, Sequence
from typing import Any, Literal

from langchain_specdec.completions import interpreter_end
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.stream import CompletionStream
from langchain_specdec.drafters.base import Drafter
from langchain_specdec.drafters.guarded import GuardedDrafter
from langchain_specdec.engine.draft_planner import DraftPlanner
from langchain_specdec.engine.emission import UnsoundScoresError
from langchain_specdec.engine.inbox import Inbox, keep_until_exit
from langchain_specdec.engine.prefill_pace import PrefillPace
from langchain_specdec.engine.request import Request
from langchain_specdec.engine.request_maker import RequestMaker
from langchain_specdec.engine.scheduler import Scheduler
from langchain_specdec.engine.step import Stepper
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.errors import EngineClosedError, GenerationError
from langchain_specdec.grammar.constraint import GrammarCompiler
from langchain_specdec.grammar.trial import make_trial
from langchain_specdec.models.memory import give_back_freed
from langchain_specdec.models.private_tokenizer import PrivateTokenizer
from langchain_specdec.runner.cpu.worker_threads import release_workers
from langchain_specdec.runner.head_runner import HeadRunner
from langchain_specdec.runner.runner import Runner
from langchain_specdec.sampling.params import SamplingParams

_logger = logging.getLogger(__name__)


class Engine:
    """Decodes any number of requests on one model, speculatively and in one batch.

    Requests may be submitted from any thread or event loop. They meet in one thread, which alone touches the model:
    it starts with the first request, sleeps when there is nothing to do, and ends with `close`, with the last
    reference to the engine, or with the interpreter.

    Args:
        runner: The target model with its slots.
        drafter: Where drafts come from.
        tokenizer: The target's tokenizer, for text and stop strings. It is copied, unless it is a private copy.
        eos_token_ids: Tokens that end a text.
        max_draft_tokens: Most tokens to draft one after the other.
        max_tree_nodes: Most tokens of a draft that branches; 0: drafts never branch.
        draft_length: `"auto"` to draft as many tokens as pay, by measurement; a number to draft that many always.
        is_shared: Whether requests start from the acceptance that others of their namespace saw.
        prefill_chunk: Most prompt tokens of one forward. On a CPU it takes fewer while texts go on; see `PrefillPace`.
        token_budget: Tokens that all slots may hold together; None is without limit. A request waits for its room.
        step_cost: What steps cost, instead of measuring it; for tests and for reproducible step counts.
        grammar_timeout: Seconds of processor time that a grammar may take to prepare; None is without limit.
    """

    def __init__(
        self,
        runner: Runner,
        drafter: Drafter,
        tokenizer: Any,
        eos_token_ids: Collection[int],
        *,
        max_draft_tokens: int = 10,
        max_tree_nodes: int = 0,
        draft_length: int | Literal["auto"] = "auto",
        is_shared: bool = True,
        prefill_chunk: int = 512,
        token_budget: int | None = None,
        step_cost: StepCost | None = None,
        grammar_timeout: int | None = None,
    ) -> None:
        self.runner = runner
        self.drafter = drafter
        cache = runner.cache
        self._scheduler = Scheduler(cache.num_slots, cache.max_length, token_budget, cache.resumable)
        self._guarded = guarded = GuardedDrafter(drafter)
        self._planner = DraftPlanner(runner, guarded, max_draft_tokens, max_tree_nodes, draft_length, step_cost)
        self._stepper = Stepper(runner, guarded, self._planner)
        self._pace = PrefillPace(prefill_chunk, is_adaptive=not runner.is_width_free)
        self._inbox = Inbox()
        own_tokenizer = PrivateTokenizer.of(tokenizer)
        trial = make_trial(grammar_timeout)
        grammars = GrammarCompiler(own_tokenizer.copied, runner.vocab_size, eos_token_ids, trial)

        self._requests = RequestMaker(
            runner, own_tokenizer, eos_token_ids, self._inbox.cancel, grammars, is_shared=is_shared
        )
        self._thread: threading.Thread | None = None
        self._thread_lock = threading.Lock()
        self._pid = os.getpid()
        weakref.finalize(self, Inbox.close, self._inbox)

    def prepare(self, rows: int, lengths: range, params: SamplingParams) -> None:
        """See `DraftPlanner.prepare`; nothing may be running."""
        self._planner.prepare(rows, lengths, params)

    def submit(self, prompt_ids: Sequence[int], params: SamplingParams) -> CompletionStream:
        """Queue a completion.

        Args:
            prompt_ids: Prompt tokens, at least one.
            params: What to generate.

        Returns:
            The stream of its events. Read it to the end or close it.

        Raises:
            PromptTooLongError: Prompt and new tokens do not fit into a slot.
            InvalidParameterError: The prompt is empty or has tokens that the model does not know, or `logit_bias`
                names such a token, or `grammar` cannot be followed.
            EngineClosedError: The engine was closed.
            UnsupportedModelError: The model was moved to another device or type.
        """
        return self.submit_all([CompletionRequest(prompt_ids, params)])[0]

    def submit_all(self, completions: Sequence[CompletionRequest]) -> list[CompletionStream]:
        """Queue several completions. All are checked before the first starts, so a bad one costs nobody anything.

        Args:
            completions: What to complete; prompts are tokens, as in `submit`.

        Returns:
            Their streams, in the same order. Read each to the end or close it.

        Raises:
            SpecDecError: As `submit` does, for the first that is wrong. None has started then.
        """
        self._check_process()
        requests = [self._requests.make(completion) for completion in completions]
        streams = [request.stream for request in requests]
        try:
            self._inbox.submit(requests)
            if requests:
                # This thread may have loaded the model, and its idle worker threads would compete with the engine's.
                release_workers()
                self._start_thread()
        except BaseException:
            # Also an interrupt: nobody else knows of them yet.
            for stream in streams:
                stream.close()
            raise
        return streams

    def reset(self) -> None:
        """Forget all that was kept of earlier requests: prompts in slots, and answers to draft from.

        Weights that were changed since are noticed by themselves, unless they were written in place through `.data`,
        which nothing tells of. Requests that run go on.
        """
        self._check_process()
        self._inbox.reset()

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            msg = "This engine was made in another process. Load the model in the process that uses it (no fork)."
            raise EngineClosedError(msg)

    def close(self, timeout: float | None = 30.0) -> bool:
        """End the thread. Requests that run or wait end with an `EngineClosedError`. Closing twice does nothing.

        Returns:
            Whether the thread has ended in time, so that nothing runs any more.
        """
        if os.getpid() != self._pid:
            return False  # it runs on in the process that made it
        self._inbox.close()
        with self._thread_lock:
            thread = self._thread
        if thread is None:
            return True
        if thread is not threading.current_thread():
            thread.join(timeout)
        return not thread.is_alive()

    @property
    def num_running(self) -> int:
        """Requests that hold a slot."""
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for one."""
        return self._scheduler.num_waiting + len(self._inbox.submitted)

    @property
    def num_target_forwards(self) -> int:
        """Target forwards with logits so far: decoding steps, and a few to measure what they cost."""
        return self.runner.num_forwards

    @property
    def num_prefill_tokens(self) -> int:
        """Prompt tokens that prefill forwards have run so far."""
        return self._stepper.num_prefill_tokens

    def _start_thread(self) -> None:
        with self._thread_lock:
            if self._thread is None:
                thread = threading.Thread(
                    target=_run, args=(weakref.ref(self), self._inbox), name="specdec-engine", daemon=True
                )
                # Before it starts, so that a fork meanwhile lets go of it.
                keep_until_exit(thread, self._inbox)
                interpreter_end.start_thread(thread)
                self._thread = thread

    def _takes_thread(self) -> bool:
        """Whether the calling thread is to run it. An interrupt can come before the one who started it noted it."""
        with self._thread_lock:
            self._thread = self._thread or threading.current_thread()
            return self._thread is threading.current_thread()

    def _take_inbox(self) -> bool:
        """Move requests in and cancelled ones out; whether the engine is to go on."""
        with self._inbox.lock:
            submitted, self._inbox.submitted = self._inbox.submitted, []
            cancelled, self._inbox.cancelled = self._inbox.cancelled, []
            is_closed = self._inbox.is_closed
            is_reset, self._inbox.is_reset = self._inbox.is_reset, False
        # First of all: whatever fails from here on, it is known who waits.
        for request in submitted:
            self._scheduler.add(request)
        if (submitted or is_reset) and not is_closed:
            self._follow_weights(is_reset=is_reset)
        for request in cancelled:
            # The request may have ended since its reader closed it.
            if request in self._scheduler.requests:
                self._drop(request)
        return not is_closed

    def _follow_weights(self, *, is_reset: bool) -> None:
        """Keep nothing that other weights computed; earlier answers still make good drafts."""
        have_changed = [_have_changed(runner) for runner in (self.runner, *self.drafter.runners)]
        if have_changed[0] or is_reset:
            self._scheduler.forget()
        if any(have_changed[1:]) or is_reset:
            self._guarded.forget()

    def _run_once(self) -> bool:
        """One turn: at most one prefill forward, then one decoding step. False once the engine is closed."""
        if not self._take_inbox():
            self._fail_all(EngineClosedError("The engine was closed before the completion ended."))
            return False
        admitted = self._scheduler.admit()
        for slot, start in self._scheduler.take_let_go():
            self._stepper.let_go(slot, start)
        for request in admitted:
            self._attempt([request], self._stepper.start)
        self._prefill()
        if requests := self._scheduler.next_decode():
            with self._pace.decoding():
                self._attempt(requests, self._decode)
        for request in self._scheduler.running:
            if request.is_finished:
                self._drop(request)
                if self._is_idle:
                    self._measure_idle(request)
        return True

    def _prefill(self) -> None:
        """Read on in prompts, by one forward."""
        if not (num_reading := self._scheduler.num_reading):
            return
        num_decoding = len(self._scheduler.running) - num_reading
        prefill = self._scheduler.next_prefill(self._pace.chunk(num_decoding, num_reading))
        stops = {request.request_id: stop for request, stop in prefill}
        num_tokens = len(prefill) * max(stop - request.num_cached for request, stop in prefill)
        with self._pace.reading(num_tokens):
            self._attempt(
                [request for request, _ in prefill],
                lambda requests: self._stepper.prefill(requests, [stops[r.request_id] for r in requests]),
            )

    def _decode(self, requests: list[Request]) -> None:
        for request, error in self._stepper.decode(requests):
            if isinstance(error, UnsoundScoresError):
                self._attempt([request], lambda rows: self._stepper.decode_plainly(rows[0]))
            else:
                self._fail(request, error)

    def _measure_idle(self, request: Request) -> None:
        """Have measured what steps cost, until something else is to do."""
        inbox = self._inbox
        try:
            self._planner.measure_idle(request, lambda: not (inbox.submitted or inbox.is_closed))
        except Exception:
            # Costs that were assumed will do; whatever is wrong here, the next request will tell.
            _logger.exception("Measuring what steps cost failed")

    def _attempt(self, requests: list[Request], action: Any) -> None:
        """Run a step. Where it fails, run its rows one by one, so that only those at fault fail.

        What a step changes before it can fail lies beyond the rows' lengths, so running it again is safe.
        """
        try:
            action(requests)
        except Exception as error:
            if len(requests) == 1:
                self._fail(requests[0], error)
                return
            _logger.warning("A step of %d requests failed (%s); running them one by one.", len(requests), error)
            for request in requests:
                self._attempt([request], action)

    def _fail(self, request: Request, error: Exception) -> None:
        if not isinstance(error, EngineClosedError):
            _logger.debug("Request %d failed", request.request_id, exc_info=error)
            self._clear_slot(request)
            if not isinstance(error, GenerationError):
                failure = GenerationError(f"The completion failed while it ran: {type(error).__name__}: {error}")
                failure.__cause__ = error
                error = failure
        self._drop(request)
        request.stream.put(error)

    def _clear_slot(self, request: Request) -> None:
        """Leave nothing of a failed request: its slot may be half written, or hold NaN, which harms the next text."""
        request.num_cached = 0
        if request.slot >= 0:
            # Heads have read what the target computed of it.
            self._guarded.let_go(request.slot, 0)
            with contextlib.suppress(Exception):
                self.runner.cache.wipe(request.slot)

    def _fail_all(self, error: Exception) -> None:
        for request in self._scheduler.requests:
            self._fail(request, error)

    def _abandon(self, error: BaseException) -> None:
        """Tell everybody that the engine itself failed. Nothing here may fail: nobody may be left waiting."""
        running = self._scheduler.requests
        for request in running:
            with contextlib.suppress(Exception):
                self._scheduler.remove(request)
        for request in [*self._inbox.end(), *running]:
            failure = GenerationError(f"The engine failed and has ended: {type(error).__name__}: {error}").for_good()
            failure.__cause__ = error
            request.stream.put(failure)

    def _drop(self, request: Request) -> None:
        self._scheduler.remove(request)
        if self.runner.images is not None and request.slot >= 0:
            self.runner.images.forget(request.slot)
        self._guarded.release(request)

    @property
    def _is_idle(self) -> bool:
        return not self._scheduler.requests


def _have_changed(runner: Runner | HeadRunner) -> bool:
    try:
        return runner.note_weights()
    except Exception:
        # Reusing nothing is right whatever they are.
        _logger.warning("Whether the model's weights have changed cannot be told; nothing is reused.", exc_info=True)
        return True


def _run(engine_ref: weakref.ref[Engine], inbox: Inbox) -> None:
    """The engine's thread. It holds the engine only while there is work, so that an unused engine can go."""
    while True:
        inbox.wait()
        engine = engine_ref()
        if engine is None:
            # The engine was dropped before its thread took these requests; their streams may still be read.
            for request in inbox.end():
                request.stream.put(EngineClosedError("The engine is gone; keep a reference to it while you read."))
            return
        if not engine._takes_thread():
            return
        engine._stepper.begin_thread()
        while True:
            try:
                if not engine._run_once():
                    return
            except BaseException as error:
                # A bug of the engine itself.
                _logger.exception("The engine failed")
                engine._abandon(error)
                return
            if engine._is_idle:
                break
        del engine
        if engine_ref() is None:
            # This thread was the last to hold it, and with it the memory of its model.
            give_back_freed()
        # Idle worker threads would slow down whatever runs next, another engine or the user's own code.
        release_workers()
