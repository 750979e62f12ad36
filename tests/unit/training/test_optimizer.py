"""Muon and AdamW as one optimizer: each has its own parameters, and all of it goes on from what was saved."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from langchain_specdec.training import optimizer
from langchain_specdec.training.optimizer import make_optimizer


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3))


def matrices(model: nn.Module) -> list[nn.Parameter]:
    return [each for each in model.parameters() if each.ndim == 2]


def train(model: nn.Module, steps: torch.optim.Optimizer, count: int) -> None:
    inputs = torch.linspace(-1, 1, 24).reshape(4, 6)
    for _ in range(count):
        steps.zero_grad()
        model(inputs).square().sum().backward()
        steps.step()


@pytest.mark.parametrize("is_there", [True, False])
def test_every_parameter_is_trained_once_and_by_the_schedules_rate(is_there, monkeypatch):
    monkeypatch.setattr(optimizer, "has_muon", lambda _: is_there)
    model = make_model()
    before = [each.clone() for each in model.parameters()]
    steps = make_optimizer(model, matrices(model), 1e-2)
    trained = [each for group in steps.param_groups for each in group["params"]]
    assert len(trained) == len({*trained}) == len(before)
    train(model, steps, 1)
    assert all(not torch.equal(was, each) for was, each in zip(before, model.parameters(), strict=True))
    schedule = torch.optim.lr_scheduler.LambdaLR(steps, lambda _: 0.0)
    assert schedule.get_last_lr() == [0.0] * len(steps.param_groups)
    before = [each.clone() for each in model.parameters()]
    train(model, steps, 1)
    assert all(torch.equal(was, each) for was, each in zip(before, model.parameters(), strict=True))


def test_it_goes_on_from_what_was_saved(monkeypatch):
    monkeypatch.setattr(optimizer, "has_muon", lambda _: True)
    model = make_model()
    steps = make_optimizer(model, matrices(model), 1e-2)
    train(model, steps, 3)
    other, saved = copy.deepcopy(model), copy.deepcopy(steps.state_dict())
    train(model, steps, 3)
    resumed = make_optimizer(other, matrices(other), 1e-2)
    resumed.load_state_dict(saved)
    train(other, resumed, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    torch.optim.lr_scheduler.LambdaLR(resumed, lambda _: 0.0)
    before = [each.clone() for each in other.parameters()]
    train(other, resumed, 1)
    assert all(torch.equal(was, each) for was, each in zip(before, other.parameters(), strict=True))
