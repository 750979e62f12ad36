"""A web server over one model: a whole answer as JSON, and a stream of Server-Sent Events.

MODEL_ID=embedded uvicorn serve_fastapi:app --app-dir docs/examples --timeout-graceful-shutdown 2

Needs `pip install fastapi uvicorn`. With `--workers N` each worker loads a model of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from langchain_core.messages import AIMessageChunk
from pydantic import BaseModel, Field

from langchain_specdec import ChatSpeculative
from langchain_specdec.errors import InvalidParameterError, SpecDecError


class Question(BaseModel):
    """What a client sends. Bounds keep one client from holding a slot for long."""

    text: Annotated[str, Field(min_length=1, max_length=20_000)]
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 200


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the model in the worker that runs it, once, and close it when the server ends."""
    # In a thread, so that the event loop answers signals meanwhile.
    model = await asyncio.to_thread(
        ChatSpeculative, model=os.environ.get("MODEL_ID", "embedded"), num_slots=2, timeout=60
    )
    with model:
        app.state.model = model
        yield


app = FastAPI(lifespan=lifespan)


@app.exception_handler(SpecDecError)
async def refuse(_: Request, error: SpecDecError) -> Response:
    """An answer to a request that cannot be answered."""
    is_theirs = isinstance(error, InvalidParameterError)  # a prompt that is too long is one of them
    return JSONResponse({"detail": told(error)}, status_code=422 if is_theirs else 503)


def told(error: SpecDecError) -> str:
    """What a client may read: what was wrong with its request, and of all else only that it failed."""
    return str(error) if isinstance(error, InvalidParameterError) else "The model cannot answer now."


@app.post("/chat")
async def chat(question: Question, request: Request) -> dict[str, Any]:
    """The whole answer."""
    answer = AIMessageChunk("")
    async for chunk in pieces(question, request):
        answer += chunk
    return {"text": answer.text, "usage": answer.usage_metadata}


@app.post("/chat/stream")
async def chat_stream(question: Question, request: Request) -> StreamingResponse:
    """The answer piece by piece."""
    return StreamingResponse(events(question, request), media_type="text/event-stream")


async def events(question: Question, request: Request) -> AsyncIterator[str]:
    """Server-Sent Events: pieces of text, then `done`, or `error` with its reason."""
    try:
        async for chunk in pieces(question, request):
            if chunk.text:
                yield event("piece", {"text": chunk.text})
    except SpecDecError as error:
        yield event("error", {"detail": told(error)})
    else:
        yield event("done", {})


async def pieces(question: Question, request: Request) -> AsyncIterator[AIMessageChunk]:
    """The chunks of the model's answer. The work stops, and its slot is free, once the client has gone."""
    model: ChatSpeculative = app.state.model
    # Most servers cancel a stream then, but not all do, and none cancels an endpoint that returns JSON.
    gone = asyncio.create_task(disconnected(request))
    try:
        async with contextlib.aclosing(model.astream(question.text, max_tokens=question.max_tokens)) as chunks:
            async for chunk in chunks:
                if gone.done():
                    return
                yield chunk
    finally:
        gone.cancel()


async def disconnected(request: Request) -> None:
    """Wait until the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def event(name: str, data: dict[str, Any]) -> str:
    """One event. JSON has no line breaks of its own, which would end the event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
