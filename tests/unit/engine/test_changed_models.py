"""A model that is not the engine's alone: weights that change between requests, its mode, and where it is."""

from __future__ import annotations

import copy
import os
import signal
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
from langchain_specdec.runner import model_state
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


def hook(model: Any) -> None:
    model.model.layers[0].register_forward_hook(lambda module, arguments, output: output * -1.0)


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
    "a hook": hook,
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


def rescale(tuned: Any) -> None:
    for module in tuned.modules():
        if hasattr(module, "lora_A"):
            module.set_scale("one", 5.0)


@pytest.mark.transformers
@pytest.mark.parametrize(
    "switch",
    [
        lambda tuned: tuned.base_model.disable_adapter_layers(),
        lambda tuned: tuned.set_adapter("two", inference_mode=True),
        rescale,
    ],
    ids=["none", "another", "more of it"],
)
def test_texts_and_identity_follow_adapters_that_are_not_trained(switch: Callable[[Any], object]) -> None:
    peft = pytest.importorskip("peft")
    model = tiny_model()
    with closing(LocalBackend(model, byte_tokenizer(), max_length=64)) as backend:
        config = peft.LoraConfig(target_modules=["v_proj", "down_proj"], init_lora_weights=False)
        tuned = peft.PeftModel(model, config, "one")
        tuned.add_adapter("two", config)
        tuned.set_adapter("one", inference_mode=True)
        before = write(backend.engine)[0], backend.identity
        assert before == (plain_reference(model, PROMPT, PARAMS), backend.identity)
        switch(tuned)
        assert write(backend.engine) == (plain_reference(model, PROMPT, PARAMS), 0)
        assert backend.identity != before[1]
        assert not any(parameter.requires_grad for parameter in tuned.parameters())


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


@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_child_forked_during_a_forward_is_not_held_up_by_it() -> None:
    model = tiny_model()
    model.train()
    modules = list(model.modules())
    with evaluating(model, modules), model_state._lock:
        child = os.fork()
        if not child:
            signal.alarm(20)
            was_restored = all(modes(model))
            with evaluating(model, modules):
                is_evaluating = not any(modes(model))
            os._exit(0 if was_restored and is_evaluating and all(modes(model)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
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


@pytest.mark.parametrize("count", [200, 300])
def test_a_model_of_another_size_than_when_it_got_its_slots_is_refused(engines: MakeEngine, count: int) -> None:
    model = tiny_model()
    engine = engines(model, Drafter())
    write(engine)
    model.resize_token_embeddings(count)
    with pytest.raises(UnsupportedModelError, match=rf"had 258 tokens when .* has {count} now"):
        engine.submit(PROMPT, PARAMS)


def test_copies_of_a_model_are_other_models(engines: MakeEngine) -> None:
    model = tiny_model()
    other = copy.deepcopy(model)
    engine = engines(model)
    written = write(engine)
    scale(other)
    assert write(engine) == (written[0], len(PROMPT) - 1)
