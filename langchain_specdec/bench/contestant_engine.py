"""Contestants on this package's engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

from langchain_specdec.bench.contestant import Prompt, RunResult, StepCounts
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.events import FinishEvent, TokenEvent
from langchain_specdec.completions.stats import SpeculationStats
from langchain_specdec.completions.stream import CompletionStream
from langchain_specdec.engine.engine import Engine
from langchain_specdec.sampling.params import SamplingParams

_WARM_UP_TOKENS = 24
# Tokens that a warm-up prompt repeats, so that a lookup finds something and the engine measures what steps cost.
_ECHO = 8


class EngineContestant:
    """Decodes by an engine, all prompts of a group at once as far as there are slots.

    Args:
        name: As in tables.
        note: How it runs.
        engine: The engine; closed with the contestant.
        params: What to generate.
        keep_prefixes: Whether a run may reuse what the run before left in the slots. Without, every run prefills its
            whole prompt, as peers do.
    """

    def __init__(
        self, name: str, note: str, engine: Engine, params: SamplingParams, *, keep_prefixes: bool = False
    ) -> None:
        self.name = name
        self.note = note
        self._engine = engine
        self._params = params
        self._keep_prefixes = keep_prefixes
        self._answered: set[tuple[int, ...]] = set()

    @property
    def num_slots(self) -> int:
        """Prompts decoded at once."""
        return self._engine.runner.cache.num_slots

    def warm_up(self, groups: Sequence[Sequence[Prompt]]) -> None:
        """Compile what is to be, run the longest prompts for their shapes, and a repetition for the calibration."""
        # Before the calibration, and here: no run may begin without a graph and end with it.
        self._prepare(groups)
        params = replace(self._params, max_new_tokens=min(_WARM_UP_TOKENS, self._params.max_new_tokens))
        longest = sorted((p for group in groups for p in group), key=lambda p: -len(p.token_ids))
        rows = [p.token_ids for p in longest[: self.num_slots]]
        echo = (rows[0][-_ECHO:] * 4)[: len(rows[0])]
        for prompts in ([echo], rows):
            self._answered.update(map(tuple, prompts))
            self._decode(prompts, params)

    def run(self, prompts: Sequence[Prompt]) -> RunResult:
        """Decode the prompts."""
        rows = [p.token_ids for p in prompts]
        if not self._answered.isdisjoint(map(tuple, rows)):
            # An answer to the same prompt would give all of it away.
            self._engine.drafter.forget()
            self._answered.clear()
        self._answered.update(map(tuple, rows))
        if not self._keep_prefixes:
            self._forget(rows)
        return self._decode(rows, self._params)

    def close(self) -> None:
        """End the engine's thread."""
        self._engine.close()

    def _prepare(self, groups: Sequence[Sequence[Prompt]]) -> None:
        """Make the graphs of these very prompts and answers, the target's and the drafter's."""
        rows = min(self.num_slots, max(len(group) for group in groups))
        prompts = [len(prompt.token_ids) for group in groups for prompt in group]
        lengths = range(min(prompts), max(prompts) + self._params.max_new_tokens + 1)
        self._engine.prepare(rows, lengths, self._params)

    def _decode(self, rows: Sequence[Sequence[int]], params: SamplingParams) -> RunResult:
        before = self._engine.num_prefill_tokens
        started = time.perf_counter()
        streams = self._engine.submit_all([CompletionRequest(row, params) for row in rows])
        try:
            first = next(streams[0])
            first_seconds = time.perf_counter() - started
            assert isinstance(first, TokenEvent)  # noqa: S101 - a text has a token at least
            answers = [_read(streams[0], first), *(_read(stream) for stream in streams[1:])]
            seconds = time.perf_counter() - started
        finally:
            for stream in streams:
                stream.close()
        counts = sum((finish.speculation for _, finish in answers), start=SpeculationStats())
        return RunResult(
            token_ids=tuple(tuple(token.id for event in events for token in event.tokens) for events, _ in answers),
            first_seconds=first_seconds,
            first_tokens=len(first.tokens),
            seconds=seconds,
            num_steps=counts.num_steps,
            drafted_tokens=counts.drafted_tokens,
            accepted_tokens=counts.accepted_tokens,
            # What a slot held of the prompt did not go through the model.
            prefilled_tokens=self._engine.num_prefill_tokens - before,
            drafted_per_position=tuple(counts.drafted_per_position),
            accepted_per_position=tuple(counts.accepted_per_position),
            drafted_by_source=counts.drafted_by_source,
            accepted_by_source=counts.accepted_by_source,
            steps=tuple(tuple(map(_counts, events)) for events, _ in answers),
        )

    def _forget(self, rows: Sequence[Sequence[int]]) -> None:
        """Overwrite what rests in the slots by a token that none of the prompts begins with."""
        used = {row[0] for row in rows}
        token = next(t for t in range(self._engine.runner.vocab_size) if t not in used)
        params = SamplingParams(max_new_tokens=1)
        # All at once, so that they have to take all the slots there are.
        streams = self._engine.submit_all([CompletionRequest([token], params)] * self.num_slots)
        for stream in streams:
            with closing(stream):
                _read(stream)


def _counts(event: TokenEvent) -> StepCounts:
    return len(event.tokens), sum(bool(token.drafted) for token in event.tokens), event.drafted_tokens


def _read(stream: CompletionStream, first: TokenEvent | None = None) -> tuple[list[TokenEvent], FinishEvent]:
    events = [first] if first is not None else []
    for event in stream:
        if isinstance(event, FinishEvent):
            return events, event
        events.append(event)
    msg = "the stream ended without a FinishEvent"
    raise RuntimeError(msg)
