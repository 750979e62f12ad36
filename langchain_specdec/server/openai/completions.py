"""`/v1/completions`: texts that go on from prompts, whole or in pieces."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.responses import Response

from langchain_specdec.chat.structured_output import form_of_response
from langchain_specdec.completions.completion import Completion, CompletionRequest, collect
from langchain_specdec.completions.events import FinishEvent, Token
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.sampling.params import SamplingParams
from langchain_specdec.server.exchange import Compact, EventStream, compact
from langchain_specdec.server.held import Held
from langchain_specdec.server.openai import answers
from langchain_specdec.server.openai.bodies import CompletionBody, form_of, parsed
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
    prompts = asked.prompts
    if not prompts:
        msg = "prompt is an empty list: give at least one prompt."
        raise InvalidParameterError(msg)
    held.enter_context(served.admission.take(len(prompts) - 1))
    requests = [CompletionRequest(prompt, params) for prompt in prompts]
    started = await served.start(requests, held, is_whole=not asked.stream)
    shape = _Shape(served, asked)
    if asked.stream:
        return EventStream(_streamed(shape, started), started.held.pop_all(), served.settings.request_timeout)
    outcomes = await asyncio.gather(*(_collected(run) for run in started.runs))
    return Compact(await shape.whole(outcomes))


def _params(asked: CompletionBody, adapter: str | None) -> SamplingParams:
    named = asked.sampling()
    form = form_of(asked.response_format)
    if "response_format" in form:
        parsed_form = form_of_response(form["response_format"])
        form = {} if parsed_form is None else {"grammar": parsed_form.grammar}
    limit = _DEFAULT_MAX_TOKENS if asked.max_tokens is None else asked.max_tokens
    return SamplingParams(**named, **form, max_new_tokens=limit, logprobs=asked.logprobs, adapter=adapter)


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
            elif event.text or shape.has_logprobs:
                yield await shape.piece(place, event.tokens)
        if shape.has_usage:
            yield shape.frame([], usage=answers.usage(finishes), **answers.speculation(finishes))
    except Exception as error:
        yield f"data: {compact(problem_of(error)[1])}\n\n"
    finally:
        await events.aclose()
    yield DONE


class _Shape:
    """Shapes the answer to one request."""

    def __init__(self, served: ServedModel, asked: CompletionBody) -> None:
        self._served = served
        self.has_usage = asked.has_usage
        self.has_logprobs = asked.logprobs is not None
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
            }
            for place, completion in enumerate(completed)
        ]
        finishes = [completion.finish for completion in completed]
        counts = answers.usage(finishes)
        return {**self._common, "choices": choices, "usage": counts, **answers.speculation(finishes)}

    async def piece(self, place: int, tokens: Sequence[Token]) -> str:
        """The event of some tokens of one completion."""
        logprobs = await self._logprobs(place, tokens)
        text = "".join(token.text for token in tokens)
        return self.frame([{"index": place, "text": text, "logprobs": logprobs, "finish_reason": None}])

    def end(self, place: int, finish: FinishEvent, all_finishes: Sequence[FinishEvent]) -> str:
        """The event that ends one completion. That of the last tells what speculation did, unless counts follow."""
        reason = answers.finish_reason(finish)
        extra = answers.speculation(all_finishes) if all_finishes and not self.has_usage else {}
        return self.frame([{"index": place, "text": "", "logprobs": None, "finish_reason": reason}], **extra)

    def frame(self, choices: list[dict[str, Any]], **extra: Any) -> str:
        """A chunk as an event."""
        counts = {"usage": None} if self.has_usage else {}
        return f"data: {compact({**self._common, 'choices': choices, **counts, **extra})}\n\n"

    async def _logprobs(self, place: int, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self.has_logprobs:
            return None
        names = await answers.token_names(self._served, tokens, by_id=self._names_ids)
        offset = self._offsets.get(place, 0)
        self._offsets[place] = offset + sum(len(token.text) for token in tokens)
        return answers.text_logprobs(tokens, names, offset)
