"""Long prompts in an event loop: what they take goes on in a thread, and the loop with it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from pydantic import BaseModel

from langchain_specdec import ChatSpeculative, Grammar, LocalBackend, SpeculativeLLM
from langchain_specdec.backends.base import SHORT_TEXT
from langchain_specdec.chat.prompt import Prompt
from langchain_specdec.chat.template import ChatTemplate
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.stream import CompletionStream, started_in_thread
from langchain_specdec.errors import InvalidParameterError
from tests.support.backends import ScriptedBackend
from tests.support.chat_templates import CHATML, chat_tokenizer
from tests.support.tiny_models import tiny_model

LONG = "word " * (SHORT_TEXT // 4)


class Threads(ScriptedBackend):
    """Notes the thread in which completions are started."""

    def __init__(self) -> None:
        super().__init__("Yes.")
        self.threads: list[bool] = []

    def start(self, requests: Sequence[CompletionRequest]) -> list[CompletionStream]:
        self.threads.append(threading.current_thread() is threading.main_thread())
        return super().start(requests)


async def streamed(model: Any, prompt: str, **options: Any) -> str:
    return "".join(
        [piece if isinstance(piece, str) else piece.text async for piece in model.astream(prompt, **options)]
    )


@pytest.mark.parametrize("prompt", ["short", LONG])
def test_long_prompts_are_started_in_a_thread_and_short_ones_at_once(prompt: str) -> None:
    backend = Threads()
    llm = SpeculativeLLM(backend=backend)
    assert asyncio.run(llm.ainvoke(prompt)) == "Yes."
    assert asyncio.run(streamed(llm, prompt)) == "Yes."
    assert backend.threads == [prompt == "short"] * 2
    # Many short ones take as long.
    assert asyncio.run(llm.abatch(["x" * 1000] * 30)) == ["Yes."] * 30
    assert backend.threads[2:] == [False]


def test_grammars_are_compiled_in_a_thread() -> None:
    backend = Threads()
    asyncio.run(SpeculativeLLM(backend=backend).ainvoke("x", grammar=Grammar(regex="Yes.")))
    assert backend.threads == [False]


@pytest.fixture
def rendered_at_once(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of every prompt, whether it was rendered in the main thread."""
    render, seen = ChatTemplate.prompt, []

    def noting(self: ChatTemplate, *args: Any, **options: Any) -> Prompt:
        seen.append(threading.current_thread() is threading.main_thread())
        return render(self, *args, **options)

    monkeypatch.setattr(ChatTemplate, "prompt", noting)
    return seen


@pytest.mark.parametrize("prompt", ["short", LONG])
def test_long_messages_are_rendered_and_encoded_in_a_thread(prompt: str, rendered_at_once: list[bool]) -> None:
    chat = ChatSpeculative(backend=Threads())
    for _ in range(2):
        assert asyncio.run(chat.ainvoke(prompt)).text == "Yes."
        assert asyncio.run(streamed(chat, prompt)) == "Yes."
    # The first time a template is compiled, however short the prompt.
    assert rendered_at_once == [False, *[prompt == "short"] * 3]


@pytest.mark.parametrize("text", ["short", LONG])
def test_so_are_long_calls_and_all_tools_and_schemas(text: str, rendered_at_once: list[bool]) -> None:
    chat: Any = ChatSpeculative(backend=Threads())
    call = AIMessage("", tool_calls=[{"name": "f", "args": {"x": text}, "id": "1"}])
    broken = AIMessage("", invalid_tool_calls=[{"name": "f", "args": text, "id": "1", "error": "cut"}])
    tool = {"title": "F", "description": text, "type": "object", "properties": {}}
    form = {"type": "json_schema", "json_schema": {"name": "F", "schema": tool}}
    asyncio.run(chat.ainvoke("x"))
    rendered_at_once.clear()
    for messages, options in (
        ([HumanMessage("x"), call, ToolMessage("y", tool_call_id="1")], {}),
        ([HumanMessage("x"), broken, HumanMessage("y")], {}),
        ([HumanMessage([{"type": "text", "text": text}])], {}),
        ([HumanMessage("x")], {"tools": [tool]}),
        ([HumanMessage("x")], {"response_format": form}),
    ):
        assert asyncio.run(chat.ainvoke(messages, **options)).text == "Yes."
    # What schemas take does not depend on their length alone.
    assert rendered_at_once == [*[text == "short"] * 3, False, False]


@pytest.fixture(scope="module")
def chat_on_an_engine() -> Iterator[ChatSpeculative]:
    tokenizer = chat_tokenizer(CHATML)
    model = tiny_model(2, vocab_size=len(tokenizer), max_position_embeddings=4096)
    with ChatSpeculative(
        backend=LocalBackend(model, tokenizer, num_slots=4, max_length=2000), max_new_tokens=80
    ) as chat:
        chat.invoke("x", max_tokens=1)
        yield chat


class Person(BaseModel):
    name: str
    age: int


CALLS: dict[str, Callable[[ChatSpeculative, SpeculativeLLM], Any]] = {
    "ainvoke": lambda chat, llm: chat.ainvoke("hi"),
    "astream": lambda chat, llm: streamed(chat, "hi"),
    "abatch": lambda chat, llm: chat.abatch(["a", "b"]),
    "tools": lambda chat, llm: chat.bind_tools([Person]).ainvoke("hi"),
    "forced call": lambda chat, llm: chat.bind_tools([Person], tool_choice="any").ainvoke("hi"),
    "schema": lambda chat, llm: chat.with_structured_output(Person, include_raw=True).ainvoke("hi"),
    "llm": lambda chat, llm: llm.ainvoke("hi"),
    "llm astream": lambda chat, llm: streamed(llm, LONG[:1000]),
    "llm abatch": lambda chat, llm: llm.abatch(["x" * 100] * 8, return_exceptions=True),
    "grammar": lambda chat, llm: llm.ainvoke("hi", grammar=Grammar(regex="[ab]{3}")),
    "counting": lambda chat, llm: chat.ainvoke("x" * 1500),
}


@pytest.mark.parametrize("way", CALLS)
def test_no_call_blocks_its_event_loop(way: str, chat_on_an_engine: ChatSpeculative) -> None:
    blockbuster = pytest.importorskip("blockbuster")
    backend = chat_on_an_engine.backend
    # Models of their own, so that each call is the first.
    chat, llm = ChatSpeculative(backend=backend, max_new_tokens=80), SpeculativeLLM(backend=backend, max_new_tokens=8)

    async def call() -> None:
        with blockbuster.blockbuster_ctx():
            await CALLS[way](chat, llm)

    asyncio.run(call())


def test_arguments_that_are_nested_too_deeply_are_refused_in_an_event_loop_too() -> None:
    nested: Any = []
    for _ in range(5000):
        nested = [nested]
    call = AIMessage("").model_copy(update={"tool_calls": [{"name": "f", "args": {"x": nested}, "id": "1"}]})
    with pytest.raises(InvalidParameterError):
        asyncio.run(ChatSpeculative(backend=Threads()).ainvoke([call, ToolMessage("y", tool_call_id="1")]))


def test_what_is_wrong_with_a_long_prompt_is_raised_as_with_a_short_one() -> None:
    class Refusing(ScriptedBackend):
        def start(self, requests: Sequence[CompletionRequest]) -> list[CompletionStream]:
            raise InvalidParameterError("no")

    for prompt in ("short", LONG):
        with pytest.raises(InvalidParameterError, match="no"):
            asyncio.run(SpeculativeLLM(backend=Refusing("x")).ainvoke(prompt))


def test_a_task_that_is_cancelled_while_it_starts_leaves_nothing_running() -> None:
    is_starting, may_start, closed = threading.Event(), threading.Event(), threading.Event()

    def start() -> list[CompletionStream]:
        is_starting.set()
        may_start.wait(20)
        return [CompletionStream(on_close=closed.set)]

    async def cancel() -> None:
        task = asyncio.ensure_future(started_in_thread(start))
        await asyncio.to_thread(is_starting.wait, 20)
        task.cancel()
        # It does not wait for the start.
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not closed.is_set()
        may_start.set()

    asyncio.run(cancel())
    assert closed.wait(20)


def test_a_stream_of_a_chat_that_is_left_early_is_closed() -> None:
    backend = Threads()

    async def leave(read: Callable[..., Any]) -> None:
        stream = read(LONG)
        await anext(stream)
        await stream.aclose()

    asyncio.run(leave(ChatSpeculative(backend=backend).astream))
    assert backend.streams[-1].is_closed
