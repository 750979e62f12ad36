"""A web application of plain WSGI, whose model is loaded by the worker's first request, or with LOAD=import at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qs

from langchain_specdec import ChatSpeculative
from langchain_specdec.errors import SpecDecError

_lock = threading.Lock()


@lru_cache(maxsize=1)
def load() -> ChatSpeculative:
    return ChatSpeculative.from_model_id(os.environ["MODEL_ID"], num_slots=2)


def model() -> ChatSpeculative:
    """The model of this process."""
    with _lock:
        return load()


if os.environ.get("LOAD") == "import":
    model().invoke("Warm", max_tokens=1)


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answers `?text=...&tokens=...` by the pid and the text; with `stream=1` piece by piece."""
    query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    text, tokens = query.get("text", "Hello"), int(query.get("tokens", "8"))
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("X-Pid", str(os.getpid()))]
    try:
        if "stream" in query:
            start_response("200 OK", headers)
            return (chunk.text.encode() for chunk in model().stream(text, max_tokens=tokens))
        answer = model().invoke(text, max_tokens=tokens).text
    except SpecDecError as error:
        start_response("503 Service Unavailable", headers)
        return [str(error).encode()]
    start_response("200 OK", headers)
    return [answer.encode()]
