"""Grammars that take too long to prepare are refused before they take it, by a process that is ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any, cast

import llguidance
import psutil
import pytest

from langchain_specdec import Grammar
from langchain_specdec.completions.stream import CompletionStream, started_in_thread
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.pattern_samples import PatternSamples
from langchain_specdec.grammar.trial import GrammarTrial
from tests.support.backends import make_backend
from tests.support.served import serving
from tests.support.tiny_models import wait_until

pytestmark = pytest.mark.process

SMALL = Grammar(regex="a{3}")
# Minutes and gigabytes of work, each in a few bytes or kilobytes.
MULTIPLES = {"allOf": [{"type": "integer", "multipleOf": prime} for prime in (9973, 9967, 9949, 9941)]}
OPTIONAL = ".?" * 16_000


# It is soon prepared, but not what texts that hold to it would be made of.
LONG = ".?" * 2000 + "b{200}"


def sources_of(grammar: Grammar) -> list[list[str]]:
    if grammar.regex is not None:
        source = str(llguidance.LLMatcher.grammar_from_regex(grammar.regex))
    else:
        source = str(llguidance.LLMatcher.grammar_from_json_schema(json.dumps(grammar.schema)))
    return [[source], *PatternSamples(grammar, cast("Any", None), cast("Any", None)).sources()]


def helpers() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        # One may end between the two looks at it.
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("trial_process" in word for word in child.cmdline()):
                found.append(child)
    return found


@pytest.mark.parametrize("grammar", [Grammar(schema=MULTIPLES), Grammar(regex=LONG)], ids=["multiples", "long"])
def test_what_takes_too_long_is_refused_and_leaves_no_process(grammar):
    before = len(helpers())
    trial = GrammarTrial(1)
    with pytest.raises(InvalidParameterError, match=f"The {grammar.kind} takes more than 1 seconds or 512 MB"):
        trial.check(grammar, sources_of(grammar))
    assert len(helpers()) == before
    # The next is tried by another one.
    assert trial.check(SMALL, sources_of(SMALL))
    assert len(helpers()) == before + 1


def test_what_cannot_be_followed_is_left_to_others():
    trial = GrammarTrial(5)
    assert trial.check(SMALL, sources_of(Grammar(regex="(")))
    (helper,) = helpers()
    spent = sum(helper.cpu_times()[:2])
    assert trial.check(SMALL, sources_of(SMALL) * 3)
    assert helpers() == [helper]
    assert helper.rlimit(psutil.RLIMIT_CPU)[0] >= spent + 5, "the last second is not whole"
    del trial
    assert helpers() == []


def test_a_process_that_something_else_ended_is_replaced(tmp_path, monkeypatch):
    # Where it is started is nothing to it.
    for name in ("json", "runpy", "llguidance"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    trial = GrammarTrial(5)
    assert trial.check(SMALL, sources_of(SMALL))
    (helper,) = helpers()
    helper.kill()
    psutil.wait_procs([helper])
    assert trial.check(SMALL, sources_of(SMALL))


async def test_nothing_is_tried_that_nobody_waits_for():
    trial = GrammarTrial(60)
    grammar = Grammar(regex=OPTIONAL)

    def start() -> list[CompletionStream]:
        trial.check(grammar, sources_of(grammar))
        return []

    # Two are tried at a time, the others wait.
    tasks = [asyncio.ensure_future(started_in_thread(start)) for _ in range(4)]
    assert await asyncio.to_thread(wait_until, lambda: len(helpers()) == 2)
    for task in tasks:
        task.cancel()
    assert await asyncio.to_thread(trial.check, SMALL, sources_of(SMALL))
    assert await asyncio.to_thread(wait_until, lambda: len(helpers()) == 1)


@pytest.mark.server
def test_a_server_refuses_it_and_answers_others():
    backend = make_backend(num_slots=2, grammar_timeout=1)
    with serving(backend) as client:
        body = {"prompt": "a", "max_tokens": 9, "structured_outputs": {"regex": OPTIONAL}}
        answer = client.post("/v1/completions", json=body, timeout=60)
        assert (answer.status_code, "takes more than 1 seconds" in answer.text) == (400, True)
        parameters = {"max_new_tokens": 9, "grammar": {"type": "regex", "value": "a{3}"}}
        answer = client.post("/generate", json={"inputs": "a", "parameters": parameters}, timeout=60)
        assert answer.json()["generated_text"] == "aaa"
    backend.close()
