"""A stand-in for servers of OpenAI's protocol: the shapes of vLLM, SGLang and of a plain server.

Shapes are those of vllm/entrypoints/openai/completion/serving.py (0.32), of
sglang/srt/entrypoints/openai/serving_completions.py (0.5.23, whose `sglext.spec_tokens_details` is as its `protocol.py`
declares it), and of OpenAI's reference of `/v1/completions`. The text is canned, a token a byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.standin.app_server import AppThread
from tests.standin.models import FakeModel
from tests.support.tiny_models import EOS, byte_tokenizer

TEXT = FakeModel.ANSWER
OWNERS = {"vllm": "vllm", "sglang": "sglang", "plain": "somebody"}
LIMIT = 2048


@dataclass
class OpenAIStandIn:
    """What a server of a kind answers, and what it was asked.

    Attributes:
        kind: Of `OWNERS`.
        text: What every answer is, before limits and stop strings.
        width: Tokens of a step.
        errors: Statuses and bodies of the next completions, before it answers again.
        cut_after: Steps after which the next answers break off.
        pause: Seconds before each step.
        models: What `/v1/models` lists.
        tells_drafts: Whether it reports speculation.
        tells_named: Whether it knows `logprob_token_ids`.
        last: What its last frame is instead; None is none at all.
    """

    kind: str
    text: str = TEXT
    width: int = 3
    errors: list[tuple[int, Any]] = field(default_factory=list)
    cut_after: list[int] = field(default_factory=list)
    frame_error: Any = None
    pause: float = 0.0
    key: str | None = None
    models: list[dict[str, Any]] = field(default_factory=list)
    tells_drafts: bool = True
    tells_named: bool = True
    last: Any = ...
    asked: list[dict[str, Any]] = field(default_factory=list)
    num_running: int = 0

    def __post_init__(self) -> None:
        self._tokenizer = byte_tokenizer()
        self.models = self.models or [{"id": "canned", "object": "model", "owned_by": OWNERS[self.kind]}]
        if self.kind != "plain":
            self.models[0].setdefault("max_model_len", LIMIT)
        self.app = Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/version", self._version),
                Route("/server_info", self._server_info),
                Route("/tokenize", self._tokenize, methods=["POST"]),
                Route("/v1/completions", self._complete, methods=["POST"]),
            ]
        )

    def ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    async def _models(self, request: Request) -> Response:
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": f"not {request.headers.get('authorization')}"}}, 401)
        return JSONResponse({"object": "list", "data": self.models})

    async def _version(self, request: Request) -> Response:
        return JSONResponse({"version": "0.32.0"} if self.kind == "vllm" else {}, 200 if self.kind == "vllm" else 404)

    async def _server_info(self, request: Request) -> Response:
        return JSONResponse({"version": "0.5.23", "enable_deterministic_inference": False, "model_path": "canned"})

    async def _tokenize(self, request: Request) -> Response:
        ids = self.ids((await request.json())["prompt"])
        return JSONResponse({"count": len(ids), "max_model_len": LIMIT, "tokens": ids})

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        if self.errors:
            status, said = self.errors.pop(0)
            return JSONResponse(said, status) if isinstance(said, dict) else Response(said, status)
        return StreamingResponse(self._frames(body), media_type="text/event-stream")

    async def _frames(self, body: dict[str, Any]) -> AsyncIterator[str]:
        self.num_running += 1
        cut_after = self.cut_after.pop(0) if self.cut_after else None
        try:
            for number, frame in enumerate(self._answer(body)):
                if self.pause:
                    await asyncio.sleep(self.pause)
                if number == cut_after:
                    if self.frame_error is None:
                        raise ConnectionError
                    frame = self.frame_error
                yield f"data: {json.dumps(frame)}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            self.num_running -= 1

    def _answer(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        ids = [*self.ids(self.text), EOS][: body["max_tokens"]]
        prompt = body["prompt"]
        num_prompt = len(prompt) if isinstance(prompt, list) else len(self.ids(prompt))
        common = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "canned"}
        written, steps, has_ended = 0, 0, False
        shown = told = ""
        while not has_ended:
            step = ids[written : written + self.width]
            written += len(step)
            steps += 1
            shown = str(self._tokenizer.decode(ids[:written], skip_special_tokens=True))
            whole = shown.rstrip("\ufffd") if written < len(ids) or self.kind == "vllm" else shown
            reason, stop = self._end(body, ids, written, whole)
            if stop is not None and self.kind != "sglang":
                end = whole.index(stop) + (len(stop) if body.get("include_stop_str_in_output") else 0)
                whole = whole[:end]
            has_ended = reason is not None
            delta, told = whole[len(told) :], whole
            choice: dict[str, Any] = {"index": 0, "text": delta, "logprobs": None, "finish_reason": reason}
            if self.kind in ("vllm", "sglang"):
                choice["stop_reason" if self.kind == "vllm" else "matched_stop"] = stop
                choice["token_ids"] = step
                choice["logprobs"] = self._logprobs(body, step)
            frame = {**common, "choices": [choice]}
            if (body.get("stream_options") or {}).get("continuous_usage_stats"):
                frame["usage"] = _usage(num_prompt, written)
            if self.kind == "plain":
                if delta:
                    yield {**frame, "choices": [{**choice, "finish_reason": None}]}
                if has_ended:
                    yield {**frame, "choices": [{**choice, "text": ""}]}
            else:
                yield frame
        if self.kind == "sglang" and body.get("return_spec_tokens_details") and self.tells_drafts:
            details = {
                "spec_accept_rate": 0.5, "spec_accept_length": 2.0, "spec_num_correct_drafts": written - steps,
                "spec_num_proposed_drafts": 2 * steps, "spec_verify_ct": steps, "spec_correct_drafts_histogram": [],
            }  # fmt: skip
            yield {**common, "choices": [], "sglext": {"spec_tokens_details": details}}
        last: dict[str, Any] = {**common, "choices": [], "usage": _usage(num_prompt, written, cached=1)}
        if self.kind == "vllm" and self.tells_drafts:
            accepted = written - steps
            last["metrics"] = {
                "speculative_decoding": {
                    "mean_acceptance_length": 2.0, "draft_acceptance_rate": 0.5,
                    "acceptance_histogram": [steps - accepted // 2 - accepted % 2, accepted % 2, accepted // 2],
                    "num_spec_steps": steps,
                    "num_accepted_draft_tokens": accepted, "num_draft_tokens": 2 * steps, "num_spec_tokens": 2,
                    "per_step_accepted": None, "per_step_drafted": None,
                }
            }  # fmt: skip
        if self.last is not None:
            yield last if self.last is ... else {**last, **self.last}

    def _end(self, body: dict[str, Any], ids: list[int], written: int, text: str) -> tuple[str | None, str | None]:
        found = [stop for stop in body.get("stop") or [] if stop in text]
        if found:
            return "stop", found[0]
        if written < len(ids):
            return None, None
        return ("stop" if ids[-1] == EOS else "length"), None

    def _logprobs(self, body: dict[str, Any], step: list[int]) -> dict[str, Any] | None:
        if body.get("logprobs") is None:
            return None
        names = [f"token_id:{index}" for index in step]
        named = {f"token_id:{index}": -2.0 - index / 100 for index in body.get("logprob_token_ids", ())}
        top = [{name: -0.5, "token_id:7": -1.5} | (named if self.tells_named else {}) for name in names]
        return {"text_offset": [0] * len(step), "token_logprobs": [-0.5] * len(step), "tokens": names,
                "top_logprobs": top}  # fmt: skip


def _usage(prompt: int, completion: int, cached: int | None = None) -> dict[str, Any]:
    details = {} if cached is None else {"prompt_tokens_details": {"cached_tokens": cached}}
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion, **details}


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an application on this machine; its address."""
    with AppThread(app) as server:
        yield server.url
