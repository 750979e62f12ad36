"""Runs completions in a pool of processes of one kind, and prints what came of it as JSON.

python -m tests.support.hosts.pools KIND
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

from tests.support.hosts import pool_work

PROMPTS = [f"Prompt {number}" for number in range(8)]
Map = Callable[[Callable[..., Any], Iterable[Any]], list[Any]]


@contextmanager
def pool_of(kind: str) -> Iterator[Map]:
    """The `map` of a pool."""
    if kind == "joblib":
        # By name, since it has no types.
        joblib = import_module("joblib")
        loky = import_module("joblib.externals.loky")
        with joblib.Parallel(n_jobs=2, backend="loky") as parallel:
            yield lambda function, items: list(parallel(joblib.delayed(function)(item) for item in items))
        loky.get_reusable_executor().shutdown(wait=True)
    else:
        with ProcessPoolExecutor(2, multiprocessing.get_context(kind)) as pool:
            yield lambda function, items: list(pool.map(function, items))


def main(kind: str) -> None:
    """Print what the workers answered, what they were told, and what they hold before and after more work."""
    found: dict[str, Any] = {"parent": pool_work.model().invoke(PROMPTS[0])}
    with pool_of(kind) as run:
        if kind == "fork":
            found["refused"] = run(pool_work.told_of_parents_model, range(2))
        else:
            found["refused"] = [reason_against(run, partial(pool_work.complete_by, pool_work.model()))]
        found["answers"] = run(pool_work.complete, PROMPTS)
        found["before"] = run(pool_work.figures, range(8))
        for _ in range(2):
            run(pool_work.complete, PROMPTS)
        found["after"] = run(pool_work.figures, range(8))
    found["parent again"] = pool_work.model().invoke(PROMPTS[0])
    found["pid"] = os.getpid()
    print(json.dumps(found))  # noqa: T201


def reason_against(run: Map, work: Callable[[str], Any]) -> str:
    """What is said of work that cannot be done."""
    try:
        run(work, PROMPTS[:1])
    except Exception as error:
        return "".join(traceback.format_exception(error))
    return "nothing"


if __name__ == "__main__":
    main(sys.argv[1])
