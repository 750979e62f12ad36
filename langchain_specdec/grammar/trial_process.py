"""A process that tries grammars out, until its memory or its time is spent, or nobody asks any more.

It is run by its path, and imports nothing of the package, which would take seconds.
"""

from __future__ import annotations

import json
import os
import sys

import llguidance


def main(seconds: int, memory: int) -> None:
    """Read lists of grammars, one in a line; answer each with the bytes that it keeps, where it can be prepared.

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
    limit = _sizes()[0] + memory
    if limit > memory:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for line in sys.stdin:
        spent = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        resource.setrlimit(resource.RLIMIT_CPU, (int(spent) + seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        before = _sizes()[1]
        matchers = [llguidance.LLMatcher(tokens, source, log_level=0) for source in json.loads(line)]
        for matcher in matchers:
            if not matcher.is_error():
                matcher.compute_bitmask()
        print(_sizes()[1] - before, flush=True)  # noqa: T201 - the answer


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
    main(*map(int, sys.argv[3:]))
