"""Chats with a model in this process, and with the same behind `specdec serve`: one line swaps them, and no answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel

from langchain_specdec import ChatSpeculative, LocalBackend, SamplingParams, SpeculativeLLM
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.server.run import Server
from langchain_specdec.server.settings import ServerSettings
from tests.support.chat_templates import chat_tokenizer
from tests.support.langchain_versions import needs_profiles
from tests.support.thinking import QWEN3, QWEN_THINKING
from tests.support.tiny_models import EOS, tiny_model
from tests.support.tool_formats import SCHEMAS
from tests.support.tool_templates import FAMILIES, family_tokenizer

pytestmark = pytest.mark.server

TOOLS = [
    {"type": "function", "function": {"name": "tide", "description": "Tide", "parameters": SCHEMAS["tide"]}},
    {
        "type": "function",
        "function": {
            "name": "ferry",
            "description": "Ferry",
            "parameters": {
                "type": "object",
                "properties": {"cars": {"type": "integer", "maximum": 9}, "harbour": {"enum": ["Kiel", "Åbo"]}},
                "required": ["cars"],
            },
        },
    },
]
FORM: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "x", "schema": {"type": "object", "properties": {"ok": {"type": "boolean"}}}},
}
CALLS: dict[str, dict[str, Any]] = {
    "text": {},
    "tools": {"tools": TOOLS},
    "tools, none to be called": {"tools": TOOLS, "tool_choice": "none"},
    "one call": {"tools": TOOLS, "parallel_tool_calls": False},
    "a call": {"tools": TOOLS, "tool_choice": "any"},
    "one call of some tool": {"tools": TOOLS, "tool_choice": "any", "parallel_tool_calls": False},
    "a call of a tool": {"tools": TOOLS, "tool_choice": "ferry"},
    "a form": {"response_format": FORM},
    "calls or a form": {"tools": TOOLS, "response_format": FORM},
    "stops": {"stop": ["\x05", "a", "<"]},
    "scores": {"logprobs": 2},
}
SAMPLED = {"temperature": 1.5, "seed": 11, "top_p": 0.9}
# Families whose marks are special tokens, and others.
NAMES = ["hermes", "llama", "mistral", "tekken", "lfm", "gemma", "harmony", "deepseek", "glm"]


class Pair(NamedTuple):
    """A chat model on a model in this process, and one on its server."""

    local: ChatSpeculative
    served: ChatSpeculative


def made(tokenizer: Any) -> Iterator[Pair]:
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=4096)
    backend = LocalBackend(model, tokenizer, num_slots=2, max_length=2048)
    # Its thread runs from here on.
    backend.complete([CompletionRequest("a", SamplingParams(max_new_tokens=1))])
    with Server(ServerSettings(port=0)).start(backend) as server:
        served = ChatSpeculative.from_server(server.url, tokenizer=tokenizer, max_tokens=70)
        yield Pair(ChatSpeculative(backend=backend, max_tokens=70), served)
        served.close()
    backend.close()


@pytest.fixture(scope="module", params=NAMES)
def family(request: pytest.FixtureRequest) -> Iterator[Pair]:
    yield from made(family_tokenizer(FAMILIES[request.param]))


@pytest.fixture(scope="module", params=[QWEN3, QWEN_THINKING], ids=["may think", "always thinks"])
def thinker(request: pytest.FixtureRequest) -> Iterator[Pair]:
    yield from made(chat_tokenizer(request.param))


def seen(answer: Any) -> dict[str, Any]:
    """What a caller sees of an answer, but for times, scores' last digits, and what depends on earlier calls."""
    said = answer.response_metadata
    return {
        "content": answer.content,
        "more": {name: value for name, value in answer.additional_kwargs.items() if name != "tool_calls"},
        "calls": [(call["name"], call["args"]) for call in answer.tool_calls],
        "broken": [(call["name"], call["args"], call["error"]) for call in answer.invalid_tool_calls],
        "end": said["finish_reason"],
        "counts": {**answer.usage_metadata, "input_token_details": None},
        "ids": [(each["token_id"], each["text"]) for each in said.get("logprobs", ())],
    }


def outcome(chat: ChatSpeculative, **call: Any) -> Any:
    try:
        return seen(chat.invoke("What is at sea?", **call))
    except Exception as error:
        return type(error), str(error).replace("OpenAIBackend", "LocalBackend")


@pytest.mark.parametrize("how", CALLS)
@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_any_family_answers_the_same(family, how, sampling):
    call = {**CALLS[how], **sampling}
    assert outcome(family.served, **call) == outcome(family.local, **call)


@pytest.mark.parametrize("how", ["tools", "one call", "calls or a form"])
def test_marks_of_calls_are_told(family, how):
    """A random model does not call by itself, so that its marks are made probable."""
    tokenizer = family.local.backend.private_tokenizer
    bias = {token: 12.0 for token in tokenizer.special_texts if token > EOS}
    for seed in range(4):
        call = {**CALLS[how], "temperature": 1.0, "seed": seed, "logit_bias": bias}
        assert outcome(family.served, **call) == outcome(family.local, **call)


@pytest.mark.parametrize("how", ["text", "tools", "a call of a tool", "a form", "calls or a form", "stops"])
@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("most", [None, 0, 7])
def test_thoughts_are_the_same(thinker, how, sampling, most):
    call = {**CALLS[how], **sampling, "max_reasoning_tokens": most}
    expected = outcome(thinker.local, **call)
    assert outcome(thinker.served, **call) == expected
    assert not isinstance(expected, tuple) or how in ("tools", "text")


async def test_a_first_call_may_come_from_an_event_loop(thinker):
    url = thinker.served.backend.base_url
    call = {**CALLS["calls or a form"], "max_reasoning_tokens": 5}
    with ChatSpeculative.from_server(url, tokenizer=thinker.local.backend.tokenizer, max_tokens=70) as first:
        answer = await first.ainvoke("What is at sea?", **call)
        pieces = [piece async for piece in first.astream("What is at sea?", **call)]
    assert seen(answer) == outcome(thinker.local, **call)
    assert "".join(piece.text for piece in pieces) == answer.text


@needs_profiles
def test_a_profile_says_what_the_server_can_do_once_it_was_asked(thinker):
    url, tokenizer = thinker.served.backend.base_url, thinker.local.backend.tokenizer
    with (
        ChatSpeculative.from_server(url, tokenizer=tokenizer, max_tokens=70) as asked,
        ChatSpeculative.from_server(url, tokenizer=tokenizer, profile={"tool_calling": True}) as given,
    ):
        assert asked.profile is not None
        assert asked.profile["structured_output"] is False
        # Agents ask for the name first, and so does a copy.
        assert asked.model_name == given.model_name
        known: Any = asked.profile
        assert known["structured_output"] is True
        assert known["max_input_tokens"] == thinker.local.profile["max_input_tokens"]
        copied: Any = asked.model_copy(update={"max_new_tokens": 90}).profile
        assert copied["max_input_tokens"] == 2048 - 90
        assert given.profile == {"tool_calling": True}


class Sea(BaseModel):
    """What is at sea."""

    ships: int


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_a_pydantic_class_is_filled_in_alike(family, method):
    ask = [chat.with_structured_output(Sea, method=method).invoke("Ships?") for chat in family]
    assert isinstance(ask[0], Sea)
    assert ask[0] == ask[1]


def test_tokens_are_counted_alike(family):
    for chat in family:
        assert chat.get_num_tokens("Åbo, Kiel") == len("Åbo, Kiel".encode())
    assert len({chat.get_num_tokens_from_messages([("user", "Ships?")]) for chat in family}) == 1


class TestAdapters:
    @pytest.fixture(scope="class")
    @classmethod
    def backends(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalBackend, str]]:
        pytest.importorskip("peft")
        from tests.support.lora import write_lora
        from tests.support.tiny_models import byte_tokenizer

        folder: Path = tmp_path_factory.mktemp("models")
        tiny_model().save_pretrained(folder / "base")
        byte_tokenizer().save_pretrained(folder / "base")
        write_lora(folder / "legal", folder / "base", 1, ["q_proj", "down_proj"])
        local = LocalBackend(
            folder / "base", adapters={"legal": folder / "legal"}, device="cpu", dtype="float32", max_length=128
        )
        local.complete([CompletionRequest("a", SamplingParams(max_new_tokens=1))])
        with Server(ServerSettings(port=0)).start(local) as server:
            yield local, server.url
        local.close()

    def test_an_adapter_is_chosen_by_its_name(self, backends):
        local, url = backends
        here = SpeculativeLLM(backend=local, max_new_tokens=24, ignore_eos=True)
        with SpeculativeLLM.from_server(url, max_new_tokens=24, ignore_eos=True) as there:
            texts = [here.invoke("ab ab cd", adapter=adapter) for adapter in (None, "legal")]
            assert texts[0] != texts[1]
            assert [there.invoke("ab ab cd", adapter=adapter) for adapter in (None, "legal")] == texts
            assert there.backend.adapter_names == ("legal",)
            with pytest.raises(InvalidParameterError, match=r"got 'sailor'\. It has 'legal'"):
                there.invoke("ab", adapter="sailor")
        with SpeculativeLLM.from_server(url, model="legal", max_new_tokens=24, ignore_eos=True) as there:
            assert there.invoke("ab ab cd") == texts[1]
