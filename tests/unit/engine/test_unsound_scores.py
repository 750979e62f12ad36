"""Scores that are NaN or infinite: they fail the request that has them, with a reason, and nobody else."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
import torch

from langchain_specdec.completions.events import FinishEvent, TokenEvent
from langchain_specdec.completions.stream import CompletionStream
from langchain_specdec.drafters.base import Draft, Drafter, DraftingRequest, DraftLimits, Proposal
from langchain_specdec.drafters.combined import CombinedDrafter
from langchain_specdec.drafters.lookup_tree import LookupTreeDrafter
from langchain_specdec.engine.engine import Engine
from langchain_specdec.engine.step import unsound_error
from langchain_specdec.errors import GenerationError
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.sampling.params import SamplingParams
from tests.support.tiny_models import (
    OracleDrafter,
    References,
    make_draft_drafter,
    make_engine,
    read,
    tiny_model,
    token_ids,
)

MakeEngine = Callable[..., Engine]

# A token that none of the texts here has.
POISON = 12
HEALTHY = [(1, 2, 3, 1, 2), (9, 8, 9, 8, 9, 8), (40, 41, 42), (100,)]
PARAMS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.8, "seed": 3},
    "top_p": {"temperature": 0.8, "seed": 3, "top_p": 0.9, "top_k": 50, "min_p": 0.01},
    "penalties": {"repetition_penalty": 1.2, "frequency_penalty": 0.5},
    "logprobs": {"logprobs": 3},
}


def params(name: str, max_new_tokens: int = 12) -> SamplingParams:
    return SamplingParams(max_new_tokens=max_new_tokens, ignore_eos=True, **PARAMS[name])


def poisoned_scores(model: Any, value: float, how: str) -> Any:
    """Have a token give scores that are no use: in its embedding, or in one or all of its scores."""
    seen: list[torch.Tensor] = []

    def embed(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        seen[:] = [args[0]]
        return output.masked_fill((args[0] == POISON)[..., None], value) if how == "embedding" else output

    def score(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        is_poisoned = (seen[0] == POISON)[..., None]
        if how == "one score":
            is_poisoned = is_poisoned & (torch.arange(output.shape[-1], device=output.device) == 200)
        return output if how == "embedding" else output.masked_fill(is_poisoned, value)

    model.get_input_embeddings().register_forward_hook(embed)
    model.lm_head.register_forward_hook(score)
    return model


KINDS = [
    (float("nan"), "embedding"),
    (float("inf"), "embedding"),
    (float("nan"), "one score"),
    (float("inf"), "one score"),
    (float("-inf"), "all scores"),
]


@pytest.fixture(scope="module")
def references(device: str) -> References:
    return References(tiny_model(0, device))


def check_healthy(engine: Engine, references: References, name: str) -> None:
    for prompt in HEALTHY:
        assert token_ids(read(engine.submit(prompt, params(name)))[0]) == references(prompt, params(name))


@pytest.mark.parametrize("name", PARAMS)
@pytest.mark.parametrize(("value", "how"), KINDS)
def test_they_fail_their_own_request_only(
    references: References, engines: MakeEngine, device: str, value: float, how: str, name: str
) -> None:
    model = poisoned_scores(tiny_model(0, device), value, how)
    engine = engines(model, LookupTreeDrafter(5), num_slots=3, max_tree_nodes=10)
    poisoned = [(1, 2, POISON)] + ([(3, POISON, 4, 5)] if how == "embedding" else [])
    for _ in range(2):
        prompts = [*HEALTHY[:2], *poisoned, *HEALTHY[2:], *poisoned]
        with engine._inbox.lock:
            streams = [engine.submit(prompt, params(name)) for prompt in prompts]
        for prompt, stream in zip(prompts, streams, strict=True):
            if prompt in poisoned:
                with pytest.raises(
                    GenerationError, match=r"^The model computed no usable scores .*check the weights\.$"
                ):
                    read(stream)
            else:
                assert token_ids(read(stream)[0]) == references(prompt, params(name))
    # The slots of those that failed hold nothing that harms the next texts.
    check_healthy(engine, references, name)


def test_they_are_found_behind_the_mask_of_a_grammar(engines: MakeEngine) -> None:
    model = poisoned_scores(tiny_model(), float("nan"), "one score")
    engine = engines(model)
    grammar = SamplingParams(max_new_tokens=8, grammar=Grammar(regex="[ab]{4}"))
    with pytest.raises(GenerationError, match="no usable scores"):
        read(engine.submit((1, POISON), grammar))
    tokens, _ = read(engine.submit((1, 2), grammar))
    assert set("".join(token.text for token in tokens)) <= {"a", "b"}


def test_minus_infinity_for_some_tokens_is_sound(references: References, engines: MakeEngine) -> None:
    prompt, model = (1, POISON), tiny_model()
    expected = references(prompt, params("greedy"))
    unused = torch.tensor([token not in expected for token in range(model.config.vocab_size)])
    model.lm_head.register_forward_hook(lambda module, args, output: output.masked_fill(unused, -torch.inf))
    assert token_ids(read(engines(model).submit(prompt, params("greedy")))[0]) == expected


class PoisonDrafter(Drafter):
    """Drafts the poison, after some tokens of the right ones and not at every step."""

    def __init__(self, right: dict[tuple[int, ...], list[int]]) -> None:
        self._right = right

    def consider(self, request: DraftingRequest, limits: DraftLimits) -> list[Proposal]:
        text = tuple(request.token_ids)
        prompt = next(p for p in self._right if text[: len(p)] == p)
        right = self._right[prompt][len(text) - len(prompt) :][: len(text) % 3]
        tokens = [*right, *[POISON] * 4][: max(limits.max_depth, 0)]
        return [Proposal(Draft.chain(tokens, [("oracle", 0)] * len(tokens)), (0.9,) * len(tokens))] if tokens else []

    def propose(self, requests: Any, proposals: Any, lengths: Any) -> list[Draft]:
        # As many as there are, or none at all.
        pairs = zip(requests, proposals, strict=True)
        return [p.draft if len(r.token_ids) % 4 else Draft((), (), ()) for r, p in pairs]


@pytest.mark.parametrize("name", ["greedy", "sampled", "penalties"])
@pytest.mark.parametrize(("value", "how"), KINDS)
def test_a_rejected_draft_with_such_scores_changes_nothing(
    references: References, engines: MakeEngine, value: float, how: str, name: str
) -> None:
    expected = {prompt: references(prompt, params(name, 30)) for prompt in HEALTHY}
    assert all(POISON not in text for text in expected.values())
    engine = engines(poisoned_scores(tiny_model(), value, how), PoisonDrafter(expected), draft_length=6)
    for batch in (*([prompt] for prompt in HEALTHY), HEALTHY):
        streams = [engine.submit(prompt, params(name, 30)) for prompt in batch]
        for prompt, stream in zip(batch, streams, strict=True):
            tokens, finish = read(stream)
            assert token_ids(tokens) == expected[prompt]
            assert finish.speculation.drafted_tokens > finish.speculation.accepted_tokens


def read_until_error(stream: CompletionStream) -> tuple[list[int], str | None]:
    """Tokens that came, and the error after them."""
    tokens: list[int] = []
    try:
        for event in stream:
            if isinstance(event, TokenEvent):
                tokens += [token.id for token in event.tokens]
            else:
                assert isinstance(event, FinishEvent)
    except GenerationError as error:
        return tokens, str(error)
    return tokens, None


@pytest.mark.parametrize("stop_at", [None, 5, 4])
def test_what_comes_before_them_is_written_as_without_drafts(device: str, stop_at: int | None) -> None:
    prompt = (1, 2, 3, 1, 2)
    asked = SamplingParams(max_new_tokens=12)
    right = References(tiny_model(0, device))(prompt, asked)
    # From here on the text itself is poisoned; the tokens before it differ from it.
    token = right[5]
    assert token not in right[:5]
    eos = () if stop_at is None else (right[stop_at],)
    outcomes = []
    for drafter in (Drafter(), OracleDrafter({prompt: right}, 1.0)):
        model = tiny_model(0, device)
        embeddings = model.get_input_embeddings()
        embeddings.register_forward_hook(
            lambda module, args, output: output.masked_fill((args[0] == token)[..., None], torch.nan)
        )
        with closing(make_engine(model, drafter, eos=eos)) as engine:
            outcomes.append(read_until_error(engine.submit(prompt, asked)))
    assert outcomes[0] == outcomes[1]
    tokens, error = outcomes[0]
    assert tokens == right[: 6 if stop_at is None else stop_at + 1]
    assert (error is None) == (stop_at is not None)


@pytest.mark.parametrize("name", ["greedy", "top_p"])
@pytest.mark.parametrize("is_beside_lookups", [False, True])
def test_those_of_a_draft_model_cost_its_drafts_only(
    references: References, engines: MakeEngine, caplog: pytest.LogCaptureFixture, name: str, is_beside_lookups: bool
) -> None:
    drafter = make_draft_drafter(poisoned_scores(tiny_model(), torch.nan, "embedding"))
    lookups = [LookupTreeDrafter(5)] if is_beside_lookups else []
    engine = engines(tiny_model(), CombinedDrafter([*lookups, drafter]), num_slots=1)
    prompt = (1, POISON, 3)
    tokens, finish = read(engine.submit(prompt, params(name)))
    assert token_ids(tokens) == references(prompt, params(name))
    assert finish.speculation.accepted_tokens == 0 or is_beside_lookups
    assert caplog.text.count("draft model computes NaN") == 1
    # The next request in that slot has drafts again.
    tokens, finish = read(engine.submit((1, 2, 3), params(name)))
    assert token_ids(tokens) == references((1, 2, 3), params(name))
    assert finish.speculation.accepted_tokens > 0
    assert drafter._given_up == set()


def test_the_error_names_a_type_that_helps() -> None:
    assert "overflow float16: load it with dtype='bfloat16' or 'float32'" in str(unsound_error(torch.float16))
    assert re.search(r"\(bfloat16\)\. .* or try dtype='float32'\.$", str(unsound_error(torch.bfloat16)))
