"""What pools of processes run: each worker loads a model of its own, once."""

from __future__ import annotations

import functools
import os

from langchain_specdec import SpeculativeLLM
from langchain_specdec.errors import SpecDecError
from tests.support.hosts.figures import num_files, resident_mb, taken_slots


@functools.lru_cache(maxsize=1)
def model() -> SpeculativeLLM:
    """The model of this process."""
    return SpeculativeLLM.from_model_id(os.environ["MODEL_ID"], num_slots=2, max_new_tokens=24)


def told_of_parents_model(_: object = None) -> str:
    """What is said where a forked process uses the model of its parent; it then has one of its own."""
    try:
        return model().invoke("Hello")
    except SpecDecError as error:
        model.cache_clear()
        return f"{type(error).__name__}: {error}"


def complete(prompt: str) -> tuple[int, str]:
    """The process that answers, and what."""
    return os.getpid(), model().invoke(prompt)


def figures(_: object = None) -> tuple[int, int, int, int]:
    """The process, its files, its memory in MB, and requests that hold a slot for good."""
    return os.getpid(), num_files(), resident_mb(), taken_slots(model())


def complete_by(llm: SpeculativeLLM, prompt: str) -> str:
    """By a model that comes along with the work."""
    return llm.invoke(prompt)
