"""A model that is not the engine's alone: weights that change between requests, its mode, and where it is."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from langchain_specdec import LocalBackend
from langchain_specdec.drafters.base import Drafter
from langchain_specdec.drafters.combined import CombinedDrafter
from langchain_specdec.drafters.lookup_tree import LookupTreeDrafter
from langchain_specdec.drafters.prompt_lookup import PromptLookupDrafter
from langchain_specdec.engine.engine import Engine
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.errors import UnsupportedModelError
from langchain_specdec.models.loader import load_model
from langchain_specdec.runner import model_runner
from langchain_specdec.runner.model_runner import ModelRunner
from langchain_specdec.runner.model_state import WeightsState, evaluating, modules_of
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
    with engine._inbox.lock:
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


def test_what_fails_to_tell_of_changes_fails_no_request(
    engines: MakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model()
    engine = engines(model, num_slots=1)
    expected = plain_reference(model, PROMPT, PARAMS)
    assert write(engine) == (expected, 0)
    with monkeypatch.context() as patch:
        patch.setattr(engine.runner, "note_weights", lambda: 1 / 0)
        assert write(engine) == (expected, 0)
    assert "nothing is reused" in caplog.text
    assert write(engine) == (expected, len(PROMPT) - 1)


def test_modules_that_another_thread_adds_meanwhile_harm_nobody() -> None:
    class Children(dict[str, nn.Module]):
        """Gets another one while somebody goes through them."""

        def items(self) -> Any:
            for item in super().items():
                self["added"] = nn.Linear(2, 2)
                yield item

    model = tiny_model()
    with closing(LocalBackend(model, byte_tokenizer(), max_length=64)) as backend:
        layer = model.model.layers[0]
        layer.__dict__["_modules"] = Children(layer._modules)
        with pytest.raises(RuntimeError, match="changed size"):
            list(model.modules())
        del layer._modules["added"]
        before = backend.identity
        assert write(backend.engine)[0] == plain_reference(model, PROMPT, PARAMS)
        assert backend.identity == before


def test_all_modules_are_found_once() -> None:
    model = tiny_model(tie_word_embeddings=True)
    model.again = model.model.layers[0]
    assert len(modules_of(model)) == len(list(model.modules()))
    assert set(modules_of(model)) == set(model.modules())


def test_a_model_that_nobody_else_has_is_watched_from_when_it_is_handed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []

    def watched(name: str, look: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any) -> Any:
            looks.append(name)
            return look(*args)

        return counting

    monkeypatch.setattr(WeightsState, "of", watched("weights", WeightsState.of))
    monkeypatch.setattr(model_runner, "evaluating", watched("mode", evaluating))
    tiny_model(attention_dropout=0.5).save_pretrained(tmp_path)
    with closing(LocalBackend(str(tmp_path), byte_tokenizer(), max_length=64)) as backend:
        looks.clear()
        before, identity = write(backend.engine)[0], backend.identity
        assert looks == []
        model = backend.model
        model.train()
        assert (write(backend.engine)[0], backend.identity) == (before, identity)
        # A native decoder has no mode.
        assert set(looks) == {"weights", "mode"} - ({"mode"} if backend.engine.runner.has_own_threads else set())
        assert all(modes(model))
        with torch.no_grad():
            model.model.norm.weight.mul_(-1.0)
        assert write(backend.engine)[0] != before
        assert backend.identity != identity


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


FORK = """
import os, signal, sys
import torch
from langchain_specdec.runner.model_state import evaluating
from tests.support.tiny_models import tiny_model

model = tiny_model().train()
model.lm_head.eval()
modules = list(model.modules())
before = [module.training for module in modules]

def modes():
    return [module.training for module in modules]

with evaluating(model, modules):
    child = os.fork()
    if not child:
        # As for any other thread: this one's forward is the parent's.
        signal.alarm(60)
        restored = modes() == before
        model.train()
        with evaluating(model, modules):
            is_eval = not any(modes())
        os._exit(0 if restored and is_eval and all(modes()) else 1)
    status = os.waitpid(child, 0)[1]
    assert not any(modes())
assert modes() == before
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_during_a_forward_has_the_model_in_its_own_mode() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], check=True, timeout=120)  # noqa: S603


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


@pytest.mark.parametrize("draft_length", [3, "auto"])
def test_texts_go_on_without_a_draft_model_of_another_type(
    engines: MakeEngine, caplog: pytest.LogCaptureFixture, draft_length: Any
) -> None:
    model = tiny_model()
    draft = perturbed(model, 0.01)
    engine = engines(model, make_draft_drafter(draft), draft_length=draft_length, step_cost=StepCost.flat())
    expected = plain_reference(model, PROMPT, PARAMS)
    num_drafted = []
    for moved in (draft.double, draft.double, draft.float):
        moved()
        tokens, finish = read(engine.submit(PROMPT, PARAMS))
        assert token_ids(tokens) == expected
        num_drafted.append(finish.speculation.drafted_tokens)
    assert num_drafted[:2] == [0, 0]
    assert num_drafted[2] > 0
    assert caplog.text.count("was float32 on cpu when it was given its slots, and is float64 on cpu now") == 1


def test_what_steps_cost_is_measured_without_a_draft_model_of_another_type(engines: MakeEngine) -> None:
    model = tiny_model()
    draft = perturbed(model, 0.01)
    drafter = CombinedDrafter([PromptLookupDrafter(5), make_draft_drafter(draft)])
    engine = engines(model, drafter, step_cost=None)
    prompt = PROMPT[:6] * 3
    # Draft slots of float32, and nothing measured yet.
    read(engine.submit(prompt, SamplingParams(max_new_tokens=1)))
    draft.double()
    tokens, _ = read(engine.submit(prompt, PARAMS))
    assert token_ids(tokens) == plain_reference(model, prompt, PARAMS)


def test_a_closed_backend_says_so_to_threads_that_look_at_the_model_meanwhile() -> None:
    class ClosesMeanwhile(ModelRunner):
        """Its model is released right after it was looked at."""

        held: Any

        @property
        def model(self) -> Any:
            model, self.held = self.held, None
            return model

        @model.setter
        def model(self, model: Any) -> None:
            self.held = model

    runner = ModelRunner(tiny_model(), 1, 64, 4)
    held = runner.__dict__.pop("model")
    runner.__class__ = ClosesMeanwhile
    for look in (lambda: runner.why_unfit, runner.note_weights):
        runner.model = held
        assert not look()
        assert runner.model is None
        assert not look()


def test_copies_of_a_model_are_other_models(engines: MakeEngine) -> None:
    model = tiny_model()
    other = copy.deepcopy(model)
    engine = engines(model)
    written = write(engine)
    scale(other)
    assert write(engine) == (written[0], len(PROMPT) - 1)
