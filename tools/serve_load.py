"""Many clients at once against a running `specdec serve`, some of whom leave: `python -m tools.serve_load --help`.

Prints how long first tokens take, what was lost, and the server's memory after each round. It ends with 1 where an
answer was lost or a request stays in the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

_PROMPTS = ("Once upon a time", "1, 2, 3, 4, 5, 6,", "The capital of France is", "Write a list of animals:")
_PATIENCE = 600.0
_ROOMY = 16


@dataclass
class Round:
    """What became of some requests.

    Attributes:
        ends: How many ended how: `whole`, `left`, `refused` (429) or `lost`.
        first_tokens: Seconds to the first token, of those that saw one.
        errors: What the lost ones were told.
    """

    ends: Counter[str] = field(default_factory=Counter)
    first_tokens: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


async def run_round(url: str, num_requests: int, num_connections: int, disconnect: float, seed: int) -> Round:
    """Send requests, each as soon as a connection is free.

    Args:
        url: The server's root address.
        num_requests: How many.
        num_connections: How many at a time.
        disconnect: Share of requests whose client leaves within the answer.
        seed: Decides who leaves, when, and what is asked.
    """
    rng = random.Random(seed)
    plans = [(rng.choice(_PROMPTS), rng.randint(2, 32), rng.random() < disconnect) for _ in range(num_requests)]
    told, connections = Round(), asyncio.Semaphore(num_connections)
    limits = httpx.Limits(max_connections=num_connections + _ROOMY)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=_PATIENCE) as client:

        async def ask(prompt: str, max_tokens: int, leaves: bool) -> None:
            body = {"prompt": prompt, "max_tokens": max_tokens, "stream": True, "ignore_eos": True}
            async with connections:
                told.ends[await _asked(client, body, told, leaves=leaves)] += 1

        await asyncio.gather(*(ask(*plan) for plan in plans))
    return told


async def _asked(client: httpx.AsyncClient, body: Any, told: Round, *, leaves: bool) -> str:
    since, is_first = time.perf_counter(), True
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                told.errors.append((await response.aread()).decode(errors="replace"))
                return "refused" if response.status_code == 429 else "lost"
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    return "whole"
                if line and "error" in json.loads(line.removeprefix("data: ")):
                    told.errors.append(line)
                    return "lost"
                if line and is_first:
                    told.first_tokens.append(time.perf_counter() - since)
                    is_first = False
                    if leaves:
                        return "left"
    except httpx.HTTPError as error:
        told.errors.append(repr(error))
        return "lost"
    told.errors.append("the stream ended without [DONE]")
    return "lost"


async def num_inside(url: str) -> int:
    """Requests that the server has, by its own figures."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        lines = (await client.get("/metrics")).text.splitlines()
    names = ("tgi_queue_size ", "tgi_batch_current_size ")
    return sum(int(float(line.split()[1])) for line in lines if line.startswith(names))


async def is_empty(url: str, seconds: float = 30.0) -> bool:
    """Whether the server has no request any more, or soon."""
    until = time.monotonic() + seconds
    while await num_inside(url):
        if time.monotonic() > until:
            return False
        await asyncio.sleep(0.1)
    return True


def listening_process(url: str) -> psutil.Process | None:
    """The process of this machine that listens at the address; None where it cannot be seen."""
    port = httpx.URL(url).port
    for process in psutil.process_iter():
        try:
            found = [one for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
        except psutil.Error:
            continue
        if any(one.laddr.port == port for one in found):
            return process
    return None


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of values does not exceed."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


async def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rounds, and print a line for each."""
    parser = argparse.ArgumentParser(description="Many clients at once against a running `specdec serve`.")
    parser.add_argument("url", help="its root address, such as http://127.0.0.1:8000")
    parser.add_argument("--requests", type=int, default=500, help="requests of a round (500)")
    parser.add_argument("--connections", type=int, default=64, help="requests at a time (64)")
    parser.add_argument("--disconnect", type=float, default=0.2, help="share of clients that leave (0.2)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, to see whether memory grows (3)")
    asked = parser.parse_args(arguments)
    process = listening_process(asked.url)

    def memory() -> str:
        return "unknown" if process is None else f"{process.memory_info().rss / 2**20:.0f} MB"

    print(f"before: RSS {memory()}", flush=True)
    is_well = True
    for number in range(1, asked.rounds + 1):
        since = time.perf_counter()
        told = await run_round(asked.url, asked.requests, asked.connections, asked.disconnect, number)
        seconds = time.perf_counter() - since
        is_idle = await is_empty(asked.url)
        first = ", ".join(f"p{share} {percentile(told.first_tokens, share / 100):.3f} s" for share in (50, 99))
        ends = ", ".join(f"{told.ends[end]} {end}" for end in ("whole", "left", "refused", "lost"))
        print(f"round {number}: {ends} in {seconds:.1f} s; first token {first}; RSS {memory()}", flush=True)
        for error, count in Counter(told.errors).most_common(3):
            print(f"  {count} times: {error[:300]}")
        if not is_idle:
            print(f"  {await num_inside(asked.url)} requests are in the server still")
        is_well = is_well and is_idle and not told.ends["lost"]
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
