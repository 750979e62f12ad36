"""A model that is not the engine's alone: weights that change between requests, its mode, and where it is."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
import torch
from torch import nn

from langchain_specdec import LocalBackend
from langchain_specdec.drafters.base import Drafter
from langchain_specdec.drafters.lookup_tree import LookupTreeDrafter
from langchain_specdec.engine.engine import Engine
from langchain_specdec.errors import UnsupportedModelError
from langchain_specdec.models.loader import load_model
from langchain_specdec.runner.model_state import evaluating
from langchain_specdec.sampling.params import SamplingParams
from tests.support.tiny_models import (
    byte_tokenizer,
    make_draft_drafter,
    perturbed,
    plain_reference,
    read,
    tiny_model,
    token_ids,
)

MakeEngine = Callable[..., Engine]

PROMPT = tuple(range(1, 25))
PARAMS = SamplingParams(max_new_tokens=10, ignore_eos=True)


def train(model: Any, **options: Any) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, **options)
    ids = torch.tensor([PROMPT])
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    model.eval()


def other_weights() -> dict[str, torch.Tensor]:
    return dict(perturbed(tiny_model(), 0.5).state_dict())


def swap(model: Any) -> None:
    for name, parameter in model.named_parameters():
        parameter.data = other_weights()[name]


@torch.no_grad()
def scale(model: Any) -> None:
    model.lm_head.weight.mul_(-1.0)


@torch.inference_mode()
def scale_in_inference_mode(model: Any) -> None:
    model.model.layers[0].self_attn.k_proj.weight.mul_(-1.0)


def replace_layer(model: Any) -> None:
    layer = model.model.layers[0].mlp
    layer.up_proj = nn.Sequential(layer.up_proj, nn.Linear(64, 64))


CHANGES: dict[str, Callable[[Any], object]] = {
    "training": train,
    "training, one by one": lambda model: train(model, foreach=False),
    "training, fused": lambda model: train(model, fused=True),
    "load_state_dict": lambda model: model.load_state_dict(other_weights()),
    "load_state_dict, assigned": lambda model: model.load_state_dict(other_weights(), assign=True),
    "other tensors": swap,
    "in place": scale,
    "in inference mode": scale_in_inference_mode,
    "another layer": replace_layer,
}


def write(engine: Engine) -> tuple[list[int], int | None]:
    """The text, and how many tokens of its prompt a slot held already."""
    tokens, finish = read(engine.submit(PROMPT, PARAMS))
    return token_ids(tokens), finish.cached_tokens


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_texts_follow_the_weights(engines: MakeEngine, change: Callable[[Any], object]) -> None:
    model = tiny_model()
    engine = engines(model, LookupTreeDrafter(5), num_slots=2, max_tree_nodes=10)
    before = plain_reference(model, PROMPT, PARAMS)
    assert write(engine) == (before, 0)
    assert write(engine) == (before, len(PROMPT) - 1)
    change(model)
    after = plain_reference(model, PROMPT, PARAMS)
    assert after != before
    # Neither slot holds anything of the old weights.
    with engine._inbox.changed:
        streams = [engine.submit(PROMPT, PARAMS) for _ in range(2)]
    for stream in streams:
        tokens, finish = read(stream)
        assert (token_ids(tokens), finish.cached_tokens) == (after, 0)
    assert write(engine) == (after, len(PROMPT) - 1)


@pytest.mark.transformers
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_identity_follows_the_weights(change: Callable[[Any], object]) -> None:
    model = tiny_model()
    with closing(LocalBackend(model, byte_tokenizer(), max_length=64)) as backend:
        before = backend.identity
        assert backend.identity == before
        change(model)
        after = backend.identity
        assert after != before
        assert backend.identity == after


def test_what_leaves_no_trace_takes_a_reset() -> None:
    model = tiny_model()
    with closing(LocalBackend(model, byte_tokenizer(), max_length=64)) as backend:
        write(backend.engine)
        before = backend.identity
        for name, parameter in model.named_parameters():
            parameter.data.copy_(other_weights()[name])
        backend.reset()
        assert backend.identity != before
        assert write(backend.engine) == (plain_reference(model, PROMPT, PARAMS), 0)


def test_a_draft_model_whose_weights_change_drafts_by_the_new_ones(engines: MakeEngine) -> None:
    target = tiny_model()
    draft = perturbed(target, 2.0)
    engine = engines(target, make_draft_drafter(draft), draft_length=3, num_slots=1)
    expected = plain_reference(target, PROMPT, PARAMS)
    _, finish = read(engine.submit(PROMPT, PARAMS))
    assert finish.speculation.accepted_tokens < finish.speculation.drafted_tokens
    draft.load_state_dict(target.state_dict())
    tokens, finish = read(engine.submit(PROMPT, PARAMS))
    assert token_ids(tokens) == expected
    assert finish.speculation.accepted_tokens == finish.speculation.drafted_tokens > 0


# Mode


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("is_told_before", [True, False])
def test_dropout_changes_no_text_and_the_mode_stays_the_callers(is_told_before: bool) -> None:
    model = tiny_model(attention_dropout=0.5)
    expected = plain_reference(model, PROMPT, PARAMS)
    if is_told_before:
        model.train()
    with closing(LocalBackend(model, byte_tokenizer(), max_length=64)) as backend:
        if not is_told_before:
            write(backend.engine)
            model.train()
        model.model.layers[1].eval()
        before = modes(model)
        assert True in before
        assert False in before
        assert write(backend.engine)[0] == expected
        assert modes(model) == before
        train(model)
        assert write(backend.engine)[0] == plain_reference(model, PROMPT, PARAMS)
    assert not any(modes(model))


@pytest.mark.transformers
def test_loading_leaves_the_mode_as_it_was() -> None:
    model = tiny_model()
    model.train()
    before = modes(model)
    assert load_model(model, byte_tokenizer()).model is model
    assert modes(model) == before


def test_forwards_that_overlap_restore_the_mode_at_the_end_of_the_last() -> None:
    model = tiny_model()
    model.train()
    modules = list(model.modules())
    started, may_end = threading.Event(), threading.Event()

    def other() -> None:
        with evaluating(model, modules):
            started.set()
            may_end.wait(20.0)

    thread = threading.Thread(target=other)
    thread.start()
    started.wait(20.0)
    with evaluating(model, modules):
        assert not any(modes(model))
    assert not any(modes(model))
    may_end.set()
    thread.join()
    assert all(modes(model))


def test_a_failing_forward_restores_the_mode(engines: MakeEngine) -> None:
    model = tiny_model()
    engine = engines(model)
    model.train()
    model.lm_head.register_forward_pre_hook(lambda module, args: 1 / 0)
    with pytest.raises(RuntimeError):
        read(engine.submit(PROMPT, PARAMS))
    assert all(modes(model))


# Place and type


def test_a_model_of_another_type_than_its_slots_is_refused(engines: MakeEngine) -> None:
    model = tiny_model()
    engine = engines(model, Drafter())
    written = write(engine)[0]
    moved: Any = nn.Module.double(model)
    with pytest.raises(UnsupportedModelError, match=r"was float32 on cpu when .* is float64 on cpu now"):
        engine.submit(PROMPT, PARAMS)
    nn.Module.float(moved)
    assert write(engine)[0] == written


def test_copies_of_a_model_are_other_models(engines: MakeEngine) -> None:
    model = tiny_model()
    other = copy.deepcopy(model)
    engine = engines(model)
    written = write(engine)
    scale(other)
    assert write(engine) == (written[0], len(PROMPT) - 1)
