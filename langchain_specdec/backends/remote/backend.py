"""What backends over all kinds of servers share: one thread with an event loop, attempts, permits, and the ends."""

from __future__ import annotations

import asyncio
import uuid
import weakref
from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from langchain_specdec.backends.base import Backend
from langchain_specdec.backends.remote.facts import Facts, InfoT, SoonKnown
from langchain_specdec.backends.remote.failures import Failures
from langchain_specdec.backends.remote.grammar_check import GrammarCheck
from langchain_specdec.backends.remote.loop_thread import LoopThread, time_limit
from langchain_specdec.backends.remote.prompt_tokenizer import LocalTokenizer, TokenizerInUse
from langchain_specdec.backends.remote.questions import Questions
from langchain_specdec.backends.remote.retries import Retries
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.events import FinishEvent, FinishReason, TokenEvent
from langchain_specdec.completions.stream import CompletionStream
from langchain_specdec.errors import (
    BackendUnavailableError,
    EngineClosedError,
    InvalidParameterError,
    SpeculatingServerWarning,
)
from langchain_specdec.models.private_tokenizer import PrivateTokenizer
from langchain_specdec.options import check_unicode

T = TypeVar("T")
Events = AsyncGenerator[TokenEvent | FinishEvent, None]


@dataclass(frozen=True)
class Connection(Generic[InfoT]):
    """What a backend reaches its server by.

    Attributes:
        url: Root address of the server.
        timeout: Most seconds to wait for the next token.
        max_concurrency: Most requests at a time; None is the server's own limit.
        loop: Where it happens.
        failures: Makes the errors.
        facts: Asks the server for what is no completion.
        tokenizers: Has the tokenizer of the server's model.
        grammars: Checks answers that were to have a form.
        new_retries: Makes what counts the attempts at one request.
    """

    url: str
    timeout: float
    max_concurrency: int | None
    loop: LoopThread
    failures: Failures
    facts: Facts[InfoT]
    tokenizers: TokenizerInUse
    grammars: GrammarCheck
    new_retries: Callable[[], Retries]


class RemoteBackend(Backend, Generic[InfoT]):
    """A connection to a server. All its completions run in the loop's thread.

    Args:
        connection: How the server is reached.
    """

    is_remote = True
    server_name: ClassVar[str]
    """What its server is called in the identity, and in caches with it."""

    def __init__(self, connection: Connection[InfoT]) -> None:
        self._url, self._timeout = connection.url, connection.timeout
        self._max_concurrency = connection.max_concurrency
        self._loop, self._failures = connection.loop, connection.failures
        self._facts, self._tokenizers = connection.facts, connection.tokenizers
        self._grammars, self._new_retries = connection.grammars, connection.new_retries
        self._name = SoonKnown(self._loop, self._facts)
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

    def load_tokenizer(self, timeout: float | None = None) -> Any:
        """The tokenizer that it was given, or that of the model which the server names; None where it has no use.

        That is read from the model's folder, where the server is on this machine, or comes from the Hugging Face Hub
        or its cache.

        Args:
            timeout: Most seconds that it may take; None is without limit.

        Raises:
            CompletionTimeoutError: It took longer.
            BackendUnavailableError: The server does not answer, or is of another kind.
            ModelLoadError: The tokenizer cannot be found or read.
        """
        loaded = self._questions.tokenizer(timeout)
        return None if loaded is None else loaded.private

    async def aload_tokenizer(self, timeout: float | None = None) -> Any:
        """The same without blocking the running event loop; cancelling the task ends the wait."""
        loaded = await self._questions.atokenizer(timeout)
        return None if loaded is None else loaded.private

    @property
    def max_length(self) -> int | None:
        """Most tokens of a prompt and its completion together; None until the server has told."""
        return self._facts.info.max_total_tokens if self._facts.info else None

    @property
    def max_prompt_length(self) -> int | None:
        """Most tokens of a prompt alone; None until the server has told."""
        return self._facts.info.max_input_tokens if self._facts.info else None

    @property
    def identity(self) -> Mapping[str, Any]:
        """The server and its model. Before the server was asked, the model is unknown, and caches do not apply."""
        info = self._facts.info
        return {
            "backend": self.server_name,
            "base_url": self._url,
            "model": info.model_id if info else self._unknown,
            "revision": info.model_sha if info else None,
            "version": info.version if info else None,
        }

    def start(self, requests: Sequence[CompletionRequest]) -> list[CompletionStream]:
        """Start completions; as many run at a time as the server takes.

        Raises:
            InvalidParameterError: A prompt is empty, or a parameter asks for what the server cannot do.
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
        """Break what runs, with an `EngineClosedError`."""
        self._loop.close()

    # -- in the caller's thread

    @abstractmethod
    def _check(self, request: CompletionRequest) -> None:
        """Refuse what can be refused before anything is sent."""

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

    async def _events(self, request: CompletionRequest) -> Events:
        """The events of a completion, after as many attempts as it takes and may take."""
        seed = request.params.seed_or_drawn()
        permits: asyncio.Semaphore | None = None
        retries = self._new_retries()
        is_started = False
        try:
            while True:
                try:
                    info = await self._facts.ask_info()
                    if permits is None and (free := self._semaphore(info)) is not None:
                        await free.acquire()
                        permits = free
                        # Another server may have taken its place meanwhile.
                        info = await self._facts.ask_info()
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

    @abstractmethod
    def _attempt(self, request: CompletionRequest, seed: int, info: InfoT) -> Events:
        """One attempt at a request: its tokens, and how it ended."""

    @abstractmethod
    def _concurrency(self, info: InfoT) -> int | None:
        """Most requests that the server takes at a time; None is without limit."""

    def _tokenizer_for(self, request: CompletionRequest, info: InfoT) -> LocalTokenizer | None:
        """The tokenizer of the server's model, if it is known here.

        Raises:
            BackendUnavailableError: It is not the one that the prompt was written by.
        """
        tokenizer = self._tokenizers.current(info)
        if request.template_of is not None and (tokenizer is None or tokenizer.private is not request.template_of):
            msg = (
                f"The {self._failures.kind} at {self._url} has another model by now, {info.model_id!r}, and the prompt "
                f"was written by the chat template of the one before. Call again: it is then written by the new one's."
            )
            raise BackendUnavailableError(msg)
        return tokenizer

    async def _next(self, pieces: AsyncGenerator[T, None]) -> T:
        """The next piece of an answer.

        Raises:
            Lost: There is none.
            Failure: The server tells an error, or answers in another form.
        """
        try:
            async with time_limit(self._timeout):
                piece = await anext(pieces)
        except StopAsyncIteration:
            raise self._failures.lost() from None
        self._facts.heard()
        return piece

    async def _grammar_error(self, request: CompletionRequest, text: str, reason: FinishReason) -> str | None:
        """Why an answer does not fit the grammar asked for; None where it does, or none was."""
        grammar = request.params.grammar
        if grammar is None:
            return None
        # Beside the loop, which the other answers need.
        return await self._loop.run_blocking(lambda: self._grammars.error(grammar, text, reason))

    def _semaphore(self, info: InfoT) -> asyncio.Semaphore | None:
        """Permits for as many requests as the server takes; new ones where its limit has changed."""
        sizes = [size for size in (self._concurrency(info), self._max_concurrency) if size is not None]
        if not sizes:
            return None
        size = min(sizes)
        if self._permits is None or self._permits[0] != size:
            self._permits = (size, asyncio.Semaphore(size))
        return self._permits[1]


def check_text(text: object, what: str = "A prompt") -> None:
    """Refuse what is no text that can be sent.

    Raises:
        InvalidParameterError: It is not a string, or not valid Unicode.
    """
    if not isinstance(text, str):
        msg = f"{what} must be a string, got {type(text).__name__}."
        raise InvalidParameterError(msg)
    check_unicode(what, text)
