"""Threads with calls of tools for templates of all kinds: what one refuses or leaves out is arranged anew."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool

from langchain_specdec.chat.arrangements import arrangements
from tests.support.backends import scripted, scripted_backend
from tests.support.chat_templates import TEMPLATES_FOR_CALLS

pytestmark = pytest.mark.transformers

kinds = pytest.mark.parametrize("kind", TEMPLATES_FOR_CALLS)


@tool
def weather(place: str) -> str:
    """The weather of a place."""
    return f"Rain in {place}."


def call(place: str) -> dict[str, Any]:
    return {"name": "weather", "args": {"place": place}, "id": f"call_{place}"}


def calling(*places: str, text: str = "") -> AIMessage:
    return AIMessage(text, tool_calls=[call(place) for place in places])


def result(place: str, **fields: Any) -> ToolMessage:
    return ToolMessage(f"Rain in {place}.", tool_call_id=f"call_{place}", **fields)


def in_order(text: str, *parts: str) -> bool:
    position = 0
    for part in parts:
        position = text.find(part, position)
        if position < 0:
            return False
        position += len(part)
    return True


def prompt_of(kind: str, *messages: BaseMessage) -> str:
    model = scripted("ok", template=TEMPLATES_FOR_CALLS[kind])
    assert model.bind_tools([weather]).invoke(list(messages)).text == "ok"
    with_tools = scripted_backend(model).prompt
    # Once more without the tools, as an agent's last call or another agent over the same thread.
    assert model.invoke(list(messages)).text == "ok"
    for message in messages:
        for made in getattr(message, "tool_calls", ()):
            assert f'"{made["args"]["place"]}"' in scripted_backend(model).prompt
    return with_tools


ASKED = HumanMessage("Ulm and Bonn?")
THREADS: dict[str, list[BaseMessage]] = {
    "in order": [ASKED, calling("Ulm", "Bonn"), result("Ulm"), result("Bonn")],
    "in another order": [ASKED, calling("Ulm", "Bonn"), result("Bonn"), result("Ulm")],
    "another name": [ASKED, calling("Ulm", "Bonn"), result("Ulm", name="x"), result("Bonn", name="y")],
    "text beside": [ASKED, calling("Ulm", "Bonn", text="Both."), result("Ulm"), result("Bonn")],
    "answered later": [ASKED, calling("Ulm", "Bonn"), result("Ulm"), AIMessage("Wait."), result("Bonn")],
    "a system": [SystemMessage("S."), ASKED, calling("Ulm", "Bonn"), result("Ulm"), result("Bonn")],
    "two agents": [ASKED, AIMessage("Mine."), calling("Ulm", "Bonn"), result("Ulm"), result("Bonn"), AIMessage("A.")],
    "single calls": [ASKED, calling("Ulm"), calling("Bonn"), result("Ulm"), result("Bonn")],
    "goes on": [ASKED, calling("Ulm", "Bonn"), result("Ulm"), result("Bonn"), HumanMessage("Thanks!")],
    "answered": [ASKED, calling("Ulm", "Bonn"), result("Ulm"), result("Bonn"), AIMessage("A."), HumanMessage("Q.")],
}


@kinds
@pytest.mark.parametrize("thread", THREADS)
def test_several_calls_and_their_results_are_shown(kind: str, thread: str) -> None:
    prompt = prompt_of(kind, *THREADS[thread])
    for place in ("Ulm", "Bonn"):
        assert in_order(prompt, f'"{place}"', f"Rain in {place}."), prompt
        assert prompt.count(f"Rain in {place}.") == 1
    for message in THREADS[thread]:
        if not isinstance(message, ToolMessage) and not getattr(message, "tool_calls", ()):
            assert message.text in prompt
    if thread == "text beside" and kind not in ("mistral", "strict"):
        # Mistral's leave out texts beside calls.
        assert in_order(prompt, "Both.", '"Ulm"')


@pytest.mark.parametrize("kind", ["llama", "first call only"])
@pytest.mark.parametrize("thread", ["in order", "in another order", "another name", "answered later"])
def test_where_one_call_is_shown_each_stands_before_its_own_result(kind: str, thread: str) -> None:
    prompt = prompt_of(kind, *THREADS[thread])
    begin, end = "<|start_header_id|>", "<|eot_id|>"
    turns = [
        f'{begin}assistant<|end_header_id|>\n\n{{"name": "weather", "parameters": {{"place": "{place}"}}}}{end}'
        f'{begin}ipython<|end_header_id|>\n\n"Rain in {place}."{end}'
        for place in ("Ulm", "Bonn")
    ]
    assert "".join(turns) in prompt


@kinds
def test_a_result_that_is_missing_or_nobodys(kind: str) -> None:
    prompt = prompt_of(kind, ASKED, calling("Ulm", "Bonn"), result("Bonn"))
    assert in_order(prompt, '"Bonn"', "Rain in Bonn.")
    prompt = prompt_of(kind, ASKED, calling("Ulm", "Bonn"), HumanMessage("Never mind."))
    assert in_order(prompt, '"Ulm"', '"Bonn"', "Never mind.")
    assert "Rain in Jena." in prompt_of(kind, ASKED, result("Jena"), HumanMessage("Well?"))


def test_calls_that_share_an_id_take_their_results_in_turn() -> None:
    calls = [{**call(place), "id": None} for place in ("Ulm", "Bonn")]
    results = [ToolMessage(f"Rain in {place}.", tool_call_id="") for place in ("Jena", "Ulm", "Bonn")]
    single = AIMessage("", tool_calls=[{**call("Jena"), "id": None}])
    prompt = prompt_of("llama", ASKED, single, results[0], AIMessage("", tool_calls=calls), *results[1:])
    assert in_order(prompt, '"Jena"', "in Jena", '"Ulm"', "in Ulm", '"Bonn"', "in Bonn")


def test_a_call_without_a_result_does_not_take_that_of_a_later_turn() -> None:
    """Some models number the calls of every turn from 0; an agent that was stopped leaves calls without results."""

    def turn(*places: str, num_results: int = 2) -> list[BaseMessage]:
        calls = [{**call(place), "id": f"call_{number}"} for number, place in enumerate(places)]
        results = [result(place).model_copy(update={"tool_call_id": f"call_{n}"}) for n, place in enumerate(places)]
        return [AIMessage("", tool_calls=calls), *results[:num_results]]

    stopped = [ASKED, *turn("Ulm", "Bonn", num_results=1)]
    again = [HumanMessage("Go on."), *turn("Jena", "Gera")]
    for kind in ("llama", "first call only"):
        prompt = prompt_of(kind, *stopped, *again)
        assert in_order(prompt, '"Ulm"', "in Ulm", '"Bonn"', "Go on.", '"Jena"', "in Jena", '"Gera"', "in Gera"), prompt


# The others put the tools before the last question, wherever that is.
@pytest.mark.parametrize("kind", ["chatml", "qwen", "llama", "first call only", "strict", "leaves out"])
@pytest.mark.parametrize("places", [("Ulm",), ("Ulm", "Bonn")])
def test_a_prompt_begins_with_that_of_the_turn_before(kind: str, places: tuple[str, ...]) -> None:
    """What a template shows stays as it was, so that the engine finds the beginning of the prompt again."""
    thread: list[BaseMessage] = [ASKED, calling(*places), *map(result, places)]
    thread += [calling("Jena", text="One more."), result("Jena"), AIMessage("Rain."), HumanMessage("And Gera?")]
    thread += [calling("Gera"), result("Gera")]
    ends = [1, *range(2 + len(places), len(thread) + 1, 2)]
    prompts = [prompt_of(kind, *thread[:end]) for end in ends]
    for before, after in itertools.pairwise(prompts):
        for begun in ("<|start_header_id|>", "<|im_start|>"):
            before = before.removesuffix(f"{begun}assistant<|end_header_id|>\n\n").removesuffix(f"{begun}assistant\n")
        assert after.startswith(before)


STRICT_WITH_SYSTEM = (
    TEMPLATES_FOR_CALLS["strict"]
    .replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}", 1)
    .replace(
        "{% if message.role == 'user' %}",
        "{% if message.role == 'system' and loop.first %}{{ '[SYSTEM]' + message.content + '[/SYSTEM]' }}"
        "{% elif message.role == 'user' %}",
        1,
    )
)


def test_a_system_message_stays_where_roles_have_to_alternate() -> None:
    thread = [SystemMessage("S."), ASKED, calling("Ulm"), result("Ulm"), HumanMessage("And Bonn?")]
    model = scripted("ok", template=STRICT_WITH_SYSTEM)
    model.bind_tools([weather]).invoke(thread)
    assert in_order(scripted_backend(model).prompt, "[SYSTEM]S.[/SYSTEM]", "Ulm and Bonn?", '"Ulm"', "And Bonn?")


def test_a_template_may_look_up_arguments_in_the_tools() -> None:
    """Others write each argument as its schema says; what they leave out of the messages is found all the same."""
    lookup = "{% if not (tools | selectattr('function.name', 'eq', call.function.name) | list)[0].function.parameters"
    lookup += ".properties[name] %}{{ raise_exception('no such argument') }}{% endif %}"
    template = TEMPLATES_FOR_CALLS["qwen"].replace(
        "{{ call.function.arguments | tojson }}",
        "{% for name in call.function.arguments %}" + lookup + "{% endfor %}{{ call.function.arguments | tojson }}",
    )
    only_first = template.replace("{% elif message.role == 'tool' %}", "{% elif message.role == 'tool' and false %}")
    for source in (template, only_first):
        model = scripted("ok", template=source)
        model.bind_tools([weather]).invoke(THREADS["in order"])
        assert in_order(scripted_backend(model).prompt, '"Ulm"', "Rain in Ulm.")


@pytest.mark.parametrize("kind", ["qwen", "mistral"])
def test_a_template_that_shows_several_calls_gets_them_as_they_are(kind: str) -> None:
    model = scripted("ok", template=TEMPLATES_FOR_CALLS[kind])
    model.invoke(THREADS["in order"])
    calls = [{"name": "weather", "arguments": {"place": place}} for place in ("Ulm", "Bonn")]
    written = {
        "qwen": "\n".join(f"<tool_call>\n{json.dumps(made)}\n</tool_call>" for made in calls),
        "mistral": f"[TOOL_CALLS]{json.dumps(calls)}",
    }
    assert written[kind] in scripted_backend(model).prompt


def test_calls_stay_calls_after_an_answer_by_a_tool() -> None:
    """An agent whose answer is a call ends with its result; then the next question comes."""
    prompt = prompt_of("strict", ASKED, calling("Ulm"), result("Ulm"), HumanMessage("And Bonn?"))
    assert "[TOOL_CALLS]" in prompt
    assert "[/TOOL_RESULTS]<eos>" in prompt.replace(" ", "")


def test_a_call_that_begins_a_thread_is_not_taken_for_a_question() -> None:
    """Llama's puts tools before the first message, whatever that is."""
    assert '{"place": "Ulm"}' in prompt_of("llama", calling("Ulm"), result("Ulm"))


@pytest.mark.parametrize("joint", ["; ", "\n", ", ", "", ";", " "])
def test_an_agent_goes_on_after_two_calls_of_its_own(joint: str) -> None:
    pytest.importorskip("langchain")
    from langchain.agents import create_agent

    answers = {
        "llama": joint.join(json.dumps({"name": "weather", "parameters": {"place": p}}) for p in ("Ulm", "Bonn")),
        "qwen": joint.join(
            f'<tool_call>{{"name": "weather", "arguments": {{"place": "{p}"}}}}</tool_call>' for p in ("Ulm", "Bonn")
        ),
    }
    answers |= {"first call only": answers["llama"], "chatml": answers["qwen"]}
    for kind, answer in answers.items():
        model = scripted(answer, "Rain in both.", template=TEMPLATES_FOR_CALLS[kind])
        messages = create_agent(model, [weather]).invoke({"messages": [ASKED]})["messages"]
        assert [len(m.tool_calls) for m in messages if isinstance(m, AIMessage)] == [2, 0], kind
        assert messages[-1].text == "Rain in both."
        assert in_order(scripted_backend(model).prompt, '"Ulm"', "Rain in Ulm.")


def test_the_first_arrangement_is_what_was_given() -> None:
    given = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    first, *others = arrangements(given)
    assert first == given
    assert others == [[{"role": "user", "content": "a\n\nb"}]]
