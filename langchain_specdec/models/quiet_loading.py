"""Loading without what the libraries underneath write to the terminal: transformers' bars, warnings, advice."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from transformers.utils import logging as transformers_logging

_logger = logging.getLogger(__name__)
_LIBRARIES = ("transformers", "huggingface_hub")
_lock = threading.Lock()
_num_quiet = 0
_had_bars = True


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep the terminal clean of what transformers and huggingface_hub say in this thread within the block.

    Their messages go to the logger of this module instead, as INFO. Handlers that are no plain `StreamHandler` get them
    as ever, and so does the terminal where a program asked a library for more than warnings. The bars of downloads
    stay: gigabytes take minutes.
    """
    with ExitStack() as stack:
        stack.enter_context(_without_bars())
        for name in _LIBRARIES:
            library = logging.getLogger(name)
            if library.getEffectiveLevel() >= logging.WARNING:
                stack.enter_context(_without_messages(library))
        yield


@contextmanager
def _without_bars() -> Iterator[None]:
    """No "Loading weights". What a program has set for itself is put back when the last thread is through."""
    global _num_quiet, _had_bars
    with _lock:
        if not _num_quiet:
            # `disable_progress_bar` would take the bars of downloads too, and what is set for them one by one.
            _had_bars = transformers_logging._tqdm_active
        _num_quiet += 1
        transformers_logging._tqdm_active = False
    try:
        yield
    finally:
        with _lock:
            _num_quiet -= 1
            if not _num_quiet:
                transformers_logging._tqdm_active = _had_bars


@contextmanager
def _without_messages(library: logging.Logger) -> Iterator[None]:
    """Take this thread's messages from handlers such as the library makes for itself."""
    thread, told = threading.get_ident(), None

    def passes(record: logging.LogRecord) -> bool:
        nonlocal told
        if record.thread != thread or record.name.partition(".")[0] != library.name:
            return True
        if record is not told:  # by another handler
            told = record
            _logger.info("%s: %s", record.name, record.getMessage())
        return False

    own = [handler for handler in library.handlers if type(handler) is logging.StreamHandler]
    for handler in own:
        handler.addFilter(passes)
    try:
        yield
    finally:
        for handler in own:
            handler.removeFilter(passes)
