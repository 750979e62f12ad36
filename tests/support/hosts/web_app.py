"""The FastAPI program of the documentation, with endpoints that tests look into it by, and endpoints in threads."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fastapi.responses import PlainTextResponse, StreamingResponse

from tests.support.hosts.figures import num_files, resident_mb

if TYPE_CHECKING:
    # Type checkers do not look for modules in docs/examples.
    Question = Any
    app: Any
    event: Any
else:
    from serve_fastapi import Question, app, event


async def figures() -> dict[str, Any]:
    """What the worker holds."""
    gc.collect()
    engine = app.state.model.backend.engine
    return {
        "pid": os.getpid(),
        "running": engine.num_running,
        "waiting": engine.num_waiting,
        "forwards": engine.num_target_forwards,
        "files": num_files(),
        "mb": resident_mb(),
        "threads": threading.active_count(),
    }


def sync(question: Question) -> PlainTextResponse:
    """A whole answer, by an endpoint that runs in a thread."""
    answer = app.state.model.invoke(question.text, max_tokens=question.max_tokens)
    return PlainTextResponse(answer.text)


def sync_stream(question: Question) -> StreamingResponse:
    """The answer piece by piece, read in threads."""

    def events() -> Iterator[str]:
        for chunk in app.state.model.stream(question.text, max_tokens=question.max_tokens):
            if chunk.text:
                yield event("piece", {"text": chunk.text})
        yield event("done", {})

    return StreamingResponse(events(), media_type="text/event-stream")


async def unwatched(question: Question) -> PlainTextResponse:
    """A whole answer, by `ainvoke`."""
    answer = await app.state.model.ainvoke(question.text, max_tokens=question.max_tokens)
    return PlainTextResponse(answer.text)


app.get("/figures")(figures)
app.post("/sync")(sync)
app.post("/sync/stream")(sync_stream)
app.post("/unwatched")(unwatched)
