"""Batches against LangChain's own implementation of them: outcomes, and everything that callbacks are told."""

from __future__ import annotations

import asyncio
import inspect
import threading
import uuid
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.runnables import Runnable, RunnableLambda, RunnableParallel

from langchain_specdec import ChatSpeculative, SpeculativeLLM
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.stream import CompletionStream
from langchain_specdec.errors import GenerationError
from tests.support.backends import ScriptedBackend

WORDS = ["one", "two", "bad", "two", "three"]
NUMBER: ContextVar[int] = ContextVar("number", default=0)


class Echo(ScriptedBackend):
    """Answers with the last word of the prompt; a prompt with "bad" fails."""

    def __init__(self) -> None:
        super().__init__(_answer)
        self.lock = threading.Lock()

    def _start(self, request: CompletionRequest) -> CompletionStream:
        if "bad" in self._text_of(request):
            stream = CompletionStream()
            stream.put(GenerationError("bad luck"))
            return stream
        with self.lock:
            return super()._start(request)


def _answer(prompt: str) -> str:
    return next((f"{word} it is" for word in WORDS if word in prompt), "nothing")


class Told(BaseCallbackHandler):
    """What a handler is told of each run, by the text of its input."""

    run_inline = True

    def __init__(self) -> None:
        self.runs: dict[uuid.UUID, list[Any]] = {}
        self.lock = threading.Lock()

    def _begin(self, text: str, run_id: uuid.UUID, told: dict[str, Any]) -> None:
        parent = told.get("parent_run_id")
        with self.lock:
            # Ids differ each time, but for those that are given.
            own = run_id if run_id.int < 100 else "drawn"
            details = {name: told.get(name) for name in ("tags", "metadata", "name", "options")}
            self.runs[run_id] = [text, own, parent is not None, details, NUMBER.get()]

    def on_chat_model_start(self, serialized: Any, messages: Any, *, run_id: uuid.UUID, **told: Any) -> None:
        self._begin(messages[0][0].content, run_id, told)

    def on_llm_start(self, serialized: Any, prompts: list[str], *, run_id: uuid.UUID, **told: Any) -> None:
        self._begin(prompts[0], run_id, told)

    def on_llm_new_token(self, token: Any, *, run_id: uuid.UUID, **told: Any) -> None:
        self.runs[run_id].append(("token", token))

    def on_llm_end(self, response: Any, *, run_id: uuid.UUID, **told: Any) -> None:
        self.runs[run_id].append(("end", response.generations[0][0].text))

    def on_llm_error(self, error: BaseException, *, run_id: uuid.UUID, **told: Any) -> None:
        self.runs[run_id].append(("error", type(error), str(error)))

    @property
    def all(self) -> list[Any]:
        """Of all runs, in an order that does not depend on which was first."""
        return sorted(self.runs.values(), key=repr)


class Permits(BaseRateLimiter):
    """Counts what it is asked for."""

    def __init__(self) -> None:
        self.number = 0

    def acquire(self, *, blocking: bool = True) -> bool:
        self.number += 1
        return True

    async def aacquire(self, *, blocking: bool = True) -> bool:
        return self.acquire()


def outcome_of(found: Any) -> Any:
    if isinstance(found, BaseException):
        return type(found), str(found)
    return getattr(found, "text", found)


def collected(found: Any, number: int) -> list[Any]:
    """Outcomes in the order of inputs, whatever the way they come."""
    if isinstance(found, Iterator):
        return [outcome for _, outcome in sorted(found, key=lambda pair: pair[0])]
    assert len(found) == number
    return list(found)


def run(owner: Any, method: str, model: Any, inputs: list[Any], config: Any, **options: Any) -> list[Any]:
    """Run a batch by a method of a class, such as LangChain's own."""
    found: Any = getattr(owner, method)(model, inputs, config, **options)
    if inspect.isasyncgen(found):

        async def read() -> list[Any]:
            return [pair async for pair in found]

        return collected(iter(asyncio.run(read())), len(inputs))
    if inspect.iscoroutine(found):
        return collected(asyncio.run(_awaited(found)), len(inputs))
    return collected(found, len(inputs))


async def _awaited(found: Any) -> Any:
    return await found


def one_config(told: Told) -> Any:
    return {"callbacks": [told], "tags": ["t"], "metadata": {"m": 1}, "run_name": "named", "recursion_limit": 7}


def limited(told: Told) -> Any:
    return {"callbacks": [told], "max_concurrency": 2, "configurable": {"thread_id": "7"}}


def config_each(told: Told) -> Any:
    return [
        {"callbacks": [told], "tags": [f"t{n}"], "metadata": {"m": n}, "run_name": f"r{n}", "run_id": uuid.UUID(int=n)}
        for n in range(len(WORDS))
    ]


MAKES: dict[str, Callable[..., Any]] = {
    "chat": lambda **fields: ChatSpeculative(backend=Echo(), tags=["own"], metadata={"of": "model"}, **fields),
    "llm": lambda **fields: SpeculativeLLM(backend=Echo(), tags=["own"], metadata={"of": "model"}, **fields),
}
METHODS = ["batch", "abatch", "batch_as_completed", "abatch_as_completed"]
CONFIGS: dict[str, Callable[[Told], Any]] = {"one": one_config, "limited": limited, "each": config_each}


def told_of(owner: Any, which: str, method: str, configs: str, inputs: list[str], **fields: Any) -> tuple[Any, ...]:
    model = MAKES[which](**fields)
    told = Told()
    config = CONFIGS[configs](told)
    if isinstance(config, list):
        config = config[: len(inputs)]
    token = NUMBER.set(5)
    try:
        outcomes = run(owner or type(model), method, model, inputs, config, return_exceptions=True, stop=["#"])
    finally:
        NUMBER.reset(token)
    return [outcome_of(outcome) for outcome in outcomes], told.all


@pytest.mark.parametrize("configs", CONFIGS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("which", MAKES)
def test_outcomes_and_callbacks_are_those_of_langchain(which: str, method: str, configs: str) -> None:
    for inputs in (WORDS, WORDS[:1], ["bad"], []):
        ours = told_of(None, which, method, configs, inputs)
        assert ours == told_of(Runnable, which, method, configs, inputs)
        assert len(ours[0]) == len(ours[1]) == len(inputs)


@pytest.mark.parametrize("fields", [{"streaming": True}, {"disable_streaming": True}, {"streaming": False}], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_so_they_are_where_models_stream(method: str, fields: dict[str, Any]) -> None:
    ours = told_of(None, "chat", method, "one", WORDS, **fields)
    assert ours == told_of(Runnable, "chat", method, "one", WORDS, **fields)
    assert any(event[0] == "token" for run in ours[1] for event in run[5:]) == (fields == {"streaming": True})


@pytest.mark.parametrize("which", MAKES)
@pytest.mark.parametrize("method", METHODS)
def test_caches_and_rate_limiters_are_asked_as_langchain_does(which: str, method: str) -> None:
    def asked(owner: Any) -> list[Any]:
        permits, cache = Permits(), InMemoryCache()
        own = {"rate_limiter": permits} if which == "chat" else {}
        model = MAKES[which](cache=cache, **own)
        seen = []
        for inputs in (["one", "two"], ["two", "three", "one"], ["two", "two"]):
            config = {"max_concurrency": 1}
            outcomes = run(owner or type(model), method, model, inputs, config, return_exceptions=True)
            seen.append(([outcome_of(outcome) for outcome in outcomes], len(model.backend.requests), permits.number))
        return seen

    ours = asked(None)
    assert ours == asked(Runnable)
    assert [number for _, number, _ in ours] == [2, 3, 3]


@pytest.mark.parametrize("which", MAKES)
def test_chains_and_maps_of_batches_are_children_of_their_runs(which: str) -> None:
    for chained in (
        lambda model: RunnableLambda(str) | model,
        lambda model: RunnableParallel(a=model, b=RunnableLambda(str)),
        lambda model: RunnableLambda(lambda word: [word, word]) | model.map(),
        lambda model: RunnableLambda(lambda word: model.batch([word, "three"])),
    ):
        told = Told()
        model = MAKES[which]()
        outcomes = chained(model).batch(["one", "two"], {"callbacks": [told], "tags": ["t"]})
        assert len(outcomes) == 2
        runs = told.all
        assert len(runs) in (2, 4)
        for run_ in runs:
            assert run_[2], "has a parent"
            assert "t" in run_[3]["tags"]
            assert run_[-1] == ("end", f"{run_[0]} it is")


class Raising(BaseCallbackHandler):
    """Fails with an error of its own, at the start of the run with that input or at its end."""

    raise_error = True
    run_inline = True

    def __init__(self, error: BaseException, text: str, *, at_end: bool) -> None:
        self.error, self.text, self.at_end = error, text, at_end

    def on_chat_model_start(self, serialized: Any, messages: Any, **told: Any) -> None:
        if not self.at_end and messages[0][0].content == self.text:
            raise self.error

    def on_llm_end(self, response: Any, **told: Any) -> None:
        if self.at_end and response.generations[0][0].text.startswith(self.text):
            raise self.error


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_error_of_a_handler_is_the_outcome_of_its_own_input(method: str, at_end: bool) -> None:
    def outcomes(owner: Any) -> list[Any]:
        model = MAKES["chat"]()
        config = {"callbacks": [Raising(ValueError("mine"), "two", at_end=at_end)]}
        found = run(owner or type(model), method, model, WORDS, config, return_exceptions=True)
        return [outcome_of(outcome) for outcome in found]

    ours = outcomes(None)
    assert ours == outcomes(Runnable)
    assert ours[1] == ours[3] == (ValueError, "mine")
    with pytest.raises(ValueError, match="mine"):
        model = MAKES["chat"]()
        config = {"callbacks": [Raising(ValueError("mine"), "two", at_end=at_end)]}
        run(type(model), method, model, ["one", "two"], config)


@pytest.mark.parametrize("number", [1, 3])
def test_no_error_is_taken_for_the_end_of_a_batch(number: int) -> None:
    model = MAKES["chat"]()
    config: Any = {"callbacks": [Raising(StopIteration("mine"), "one", at_end=False)]}
    with pytest.raises((StopIteration, RuntimeError)):
        model.batch(["one"] * number, config)


@pytest.mark.parametrize("which", MAKES)
def test_batches_in_threads_and_loops_at_once(which: str) -> None:
    model = MAKES[which]()
    found: list[Any] = []

    async def nested() -> None:
        found.append([outcome_of(each) for each in model.batch(["one", "two"], return_exceptions=True)])

    def ask() -> None:
        found.append([outcome_of(each) for each in model.batch(["one", "two"])])
        asyncio.run(nested())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [["one it is", "two it is"]] * 16
