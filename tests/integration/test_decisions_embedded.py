"""Decisions of a real model: the probabilities of its own uncached forward, on either runner, among many labels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from langchain_specdec import LocalBackend
from langchain_specdec.models.embedded import is_available
from langchain_specdec.models.gguf.to_transformers import to_transformers
from tests.support.backends import lasting
from tests.support.langchain_versions import needs_decisions

pytestmark = [
    pytest.mark.embedded,
    pytest.mark.skipif(not is_available(), reason="the embedded model is not installed"),
    needs_decisions,
]

STATE = {"subject": "Lamp", "text": "The lamp of the lighthouse went out at nine, and ships are waiting outside."}


@pytest.fixture(scope="module")
def native() -> Iterator[LocalBackend]:
    with lasting(LocalBackend("embedded", num_slots=2, max_length=4096)) as backend:
        yield backend


@pytest.fixture(scope="module")
def module(native: LocalBackend) -> Any:
    """The same weights, dequantised, as a module of transformers."""
    return to_transformers(native.model).eval()


@pytest.fixture(scope="module")
def next_logits(module: Any) -> Callable[[tuple[int, ...]], torch.Tensor]:
    """The scores `[vocabulary]` of what follows a text, by the module's uncached forward, computed once."""

    @functools.cache
    def next_logits(ids: tuple[int, ...]) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = module(input_ids=torch.tensor([ids]), use_cache=False, logits_to_keep=1).logits
        return logits[0, -1]

    return next_logits


@pytest.fixture(scope="module", params=["native", "module"])
def backend(request: pytest.FixtureRequest, native: LocalBackend, module: Any) -> Iterator[LocalBackend]:
    if request.param == "native":
        yield native
        return
    with lasting(LocalBackend(module, native.tokenizer, num_slots=2, max_length=4096)) as backend:
        yield backend


def test_probabilities_are_those_of_an_uncached_forward(
    backend: LocalBackend, next_logits: Callable[[tuple[int, ...]], torch.Tensor]
) -> None:
    from langchain_core.decisions import Choice, Noul, Score

    from langchain_specdec import SpeculativeDecisions
    from langchain_specdec.chat.questions import prompt_of, state_text

    teams: dict[str, Any] = {f"team {n}": f"All that begins with {n}." for n in range(60)}
    questions: dict[str, Any] = {
        "urgent": Noul(instructions="Is it urgent?"),
        "severity": Score(instructions="How bad is it?", criteria=["Fine.", "Bad.", "Terrible."]),
        "team": Choice(instructions="Who should see to it?", criteria={"keeper": "Lamps.", "pilot": "Ships."}),
        "many": Choice(instructions="Which team?", criteria=teams),
    }
    response = SpeculativeDecisions(backend=backend).invoke({"state": STATE, "questions": questions})
    tokenizer: Any = backend.tokenizer
    letters = [chr(ord("A") + n) for n in range(26)]
    many = [*letters, *(first + second for first in letters for second in letters)]
    # Not all pairs of letters are a token of this tokenizer.
    many = [label for label in many if len(tokenizer(label, add_special_tokens=False).input_ids) == 1][:60]
    assert len(many) == 60
    labels = {"urgent": ["Yes", "No"], "severity": ["0", "1", "2"], "team": ["A", "B"], "many": many}
    answers: dict[str, Any] = dict(response.answers)
    for name, answer in answers.items():
        text = prompt_of(state_text(STATE), questions[name], labels[name])
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(rendered, add_special_tokens=False).input_ids
        first = [tokenizer(each, add_special_tokens=False).input_ids[0] for each in labels[name]]
        wanted = next_logits(tuple(ids))[first].softmax(-1)
        told = [answer.noul, 1 - answer.noul] if answer.type == "noul" else list(answer.probabilities.values())
        assert told == pytest.approx(wanted.tolist(), abs=1e-4), name
    usage = response.usage
    assert usage is not None
    assert usage["input_token_details"]["cache_read"] > 3 * len(tokenizer(state_text(STATE)).input_ids)
