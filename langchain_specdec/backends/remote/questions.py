"""What is asked of a server beside completions, for callers in threads and in event loops."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, TypeVar

from langchain_specdec.backends.remote.facts import Facts
from langchain_specdec.backends.remote.failures import Failures
from langchain_specdec.backends.remote.loop_thread import LoopThread, time_limit
from langchain_specdec.backends.remote.prompt_tokenizer import LocalTokenizer, TokenizerInUse
from langchain_specdec.backends.remote.retries import Retries
from langchain_specdec.errors import CompletionTimeoutError, EngineClosedError, SpecDecError

T = TypeVar("T")


class Questions:
    """Asks in the connection's loop, in as many attempts as it takes and may take.

    Args:
        loop: The connection's loop.
        facts: Asks the server.
        failures: Makes the errors.
        tokenizers: Has the tokenizer of the server's model.
        new_retries: Makes what counts the attempts at one question.
    """

    def __init__(
        self,
        loop: LoopThread,
        facts: Facts[Any],
        failures: Failures,
        tokenizers: TokenizerInUse,
        new_retries: Callable[[], Retries],
    ) -> None:
        self._loop = loop
        self._facts = facts
        self._failures = failures
        self._tokenizers = tokenizers
        self._new_retries = new_retries
        self._loading = asyncio.Lock()

    def token_ids(self, text: str) -> list[int]:
        """The tokens of a text, by the server."""
        return self._wait_for(self._ask(lambda: self._facts.token_ids(text)), "the tokens were counted")

    def tokenizer(self, timeout: float | None) -> LocalTokenizer | None:
        """The tokenizer of the model that the server has now; None where its prompts are not written here.

        Args:
            timeout: Most seconds to wait; None is without limit.

        Raises:
            CompletionTimeoutError: It was not known in that time.
            BackendUnavailableError: The server does not answer, or is of another kind.
            ModelLoadError: The tokenizer cannot be found or read.
        """
        if (known := self._tokenizers.certain(self._facts.fresh)) is not None:
            return known
        return self._wait_for(self._load_tokenizer(timeout), "its model was known")

    async def atokenizer(self, timeout: float | None) -> LocalTokenizer | None:
        """The same without blocking the running event loop; cancelling the task ends the wait."""
        if (known := self._tokenizers.certain(self._facts.fresh)) is not None:
            return known
        return await self._await_for(self._load_tokenizer(timeout), "its model was known")

    # -- in the caller's thread

    def _wait_for(self, coroutine: Coroutine[Any, Any, T], what: str) -> T:
        """What comes of a question; `what` did not happen if the backend is closed first."""
        return self._outcome(self._loop.submit(coroutine), what)

    async def _await_for(self, coroutine: Coroutine[Any, Any, T], what: str) -> T:
        here, is_done = asyncio.get_running_loop(), asyncio.Event()

        def wake(_: Future[T]) -> None:
            # The loop may be closed by now; then nobody waits.
            with suppress(RuntimeError):
                here.call_soon_threadsafe(is_done.set)

        future = self._loop.submit(coroutine)
        future.add_done_callback(wake)
        try:
            await is_done.wait()
        finally:
            future.cancel()
        return self._outcome(future, what)

    def _outcome(self, future: Future[T], what: str) -> T:
        try:
            return future.result()
        except CancelledError:
            error: SpecDecError = EngineClosedError(f"The backend was closed before {what}.")
        except Exception as problem:
            error = self._failures.of(problem).error
        # Outside of `except`, for the client's exception holds the key.
        raise error

    # -- in the loop's thread

    async def _ask(self, question: Callable[[], Awaitable[T]]) -> T:
        retries = self._new_retries()
        while True:
            try:
                return await question()
            except Exception as error:
                failure = self._failures.of(error)
            await retries.wait_or_raise(failure)

    async def _load_tokenizer(self, timeout: float | None) -> LocalTokenizer | None:
        try:
            async with time_limit(timeout):
                info = await self._ask(self._facts.ask_info)
                # One thread at a time; it reads on where its caller was cancelled.
                async with self._loading:
                    return await self._loop.run_blocking(lambda: self._tokenizers.load(info))
        except SpecDecError:
            raise
        except (asyncio.TimeoutError, TimeoutError):
            pass
        msg = (
            f"The completion was stopped after timeout={timeout:g} seconds, before the server had told its model "
            f"and the model's tokenizer was read. Raise timeout, see whether the server answers, or give tokenizer=."
        )
        raise CompletionTimeoutError(msg)
