"""Completions by a Text Generation Inference server."""

from __future__ import annotations

import asyncio
import time
import uuid
import weakref
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic import SecretStr

from langchain_specdec.backends.base import Backend
from langchain_specdec.backends.tgi.answer import Answer
from langchain_specdec.backends.tgi.client import TGIClient, make_client
from langchain_specdec.backends.tgi.errors import Failures, larger_server
from langchain_specdec.backends.tgi.grammar_check import GrammarCheck
from langchain_specdec.backends.tgi.grammars import served
from langchain_specdec.backends.tgi.loop_thread import LoopThread, time_limit
from langchain_specdec.backends.tgi.options import MAX_RETRIES, READ_TIMEOUT, checked_key, checked_options, checked_url
from langchain_specdec.backends.tgi.owned_server import OwnedServer, OwnedServerWatch
from langchain_specdec.backends.tgi.parameters import GenerateParameters, check_honoured, check_text
from langchain_specdec.backends.tgi.prompt_tokenizer import LocalTokenizer, TokenizerInUse
from langchain_specdec.backends.tgi.questions import Questions
from langchain_specdec.backends.tgi.retries import Retries
from langchain_specdec.backends.tgi.server_facts import ServerFacts, SoonKnown
from langchain_specdec.backends.tgi.speculation_warner import SpeculationWarner
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.events import FinishEvent, TokenEvent
from langchain_specdec.completions.room import prompt_too_long
from langchain_specdec.completions.stats import SpeculationStats
from langchain_specdec.completions.stream import CompletionStream
from langchain_specdec.errors import (
    BackendUnavailableError,
    EngineClosedError,
    InvalidParameterError,
    SpeculatingServerWarning,
)
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.models.private_tokenizer import PrivateTokenizer
from langchain_specdec.sampling.params import SamplingParams
from tgi_launcher.endpoints import ServerInfo

# A server checks only whether this many new tokens fit; longer outputs are made in pieces.
_CHECKED_BY_SERVER = 1024
_DRAIN_SECONDS = 5.0


class TGIBackend(Backend):
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
    is_remote = True

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
        self._url = checked_url(base_url)
        key = checked_key(api_key, self._url)
        self._timeout, retries, self._max_concurrency = checked_options(read_timeout, max_retries, max_concurrency)
        self._tokenizers = TokenizerInUse(LocalTokenizer.load(tokenizer), self._url)
        self._failures = Failures(self._url, key, self._timeout)
        self._grammars = GrammarCheck(self._url, key, server)
        self._client: TGIClient = make_client("auto" if client is None else client, self._url, key)
        self._loop = LoopThread(self._client.aclose)
        self._facts = ServerFacts(self._client, self._failures, self._loop, self._timeout)
        self._name = SoonKnown(self._loop, self._facts)
        self._warner = SpeculationWarner(self._facts, self._url, server)
        self._server = server
        self._watch = None if server is None else OwnedServerWatch(server, self._facts.is_healthy, self._timeout)
        # Not a method of this object, which would never be freed then.
        self._new_retries = partial(Retries, retries, self._timeout, self._watch)
        self._questions = Questions(self._loop, self._facts, self._failures, self._tokenizers, self._new_retries)
        self._permits: tuple[int, asyncio.Semaphore] | None = None
        # A name of its own, until the model is known: no answer in a cache may match before.
        self._unknown = f"not known yet ({uuid.uuid4()})"
        weakref.finalize(self, LoopThread.close, self._loop)

    @property
    def base_url(self) -> str:
        """Root address of the server."""
        return self._url

    @property
    def client(self) -> str:
        """Name of the client in use."""
        return self._client.name

    @property
    def model_name(self) -> str:
        """Model id of the server, which is asked for it; its address where it does not tell, or not yet.

        A server that does not answer is waited for a few seconds, and not asked again for a while. In an event loop
        there is no waiting at all. After some seconds without requests it is asked again, for another may have taken
        its place.
        """
        info = self._name.get()
        return info.model_id if info else self._url

    def name_within(self, seconds: float) -> str:
        """`model_name`, waited for no longer than that, nor is it soon after; the address where it is not known."""
        info = self._name.get(seconds)
        return info.model_id if info else self._url

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer that it was given or has loaded, or None."""
        return self._tokenizer.private.original if self._tokenizer else None

    @property
    def private_tokenizer(self) -> PrivateTokenizer | None:
        """The copy of it that tokens are counted with, or None."""
        return self._tokenizer.private if self._tokenizer else None

    @property
    def _tokenizer(self) -> LocalTokenizer | None:
        return self._tokenizers.current(self._facts.info)

    def load_tokenizer(self, timeout: float | None = None) -> PrivateTokenizer:
        """The tokenizer that it was given, or that of the model which the server names.

        That is read from the model's folder, where the server is on this machine, or comes from the Hugging Face Hub
        or its cache.

        Args:
            timeout: Most seconds that it may take; None is without limit.

        Raises:
            CompletionTimeoutError: It took longer.
            BackendUnavailableError: The server does not answer, or is of another kind.
            ModelLoadError: The tokenizer cannot be found or read.
        """
        return self._questions.tokenizer(timeout).private

    async def aload_tokenizer(self, timeout: float | None = None) -> PrivateTokenizer:
        """The same without blocking the running event loop; cancelling the task ends the wait."""
        return (await self._questions.atokenizer(timeout)).private

    @property
    def max_length(self) -> int | None:
        """Most tokens of a prompt and its completion together; None until the server has told."""
        return self._facts.info.max_total_tokens if self._facts.info else None

    @property
    def max_prompt_length(self) -> int | None:
        """Most tokens of a prompt alone; None until the server has told."""
        return self._facts.info.max_input_tokens if self._facts.info else None

    def more_room(self, num_tokens: int) -> str:
        """How to start the server with room for so many tokens of a prompt and its completion."""
        return larger_server(num_tokens)

    @property
    def identity(self) -> Mapping[str, Any]:
        """The server and its model. Before the server was asked, the model is unknown, and caches do not apply."""
        info = self._facts.info
        return {
            "backend": "tgi",
            "base_url": self._url,
            "model": info.model_id if info else self._unknown,
            "revision": info.model_sha if info else None,
            "version": info.version if info else None,
        }

    def start(self, requests: Sequence[CompletionRequest]) -> list[CompletionStream]:
        """Start completions; as many run at a time as the server takes.

        Raises:
            InvalidParameterError: A prompt is empty, or a parameter asks for what TGI cannot do.
            EngineClosedError: The backend was closed.
        """
        for request in requests:
            self._check(request)
        streams: list[CompletionStream] = []
        try:
            streams += [self._start(request) for request in requests]
        except BaseException:
            for stream in streams:
                stream.close()
            raise
        return streams

    def token_ids(self, text: str) -> list[int]:
        """The tokens of a text, without those that a prompt gets in front, by the tokenizer given or the server's."""
        check_text(text, "A text")
        if self._tokenizer is not None:
            return self._tokenizer.private.encode(text, add_special_tokens=False)
        if not text:
            return []
        return self._questions.token_ids(text)

    def close(self) -> None:
        """Break what runs, with an `EngineClosedError`, and stop the server if it is this backend's own."""
        self._loop.close()
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

    def _start(self, request: CompletionRequest) -> CompletionStream:
        future: Any = None
        stream = CompletionStream(on_close=lambda: future.cancel())
        future = self._loop.submit(self._serve(request, stream))
        # The future is cancelled by the reader, who sees no more, or by the end of the loop.
        future.add_done_callback(
            lambda f: (
                stream.put(EngineClosedError("The backend was closed before the completion ended."))
                if f.cancelled()
                else None
            )
        )
        return stream

    # -- in the loop's thread

    async def _serve(self, request: CompletionRequest, stream: CompletionStream) -> None:
        """Run a completion and tell its reader."""
        try:
            async with aclosing(self._events(request)) as events:
                async for event in events:
                    stream.put(event)
        except Exception as error:
            stream.put(error)

    async def _events(self, request: CompletionRequest) -> AsyncGenerator[TokenEvent | FinishEvent, None]:
        """The events of a completion, after as many attempts as it takes and may take."""
        seed = request.params.seed_or_drawn()
        permits: asyncio.Semaphore | None = None
        retries = self._new_retries()
        is_started = False
        try:
            while True:
                try:
                    info = await self._facts.ask_info()
                    if permits is None:
                        permits = self._semaphore(info)
                        await permits.acquire()
                        # Another server may have taken its place meanwhile.
                        info = await self._facts.ask_info()
                    if request.params.grammar is not None:
                        await self._warner.warn_once()
                    async with aclosing(self._attempt(request, seed, info)) as events:
                        async for event in events:
                            is_started = True
                            yield event
                    return
                except SpeculatingServerWarning:
                    # Warnings are errors here.
                    raise
                except Exception as error:
                    failure = self._failures.of(error, request.params.grammar)
                # Outside of `except`, for the client's exception holds the key.
                if isinstance(failure.error, BackendUnavailableError):
                    self._facts.forget()
                await retries.wait_or_raise(failure, is_started=is_started)
        finally:
            if permits is not None:
                permits.release()

    async def _attempt(
        self, request: CompletionRequest, seed: int, info: ServerInfo
    ) -> AsyncGenerator[TokenEvent | FinishEvent, None]:
        """One attempt at a request: its tokens, and how it ended."""
        params = request.params
        tokenizer = self._tokenizers.current(info)
        if request.template_of is not None and (tokenizer is None or tokenizer.private is not request.template_of):
            msg = (
                f"The TGI server at {self._url} has another model by now, {info.model_id!r}, and the prompt was "
                f"written by the chat template of the one before. Call again: it is then written by the new one's."
            )
            raise BackendUnavailableError(msg)
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
                try:
                    async with time_limit(self._timeout):
                        frame = await anext(frames)
                except StopAsyncIteration:
                    raise self._failures.lost() from None
                now = time.perf_counter()
                started = now if started is None else started
                self._facts.heard()
                yield TokenEvent((answer.add(frame),))
            if frame.end is not None and frame.end.prompt_tokens is not None:
                prompt_tokens = frame.end.prompt_tokens
            elif not prompt_tokens:
                # The answer was cut here, and only its last frame has the count.
                prompt_tokens = len(await self._tokenize(prompt, info))
            stats = SpeculationStats(
                emitted_tokens=answer.num_tokens, decode_seconds=now - (started or now), is_reported=False
            )
            reason, broken = answer.finish_reason, None
            if (grammar := params.grammar) is not None:
                # Beside the loop, which the other answers need.
                broken = await self._loop.run_blocking(lambda: self._grammars.error(grammar, answer.text, reason))
            counts = prompt_tokens, answer.num_tokens
            yield FinishEvent(reason, *counts, seed, stats, cached_tokens=None, grammar_error=broken)
            if frame.end is not None:
                # A connection whose answer is read to its end can serve another.
                with suppress(Exception):
                    async with time_limit(_DRAIN_SECONDS):
                        await anext(frames)

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
            return await self._facts.prompt_ids(text)
        return await self._loop.run_blocking(lambda: tokenizer.prompt_ids(text))

    def _semaphore(self, info: ServerInfo) -> asyncio.Semaphore:
        """Permits for as many requests as the server takes; new ones where its limit has changed."""
        size = info.max_concurrent_requests
        size = size if self._max_concurrency is None else min(size, self._max_concurrency)
        if self._permits is None or self._permits[0] != size:
            self._permits = (size, asyncio.Semaphore(size))
        return self._permits[1]
