"""What LangChain's middleware, retries and fallbacks make of the errors of a real engine that is small."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
    SummarizationMiddleware,
)
from langchain_core import exceptions as langchain_exceptions
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from langchain_specdec import ChatSpeculative, LocalBackend
from langchain_specdec.errors import EngineClosedError, InvalidParameterError, OverloadedError, PromptTooLongError
from tests.support.backends import lasting, make_chat_backend

core: Any = langchain_exceptions
pytestmark = pytest.mark.skipif(not hasattr(core, "ModelError"), reason="langchain-core has them since 1.6")

HISTORY: list[BaseMessage] = [
    message
    for number in range(8)
    for message in (
        HumanMessage(f"Tell me about the lamp number {number}, which stands in the hall."),
        AIMessage(f"Lamp {number} is red and old."),
    )
]
TALK = [*HISTORY, HumanMessage("And now?")]
Run = Callable[[Any, Any], Any]


@pytest.fixture(scope="module")
def small_backend() -> Iterator[LocalBackend]:
    """A model whose slots the talk does not fit into."""
    with lasting(make_chat_backend(max_length=512)) as backend:
        yield backend


@pytest.fixture
def small(small_backend: LocalBackend) -> ChatSpeculative:
    return ChatSpeculative(backend=small_backend, max_new_tokens=12)


@pytest.fixture
def big(tiny_backend: LocalBackend) -> ChatSpeculative:
    return ChatSpeculative(backend=tiny_backend, max_new_tokens=12)


def invoke(runnable: Any, given: Any) -> Any:
    return runnable.invoke(given)


def ainvoke(runnable: Any, given: Any) -> Any:
    return asyncio.run(runnable.ainvoke(given))


def stream(runnable: Any, given: Any) -> Any:
    return list(runnable.stream(given))[-1]


def astream(runnable: Any, given: Any) -> Any:
    async def read() -> Any:
        return [piece async for piece in runnable.astream(given)][-1]

    return asyncio.run(read())


ways = pytest.mark.parametrize("run", [invoke, ainvoke, stream, astream])


class Failing(AgentMiddleware[Any, Any]):
    """In place of the model it raises this, as often as that."""

    def __init__(self, error: Exception, times: int) -> None:
        super().__init__()
        self.error, self.times, self.calls = error, times, 0

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return handler(request)

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return await handler(request)


def test_the_talk_does_not_fit(small: ChatSpeculative) -> None:
    with pytest.raises(core.ContextOverflowError, match="max_length is 512") as raised:
        small.invoke(TALK)
    assert isinstance(raised.value, PromptTooLongError)
    assert not raised.value.is_retryable


@ways
def test_a_history_too_long_for_its_own_summary_is_cut(small: ChatSpeculative, run: Run) -> None:
    count: Any = small.get_num_tokens_from_messages
    assert count([HumanMessage(str(HISTORY))]) > 512
    summary = SummarizationMiddleware(
        small,
        trigger=("tokens", 300),
        keep=("messages", 1),
        token_counter=count,
        summary_prompt="Sum up:\n{messages}",
        trim_tokens_to_summarize=None,
    )
    state = {}

    class Seen(AgentMiddleware[Any, Any]):
        def after_model(self, given: Any, runtime: Any) -> None:
            state.update(given)

    run(create_agent(small, [], middleware=[summary, Seen()]), {"messages": TALK})
    assert [message.type for message in state["messages"]] == ["human", "human", "ai"]
    assert state["messages"][0].text.startswith("Here is a summary")
    assert state["messages"][1].text == "And now?"


@ways
def test_a_talk_that_is_too_long_is_not_tried_again(small: ChatSpeculative, run: Run) -> None:
    calls = Failing(OverloadedError("unused"), 0)
    agent = create_agent(small, [], middleware=[ModelRetryMiddleware(initial_delay=60), calls])
    with pytest.raises(PromptTooLongError):
        run(agent, {"messages": TALK})
    assert calls.calls == 1


@pytest.mark.parametrize("error", [EngineClosedError("The engine is closed."), InvalidParameterError("No such one.")])
def test_what_no_retry_mends_is_not_tried_again(big: ChatSpeculative, error: Exception) -> None:
    calls = Failing(error, 9)
    agent: Any = create_agent(big, [], middleware=[ModelRetryMiddleware(initial_delay=60), calls])
    with pytest.raises(type(error)):
        agent.invoke({"messages": "Hello"})
    assert calls.calls == 1


@ways
def test_a_server_with_too_much_to_do_is_asked_again(big: ChatSpeculative, run: Run) -> None:
    calls = Failing(OverloadedError("The server has more requests than it takes."), 1)
    run(create_agent(big, [], middleware=[ModelRetryMiddleware(initial_delay=0), calls]), {"messages": "Hello"})
    assert calls.calls == 2


@ways
def test_a_larger_model_takes_over_within_an_agent(small: ChatSpeculative, big: ChatSpeculative, run: Run) -> None:
    run(create_agent(small, [], middleware=[ModelFallbackMiddleware(big)]), {"messages": TALK})


@ways
def test_a_larger_model_takes_over_what_is_too_long_alone(
    small: ChatSpeculative, big: ChatSpeculative, run: Run
) -> None:
    model = small.with_fallbacks([big], exceptions_to_handle=(core.ContextOverflowError,))
    assert isinstance(run(model, TALK), AIMessage)
    with pytest.raises(InvalidParameterError):
        run(model.bind(temperature=-1), "Hello")


def test_retries_that_are_told_which_errors(small: ChatSpeculative, small_backend: LocalBackend) -> None:
    seen = []

    def worth_it(error: BaseException) -> bool:
        seen.append(type(error))
        return isinstance(error, core.ModelError) and error.is_retryable

    model: Any = small
    with pytest.raises(PromptTooLongError):
        model.with_retry(retry_if_exception_type=(core.ModelRateLimitError,)).invoke(TALK)
    with pytest.raises(PromptTooLongError):
        model.with_retry(retry_if_exception_type=worth_it).invoke(TALK)
    assert seen == [PromptTooLongError]
