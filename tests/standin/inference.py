"""TGI's model process, as its router has it: texts end by TGI's rules, and what goes wrong within a generation.

Written after server/text_generation_server/utils/tokens.py of TGI 3.3, apart from this project's own engine, whose
texts a real model of the stand-in gives.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from langchain_specdec.backends.base import Backend
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.events import FinishEvent, Token, TokenEvent
from langchain_specdec.completions.stats import SpeculationStats
from langchain_specdec.completions.stream import CompletionStream
from langchain_specdec.engine.detokenizer import Detokenizer
from langchain_specdec.engine.stopping import StopChecker
from langchain_specdec.errors import GenerationError, OverloadedError
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.sampling.params import SamplingParams
from langchain_specdec.server.tgi.errors import invalid
from langchain_specdec.server.tgi.frames import StopEnd
from tests.standin.faults import Fault, in_force
from tests.standin.killers import DEAD, deadly
from tests.standin.models import Model

_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_FAILURES: Mapping[str, Callable[[], Exception]] = {
    "generation": lambda: GenerationError("Server error: CUDA out of memory"),
    "dead-shard": lambda: GenerationError("Server error: transport error"),
    # As a stream ends that has no more.
    "incomplete": StopAsyncIteration,
}


class TokenEnd(StopEnd):
    """Ends a text where a stop string stands at the end of it after a token, and leaves it there."""

    def __init__(self, stop: Sequence[str]) -> None:
        super().__init__(stop)
        self._ends = [re.compile(re.escape(text) + "$") for text in stop]
        self._text = ""

    def add(self, text: str) -> str:
        self._text += text
        self.is_found = any(end.search(self._text) for end in self._ends)
        return text


class Shard(Backend):
    """A model as a backend of the server.

    Args:
        model: Where tokens come from; it is not closed.
        max_length: Most tokens of a prompt and its completion.
        num_slots: Requests at a time.
        takes_grammars: False refuses grammars, as with TGI's option.

    Attributes:
        is_dead: Whether a request has ended the process.
    """

    takes_token_ids = True
    adapter_names = ()

    def __init__(
        self, model: Model, max_length: int = 2048, num_slots: int = 64, *, takes_grammars: bool = True
    ) -> None:
        self.model = model
        self.num_slots = num_slots
        self.is_dead = False
        self._max_length = max_length
        self._takes_grammars = takes_grammars
        self._num_running = 0

    @property
    def model_name(self) -> str:
        return self.model.model_id

    @property
    def identity(self) -> dict[str, Any]:
        return {"model": self.model.model_id, "eos_token_ids": sorted(self.model.eos_token_ids)}

    @property
    def private_tokenizer(self) -> Any:
        return self.model.tokenizer

    @property
    def max_length(self) -> int:
        return self._max_length

    def prompt_ids(self, text: str | Sequence[int]) -> list[int]:
        return self.model.tokenizer.encode(text) if isinstance(text, str) else list(text)

    def token_ids(self, text: str) -> list[int]:
        return list(self.model.tokenizer.encode(text, add_special_tokens=False))

    def start(self, requests: Sequence[CompletionRequest]) -> list[CompletionStream]:
        """Start completions in the running event loop."""
        return [self._start(request) for request in requests]

    async def astart(self, requests: Sequence[CompletionRequest]) -> list[CompletionStream]:
        return self.start(requests)

    def close(self) -> None:
        pass

    def _start(self, request: CompletionRequest) -> CompletionStream:
        faults = in_force()
        if "overloaded" in faults:
            raise OverloadedError("as asked for")
        params = self._checked(request.params)
        seed = random.getrandbits(53) if params.seed is None else params.seed
        seen = seed + self._num_running if "batch-seeds" in faults else seed
        extra = faults["overshoot"].after if "overshoot" in faults else 0
        # TGI knows no penalty of the model's own.
        penalty = params.repetition_penalty or 1.0
        limit = params.max_new_tokens + extra
        params = replace(params, max_new_tokens=limit, seed=seen, repetition_penalty=penalty)
        stream = CompletionStream(lambda: running.cancel())
        running = asyncio.ensure_future(self._run(stream, replace(request, params=params), seed, faults))
        return stream

    def _checked(self, params: SamplingParams) -> SamplingParams:
        """What the model is given of a request that it takes."""
        if self.is_dead:
            raise GenerationError(DEAD)
        grammar = params.grammar
        if last_words := deadly(params.top_k, None if grammar is None else grammar.regex, self.model.vocab_size):
            self.is_dead = True
            raise GenerationError(last_words)
        if grammar is None:
            return params
        if not self._takes_grammars or not self.model.takes_grammars:
            raise invalid("grammar is not supported")
        if grammar.regex is None:
            # Bounds of numbers are unknown words to outlines-core.
            grammar = Grammar(schema=_without_bounds(grammar.schema))
        try:
            self.model.check_grammar(grammar)
        except ValueError as error:
            if grammar.regex is None:
                raise invalid(f"grammar is not valid: cannot compile regex from schema: {error}") from error
            # The router passes it on as it is.
            raise GenerationError(f"Server error: {error}") from error
        return replace(params, grammar=grammar)

    async def _run(
        self, stream: CompletionStream, request: CompletionRequest, seed: int, faults: Mapping[str, Fault]
    ) -> None:
        self._num_running += 1
        try:
            await self._generate(stream, request, seed, faults)
        except Exception as error:
            stream.put(error)
        finally:
            self._num_running -= 1

    async def _generate(
        self, stream: CompletionStream, request: CompletionRequest, seed: int, faults: Mapping[str, Fault]
    ) -> None:
        params, prompt = request.params, self.prompt_ids(request.prompt)
        broken = faults.get("break-grammar")
        steps = self.model.steps(prompt, params) if broken is None else self._breaking(prompt, params, broken.after)
        stopper = self._stopper(request)
        stats = SpeculationStats()
        async with aclosing(steps):
            async for step in steps:
                told: list[Token] = []
                for token in step:
                    due = [name for name in _FAILURES if name in faults and faults[name].after <= stats.emitted_tokens]
                    if due:
                        if told:
                            stream.put(TokenEvent(tuple(told)))
                        raise _FAILURES[due[0]]()
                    told.append(_as_asked(token, stopper.add(token.id), params.logprobs))
                    stats.emitted_tokens += 1
                    if stopper.finish_reason is not None:
                        break
                stats.num_steps += 1
                stream.put(TokenEvent(tuple(told)))
                if stopper.finish_reason is not None:
                    # The limit is looked at first.
                    is_full = stats.emitted_tokens >= params.max_new_tokens
                    reason = "length" if is_full else stopper.finish_reason
                    stream.put(FinishEvent(reason, len(prompt), stats.emitted_tokens, seed, stats))
                    return
        raise StopAsyncIteration

    def _stopper(self, request: CompletionRequest) -> StopChecker:
        tokenizer, params = self.model.tokenizer, request.params
        is_at_end = None if request.make_end_check is None else request.make_end_check()
        limits = params.max_new_tokens, params.stop, self.model.eos_token_ids
        return StopChecker(Detokenizer(tokenizer), *limits, tokenizer.special_texts, request.shown_specials, is_at_end)

    async def _breaking(
        self, prompt: list[int], params: SamplingParams, held: int
    ) -> AsyncGenerator[Sequence[Token], None]:
        """The steps of an answer whose grammar is looked at for so many tokens only."""
        written: list[int] = []
        if held:
            async with aclosing(self.model.steps(prompt, params)) as steps:
                async for step in steps:
                    kept = step[: held - len(written)]
                    written += [token.id for token in kept]
                    yield kept
                    if len(written) >= held:
                        break
        if written and written[-1] in self.model.eos_token_ids:
            return
        rest = replace(params, grammar=None, max_new_tokens=params.max_new_tokens - len(written))
        async with aclosing(self.model.steps([*prompt, *written], rest)) as steps:
            async for step in steps:
                yield step


def _as_asked(token: Token, text: str, logprobs: int | None) -> Token:
    """A token with what a request wants to know of it."""
    logprob = None if logprobs is None else token.logprob
    return replace(token, text=text, logprob=logprob, top_logprobs=token.top_logprobs if logprobs else {})


def _without_bounds(schema: Any) -> Any:
    """The schema as outlines-core reads it."""
    if isinstance(schema, list):
        return [_without_bounds(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _without_bounds(inner) for name, inner in value.items()}
        if key in ("properties", "$defs", "definitions") and isinstance(value, dict)
        else _without_bounds(value)
        for key, value in schema.items()
        if key not in _BOUNDS or isinstance(value, dict)
    }
