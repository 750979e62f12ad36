"""MTP layers for tiny models of Qwen3.5's kind: weights by the names that checkpoints have, and what they compute."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import silu

from tests.support.hybrid_models import make_hybrid
from tests.support.tiny_models import byte_tokenizer


def mtp_weights(model: Any, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of an MTP layer, of the shapes that a layer with attention has in the model."""
    generator = torch.Generator().manual_seed(seed)
    hidden, text = model.config.get_text_config().hidden_size, getattr(model.model, "language_model", model.model)
    layer = next(each for each in text.layers if hasattr(each, "self_attn"))
    shapes = {f"mtp.layers.0.{name}": weight.shape for name, weight in layer.state_dict().items()}
    shapes |= {f"mtp.{name}.weight": torch.Size([hidden]) for name in ("norm", "pre_fc_norm_embedding")}
    shapes |= {"mtp.pre_fc_norm_hidden.weight": torch.Size([hidden]), "mtp.fc.weight": torch.Size([hidden, 2 * hidden])}
    return {
        name: torch.randn(shape, generator=generator) * (0.3 if len(shape) == 1 else 1.5 * shape[-1] ** -0.5)
        for name, shape in shapes.items()
    }


def chained_hybrid(following: Tensor) -> tuple[Any, dict[str, Tensor]]:
    """A Qwen3.5 that writes after each token the one that follows it, and an MTP layer that knows it."""
    size = len(following)
    model = make_hybrid("qwen3_5_text", torch.float32, vocab_size=size, hidden_size=size, intermediate_size=8)
    weights = mtp_weights(model)
    with torch.no_grad():
        for name, weight in [*model.named_parameters(), *weights.items()]:
            if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight", "norm.weight")):
                weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.zero_()
        model.lm_head.weight[following, torch.arange(size)] = 1.0
        weights["mtp.fc.weight"][:] = torch.cat([torch.eye(size), torch.zeros(size, size)], 1)
    return model, weights


def write_with_mtp(model: Any, weights: Mapping[str, Tensor], folder: Path, *, is_split: bool = False) -> Path:
    """Save a model with MTP layers in its checkpoint, in one file or in a file of their own."""
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    whole = folder / "model.safetensors"
    if not is_split:
        save_file({**load_file(whole), **weights}, whole, metadata={"format": "pt"})
        return folder
    save_file(dict(weights), folder / "mtp.safetensors", metadata={"format": "pt"})
    names = dict.fromkeys(load_file(whole), whole.name) | dict.fromkeys(weights, "mtp.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


def reference_logits(model: Any, weights: Mapping[str, Tensor], tokens: Sequence[int], states: Tensor) -> Tensor:
    """Logits of a dense MTP layer after each entry, out of equations alone, float64 `[entries, vocab]`.

    Args:
        model: Whose it is.
        weights: Of the layer.
        tokens: Token j + 1 of each entry.
        states: What stands beside each, `[entries, hidden]`; fewer: the others read what the entry before them gave.
    """
    config = model.config
    w = {name.removeprefix("mtp."): weight.double() for name, weight in weights.items()}
    part = {name.removeprefix("layers.0."): weight for name, weight in w.items() if name.startswith("layers.0.")}
    table, output = model.model.embed_tokens.weight.double(), model.lm_head.weight.double()
    dim, group = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    rope = config.rope_parameters
    turned = int(dim * rope["partial_rotary_factor"])
    rates = rope["rope_theta"] ** (-torch.arange(0, turned, 2, dtype=torch.float64) / turned)

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + config.rms_norm_eps) * (1 + weight)

    def turn(heads: Tensor, position: int) -> Tensor:
        pairs = torch.complex(heads[:, : turned // 2], heads[:, turned // 2 : turned])
        pairs = pairs * torch.polar(torch.ones_like(rates), position * rates)
        return torch.cat([pairs.real, pairs.imag, heads[:, turned:]], 1)

    keys: list[Tensor] = []
    values: list[Tensor] = []
    given: list[Tensor] = []
    for position, token in enumerate(tokens):
        state = states[position].double() if position < len(states) else given[-1]
        joined = norm(table[token], w["pre_fc_norm_embedding.weight"]), norm(state, w["pre_fc_norm_hidden.weight"])
        x = w["fc.weight"] @ torch.cat(joined)
        inputs = norm(x, part["input_layernorm.weight"])
        query, gate = (part["self_attn.q_proj.weight"] @ inputs).view(-1, 2, dim).unbind(1)
        query = turn(norm(query, part["self_attn.q_norm.weight"]), position)
        key = norm((part["self_attn.k_proj.weight"] @ inputs).view(-1, dim), part["self_attn.k_norm.weight"])
        keys.append(turn(key, position))
        values.append((part["self_attn.v_proj.weight"] @ inputs).view(-1, dim))
        seen = []
        for index, one in enumerate(query):
            scores = torch.stack([k[index // group] @ one for k in keys]) / math.sqrt(dim)
            seen.append(sum(p * v[index // group] for p, v in zip(scores.softmax(0), values, strict=True)))
        attended = torch.stack(seen) * torch.sigmoid(gate)
        x = x + part["self_attn.o_proj.weight"] @ attended.flatten()
        inner = norm(x, part["post_attention_layernorm.weight"])
        inner = silu(part["mlp.gate_proj.weight"] @ inner) * (part["mlp.up_proj.weight"] @ inner)
        x = x + part["mlp.down_proj.weight"] @ inner
        given.append(norm(x, w["norm.weight"]))
    return torch.stack(given).matmul(output.T)
