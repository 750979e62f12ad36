"""Waiting in the loop of a connection: no cancellation and no generator is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from langchain_specdec.backends.tgi.loop_thread import wait_for


async def test_a_result_an_error_and_the_end_of_a_generator_come_through() -> None:
    async def frames() -> AsyncIterator[int]:
        yield 1

    reader = frames()
    assert await wait_for(anext(reader), 20) == 1
    with pytest.raises(StopAsyncIteration):
        await wait_for(anext(reader), 20)


async def test_a_generator_that_is_late_has_ended_and_can_be_closed() -> None:
    ends: list[str] = []

    async def frames() -> AsyncIterator[int]:
        try:
            await asyncio.sleep(60)
            yield 1
        finally:
            ends.append("closed")

    reader = frames()
    with pytest.raises(asyncio.TimeoutError):
        await wait_for(anext(reader), 0.01)
    assert ends == ["closed"]


@pytest.mark.parametrize("num_turns", range(5))
async def test_a_cancellation_beside_the_result_is_never_lost(num_turns: int) -> None:
    result: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(wait_for(result, 60))
    await asyncio.sleep(0)
    result.set_result(1)
    for _ in range(num_turns):
        if not task.done():
            await asyncio.sleep(0)
    if not task.done():
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
