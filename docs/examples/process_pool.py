"""A pool of processes, each with a model of its own.

[MODEL_ID=embedded] python docs/examples/process_pool.py
"""

# ruff: noqa: T201

from __future__ import annotations

import functools
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from langchain_specdec import SpeculativeLLM

PROMPTS = ("The sea is", "The moon is", "The wind is")


@functools.cache
def model() -> SpeculativeLLM:
    """The model of this process, loaded when it is first asked for, and never taken along from another process."""
    return SpeculativeLLM(model=os.environ.get("MODEL_ID", "embedded"), num_slots=2, max_new_tokens=24)


def complete(prompt: str) -> str:
    """What a worker does: the prompt is sent to it, and the text comes back."""
    return model().invoke(prompt)


def main() -> None:
    """Complete all prompts and print them."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for prompt, text in zip(PROMPTS, pool.map(complete, PROMPTS), strict=True):
            print(f"{prompt}: {' '.join(text.split())}")


if __name__ == "__main__":
    main()
