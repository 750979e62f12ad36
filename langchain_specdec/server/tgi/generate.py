"""`/generate`, `/generate_stream` and `/`: a text that goes on from a prompt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import Response

from langchain_specdec.backends.base import SHORT_TEXT
from langchain_specdec.completions.events import FinishEvent
from langchain_specdec.errors import PromptTooLongError
from langchain_specdec.server.exchange import Compact, EventStream, compact
from langchain_specdec.server.held import Held
from langchain_specdec.server.served_model import ServedModel
from langchain_specdec.server.tgi.dialect import Dialect
from langchain_specdec.server.tgi.errors import Refusal, refusal_of
from langchain_specdec.server.tgi.frames import Answer, Frame, request_of
from langchain_specdec.server.tgi.parameters import (
    Generation,
    check_inputs,
    check_parameters,
    deserialize,
    make_generation,
)


async def generate(
    served: ServedModel, body: Any, held: Held, *, dialect: Dialect, is_full_text: bool = False, is_list: bool = False
) -> Response:
    """Answer with the whole text.

    Args:
        served: The model.
        body: The parsed JSON.
        held: What the request holds.
        dialect: The server's limits and rules.
        is_full_text: Whether the prompt goes before the text where nobody says.
        is_list: Whether the answer stands in a list, as that of `/` does.

    Raises:
        Refusal: The request is not one.
        SpecDecError: It cannot be run.
    """
    since = time.perf_counter()
    inputs, parameters = deserialize(body)
    held.enter_context(served.admission.take())
    generation = await _valid(served, dialect, inputs, parameters, is_stream=False, is_full_text=is_full_text)
    checked = time.perf_counter()
    started = await served.start([request_of(generation, dialect.make_end)], held, is_whole=True)
    answer = Answer(generation, served.tokenizer, served.eos_token_ids, dialect.make_end(generation.stop))
    async for event in started.runs[0]:
        if isinstance(event, FinishEvent):
            whole = answer.whole(event)
            times = _times(
                event, num_characters=len(inputs), total=time.perf_counter() - since, validation=checked - since
            )
            return Compact([whole] if is_list else whole, headers=times)
        answer.add(event)
    raise Refusal(500, "incomplete_generation", "Incomplete generation")


async def generate_stream(
    served: ServedModel, body: Any, held: Held, *, dialect: Dialect, is_full_text: bool = False
) -> Response:
    """Answer with a frame for each token. Errors are frames, too: the status is 200 by then.

    Args:
        served: The model.
        body: The parsed JSON.
        held: What the request holds, which the stream takes over.
        dialect: The server's limits and rules.
        is_full_text: Whether the prompt goes before the text where nobody says.

    Raises:
        BodyError: The body has fields of wrong types, which the web framework sees before the stream begins.
    """
    inputs, parameters = deserialize(body)
    frames = _frames(served, dialect, inputs, parameters, held, is_full_text=is_full_text)
    own = Held()
    # The frames take what they need when they begin, which may be never.
    own.callback(held.pop_all().close)
    return EventStream(frames, own, served.settings.request_timeout)


async def _frames(
    served: ServedModel,
    dialect: Dialect,
    inputs: str,
    parameters: dict[str, Any],
    held: Held,
    *,
    is_full_text: bool,
) -> AsyncGenerator[str, None]:
    with held:
        try:
            held.enter_context(served.admission.take())
            generation = await _valid(served, dialect, inputs, parameters, is_stream=True, is_full_text=is_full_text)
            started = await served.start([request_of(generation, dialect.make_end)], held)
            answer = Answer(generation, served.tokenizer, served.eos_token_ids, dialect.make_end(generation.stop))
            # The last frame tells the end too, so what may be the last waits for what follows.
            kept: Frame | None = None
            async for event in started.runs[0]:
                if kept is not None:
                    yield _event(kept.as_json(answer.end(event) if isinstance(event, FinishEvent) else None))
                    kept = None
                if isinstance(event, FinishEvent):
                    return
                *frames, last = answer.add(event)
                for frame in frames:
                    yield _event(frame.as_json(None))
                if answer.may_end(last):
                    kept = last
                else:
                    yield _event(last.as_json(None))
            raise Refusal(500, "incomplete_generation_stream", "Incomplete generation stream")
        except Exception as error:
            refusal = refusal_of(error)
            if refusal.status in (422, 429):
                served.metrics.failed(refusal.kind)
            yield _event(refusal.body)


def _event(value: Any) -> str:
    return f"data:{compact(value)}\n\n"


async def _valid(
    served: ServedModel,
    dialect: Dialect,
    inputs: str,
    parameters: dict[str, Any],
    *,
    is_stream: bool,
    is_full_text: bool,
) -> Generation:
    limits = dialect.limits
    check_parameters(parameters, limits, is_stream=is_stream)
    check_inputs(inputs, parameters, limits)
    try:
        prompt = await served.prompt_ids(inputs, is_long=len(inputs) > SHORT_TEXT)
    except PromptTooLongError:
        if "truncate" not in parameters:
            raise
        prompt = await asyncio.to_thread(served.tokenizer.encode, inputs)
    how = {"is_stream": is_stream, "is_full_text": is_full_text}
    return make_generation(inputs, prompt, parameters, limits, adapters=served.backend.adapter_names, **how)


def _times(finish: FinishEvent, *, num_characters: int, total: float, validation: float) -> dict[str, str]:
    """TGI's headers; times in milliseconds, but for that of computing."""
    inference = min(finish.speculation.decode_seconds, total)
    queue = max(total - validation - inference, 0.0)
    per_token = inference / max(finish.completion_tokens, 1)
    milliseconds = {"total": total, "validation": validation, "queue": queue, "inference": inference}
    return {
        "x-compute-time": f"{total:.6f}",
        "x-compute-characters": str(num_characters),
        **{f"x-{name}-time": str(round(seconds * 1000)) for name, seconds in milliseconds.items()},
        "x-time-per-token": str(round(per_token * 1000)),
        "x-prompt-tokens": str(finish.prompt_tokens),
        "x-generated-tokens": str(finish.completion_tokens),
    }
