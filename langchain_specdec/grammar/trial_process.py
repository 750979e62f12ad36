"""A process that tries grammars out, until its memory or its time is spent, or nobody asks any more.

It is run by its path, and imports nothing of the package, which would take seconds.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys

import llguidance


def main(seconds: int, memory: int) -> None:
    """Read what `_size_with` takes, one in a line; answer by how many bytes the process has grown since it began.

    Args:
        seconds: Processor time for one line; the process is killed beyond.
        memory: Bytes that may be taken beside what the process begins with.
    """
    if sys.platform == "win32":
        msg = "nobody starts it where processes have no limits"
        raise NotImplementedError(msg)
    import resource

    tokens = llguidance.LLTokenizer("byte")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Texts that are being written go first.
    os.nice(5)
    size, begun = _sizes()
    if size:
        # Somebody may have set a lower limit, which stays.
        with contextlib.suppress(ValueError):
            resource.setrlimit(resource.RLIMIT_AS, (size + memory, size + memory))
    for line in sys.stdin:
        # The limit is one of whole seconds since the process began.
        spent = math.ceil(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
        resource.setrlimit(resource.RLIMIT_CPU, (spent + seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        # What was freed before may be used again, and would not show.
        print(_size_with(tokens, json.loads(line)) - begun, flush=True)  # noqa: T201 - the answer


def _size_with(tokens: llguidance.LLTokenizer, sources: list[list[str]]) -> int:
    """The memory of this process when of each list the first grammar is prepared that can be."""
    kept = [_first_of(tokens, ways) for ways in sources]
    size = _sizes()[1]
    # Until here, or it would not show.
    del kept
    return size


def _first_of(tokens: llguidance.LLTokenizer, sources: list[str]) -> llguidance.LLMatcher | None:
    for source in sources:
        matcher = llguidance.LLMatcher(tokens, source, log_level=0)
        if not matcher.is_error():
            matcher.compute_bitmask()
            return matcher
    return None


def _sizes() -> list[int]:
    """Addresses and memory of this process, in bytes; 0 where nobody tells."""
    if sys.platform == "win32":
        return [0, 0]
    try:
        with open("/proc/self/statm") as file:  # noqa: PTH123 - faster to import
            pages = file.read().split()[:2]
    except OSError:
        return [0, 0]
    return [int(count) * os.sysconf("SC_PAGE_SIZE") for count in pages]


if __name__ == "__main__":
    main(*map(int, sys.argv[2:4]))
