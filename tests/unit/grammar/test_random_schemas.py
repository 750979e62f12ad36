"""Answers that follow random JSON schemas: all the engine's work, and so the same on any version of transformers."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from contextlib import closing

import jsonschema
import pytest
import torch

from langchain_specdec import Grammar, SamplingParams
from langchain_specdec.completions.events import FinishEvent, Token
from langchain_specdec.drafters.base import Drafter
from langchain_specdec.drafters.lookup_tree import LookupTreeDrafter
from langchain_specdec.engine.engine import Engine
from langchain_specdec.grammar.constraint import GrammarCompiler
from tests.support.json_schemas import random_schema
from tests.support.tiny_models import (
    EOS,
    VOCAB,
    byte_tokenizer,
    make_engine,
    random_prompt,
    read,
    tiny_model,
    token_ids,
)


def run(engine: Engine, cases: Sequence[tuple[list[int], SamplingParams]]) -> list[tuple[list[Token], FinishEvent]]:
    streams = [engine.submit(prompt, params) for prompt, params in cases]
    return [read(stream) for stream in streams]


@pytest.mark.slow
def test_200_random_schemas_are_always_fit() -> None:
    """Greedy and sampled in turn, with and without drafts."""
    # In float64 no two scores are so close that the order of additions decides.
    model = tiny_model(3, dtype=torch.float64)
    compiler = GrammarCompiler(byte_tokenizer(), VOCAB, (EOS,))
    rng = random.Random(11)
    cases = []
    for number in range(200):
        grammar = Grammar(schema=random_schema(rng))
        # A model of random weights would fill any room: here all have to come to their end in time.
        shortest = compiler.compile(grammar, 500).shortest(500)
        assert shortest is not None
        params = SamplingParams(max_new_tokens=len(shortest) + 20, temperature=number % 2, seed=number, grammar=grammar)
        cases.append((random_prompt(rng), params))
    with (
        closing(make_engine(model, Drafter(), num_slots=16)) as without,
        closing(make_engine(model, LookupTreeDrafter(5), num_slots=16, max_tree_nodes=8)) as drafting,
    ):
        plainly, drafted = run(without, cases), run(drafting, cases)
        for (_, params), (tokens, finish), (others, finish_of_others) in zip(cases, plainly, drafted, strict=True):
            assert params.grammar is not None
            assert token_ids(tokens) == token_ids(others)
            assert finish.finish_reason == finish_of_others.finish_reason == "eos_token"
            value = json.loads("".join(token.text for token in tokens))
            jsonschema.validate(value, dict(params.grammar.schema or {}))
        total = sum((finish.speculation for _, finish in drafted[1:]), start=drafted[0][1].speculation)
    assert total.forced_tokens > 0
    assert total.tokens_per_step > 1.3
