"""What LangSmith is sent of a run, and what callbacks count, however the run ends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import reduce
from operator import add
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.messages import HumanMessage
from langchain_core.tracers import LangChainTracer
from pydantic import SecretStr

from langchain_specdec import ChatSpeculative, LocalBackend, SpeculativeLLM
from langchain_specdec.completions.events import FinishEvent, Token, TokenEvent
from langchain_specdec.completions.stream import CompletionStream
from langchain_specdec.errors import PromptTooLongError
from tests.support.backends import EchoBackend, lasting, make_chat_backend, scripted
from tests.support.chat_templates import CHATML, chat_tokenizer
from tests.support.langchain_versions import needs_traced_usage

# LangSmith asks a command for the processor's name.
pytestmark = pytest.mark.process


class Client:
    """In place of LangSmith's: keeps what it would send."""

    otel_exporter = None
    tracing_queue = None

    def __init__(self) -> None:
        self.runs: dict[Any, dict[str, Any]] = {}

    def create_run(self, **run: Any) -> None:
        self.runs[run["id"]] = run

    def update_run(self, run_id: Any, **run: Any) -> None:
        self.runs[run_id].update({name: value for name, value in run.items() if value is not None})


class Traces:
    """The traces of the runs of models that have its `config`."""

    def __init__(self) -> None:
        self.client = Client()
        tracer: Any = LangChainTracer(client=self.client, project_name="test")  # type: ignore[arg-type]
        self.config: Any = {"callbacks": [tracer]}

    @property
    def runs(self) -> list[dict[str, Any]]:
        return [run for run in self.client.runs.values() if run["run_type"] == "llm"]

    @property
    def run(self) -> dict[str, Any]:
        (run,) = self.runs
        return run

    @property
    def metadata(self) -> dict[str, Any]:
        metadata: dict[str, Any] = self.run["extra"]["metadata"]
        return metadata

    @property
    def message(self) -> dict[str, Any]:
        message: dict[str, Any] = self.run["outputs"]["generations"][0][0]["message"]["kwargs"]
        return message

    @property
    def events(self) -> list[str]:
        return [event["name"] for event in self.run["events"]]


@pytest.fixture
def traces() -> Traces:
    return Traces()


@pytest.fixture(scope="module")
def backend() -> Iterator[LocalBackend]:
    with lasting(make_chat_backend()) as backend:
        yield backend


@pytest.fixture
def chat(backend: LocalBackend) -> ChatSpeculative:
    return ChatSpeculative(backend=backend, max_new_tokens=8)


def counts(usage: Any) -> tuple[int, int, int]:
    return usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]


def test_a_trace_has_the_names_of_other_integrations(chat: ChatSpeculative, traces: Traces) -> None:
    message = chat.invoke("Hello", traces.config, stop=["never"])
    metadata = traces.metadata
    named = {name: metadata[name] for name in metadata if name in ("ls_provider", "ls_model_type", "ls_model_name")}
    assert named == {"ls_provider": "specdec", "ls_model_type": "chat", "ls_model_name": chat.model_name}
    assert (metadata["ls_temperature"], metadata["ls_max_tokens"], metadata["ls_stop"]) == (0.0, 8, ["never"])
    told = traces.message["response_metadata"]
    assert {"model_name", "model_provider", "finish_reason", "speculation", "time_to_first_token"} <= set(told)
    assert {"acceptance_rate", "tokens_per_step"} <= set(told["speculation"])
    assert traces.message["usage_metadata"] == message.usage_metadata


def test_chunks_add_up_to_what_a_call_counts(chat: ChatSpeculative, traces: Traces) -> None:
    called = chat.invoke("Hello")
    chunks = list(chat.stream("Hello", traces.config))
    total = reduce(add, chunks)
    assert counts(total.usage_metadata) == counts(called.usage_metadata)
    assert [counts(chunk.usage_metadata)[0] > 0 for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
    assert counts(traces.message["usage_metadata"]) == counts(called.usage_metadata)
    assert traces.events == ["start", "new_token", "end"]


@needs_traced_usage
def test_calls_of_a_batch_are_counted_each_by_itself(chat: ChatSpeculative, traces: Traces) -> None:
    answers = chat.batch(["Hello", "Hello, is anybody there?"], traces.config)
    traced = [run["extra"]["metadata"]["usage_metadata"] for run in traces.runs]
    assert sorted(map(counts, traced)) == sorted(counts(answer.usage_metadata) for answer in answers)
    assert len(set(map(counts, traced))) == 2


def test_a_stream_that_is_closed_is_counted_so_far(traces: Traces) -> None:
    model = scripted("one two three four", width=2)
    stream = model.stream("Hello", traces.config)
    read = [next(stream), next(stream)]
    stream.close()  # type: ignore[attr-defined]
    assert traces.events == ["start", "new_token", "error"]
    usage = traces.message["usage_metadata"]
    assert counts(usage) == counts(reduce(add, read).usage_metadata)
    assert usage["input_tokens"] == model.get_num_tokens_from_messages([HumanMessage("Hello")])
    assert usage["output_tokens"] == 4


def test_a_stream_whose_task_is_cancelled_is_counted_so_far(chat: ChatSpeculative, traces: Traces) -> None:
    read: list[Any] = []

    async def go() -> None:
        async for chunk in chat.astream("Hello", traces.config, max_new_tokens=2000, ignore_eos=True):
            read.append(chunk)
            asyncio.current_task().cancel()  # type: ignore[union-attr]

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(go())
    # What comes before the cancellation is seen may be more than one step.
    first, *steps, last = traces.events
    assert (first, set(steps), last) == ("start", {"new_token"}, "error")
    (prompt, counted, _), (prompt_seen, seen, _) = (
        counts(usage) for usage in (traces.message["usage_metadata"], read[0].usage_metadata)
    )
    assert prompt == prompt_seen
    assert 0 < seen <= counted < 2000


def test_a_call_that_is_refused_is_an_error_without_counts(chat: ChatSpeculative, traces: Traces) -> None:
    with pytest.raises(PromptTooLongError):
        chat.invoke("Hello", traces.config, max_new_tokens=10**5)
    assert "PromptTooLongError" in traces.run["error"]
    assert traces.events == ["start", "error"]
    assert "usage_metadata" not in traces.metadata


@needs_traced_usage
def test_an_answer_from_a_cache_costs_nothing(backend: LocalBackend) -> None:
    chat = ChatSpeculative(backend=backend, max_new_tokens=8, cache=InMemoryCache())
    first, second = Traces(), Traces()
    chat.invoke("Hello", first.config)
    chat.invoke("Hello", second.config)
    assert second.metadata["usage_metadata"]["total_cost"] == 0
    assert "total_cost" not in first.metadata["usage_metadata"]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_callbacks_sum_by_model(chat: ChatSpeculative, is_streamed: bool) -> None:
    with get_usage_metadata_callback() as seen:
        for text in ("Hello", "Hello again"):
            list(chat.stream(text)) if is_streamed else chat.invoke(text)
    (usage,) = seen.usage_metadata.values()
    assert usage["output_tokens"] <= 16
    assert list(seen.usage_metadata) == [chat.model_name]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_a_completion_model_reports_its_counts(traces: Traces) -> None:
    SpeculativeLLM(backend=EchoBackend(), max_new_tokens=8).invoke("one two", traces.config)
    assert traces.run["outputs"]["llm_output"]["token_usage"]["total_tokens"] == 4
    assert traces.metadata["ls_provider"] == "specdec"


def test_no_key_is_in_a_trace(traces: Traces) -> None:
    class Keyed(EchoBackend):
        tokenizer = chat_tokenizer(CHATML)

    model = ChatSpeculative(backend=Keyed(), api_key=SecretStr("sk-very-secret"), max_new_tokens=3)
    model.invoke("Hello", traces.config)
    assert "sk-very-secret" not in str(traces.client.runs)


def test_the_first_token_is_timed_from_the_call() -> None:
    stream = CompletionStream()
    stream.set_timeout(None, since=stream._began - 5.0)
    stream.put(TokenEvent((Token(1, "a", drafted=False),)))
    stream.put(TokenEvent((Token(2, "b", drafted=False),)))
    stream.put(FinishEvent("length", 1, 2, 0))
    finish = list(stream)[-1]
    assert isinstance(finish, FinishEvent)
    assert finish == FinishEvent("length", 1, 2, 0)
    assert finish.time_to_first_token is not None
    assert 5.0 <= finish.time_to_first_token < 35.0


def test_an_answer_without_a_token_has_no_time_of_its_first() -> None:
    stream = CompletionStream()
    stream.put(FinishEvent("eos_token", 1, 0, 0))
    (finish,) = stream
    assert isinstance(finish, FinishEvent)
    assert finish.time_to_first_token is None
