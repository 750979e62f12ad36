"""Completions by a Text Generation Inference server."""

from __future__ import annotations

import time
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic import SecretStr

from langchain_specdec.backends.remote.answer import Answer
from langchain_specdec.backends.remote.backend import Connection, Events, RemoteBackend, check_text
from langchain_specdec.backends.remote.loop_thread import LoopThread, time_limit
from langchain_specdec.backends.remote.options import (
    MAX_RETRIES,
    READ_TIMEOUT,
    checked_key,
    checked_options,
    checked_url,
)
from langchain_specdec.backends.remote.owned_server import OwnedServer, OwnedServerWatch
from langchain_specdec.backends.remote.prompt_tokenizer import LocalTokenizer, TokenizerInUse
from langchain_specdec.backends.remote.retries import Retries
from langchain_specdec.backends.tgi.client import TGIClient, make_client
from langchain_specdec.backends.tgi.errors import TGIFailures, larger_server
from langchain_specdec.backends.tgi.grammar_check import tgi_grammar_check
from langchain_specdec.backends.tgi.grammars import served
from langchain_specdec.backends.tgi.parameters import GenerateParameters, check_honoured
from langchain_specdec.backends.tgi.server_facts import ServerFacts
from langchain_specdec.backends.tgi.speculation_warner import SpeculationWarner
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.events import FinishEvent, TokenEvent
from langchain_specdec.completions.room import prompt_too_long
from langchain_specdec.completions.stats import SpeculationStats
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.sampling.params import SamplingParams
from tgi_launcher.endpoints import ServerInfo

# A server checks only whether this many new tokens fit; longer outputs are made in pieces.
_CHECKED_BY_SERVER = 1024
_DRAIN_SECONDS = 5.0


class TGIBackend(RemoteBackend[ServerInfo]):
    """A connection to a Text Generation Inference server.

    Nothing is sent when it is made, so a server may come up later. All completions run in one thread with
    an event loop, whether they are asked for from threads or from event loops; more than the server takes at a time
    wait here.

    Args:
        base_url: Root address of the server, such as `"http://127.0.0.1:8080"`.
        api_key: The server's key. No other token is ever sent. A Hugging Face token (`hf_...`) is refused for hosts
            that are not Hugging Face's.
        client: `"text-generation"`, `"huggingface-hub"`, or `"auto"`: the first where it is installed, else the other.
        read_timeout: Most seconds to wait for the next token, the first included.
        max_retries: How often a request is sent again where the server is overloaded, not ready or not reachable, or
            breaks the connection, after 0.5 seconds and then twice as long each time; never after the first token of
            the answer. Where the model fails (424) it is sent again twice at most.
        max_concurrency: Most requests at a time. None is the server's own limit, which is the highest in any case.
        tokenizer: The model's Hugging Face tokenizer, or an id or folder to load it from. It counts tokens here rather
            than by asking the server, and has the template that chats need. None is that of the model that the
            server names, loaded when a chat needs it; the code of a tokenizer is never run.
        server: A server that ends with this backend. Where it is started again after a crash, requests that have no
            token yet wait for it, `read_timeout` at most, and errors tell why it ended.

    Raises:
        InvalidParameterError: A parameter is out of its range.
        MissingDependencyError: The client asked for is not installed.
        ModelLoadError: The tokenizer cannot be found or read.
    """

    needs_properties = True
    server_name = "tgi"

    @staticmethod
    def check_grammar(grammar: Grammar) -> None:
        """Look at a grammar before a request has it, see `Backend.check_grammar`."""
        served(grammar)

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | SecretStr | None = None,
        client: str | None = "auto",
        read_timeout: float | None = READ_TIMEOUT,
        max_retries: int | None = MAX_RETRIES,
        max_concurrency: int | None = None,
        tokenizer: Any = None,
        server: OwnedServer | None = None,
    ) -> None:
        url = checked_url(base_url)
        key = checked_key(api_key, url)
        timeout, max_attempts, max_concurrency = checked_options(read_timeout, max_retries, max_concurrency)
        tokenizers = TokenizerInUse(LocalTokenizer.load(tokenizer), url)
        failures = TGIFailures(url, key, timeout)
        self._client: TGIClient = make_client("auto" if client is None else client, url, key)
        loop = LoopThread(self._client.aclose)
        facts = ServerFacts(self._client, failures, loop, timeout)
        self._tgi = facts
        self._warner = SpeculationWarner(facts, url, server)
        self._server = server
        watch = None if server is None else OwnedServerWatch(server, facts.is_healthy, timeout)
        # Not a method of this object, which would never be freed then.
        new_retries = partial(Retries, max_attempts, timeout, watch)
        grammars = tgi_grammar_check(url, key, server)
        super().__init__(
            Connection(url, timeout, max_concurrency, loop, failures, facts, tokenizers, grammars, new_retries)
        )

    @property
    def client(self) -> str:
        """Name of the client in use."""
        return self._client.name

    def more_room(self, num_tokens: int) -> str:
        """How to start the server with room for so many tokens of a prompt and its completion."""
        return larger_server(num_tokens)

    def close(self) -> None:
        """Break what runs, with an `EngineClosedError`, and stop the server if it is this backend's own."""
        super().close()
        if self._server is not None:
            self._server.stop()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._url!r}, client={self._client.name!r})"

    # -- in the caller's thread

    def _check(self, request: CompletionRequest) -> None:
        check_text(request.prompt)
        if request.images or not request.prompt:
            msg = "The prompt is empty: TGI takes no empty prompts. Give at least one character of text."
            if request.images:
                msg = "The prompt has images, and TGI is sent text only. Load the model in this process (LocalBackend)."
            raise InvalidParameterError(msg)
        check_honoured(request.params, self._tokenizer.vocabulary if self._tokenizer else None)

    # -- in the loop's thread

    async def _attempt(self, request: CompletionRequest, seed: int, info: ServerInfo) -> Events:
        params = request.params
        if params.grammar is not None:
            await self._warner.warn_once()
        tokenizer = self._tokenizer_for(request, info)
        # `start` has checked that it is text.
        prompt = str(request.prompt)
        if tokenizer is not None:
            prompt = tokenizer.without_bos(prompt)
        prompt_tokens = await self._count(prompt, params, info)
        vocabulary = tokenizer.vocabulary if tokenizer else None
        thoughts = request.thoughts
        # A server would look for them in thoughts, too. Here the text is cut in any case.
        sent = replace(params, stop=()) if thoughts is not None and not thoughts.has_stops else params
        parameters = GenerateParameters.from_params(sent, seed, info.max_stop_sequences, vocabulary)
        is_at_end = request.make_end_check() if request.make_end_check is not None else None
        answer = Answer(params, request.shown_specials, is_at_end, thoughts)
        started = None
        async with aclosing(self._client.stream(prompt, parameters)) as frames:
            while answer.finish_reason is None:
                frame = await self._next(frames)
                now = time.perf_counter()
                started = now if started is None else started
                yield TokenEvent((answer.add(frame),))
            if frame.end is not None and frame.end.prompt_tokens is not None:
                prompt_tokens = frame.end.prompt_tokens
            elif not prompt_tokens:
                # The answer was cut here, and only its last frame has the count.
                prompt_tokens = len(await self._tokenize(prompt, info))
            stats = SpeculationStats(
                emitted_tokens=answer.num_tokens, decode_seconds=now - (started or now), is_reported=False
            )
            broken = await self._grammar_error(request, answer.text, answer.finish_reason)
            counts = prompt_tokens, answer.num_tokens
            yield FinishEvent(answer.finish_reason, *counts, seed, stats, cached_tokens=None, grammar_error=broken)
            if frame.end is not None:
                # A connection whose answer is read to its end can serve another.
                with suppress(Exception):
                    async with time_limit(_DRAIN_SECONDS):
                        await anext(frames)

    def _concurrency(self, info: ServerInfo) -> int | None:
        return info.max_concurrent_requests

    async def _count(self, prompt: str, params: SamplingParams, info: ServerInfo) -> int:
        """Number of prompt tokens where it is needed before the answer, else 0.

        Raises:
            PromptTooLongError: Prompt and new tokens do not fit, and the server would not say so.
        """
        limit = info.max_total_tokens
        is_unchecked = limit is not None and params.max_new_tokens > _CHECKED_BY_SERVER
        if self._client.reports_prompt_tokens and not is_unchecked:
            return 0
        count = len(await self._tokenize(prompt, info))
        if limit is not None and is_unchecked and count + params.max_new_tokens > limit:
            more_room = self.more_room(count + params.max_new_tokens)
            raise prompt_too_long(count, params.max_new_tokens, limit, "max_total_tokens of the TGI server", more_room)
        return count

    async def _tokenize(self, text: str, info: ServerInfo) -> list[int]:
        tokenizer = self._tokenizers.current(info)
        if tokenizer is None:
            return await self._tgi.prompt_ids(text)
        return await self._loop.run_blocking(lambda: tokenizer.prompt_ids(text))
