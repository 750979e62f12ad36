"""EAGLE-3's draft as the paper's equations have it (arXiv 2503.01840), token by token, written to be read.

It shares no code with the module: everything is float64, each entry is computed alone from the keys of those before
it, and pairs turn as complex numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from tests.support.eagle3_folders import TinyHead


@dataclass(frozen=True)
class Entry:
    """One entry of a head's slot: it has read token j + 1 beside g_j.

    Attributes:
        token: Token j + 1.
        position: j.
        parent: The entry before it; None at the beginning of a text.
        tapped: The target's states at j, `[points, hidden]`; None: g is what the parent gave.
    """

    token: int
    position: int
    parent: int | None
    tapped: Tensor | None = None


def reference_logits(
    head: TinyHead, entries: Sequence[Entry], table: Tensor, output: Tensor, frequencies: Tensor, scale: float = 1.0
) -> Tensor:
    """Logits over the draft tokens of each entry, float64 `[entries, draft_vocab]`.

    Args:
        head: The head.
        entries: What it reads; parents before their children.
        table: Embeddings, `[vocab, size]`.
        output: The target's output embeddings, for heads without an output layer.
        frequencies: By how much each pair turns, `[rotary_dim / 2]`.
        scale: What turned numbers are multiplied by.
    """
    w = {name: weight.double() for name, weight in head.weights().items()}
    turning = frequencies.double()
    keys: list[list[tuple[Tensor, Tensor]]] = []
    carried: list[Tensor] = []
    logits: list[Tensor] = []
    for number, entry in enumerate(entries):
        path = [number]
        while (parent := entries[path[0]].parent) is not None:
            path.insert(0, parent)
        if entry.tapped is None:
            assert entry.parent is not None
            x = carried[entry.parent]
        else:
            x = _condense(head, w, entry.tapped.double())
        e = table[entry.token].double()
        keys.append([])
        for layer in range(head.layers):
            part = {n.removeprefix(f"layers.{layer}."): v for n, v in w.items() if n.startswith(f"layers.{layer}.")}
            if layer == 0:
                h = _rms(x, part["hidden_norm.weight"], head.eps)
                residual = h if head.norm_before_residual else x
                inputs = torch.cat([_rms(e, part["input_layernorm.weight"], head.eps), h])
            else:
                residual, inputs = x, _rms(x, part["input_layernorm.weight"], head.eps)
            heads = {n: _linear(part, f"self_attn.{n}_proj", inputs).reshape(-1, head.head_dim) for n in "qkv"}
            if head.qk_norm:
                for n in "qk":
                    normed = [_rms(each, part[f"self_attn.{n}_norm.weight"], head.eps) for each in heads[n]]
                    heads[n] = torch.stack(normed)
            q, k = (_turn(heads[n], entry.position * turning, scale) for n in "qk")
            keys[number].append((k, heads["v"]))
            seen = [keys[i][layer] for i in path]
            group = head.heads // head.kv_heads
            attended = []
            for index, query in enumerate(q):
                scores = torch.stack([key[index // group] @ query for key, _ in seen]) / math.sqrt(head.head_dim)
                attended.append(sum(p * v[index // group] for p, (_, v) in zip(scores.softmax(0), seen, strict=True)))
            x = residual + _linear(part, "self_attn.o_proj", torch.cat(attended))
            m = _rms(x, part["post_attention_layernorm.weight"], head.eps)
            gate = _linear(part, "mlp.gate_proj", m)
            gate = silu(gate) if head.activation == "silu" else gelu(gate, approximate="tanh")
            x = x + _linear(part, "mlp.down_proj", gate * _linear(part, "mlp.up_proj", m))
        normed_output = _rms(x, w["norm.weight"], head.eps)
        carried.append(normed_output if head.norm_output else x)
        logits.append((w["lm_head.weight"] if head.has_output else output.double()) @ normed_output)
    return torch.stack(logits)


def _condense(head: TinyHead, w: Mapping[str, Tensor], tapped: Tensor) -> Tensor:
    if head.fc_norm:
        tapped = torch.stack([_rms(s, w[f"fc_norm.{i}.weight"], head.eps) for i, s in enumerate(tapped)])
    together = torch.cat(list(tapped))
    if head.norm_before_fc:
        together = _rms(together, w["input_norm.weight"], head.eps)
    return w["fc.weight"] @ together if head.has_fc else together


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean() + eps) * weight


def _linear(part: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    y = part[f"{name}.weight"] @ x
    return y + part[f"{name}.bias"] if f"{name}.bias" in part else y


def _turn(heads: Tensor, angles: Tensor, scale: float) -> Tensor:
    half = len(angles)
    pairs = torch.complex(heads[:, :half], heads[:, half : 2 * half]) * torch.polar(
        torch.full_like(angles, scale), angles
    )
    return torch.cat([pairs.real, pairs.imag, heads[:, 2 * half :]], dim=1)
