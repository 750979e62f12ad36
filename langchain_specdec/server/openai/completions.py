"""`/v1/completions`: texts that go on from prompts, whole or in pieces."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.responses import Response

from langchain_specdec.backends.base import SHORT_TEXT
from langchain_specdec.completions.completion import Completion, CompletionRequest, collect
from langchain_specdec.completions.events import FinishEvent, Token
from langchain_specdec.completions.request_fields import with_fields
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.sampling.params import SamplingParams
from langchain_specdec.server.exchange import Compact, EventStream, compact
from langchain_specdec.server.held import Held
from langchain_specdec.server.openai import answers
from langchain_specdec.server.openai.bodies import CompletionBody, parsed
from langchain_specdec.server.openai.chat import DONE
from langchain_specdec.server.openai.errors import problem_of
from langchain_specdec.server.served_model import ServedModel, Started, merged

# OpenAI's own.
_DEFAULT_MAX_TOKENS = 16


async def completions(served: ServedModel, body: Any, held: Held) -> Response:
    """Complete prompts.

    Args:
        served: The model.
        body: The parsed JSON.
        held: What the request holds, room for one completion; a stream takes it over.

    Raises:
        SpecDecError: One of them cannot be completed.
    """
    asked: CompletionBody = parsed(CompletionBody, body)
    params = _params(asked, served.adapter_of(asked.model))
    prompts: Sequence[str | list[int]] = asked.prompts
    if not prompts:
        msg = "prompt is an empty list: give at least one prompt."
        raise InvalidParameterError(msg)
    held.enter_context(served.admission.take(len(prompts) - 1))
    if asked.return_token_ids:
        prompts = [await _ids(served, prompt) for prompt in prompts]
    # Else special tokens are no part of the text.
    shown = served.tokenizer.special_texts if asked.skip_special_tokens is False else {}
    told = asked.specdec or {}
    named = tuple(asked.logprob_token_ids or ())
    if named and asked.logprobs is None:
        msg = "logprob_token_ids needs logprobs: give 0 for the log probabilities of these tokens alone."
        raise InvalidParameterError(msg)
    more: dict[str, Any] = {"shown_specials": shown, "logprob_token_ids": named}
    requests = [with_fields(CompletionRequest(prompt, params, **more), told) for prompt in prompts]
    started = await served.start(requests, held, is_whole=not asked.stream)
    shape = _Shape(served, asked, prompts)
    if asked.stream:
        return EventStream(_streamed(shape, started), started.held.pop_all(), served.settings.request_timeout)
    outcomes = await asyncio.gather(*(_collected(run) for run in started.runs))
    return Compact(await shape.whole(outcomes))


def _params(asked: CompletionBody, adapter: str | None) -> SamplingParams:
    named, form = asked.sampling(), asked.form()
    limit = _DEFAULT_MAX_TOKENS if asked.max_tokens is None else asked.max_tokens
    return SamplingParams(**named, **form, max_new_tokens=limit, logprobs=asked.logprobs, adapter=adapter)


async def _ids(served: ServedModel, prompt: str | list[int]) -> list[int]:
    """The tokens of a prompt."""
    return prompt if isinstance(prompt, list) else await served.prompt_ids(prompt, is_long=len(prompt) > SHORT_TEXT)


async def _collected(run: Any) -> Completion:
    return collect([event async for event in run])


async def _streamed(shape: _Shape, started: Started) -> AsyncGenerator[str, None]:
    finishes: list[FinishEvent] = []
    events = merged(started.runs)
    try:
        async for place, event in events:
            if isinstance(event, FinishEvent):
                finishes.append(event)
                yield shape.end(place, event, finishes if len(finishes) == len(started.runs) else ())
            elif event.text or shape.tells_tokens:
                for tokens in shape.pieces(event.tokens):
                    yield await shape.piece(place, tokens)
        if shape.has_usage:
            yield shape.frame([], usage=answers.usage(finishes), **answers.speculation(finishes))
    except Exception as error:
        yield f"data: {compact(problem_of(error)[1])}\n\n"
    finally:
        await events.aclose()
    yield DONE


class _Shape:
    """Shapes the answer to one request.

    Args:
        served: The model.
        asked: The request.
        prompts: Its prompts, as tokens where those are told.
    """

    def __init__(self, served: ServedModel, asked: CompletionBody, prompts: Sequence[str | list[int]]) -> None:
        self._served = served
        self._prompts = prompts
        self._tells_ids = bool(asked.return_token_ids)
        self._is_by_token = asked.stream_interval == 1
        self._begun: set[int] = set()
        self.has_usage = asked.has_usage
        self._has_logprobs = asked.logprobs is not None
        self.tells_tokens = self._has_logprobs or self._tells_ids
        self._names_ids = bool(asked.return_tokens_as_token_ids)
        self._offsets: dict[int, int] = {}
        self._common = {
            "id": answers.new_id("cmpl"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": asked.model or served.name,
        }

    async def whole(self, completed: Sequence[Completion]) -> dict[str, Any]:
        """The whole answer."""
        choices = [
            {
                "index": place,
                "text": completion.text,
                "logprobs": await self._logprobs(place, completion.tokens),
                "finish_reason": answers.finish_reason(completion.finish),
                **self._ids(place, completion.tokens),
            }
            for place, completion in enumerate(completed)
        ]
        finishes = [completion.finish for completion in completed]
        counts = answers.usage(finishes)
        return {**self._common, "choices": choices, "usage": counts, **answers.speculation(finishes)}

    def pieces(self, tokens: Sequence[Token]) -> list[Sequence[Token]]:
        """Those of the tokens of a step that an event tells of."""
        return [(token,) for token in tokens] if self._is_by_token else [tokens]

    async def piece(self, place: int, tokens: Sequence[Token]) -> str:
        """The event of some tokens of one completion."""
        logprobs = await self._logprobs(place, tokens)
        text = "".join(token.text for token in tokens)
        choice = {"index": place, "text": text, "logprobs": logprobs, "finish_reason": None}
        return self.frame([{**choice, **self._ids(place, tokens)}])

    def end(self, place: int, finish: FinishEvent, all_finishes: Sequence[FinishEvent]) -> str:
        """The event that ends one completion. That of the last tells what speculation did, unless counts follow."""
        reason = answers.finish_reason(finish)
        extra = answers.speculation(all_finishes) if all_finishes and not self.has_usage else {}
        choice = {"index": place, "text": "", "logprobs": None, "finish_reason": reason, **self._ids(place, ())}
        return self.frame([choice], **extra)

    def frame(self, choices: list[dict[str, Any]], **extra: Any) -> str:
        """A chunk as an event."""
        counts = {"usage": None} if self.has_usage else {}
        return f"data: {compact({**self._common, 'choices': choices, **counts, **extra})}\n\n"

    def _ids(self, place: int, tokens: Sequence[Token]) -> dict[str, list[int]]:
        """The tokens, as vLLM tells them where it is asked to; with the first go those of the prompt."""
        if not self._tells_ids:
            return {}
        ids = {"token_ids": [token.id for token in tokens]}
        if place in self._begun:
            return ids
        self._begun.add(place)
        return {"prompt_token_ids": list(self._prompts[place]), **ids}  # type: ignore[arg-type]

    async def _logprobs(self, place: int, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self._has_logprobs:
            return None
        names = await answers.token_names(self._served, tokens, by_id=self._names_ids)
        offset = self._offsets.get(place, 0)
        self._offsets[place] = offset + sum(len(token.text) for token in tokens)
        return answers.text_logprobs(tokens, names, offset)
