"""Completions that end with an error when their time is up."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Generator

from langchain_specdec.completions.completion import AsyncEventStream, EventStream
from langchain_specdec.completions.events import FinishEvent, TokenEvent
from langchain_specdec.errors import CompletionTimeoutError, InvalidParameterError

__all__ = ["acheck_time", "check_time", "checked_timeout"]

Event = TokenEvent | FinishEvent


def checked_timeout(value: object) -> float | None:
    """The seconds of a timeout; None is without limit.

    Raises:
        InvalidParameterError: It is no number above 0.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        msg = f"timeout must be a number of seconds above 0, or None for no limit, got {value!r}."
        raise InvalidParameterError(msg)
    # What a timer takes at most.
    return min(float(value), threading.TIMEOUT_MAX)


def check_time(events: EventStream, timeout: float | None) -> Generator[Event, None, None]:
    """The events of a completion, closed at the end however it comes.

    Args:
        events: The completion.
        timeout: Seconds from now.

    Raises:
        CompletionTimeoutError: The time was up before the end.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(events.close)
        is_late = threading.Event()
        if timeout is not None:

            def stop() -> None:
                is_late.set()
                events.close()

            timer = threading.Timer(timeout, stop)
            timer.daemon = True
            timer.start()
            stack.callback(timer.cancel)
        for event in events:
            if is_late.is_set():
                break
            yield event
            if isinstance(event, FinishEvent):
                return
        if is_late.is_set():
            raise _late(timeout)


async def acheck_time(events: AsyncEventStream, timeout: float | None) -> AsyncGenerator[Event, None]:
    """`check_time` for an event loop."""
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        while True:
            try:
                if deadline is None:
                    event = await events.__anext__()
                else:
                    event = await asyncio.wait_for(events.__anext__(), max(deadline - time.monotonic(), 0))
            except StopAsyncIteration:
                return
            except asyncio.TimeoutError:
                raise _late(timeout) from None
            yield event
            if isinstance(event, FinishEvent):
                return
    finally:
        await events.aclose()


def _late(timeout: float | None) -> CompletionTimeoutError:
    return CompletionTimeoutError(
        f"The completion took longer than timeout={timeout:g} seconds and was stopped. Raise timeout, or lower "
        f"max_new_tokens."
    )
