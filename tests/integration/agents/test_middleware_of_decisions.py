"""Middleware of LangChain 1.5: routes and permissions by a decision model, and refusals as errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain.agents import middleware
from langchain_core.messages import HumanMessage, ToolMessage

from langchain_specdec import ChatSpeculative, LocalBackend
from langchain_specdec.errors import CompletionTimeoutError
from tests.support.backends import scripted_backend
from tests.support.scripted_agents import QUESTION, agent_of, call, kinds, qwen, results
from tests.support.tools import weather

decisions: Any = pytest.importorskip("langchain_core.decisions")
if not hasattr(middleware, "ModelRouterMiddleware"):
    pytest.skip("LangChain has no middleware that asks a decision model", allow_module_level=True)
# The stubs of older versions do not know them.
new: Any = middleware


def decider(chat: ChatSpeculative) -> Any:
    """A decision model that asks the chat model under a grammar."""

    class Decider(decisions.BaseDecisionModel):  # type: ignore[misc]
        @property
        def _provider(self) -> str:
            return "specdec"

        def _classify(self, state: Any, questions: dict[str, Any]) -> Any:
            answers = {}
            for name, question in questions.items():
                labels = list(question.criteria) if question.type == "choice" else ["true", "false"]
                schema = {"title": "label", "enum": labels}
                text = f"{question.instructions}\n{question.criteria}\n{state}"
                label = json.loads(
                    chat.invoke(
                        text,
                        response_format={"type": "json_schema", "json_schema": {"name": "label", "schema": schema}},
                    ).text
                )
                answers[name] = (
                    decisions.ChoiceAnswer(type="choice", choice=label, probabilities={label: 1.0}, confidence=1.0)
                    if question.type == "choice"
                    else decisions.NoulAnswer(type="noul", noul=float(label == "true"))
                )
            return decisions.ClassifierResponse(model=self.model, answers=answers)

    return Decider(model=chat.model_name)


def test_a_decision_model_chooses_the_model() -> None:
    small, large, judge = qwen("Small."), qwen(call("weather", place="Ulm"), "Rain."), qwen('"large"')
    router = new.ModelRouterMiddleware(
        choices={
            "small": new.ModelChoice(model=small, criteria="Small talk."),
            "large": new.ModelChoice(model=large, criteria="Questions about the weather."),
        },
        instructions="Choose a model.",
        classifier=decider(judge),
    )
    state = agent_of(small, [weather], middleware=[router]).invoke(QUESTION)
    assert kinds(state["messages"]) == ["human", "ai", "tool", "ai"]
    assert state["model_route"].choice == "large"
    assert scripted_backend(small).requests == []
    assert "Questions about the weather." in scripted_backend(judge).prompt
    # The label is decoded under a grammar that knows no other.
    assert scripted_backend(judge).requests[0].params.grammar is not None


@pytest.mark.parametrize("is_risky", [True, False])
async def test_a_decision_model_blocks_calls(is_risky: bool) -> None:
    judge = qwen(json.dumps(str(is_risky).lower()))
    guard = new.AutoModeMiddleware(tools=[weather], classifier=decider(judge))
    for is_async in (False, True):
        model = qwen(call("weather", place="Ulm"), "Done.")
        agent = agent_of(model, [weather], middleware=[guard])
        state = await agent.ainvoke(QUESTION) if is_async else agent.invoke(QUESTION)
        result = next(message for message in state["messages"] if isinstance(message, ToolMessage))
        assert result.status == ("error" if is_risky else "success")
        # What was blocked is told to the model.
        assert ("blocked" if is_risky else "It rains in Ulm.") in scripted_backend(model).prompt
        assert '"place": "Ulm"' in scripted_backend(judge).prompt or "'place': 'Ulm'" in scripted_backend(judge).prompt
        assert state["messages"][-1].text == "Done."


def test_no_answer_is_taken_for_a_refusal() -> None:
    refused = new.ModelRefusalMiddleware()
    model = qwen(call("weather", place="Ulm"), "I refuse.")
    state = agent_of(model, [weather], middleware=[refused]).invoke(QUESTION)
    assert results(state["messages"]) == ["It rains in Ulm."]
    assert state["messages"][-1].text == "I refuse."

    def late(prompt: str) -> str:
        raise CompletionTimeoutError(f"late after {len(prompt)} characters")

    fallback = new.ModelFallbackMiddleware(qwen("Sun."))
    state = agent_of(qwen(late), [weather], middleware=[fallback, refused]).invoke(QUESTION)
    assert state["messages"][-1].text == "Sun."


@pytest.fixture
def judge(tiny_backend: LocalBackend) -> Any:
    from langchain_specdec import SpeculativeDecisions

    return SpeculativeDecisions(backend=tiny_backend)


async def test_probabilities_of_a_local_model_choose_the_model(judge: Any) -> None:
    """A random model: some questions go here, others there, each where its label is the most probable."""
    small, large = qwen("Small."), qwen("Large.")
    router = new.ModelRouterMiddleware(
        choices={
            "small": new.ModelChoice(model=small, criteria="Small talk."),
            "large": new.ModelChoice(model=large, criteria="Questions about the weather."),
        },
        instructions="Choose a model.",
        classifier=judge,
    )
    agent = agent_of(qwen("Never asked."), [weather], middleware=[router])
    routes = set()
    for n in range(40):
        question = HumanMessage(f"{n} lamps, and {n * n} more?")
        asked: Any = {"messages": [question]}
        state = await agent.ainvoke(asked) if n % 2 else agent.invoke(asked)
        route = state["model_route"]
        criteria = {"small": "Small talk.", "large": "Questions about the weather."}
        choice = decisions.Choice(instructions="Choose a model.", criteria=criteria)
        alone = judge.invoke({"state": question, "questions": {"route": choice}}).choices["route"]
        assert route.probabilities == pytest.approx(alone.probabilities, abs=1e-6)
        assert route.choice == max(alone.probabilities, key=alone.probabilities.get)
        assert state["messages"][-1].text == {"small": "Small.", "large": "Large."}[route.choice]
        routes.add(route.choice)
        if routes == {"small", "large"}:
            return
    pytest.fail("all questions went to one model")


async def test_probabilities_of_a_local_model_block_calls(judge: Any) -> None:
    outcomes = set()
    for n in range(40):
        guard = new.AutoModeMiddleware(
            tools=[weather], instructions=f"Is call {n} of `tool_call` risky?", classifier=judge
        )
        agent = agent_of(qwen(call("weather", place=f"Ulm {n}"), "Done."), [weather], middleware=[guard])
        state = await agent.ainvoke(QUESTION) if n % 2 else agent.invoke(QUESTION)
        result = next(message for message in state["messages"] if isinstance(message, ToolMessage))
        if result.status == "error":
            assert 0.5 <= float(str(result.content).partition("probability: ")[2][:4]) <= 1
        else:
            assert result.content == f"It rains in Ulm {n}."
        outcomes.add(result.status)
        if outcomes == {"error", "success"}:
            return
    pytest.fail(f"all calls ended alike: {outcomes}")
