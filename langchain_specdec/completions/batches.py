"""Runs of several inputs at once, each with an outcome of its own, in threads or tasks that end with the call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import aclosing, closing, nullcontext
from typing import Any

from langchain_specdec.completions.interpreter_end import ending_error
from langchain_specdec.completions.stream_scope import StreamScope

_GIVEN_UP = "The completion was stopped, because the batch that it belongs to was interrupted, or one of it failed."
# More threads than slots would only wait.
_MAX_THREADS = 64

Outcome = tuple[int, Any]


def outcomes(
    invoke: Callable[[int], Any], number: int, limit: int | None, *, return_exceptions: bool
) -> Generator[Outcome, None, None]:
    """The index and the outcome of each input, as they come.

    LangChain's own waits for all threads where it is interrupted, and so for whole completions. Here an interrupt, the
    end of the reader, or an error that is not returned stops what still runs.

    Args:
        invoke: Runs the input with that index.
        number: How many there are.
        limit: Most of them at a time; None for one thread each, up to 64.
        return_exceptions: Whether an exception is an outcome.
    """

    def run(index: int) -> Outcome:
        try:
            return index, invoke(index)
        except Exception as error:
            if return_exceptions:
                return index, error
            raise

    if number <= 1:
        for index in range(number):
            yield run(index)
        return
    scope = StreamScope()
    context = scope.context()
    pool = ThreadPoolExecutor(limit or min(number, _MAX_THREADS), thread_name_prefix="specdec-batch")
    try:
        try:
            futures = [pool.submit(context.copy().run, run, index) for index in range(number)]
        except RuntimeError as error:
            if "shutdown" in str(error):
                raise ending_error() from None
            raise
        for future in as_completed(futures):
            yield future.result()
    except BaseException:
        try:
            # Nobody waits for the threads: one may be waiting for a rate limiter.
            pool.shutdown(wait=False, cancel_futures=True)
        finally:
            # Also where Ctrl-C is pressed twice.
            scope.stop(_GIVEN_UP)
        raise
    pool.shutdown()


def batch(*args: Any, **kwargs: Any) -> list[Any]:
    """All outcomes in the order of their inputs. Arguments are those of `outcomes`."""
    # Closed by name: a traceback would keep it.
    with closing(outcomes(*args, **kwargs)) as found:
        return [outcome for _, outcome in sorted(found, key=_index)]


async def aoutcomes(
    invoke: Callable[[int], Awaitable[Any]], number: int, limit: int | None, *, return_exceptions: bool
) -> AsyncGenerator[Outcome, None]:
    """`outcomes` for an event loop: LangChain's own leaves tasks behind that nobody waits for."""
    permits: Any = nullcontext() if limit is None else asyncio.Semaphore(limit)

    async def run(index: int) -> Outcome:
        async with permits:
            try:
                return index, await invoke(index)
            except Exception as error:
                if return_exceptions:
                    return index, error
                raise

    tasks = [asyncio.ensure_future(run(index)) for index in range(number)]
    try:
        for done in asyncio.as_completed(tasks):
            yield await done
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def abatch(*args: Any, **kwargs: Any) -> list[Any]:
    """All outcomes in the order of their inputs. Arguments are those of `aoutcomes`."""
    async with aclosing(aoutcomes(*args, **kwargs)) as found:
        collected = [outcome async for outcome in found]
    return [outcome for _, outcome in sorted(collected, key=_index)]


def _index(outcome: Outcome) -> int:
    return outcome[0]
