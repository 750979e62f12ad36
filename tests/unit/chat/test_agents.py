"""LangChain's agents: many at once on few slots, and long conversations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from langchain_specdec import ChatSpeculative, LocalBackend
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.stream import CompletionStream
from langchain_specdec.engine.request import check_prompt
from tests.support.agents import ITEMS, ask, make_agent, stock, written
from tests.support.backends import ScriptedBackend, lasting, make_chat_backend, scripted
from tests.support.chat_templates import QWEN
from tests.support.langchain_versions import needs_profiles, needs_triggers

pytest.importorskip("langchain")


@pytest.fixture(scope="module")
def backend() -> Iterator[LocalBackend]:
    with lasting(make_chat_backend(QWEN, num_slots=8, max_tree_nodes=8)) as backend:
        yield backend


class StrictBackend(ScriptedBackend):
    """Refuses prompts as the engine does."""

    def start(self, requests: Sequence[CompletionRequest]) -> list[CompletionStream]:
        for request in requests:
            assert not isinstance(request.prompt, str)
            check_prompt(request.prompt, request.params, len(self.tokenizer), self.max_length)
        return super().start(requests)


@needs_profiles
@needs_triggers
@pytest.mark.parametrize("max_new_tokens", [64, 1500, 2600])
@pytest.mark.parametrize("counter", ["approximate", "own"])
def test_an_agent_summarises_before_its_prompt_is_too_long(max_new_tokens: int, counter: str) -> None:
    """With the limits of deep agents, and a system prompt and tools, which the middleware does not count."""
    from langchain.agents import create_agent
    from langchain.agents.middleware import SummarizationMiddleware

    backend = StrictBackend("Lamps and lenses were moved to the store by the harbour.", template=QWEN)
    model = ChatSpeculative(backend=backend, max_new_tokens=max_new_tokens)
    room = backend.max_length - max_new_tokens
    assert model.profile is not None
    assert model.profile["max_input_tokens"] == room
    count = {} if counter == "approximate" else {"token_counter": model.get_num_tokens_from_messages}
    options: dict[str, Any] = {"trigger": ("fraction", 0.85), "keep": ("fraction", 0.1), **count}
    summary_prompt = "What was said?\n{messages}"
    middleware = SummarizationMiddleware(
        model, summary_prompt=summary_prompt, trim_tokens_to_summarize=room // 4, **options
    )
    agent = create_agent(model, [stock], system_prompt="You keep a store.", middleware=[middleware])
    messages: list[Any] = []
    for turn in range(40):
        messages.append(("human", f"{turn}: what did I ask you to move?"))
        messages = agent.invoke({"messages": messages}, {"recursion_limit": 12})["messages"]
    prompts = [request.prompt for request in backend.requests]
    summaries = [prompt for prompt in prompts if "What was said?" in backend.tokenizer.decode(prompt)]
    # Not each turn either: most of the room is used before.
    assert 0 < len(summaries) < 20
    assert max(map(len, prompts)) > 0.5 * room


@needs_profiles
def test_the_profile_tells_what_fits_beside_an_answer() -> None:
    def limits(model: ChatSpeculative) -> tuple[int, int]:
        assert model.profile is not None
        return model.profile["max_input_tokens"], model.profile["max_output_tokens"]

    model = scripted("x")
    assert limits(model) == (4096 - 256, 256)
    assert limits(scripted("x", max_tokens=1000)) == (3096, 1000)
    assert limits(scripted("x", max_tokens=None)) == (4096 - 256, 256)
    # Such a model refuses every call; an agent may still divide by its profile.
    assert limits(scripted("x", max_tokens=5000)) == (1, 4095)
    copied = model.model_copy(update={"max_new_tokens": 96})
    assert (limits(copied), limits(model)) == ((4000, 96), (3840, 256))
    assert limits(copied.model_copy(update={"temperature": 1.0})) == (4000, 96)
    given = scripted("x", profile={"max_input_tokens": 50, "max_output_tokens": 5})
    assert limits(given.model_copy(update={"max_new_tokens": 96})) == (50, 5)
    assert limits(model.model_copy(update={"max_new_tokens": 96, "profile": given.profile})) == (50, 5)


@pytest.mark.slow
@pytest.mark.one_version
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_agents_at_once_write_what_they_write_alone(backend: LocalBackend, temperature: float) -> None:
    """16 agents on 8 slots."""
    agent = make_agent(ChatSpeculative(backend=backend, max_new_tokens=60, temperature=temperature, seed=4))
    items = [f"{size} {item}" for size in ("small", "big", "old", "new") for item in ITEMS]
    assert len(items) == 16
    alone = [written(ask(agent, item)) for item in items[::5]]
    with ThreadPoolExecutor(16) as pool:
        together = [written(messages) for messages in pool.map(lambda item: ask(agent, item), items)]
    assert together[::5] == alone
    assert all(len(answers) == 3 for answers in together)
