"""A server with the HTTP contract of Text Generation Inference 3.3, for tests: real tokens, faults on request.

As a process: `python -m tests.standin.server --port 8080 --model-id embedded --speculate 3 --fault drop:after=3`; with
`--model-id fake` it needs no model and starts at once. In a thread of a test: `ServerThread(...)`.

It serves `/health`, `/info`, `/metrics`, `/v1/models`, `/tokenize`, `/chat_tokenize`, `/generate`, `/generate_stream`,
`/` and `/v1/chat/completions`. Not served: `/v1/completions`, tools, LoRA adapters, `best_of` above 1.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import json
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, contextmanager
from dataclasses import fields, replace
from typing import Any

from aiohttp import web
from typing_extensions import Self

from tests.standin.faults import Fault, Faults
from tests.standin.generation import (
    Frame,
    Limits,
    NotDeserializable,
    Refusal,
    ValidRequest,
    check_grammar_shape,
    deserialize,
    generate,
    validate,
)
from tests.standin.killers import DEAD, deadly
from tests.standin.launcher_log import Log
from tests.standin.models import EngineModel, FakeModel, Model

PAYLOAD_LIMIT = 2_000_000
DEAD_SHARD = "Request failed during generation: Server error: transport error"
_CHAT_REASONS = {"eos_token": "stop", "length": "length", "stop_sequence": "stop_sequence"}


class StandIn:
    """The server's state and routes.

    Args:
        model: Where tokens come from.
        limits: What the server takes.
        api_key: Key that POST routes ask for.
        faults: What goes wrong.
        on_crash: Called by the fault `crash`; the default ends the process.
        disable_grammar_support: Refuse grammars, as with TGI's option of that name.
    """

    def __init__(
        self,
        model: Model,
        limits: Limits,
        *,
        api_key: str | None = None,
        faults: list[Fault] | None = None,
        on_crash: Callable[[], None] | None = None,
        disable_grammar_support: bool = False,
    ) -> None:
        self.model = model
        self.limits = limits
        self.faults = Faults(faults or [])
        self.counts: Counter[str] = Counter()
        self.requests: list[dict[str, Any]] = []  # headers and bodies, for tests to look at
        self.num_running = 0
        self.max_running = 0
        self.is_model_dead = False
        self._api_key = api_key
        self._takes_grammars = not disable_grammar_support
        self._on_crash = on_crash or (lambda: os._exit(1))
        self._transports: set[asyncio.BaseTransport] = set()

    def app(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=PAYLOAD_LIMIT, middlewares=[self._authorize])
        app.add_routes(
            [
                web.get("/", self._health),
                web.get("/health", self._health),
                web.get("/ping", self._health),
                web.get("/info", self._info),
                web.get("/metrics", self._metrics),
                web.get("/v1/models", self._models),
                web.post("/", self._compat),
                web.post("/generate", self._generate),
                web.post("/generate_stream", self._generate_stream),
                web.post("/tokenize", self._tokenize),
                web.post("/chat_tokenize", self._chat_tokenize),
                web.post("/v1/chat/completions", self._chat),
                web.post("/standin/faults", self._set_faults),
                web.get("/standin/state", self._state),
            ]
        )
        return app

    def abort_connections(self) -> None:
        """Reset every connection that an answer is on its way over."""
        for transport in list(self._transports):
            transport.abort()  # type: ignore[attr-defined]

    # -- routes beside generation

    @web.middleware
    async def _authorize(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.method == "POST" and not request.path.startswith(("/standin", "/chat_tokenize")):
            self.requests.append({"path": request.path, "headers": dict(request.headers)})
            given = request.headers.get("Authorization", "").lower().encode()
            if self._api_key and not hmac.compare_digest(given, f"Bearer {self._api_key}".lower().encode()):
                return web.Response(status=401, headers={"Content-Type": ""})
        return await handler(request)  # type: ignore[no-any-return]

    async def _health(self, request: web.Request) -> web.Response:
        self.counts["health"] += 1
        if self.faults.has("unhealthy") or self.faults.has("dead-shard"):
            return web.json_response({"error": "unhealthy", "error_type": "healthcheck"}, status=503)
        return web.Response()

    async def _info(self, request: web.Request) -> web.Response:
        self.counts["info"] += 1
        if slow := self.faults.of_start("slow-info"):
            await asyncio.sleep(slow.seconds or 1.0)
        if self.faults.has("no-info"):
            return web.Response(status=404)
        limits = {f.name: getattr(self.limits, f.name) for f in fields(self.limits) if f.name != "max_top_n_tokens"}
        return web.json_response(
            {
                "model_id": self.model.model_id,
                "model_sha": None,
                "model_pipeline_tag": None,
                **limits,
                "validation_workers": 2,
                "router": "text-generation-router",
                "version": "3.3.6-dev0",
                "sha": None,
                "docker_label": None,
            }
        )

    async def _models(self, request: web.Request) -> web.Response:
        model = {"id": self.model.model_id, "object": "model", "created": 0, "owned_by": self.model.model_id}
        return web.json_response({"object": "list", "data": [model]})

    async def _metrics(self, request: web.Request) -> web.Response:
        self.counts["metrics"] += 1
        if self.faults.has("no-metrics"):
            return web.Response(status=500)
        lines = []
        for name in ("tgi_request_count", "tgi_request_success"):
            if self.counts[name]:
                lines += [f"# TYPE {name} counter", f"{name} {self.counts[name]}", ""]
        for name, kind in (("tgi_request_skipped_tokens", "summary"), ("tgi_request_generated_tokens", "histogram")):
            if self.counts[f"{name}_count"]:
                lines.append(f"# TYPE {name} {kind}")
                if kind == "summary":
                    lines += [f'{name}{{quantile="{q}"}} 0' for q in ("0", "0.5", "0.9", "0.95", "0.99", "0.999", "1")]
                else:
                    lines.append(f'{name}_bucket{{le="+Inf"}} {self.counts[f"{name}_count"]}')
                lines += [
                    f"{name}_sum {self.counts[f'{name}_sum']}",
                    f"{name}_count {self.counts[f'{name}_count']}",
                    "",
                ]
        lines += ["# TYPE tgi_queue_size gauge", "tgi_queue_size 0", ""]
        lines += ["# TYPE tgi_batch_current_size gauge", f"tgi_batch_current_size {self.num_running}", ""]
        return web.Response(text="\n".join(lines))

    async def _set_faults(self, request: web.Request) -> web.Response:
        try:
            self.faults.replace(await request.json())
        except (ValueError, TypeError) as error:
            return web.Response(status=422, text=str(error))
        return web.Response()

    async def _state(self, request: web.Request) -> web.Response:
        return web.json_response({"num_running": self.num_running, "max_running": self.max_running})

    async def _tokenize(self, request: web.Request) -> web.Response:
        if self.faults.has("no-tokenize"):
            return web.json_response({"error": "tokenizer error", "error_type": "validation"}, status=500)
        try:
            inputs, _ = deserialize(await self._json(request))
        except NotDeserializable as error:
            return web.Response(status=422, text=str(error))
        return web.json_response(self._tokens(inputs, add_special_tokens=True))

    async def _chat_tokenize(self, request: web.Request) -> web.Response:
        body = await self._json(request)
        text = self.model.render(body["messages"])
        tokens = self._tokens(text, add_special_tokens=False)
        return web.json_response({"tokenize_response": tokens, "templated_text": text})

    def _tokens(self, text: str, *, add_special_tokens: bool) -> list[dict[str, Any]]:
        ids = self.model.encode(text, add_special_tokens=add_special_tokens)
        own = self.model.encode(text, add_special_tokens=False)
        pieces = [self.model.decode([token], skip_special_tokens=False) for token in ids]
        # What stands in front of a text covers none of it. Where each of the others stands is no matter here.
        stops = [0] * (len(ids) - len(own)) + [1] * len(own)
        return [
            {"id": i, "text": piece, "start": 0, "stop": stop}
            for i, piece, stop in zip(ids, pieces, stops, strict=True)
        ]

    @staticmethod
    async def _json(request: web.Request) -> Any:
        if request.content_type != "application/json":
            text = "Expected request with `Content-Type: application/json`"
            raise web.HTTPUnsupportedMediaType(text=text)
        try:
            return json.loads(await request.text())
        except web.HTTPRequestEntityTooLarge:
            raise web.HTTPRequestEntityTooLarge(PAYLOAD_LIMIT, text="Failed to buffer the request body") from None
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"Failed to parse the request body as JSON: {error}") from None

    # -- generation

    async def _compat(self, request: web.Request) -> web.StreamResponse:
        body = await self._json(request)
        is_stream = isinstance(body, dict) and bool(body.get("stream"))
        return await self._serve(request, body, is_stream=is_stream, is_full_text=True, is_list=not is_stream)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, await self._json(request), is_stream=False)

    async def _generate_stream(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, await self._json(request), is_stream=True)

    async def _serve(
        self, request: web.Request, body: Any, *, is_stream: bool, is_full_text: bool = False, is_list: bool = False
    ) -> web.StreamResponse:
        self.requests[-1]["body"] = body
        faults = self.faults.take()
        if "quoted" in faults:
            Log(is_json=True, target="text_generation_router", is_router=True)(f"Traceback …\n{body}", "ERROR")
        if answer := _framework_answer(faults):
            return answer
        try:
            inputs, parameters = deserialize(body)
        except NotDeserializable as error:
            return web.Response(status=422, text=str(error))

        def check() -> ValidRequest:
            if (last_words := deadly(parameters, self.model.vocab_size)) and not self.is_model_dead:
                self.is_model_dead = True
                raise Refusal(424, "generation", last_words)
            valid = validate(
                self.model,
                self.limits,
                inputs,
                parameters,
                is_stream=is_stream,
                is_full_text=is_full_text,
                takes_grammars=self._takes_grammars,
            )
            extra = faults["overshoot"].after if "overshoot" in faults else 0
            sampling = replace(valid.sampling, max_new_tokens=valid.sampling.max_new_tokens + extra)
            return replace(valid, sampling=sampling)

        if is_stream:
            return await self._stream(request, check, faults, lambda valid, frame: [frame.as_json(valid)])
        try:
            valid, frames = await self._collect(request, check, faults)
        except Refusal as refusal:
            return web.json_response(refusal.body, status=refusal.status)
        whole = _whole_answer(valid, frames)
        return web.json_response([whole] if is_list else whole)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await self._json(request)
        self.requests[-1]["body"] = body
        faults = self.faults.take()
        if answer := _framework_answer(faults):
            return answer
        if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
            return web.Response(status=422, text="Failed to deserialize the JSON body: missing field `messages`")
        try:
            check_grammar_shape(body.get("response_format"), "response_format")
        except NotDeserializable as error:
            return web.Response(status=422, text=str(error))
        if body.get("tools"):
            refusal = Refusal(422, "tool_error", "Tool error: the stand-in has no tools")
            if body.get("response_format"):
                refusal = Refusal(422, "tool_error", "Tool error: Grammar and tools are mutually exclusive")
            return web.json_response(refusal.body, status=422)

        def check() -> ValidRequest:
            return self._valid_chat(body)

        chat = ChatShape(body.get("model") or self.model.model_id)
        if body.get("stream"):
            usage = bool((body.get("stream_options") or {}).get("include_usage"))
            return await self._stream(
                request, check, faults, lambda valid, frame: chat.chunks(valid, frame, usage=usage), is_chat=True
            )
        try:
            valid, frames = await self._collect(request, check, faults)
        except Refusal as refusal:
            return web.json_response(refusal.body, status=refusal.status)
        return web.json_response(chat.whole(valid, frames))

    def _valid_chat(self, body: dict[str, Any]) -> ValidRequest:
        try:
            text = self.model.render(body["messages"])
        except Exception as error:
            raise Refusal(422, "template_error", f"Template error: {error}") from error
        temperature = body.get("temperature")
        # Sampling is on unless the temperature is given as 0.
        parameters = {
            "do_sample": temperature != 0,
            "temperature": temperature or None,
            "max_new_tokens": body.get("max_tokens") or body.get("max_completion_tokens"),
            "grammar": body.get("response_format"),
            **{name: body.get(name) for name in ("seed", "stop", "top_p", "frequency_penalty")},
        }
        if (penalty := body.get("presence_penalty")) is not None:
            parameters["repetition_penalty"] = penalty + 2.0
        given = {name: value for name, value in parameters.items() if value is not None}
        return validate(
            self.model,
            self.limits,
            text,
            given,
            is_stream=False,
            add_special_tokens=False,
            takes_grammars=self._takes_grammars,
        )

    @contextmanager
    def _permit(self, faults: dict[str, Fault]) -> Any:
        """One of the `max_concurrent_requests`; more are refused at once."""
        if "overloaded" in faults or self.num_running >= self.limits.max_concurrent_requests:
            raise Refusal(429, "overloaded", "Model is overloaded")
        self.num_running += 1
        self.max_running = max(self.max_running, self.num_running)
        try:
            yield
        finally:
            self.num_running -= 1

    async def _run(self, valid: ValidRequest, faults: dict[str, Fault]) -> AsyncIterator[Frame]:
        self.counts["tgi_request_count"] += 1
        broken = faults.get("break-grammar")
        if "batch-seeds" in faults and self.num_running > 1:
            valid = replace(valid, sampling=replace(valid.sampling, seed=valid.sampling.seed + self.num_running))
        async with aclosing(generate(self.model, valid, None if broken is None else broken.after)) as frames:  # type: ignore[type-var]
            async for frame in frames:
                await self._hit(faults, frame.index - 1)
                if "empty-end" in faults and frame.finish_reason is not None:
                    frame.generated_text = ""
                if self.is_model_dead:
                    raise Refusal(424, "generation", DEAD)
                if frame.pass_tokens:
                    self.counts["tgi_request_skipped_tokens_sum"] += frame.pass_tokens - 1
                    self.counts["tgi_request_skipped_tokens_count"] += 1
                yield frame
        self.counts["tgi_request_success"] += 1
        self.counts["tgi_request_generated_tokens_sum"] += frame.index
        self.counts["tgi_request_generated_tokens_count"] += 1

    async def _hit(self, faults: dict[str, Fault], num_sent: int) -> None:
        """Let the faults happen that are due after that many tokens."""
        if slow := faults.get("slow"):
            await asyncio.sleep(slow.seconds or 0.05)
        due = {name for name, fault in faults.items() if num_sent >= fault.after}
        if "crash" in due:
            self._on_crash()
            raise _Drop
        if "drop" in due:
            raise _Drop
        if "cut" in due:
            raise _Cut
        if "garbage" in due:
            raise _Garbage
        if "silence" in due:
            await asyncio.sleep(3600)
        if "generation" in due:
            message = "Request failed during generation: Server error: CUDA out of memory"
            raise Refusal(424, "generation", message)
        if "dead-shard" in due:
            raise Refusal(424, "generation", DEAD_SHARD)
        if "incomplete" in due:
            raise Refusal(500, "incomplete_generation", "Incomplete generation")

    async def _collect(
        self, request: web.Request, check: Callable[[], ValidRequest], faults: dict[str, Fault]
    ) -> tuple[ValidRequest, list[Frame]]:
        assert request.transport is not None
        self._transports.add(request.transport)
        try:
            with self._permit(faults):
                valid = check()
                async with aclosing(self._run(valid, faults)) as frames:  # type: ignore[type-var]
                    return valid, [frame async for frame in frames]
        except (_Drop, _Cut, _Garbage):
            request.transport.abort()
            raise
        finally:
            self._transports.discard(request.transport)

    async def _stream(
        self,
        request: web.Request,
        check: Callable[[], ValidRequest],
        faults: dict[str, Fault],
        events: Callable[[ValidRequest, Frame], list[Any]],
        *,
        is_chat: bool = False,
    ) -> web.StreamResponse:
        """Server-sent events. Errors are frames too: the status is 200 already."""
        transport = request.transport
        assert transport is not None
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        self._transports.add(transport)

        async def write(text: str) -> None:
            data = f"data:{text}\n\n".encode()
            for piece in [data[i : i + 1] for i in range(len(data))] if "split-bytes" in faults else [data]:
                await response.write(piece)

        num_left = 0
        try:
            with self._permit(faults):
                valid = check()
                async with aclosing(self._run(valid, faults)) as frames:  # type: ignore[type-var]
                    packet: list[str] = []
                    async for frame in frames:
                        num_left = frame.pass_tokens or num_left
                        num_left -= 1
                        packet += [_compact(event) for event in events(valid, frame)]
                        if "one-packet" not in faults or not num_left:
                            await write("\n\ndata:".join(packet))
                            packet = []
        except Refusal as refusal:
            error = refusal.body
            if refusal.kind == "incomplete_generation":
                error = {"error": "Incomplete generation stream", "error_type": "incomplete_generation_stream"}
            refused: Any = {"error": {"message": error["error"], "http_status_code": 422}} if is_chat else error
            await write(_compact(refused))
        except _Garbage:
            await write("{oh no")
        except _Cut:
            pass
        except _Drop:
            transport.abort()
        finally:
            self._transports.discard(transport)
        if is_chat:
            await write("[DONE]")
        return response


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class _Drop(Exception):  # noqa: N818
    """The connection breaks."""


class _Cut(Exception):  # noqa: N818
    """The answer ends early."""


class _Garbage(Exception):  # noqa: N818
    """A frame that is no JSON."""


def _framework_answer(faults: dict[str, Fault]) -> web.Response | None:
    """What a web framework or a proxy answers, which knows nothing of TGI's errors."""
    page = "<html><body><h1>{}</h1></body></html>"
    if "bad-gateway" in faults:
        return web.Response(status=502, text=page.format("502 Bad Gateway"), content_type="text/html")
    if "unavailable" in faults:
        return web.Response(status=503, text=page.format("503 Service Unavailable"), content_type="text/html")
    if "plain-text" in faults:
        return web.Response(status=422, text="Failed to deserialize the JSON body into the target type: inputs")
    return None


def _whole_answer(valid: ValidRequest, frames: list[Frame]) -> dict[str, Any]:
    last = frames[-1]
    answer: dict[str, Any] = {"generated_text": last.generated_text}
    if valid.wants_details:
        answer["details"] = {
            "finish_reason": last.finish_reason,
            "generated_tokens": len(frames),
            "seed": valid.sampling.seed if valid.is_sampled else None,
            "prefill": [],
            "tokens": [frame.token for frame in frames],
        }
        if any(frame.top_tokens for frame in frames):
            answer["details"]["top_tokens"] = [frame.top_tokens or [] for frame in frames]
    return answer


class ChatShape:
    """Answers of `/v1/chat/completions`."""

    def __init__(self, model: str) -> None:
        self._common = {
            "id": "",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": "3.3.6-dev0-native",
        }

    @staticmethod
    def _usage(valid: ValidRequest, num_tokens: int) -> dict[str, int]:
        prompt = len(valid.prompt)
        return {"prompt_tokens": prompt, "completion_tokens": num_tokens, "total_tokens": prompt + num_tokens}

    def chunks(self, valid: ValidRequest, frame: Frame, *, usage: bool) -> list[dict[str, Any]]:
        reason = None if frame.finish_reason is None else _CHAT_REASONS[frame.finish_reason]
        text = "" if frame.token["special"] else frame.token["text"]
        choice = {
            "index": 0,
            "delta": {"role": "assistant", "content": text},
            "logprobs": None,
            "finish_reason": reason,
        }
        chunks = [{"object": "chat.completion.chunk", **self._common, "choices": [choice], "usage": None}]
        if usage and reason is not None:
            counts = self._usage(valid, frame.index)
            chunks.append({"object": "chat.completion.chunk", **self._common, "choices": [], "usage": counts})
        return chunks

    def whole(self, valid: ValidRequest, frames: list[Frame]) -> dict[str, Any]:
        reason = frames[-1].finish_reason
        assert reason is not None
        message = {"role": "assistant", "content": frames[-1].generated_text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _CHAT_REASONS[reason]}
        usage = self._usage(valid, len(frames))
        return {"object": "chat.completion", **self._common, "choices": [choice], "usage": usage}


class ServerThread:
    """The stand-in in a thread of this process, on a free port, until `close`.

    Args:
        model: Where tokens come from; it is not closed.
        limits: What the server takes.
        port: Port to listen on, 0 for a free one.
        options: Passed to `StandIn`.
    """

    def __init__(self, model: Model, limits: Limits | None = None, *, port: int = 0, **options: Any) -> None:
        self.standin = StandIn(model, limits or Limits(), on_crash=self._crash, **options)
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._loop = asyncio.new_event_loop()
        self._runner = web.AppRunner(
            self.standin.app(), handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        self._loop.run_until_complete(self._start())
        self._thread = threading.Thread(target=self._loop.run_forever, name="standin", daemon=True)
        self._thread.start()

    async def _start(self) -> None:
        await self._runner.setup()
        await web.SockSite(self._runner, self._socket, backlog=512).start()

    def _crash(self) -> None:
        self.standin.abort_connections()

    @property
    def num_connections(self) -> int:
        """Connections that are open."""
        server = self._runner.server
        return 0 if server is None else len(server.connections)

    def set_faults(self, *faults: str) -> None:
        """Let these faults happen from now on, and no others."""
        self.standin.faults.replace(list(faults))

    def close(self) -> None:
        """Stop listening, break what is open, end the thread. Closing twice does nothing."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tests.standin.server", description=__doc__)
    parser.add_argument("--hostname", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=3000)
    parser.add_argument("--model-id", default="fake")
    parser.add_argument("--speculate", type=int, default=0)
    parser.add_argument("--disable-grammar-support", action="store_true")
    parser.add_argument("--fault", action="append", default=[], type=Fault.parse, metavar="NAME[:KEY=VALUE]...")
    for field in fields(Limits):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=None)
    return parser


async def _serve_process(options: argparse.Namespace) -> None:
    faults = Faults(options.fault)
    if slow := faults.of_start("slow-start"):
        await asyncio.sleep(slow.seconds if slow.seconds is not None else 3.0)
    if crash := faults.of_start("crash-loading"):
        await asyncio.sleep(crash.seconds or 0.0)
        sys.exit("torch.OutOfMemoryError: CUDA out of memory")
    is_fake = options.model_id == "fake"
    model: Model = FakeModel(options.speculate) if is_fake else EngineModel(options.model_id, options.speculate)
    given = {f.name: getattr(options, f.name) for f in fields(Limits) if getattr(options, f.name) is not None}
    given.setdefault("max_total_tokens", model.max_positions)
    given.setdefault("max_input_tokens", given["max_total_tokens"] - 1)
    standin = StandIn(
        model,
        Limits(**given),
        api_key=os.environ.get("API_KEY"),
        faults=options.fault,
        disable_grammar_support=options.disable_grammar_support,
    )
    runner = web.AppRunner(standin.app(), handler_cancellation=True, access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, done.set)
    try:
        await web.TCPSite(runner, options.hostname, options.port, backlog=512).start()
        sys.stdout.write(f"listening on http://{options.hostname}:{options.port}\n")
        sys.stdout.flush()
        await done.wait()
    finally:
        await runner.cleanup()
        model.close()


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    asyncio.run(_serve_process(_parser().parse_args()))


if __name__ == "__main__":
    main()
