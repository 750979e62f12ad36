"""Chains, memories, agents and evaluators of LangChain before its agents, as far as they are still installed."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
from langchain_core._api import LangChainDeprecationWarning
from langchain_core.agents import AgentAction
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage, trim_messages
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate

from langchain_specdec import SpeculativeLLM
from tests.support.backends import EchoBackend, scripted, scripted_backend
from tests.support.chat_templates import TEMPLATES
from tests.support.scripted_agents import call, qwen
from tests.support.tools import add, weather

pytest.importorskip("langchain_classic")
pytestmark = pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainDeprecationWarning")

TEXTS = [Document("The lamp is red."), Document("The lens is new."), Document("Oil is dear.")]


def quiet(make: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LangChainDeprecationWarning)
        return make(**options)


def test_a_talk_with_each_memory() -> None:
    from langchain_classic import memory
    from langchain_classic.chains import ConversationChain

    kinds: dict[str, dict[str, Any]] = {
        "ConversationBufferMemory": {},
        "ConversationBufferWindowMemory": {"k": 1},
        "ConversationTokenBufferMemory": {"max_token_limit": 60},
        "ConversationSummaryMemory": {},
        "ConversationSummaryBufferMemory": {"max_token_limit": 60},
    }
    for name, options in kinds.items():
        model = scripted("Good evening. " * 8)
        needs_model = name not in ("ConversationBufferMemory", "ConversationBufferWindowMemory")
        keeper = quiet(getattr(memory, name), **options, **({"llm": model} if needs_model else {}))
        chain = quiet(ConversationChain, llm=model, memory=keeper)
        for turn in range(4):
            assert chain.predict(input=f"Turn {turn}. " * 6).startswith("Good evening."), name
        last = scripted_backend(model).prompt
        assert ("Turn 0." in last) == (name == "ConversationBufferMemory"), name


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_thread_is_trimmed(family: str) -> None:
    """What is counted on the way is no whole talk: a lone result, or none."""
    model = scripted("x", template=TEMPLATES[family])
    asked = AIMessage("", tool_calls=[{"name": "weather", "args": {"place": "Ulm"}, "id": "call_1"}])
    thread = [
        SystemMessage("Be brief."),
        HumanMessage("Ulm? " * 9),
        asked,
        ToolMessage("Rain. " * 9, tool_call_id="call_1"),
        AIMessage("Rain."),
        HumanMessage("Sure?"),
    ]
    whole = model.get_num_tokens_from_messages(thread)
    for limit in range(1, whole + 40, max(1, whole // 12)):
        for options in (
            {"strategy": "last", "include_system": True, "start_on": "human"},
            {"strategy": "last", "allow_partial": True},
            {"strategy": "first", "allow_partial": True},
            {"strategy": "first", "end_on": ("human", "tool")},
        ):
            kept = trim_messages(thread, max_tokens=limit, token_counter=model, **options)
            # A system message that is asked for is kept whatever it takes.
            rest = [message for message in kept if message.type != "system" or "include_system" not in options]
            assert not rest or model.get_num_tokens_from_messages(kept) <= limit, (limit, options)


def test_documents_are_put_together() -> None:
    from langchain_classic.chains.combine_documents import create_stuff_documents_chain
    from langchain_classic.chains.summarize import load_summarize_chain

    prompt = ChatPromptTemplate.from_template("Of {context}: {input}")
    model = scripted("A red lamp.")
    assert create_stuff_documents_chain(model, prompt).invoke({"context": TEXTS, "input": "what?"}) == "A red lamp."
    assert "The lens is new." in scripted_backend(model).prompt
    for kind in ("stuff", "map_reduce", "refine"):
        chain = load_summarize_chain(scripted("A summary."), chain_type=kind)
        assert chain.invoke({"input_documents": TEXTS})["output_text"] == "A summary."


def test_a_question_about_documents_with_a_history() -> None:
    from langchain_classic.chains import create_history_aware_retriever, create_retrieval_chain
    from langchain_classic.chains.combine_documents import create_stuff_documents_chain
    from langchain_core.runnables import RunnableLambda

    retriever: Any = RunnableLambda(lambda query: [text for text in TEXTS if query.split()[-1] in text.page_content])
    ask = ChatPromptTemplate.from_messages([MessagesPlaceholder("chat_history"), ("human", "{input}")])
    answer = ChatPromptTemplate.from_messages([("system", "{context}"), ("human", "{input}")])
    model = scripted("About the lens", "New.")
    chain = create_retrieval_chain(
        create_history_aware_retriever(model, retriever, ask), create_stuff_documents_chain(model, answer)
    )
    state = chain.invoke({"input": "And it?", "chat_history": [HumanMessage("The lens?"), AIMessage("Yes.")]})
    assert (state["answer"], state["context"]) == ("New.", [TEXTS[1]])


def test_agents_of_old() -> None:
    from langchain_classic.agents import AgentExecutor, create_react_agent, create_tool_calling_agent

    prompt = ChatPromptTemplate.from_messages(
        [("system", "Be brief."), ("human", "{input}"), MessagesPlaceholder("agent_scratchpad")]
    )
    model = qwen(call("weather", place="Ulm"), "Rain.")
    executor = AgentExecutor(agent=create_tool_calling_agent(model, [weather], prompt), tools=[weather])
    assert executor.invoke({"input": "Ulm?"})["output"] == "Rain."
    assert "It rains in Ulm." in scripted_backend(model).prompt
    # One that is bound to a stop string, and writes its calls as text.
    react = PromptTemplate.from_template("{tools} {tool_names} {input} {agent_scratchpad}")
    model = scripted(
        "Thought: I look.\nAction: weather\nAction Input: Ulm\nObservation: Sun.", "Thought: done.\nFinal Answer: Rain."
    )
    executor = AgentExecutor(agent=create_react_agent(model, [weather], react), tools=[weather])
    assert executor.invoke({"input": "Ulm?"})["output"] == "Rain."
    assert "Sun." not in scripted_backend(model).prompt
    assert "It rains in Ulm." in scripted_backend(model).prompt


def test_judges() -> None:
    from langchain_classic import evaluation

    def judge(kind: str, *answers: str, **options: Any) -> Any:
        # `load_evaluator` imports OpenAI's package first, whatever model it is given.
        return getattr(evaluation, kind).from_llm(llm=scripted(*answers), **options)

    brief = judge("CriteriaEvalChain", "It is brief.\n\nY", criteria="conciseness")
    assert brief.evaluate_strings(prediction="Rain.", input="Ulm?")["score"] == 1
    right = judge("LabeledCriteriaEvalChain", "No.\n\nN", criteria="correctness")
    assert right.evaluate_strings(prediction="Rain.", input="Ulm?", reference="Sun.")["score"] == 0
    grade = judge("QAEvalChain", "GRADE: CORRECT")
    assert grade.evaluate_strings(prediction="Rain.", input="Ulm?", reference="Rain.")["score"] == 1
    score = judge("ScoreStringEvalChain", "Fine. Rating: [[7]]", criteria="helpfulness")
    assert score.evaluate_strings(prediction="Rain.", input="Ulm?")["score"] == 7
    pair = judge("PairwiseStringEvalChain", "The first. [[A]]")
    assert pair.evaluate_string_pairs(prediction="Rain.", prediction_b="Sun.", input="Ulm?")["value"] == "A"
    steps = [(AgentAction("weather", "Ulm", "I look."), "It rains in Ulm.")]
    way = judge("TrajectoryEvalChain", "Well done. Score: 4", agent_tools=[weather, add])
    found = way.evaluate_agent_trajectory(input="Ulm?", prediction="Rain.", agent_trajectory=steps)
    assert found["score"] == 0.75


def test_parsers_that_ask_again() -> None:
    from langchain_classic.output_parsers import OutputFixingParser, RetryOutputParser
    from langchain_core.output_parsers import JsonOutputParser

    fixing = OutputFixingParser.from_llm(llm=scripted('{"wet": true}'), parser=JsonOutputParser())
    assert fixing.parse("It is wet.") == {"wet": True}
    retry = RetryOutputParser.from_llm(llm=scripted(json.dumps({"wet": True})), parser=JsonOutputParser())
    prompt = PromptTemplate.from_template("Is it wet?").format_prompt()
    assert retry.parse_with_prompt("no", prompt) == {"wet": True}


def test_a_router_and_a_chain_of_chains() -> None:
    first = ChatPromptTemplate.from_template("Name a thing of {topic}.") | scripted("A lamp.") | StrOutputParser()
    model = scripted("It is red.")
    second = ChatPromptTemplate.from_template("Describe: {thing}") | model | StrOutputParser()
    assert ({"thing": first} | second).invoke({"topic": "lighthouses"}) == "It is red."
    assert "Describe: A lamp." in scripted_backend(model).prompt


def test_chains_of_a_model_of_texts() -> None:
    from langchain_classic.chains import LLMChain, SequentialChain

    llm = SpeculativeLLM(backend=EchoBackend())
    prompts = {"first": "Say {word} twice", "second": "Again {first}"}
    chains = [
        quiet(LLMChain, llm=llm, prompt=PromptTemplate.from_template(text), output_key=name)
        for name, text in prompts.items()
    ]
    chain = quiet(SequentialChain, chains=chains, input_variables=["word"], output_variables=["second"])
    assert chain.invoke({"word": "lamp"})["second"].split() == ["Again", "Say", "lamp", "twice"]
