"""An event loop in a thread of its own, for callers in threads and in other event loops."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from langchain_specdec.completions import interpreter_end
from langchain_specdec.errors import EngineClosedError

# Not `asyncio.wait_for`, which before Python 3.12 loses a cancellation that comes together with the result.
if sys.version_info >= (3, 11):
    time_limit = asyncio.timeout
else:
    import async_timeout  # type: ignore[import-not-found, unused-ignore]  # only that Python has it installed

    time_limit = async_timeout.timeout

T = TypeVar("T")
_CLOSED = "The connection to the server was closed. Make a new backend."
_OTHER_PROCESS = "This backend was made in another process. Make one in the process that uses it (no fork)."
_THREAD_NAME = "specdec-remote"


class LoopThread:
    """Runs coroutines from any thread. Its thread starts with the first of them and ends with `close`.

    Args:
        on_end: Awaited in the loop before it ends.
    """

    def __init__(self, on_end: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._on_end = on_end
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._is_closed = False
        self._pid = os.getpid()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine; cancelling the future cancels it.

        Raises:
            EngineClosedError: The thread was closed, or did not come along into a forked child.
        """
        if os.getpid() != self._pid:
            coroutine.close()
            raise EngineClosedError(_OTHER_PROCESS)
        with self._lock:
            if self._is_closed:
                coroutine.close()
                raise EngineClosedError(_CLOSED)
            if self._loop is None:
                loop = asyncio.new_event_loop()
                thread = threading.Thread(target=_run, args=(loop, self._on_end), name=_THREAD_NAME, daemon=True)
                try:
                    interpreter_end.start_thread(thread)
                except BaseException:
                    coroutine.close()
                    loop.close()
                    raise
                self._loop, self._thread = loop, thread
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def run_blocking(self, function: Callable[[], T]) -> T:
        """Run a short blocking call beside the loop. To be awaited in the loop."""
        if interpreter_end.has_begun():
            raise EngineClosedError(interpreter_end.ENDING)  # no thread starts any more
        if self._executor is None:
            self._executor = ThreadPoolExecutor(max_workers=8, thread_name_prefix=_THREAD_NAME)
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    def close(self, timeout: float | None = 10.0) -> None:
        """Cancel what runs and end the thread. Closing twice does nothing, nor does closing in a forked child."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._is_closed = True
            loop, thread, self._loop = self._loop, self._thread, None
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        if thread is not threading.current_thread():
            thread.join(timeout)
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)


def _run(loop: asyncio.AbstractEventLoop, on_end: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """The thread: runs the loop until it is stopped, then ends its tasks."""
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(on_end())
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
