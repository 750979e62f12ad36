"""What a pruned model is trained on: its divergence from the target, and what is trained of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from langchain_specdec.training import distilled_model
from langchain_specdec.training.distilled_model import DistilledModel
from langchain_specdec.training.output_head import OutputHead
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.transformers


def make_batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    is_answered = torch.zeros(2, 7, dtype=torch.bool)
    is_answered[0, 2:6] = is_answered[1, 0:3] = True
    return {"states": torch.randn(2, 7, 1, 32), "tokens": torch.randint(250, (2, 7)), "is_answered": is_answered}


def make_student() -> tuple[Any, OutputHead, DistilledModel]:
    model: Any = tiny_model(num_hidden_layers=2)
    model.set_attn_implementation("sdpa")
    output = OutputHead(model.lm_head.weight.detach(), softcap=20.0)
    return model, output, DistilledModel(model, model.model, output)


def test_the_loss_and_its_gradient_are_those_of_the_whole_distributions(monkeypatch):
    monkeypatch.setattr(distilled_model, "_LOGITS_AT_ONCE", 258 * 2)  # states are read out two by two
    model, output, student = make_student()
    batch = make_batch()
    answered = batch["is_answered"]
    target = output(batch["states"][:, :, 0][answered]).log_softmax(-1)
    own = output(student.outputs(batch["tokens"])[answered]).log_softmax(-1)
    expected = F.kl_div(own, target, log_target=True, reduction="batchmean")
    weight = model.model.layers[0].mlp.up_proj.weight
    (gradient,) = torch.autograd.grad(expected, weight)
    loss = student(**batch)["loss"]
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(weight.grad, gradient)


def test_layers_are_trained_and_saved_and_tables_are_not():
    model, _, student = make_student()
    tables = [model.lm_head.weight.clone(), model.model.embed_tokens.weight.clone()]
    names = {name.removeprefix("trained.") for name in student.state_dict()}
    own = {name for name in model.model.state_dict() if not name.startswith("embed_tokens")}
    assert names == own
    assert {parameter for parameter in model.parameters() if parameter.requires_grad} == set(student.parameters())
    batch = make_batch()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = student.train()(**batch)["loss"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    assert torch.equal(tables[0], model.lm_head.weight)
    assert torch.equal(tables[1], model.model.embed_tokens.weight)
