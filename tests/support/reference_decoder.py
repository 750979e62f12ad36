"""A decoder of the Llama kind, written to be read: what the native one has to compute.

Slow on purpose: matrices are dequantised whole, every score of attention is spelled out, and nothing is done in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gguf
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from langchain_specdec.runner.cpu.decoder_weights import Activation, DecoderWeights, LayerWeights, Matrix

_ACTIVATIONS: dict[Activation, Any] = {
    Activation.SILU: F.silu,
    Activation.GELU_TANH: lambda gate: F.gelu(gate, approximate="tanh"),
    Activation.GELU: F.gelu,
}


def numbers(matrix: Matrix) -> Tensor:
    """What a matrix stands for, float32 `[outputs, inputs]`."""
    quantization = gguf.GGMLQuantizationType(int(matrix.format))
    dense = np.array(gguf.dequantize(np.ascontiguousarray(matrix.data), quantization), dtype=np.float32)
    return torch.from_numpy(dense).reshape(matrix.outputs, matrix.inputs)


@dataclass
class Past:
    """Keys and values of a text: for each layer float `[tokens, kv_heads, head_dim]`. Token i stands at position i."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return self.keys[0].shape[0] if self.keys else 0

    def keep(self, start: int, offsets: Sequence[int]) -> Past:
        """The first `start` tokens, then those at start + offsets: what is left of a tree after its path is known."""
        places = torch.tensor([*range(start), *(start + offset for offset in offsets)], dtype=torch.int64)
        return Past([keys[places] for keys in self.keys], [values[places] for values in self.values])


class ReferenceDecoder:
    """Runs `DecoderWeights`.

    Args:
        weights: The decoder.
        dtype: Type of all arithmetic.
    """

    def __init__(self, weights: DecoderWeights, dtype: torch.dtype = torch.float64) -> None:
        self.weights = weights
        self._dtype = dtype
        self._dense: dict[tuple[int, int], Tensor] = {}

    def forward(
        self,
        tokens: Sequence[int],
        past: Past | None = None,
        *,
        depths: Sequence[int] | None = None,
        ancestors: Sequence[Sequence[bool]] | None = None,
        given: Tensor | None = None,
    ) -> tuple[Tensor, Past]:
        """Logits after each token, and keys and values of the text with these tokens.

        Args:
            tokens: The next tokens of one text.
            past: Its keys and values before them; None: it begins with them.
            depths: Steps of each token from the first one, several of which may be equal; None: 0, 1, 2, ...
            ancestors: `[tokens, tokens]` whether one (first index) sees another; None: those before it and itself.
            given: The states that a draft head is given, `[tokens, hidden]`; None for other decoders.

        Returns:
            `[tokens, vocab]` and what to pass as `past` next time.
        """
        weights, width, past = self.weights, len(tokens), past or Past()
        before = len(past)
        positions = before + torch.tensor(range(width) if depths is None else list(depths), dtype=torch.int64)
        seen = torch.ones(width, width).tril().bool() if ancestors is None else torch.tensor(ancestors).bool()
        seen = torch.cat([torch.ones(width, before, dtype=torch.bool), seen], dim=1)
        key_positions = torch.cat([torch.arange(before), positions])
        states = self._numbers(weights.embedding)[list(tokens)] * weights.embedding_scale
        joint = None
        if weights.state is not None and given is not None:
            normed = self._norm(given.to(self._dtype), weights.state.norm)
            joint = torch.cat([self._norm(states, weights.layers[0].attention_norm), normed], dim=-1)
            states = normed if weights.state.is_residual_normed else given.to(self._dtype)
        every = Past()
        for index, layer in enumerate(weights.layers):
            visible = seen
            if layer.window is not None:
                visible = seen & (key_positions[None, :] > positions[:, None] - layer.window)
            inputs = joint if joint is not None and index == 0 else self._norm(states, layer.attention_norm)
            query, key, value = self._heads(inputs, layer, positions)
            if before:
                key, value = torch.cat([past.keys[index], key]), torch.cat([past.values[index], value])
            every.keys.append(key)
            every.values.append(value)
            mixed = self._attention(query, key, value, visible).reshape(width, -1)
            output = self._linear(mixed, layer.output, layer.output_bias)
            states = states + self._norm(output, layer.post_attention_norm) * weights.residual_scale
            inputs = self._norm(states, layer.mlp_norm)
            gate = _ACTIVATIONS[weights.activation](self._linear(inputs, layer.gate))
            output = self._linear(gate * self._linear(inputs, layer.up), layer.down)
            states = states + self._norm(output, layer.post_mlp_norm) * weights.residual_scale
        states = self._norm(states, weights.final_norm)
        logits = self._linear(states, weights.head, weights.head_bias) * weights.logit_scale
        if weights.logit_softcap is not None:
            logits = torch.tanh(logits / weights.logit_softcap) * weights.logit_softcap
        return logits, every

    def _heads(self, inputs: Tensor, layer: LayerWeights, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries `[tokens, heads, head_dim]`, keys and values `[tokens, kv_heads, head_dim]`."""
        size = self.weights.head_dim
        query = self._linear(inputs, layer.query, layer.query_bias).unflatten(-1, (self.weights.heads, size))
        key = self._linear(inputs, layer.key, layer.key_bias).unflatten(-1, (self.weights.kv_heads, size))
        value = self._linear(inputs, layer.value, layer.value_bias).unflatten(-1, (self.weights.kv_heads, size))
        query, key = self._norm(query, layer.query_norm), self._norm(key, layer.key_norm)
        if layer.rotary is not None:
            query, key = self._turn(query, layer.rotary, positions), self._turn(key, layer.rotary, positions)
        return query, key, value

    def _turn(self, heads: Tensor, rotary: int, positions: Tensor) -> Tensor:
        turns = self.weights.rotary[rotary].turns(positions)
        cosines, sines = (numbers.to(self._dtype)[:, None, :] for numbers in turns)
        half = cosines.shape[-1]
        turning, rest = heads[..., : 2 * half], heads[..., 2 * half :]
        if self.weights.has_rotary_pairs:
            a, b = turning[..., 0::2], turning[..., 1::2]
            turned = torch.stack([a * cosines - b * sines, b * cosines + a * sines], dim=-1).flatten(-2)
        else:
            a, b = turning[..., :half], turning[..., half:]
            turned = torch.cat([a * cosines - b * sines, b * cosines + a * sines], dim=-1)
        return torch.cat([turned, rest], dim=-1)

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
        weights = self.weights
        scale = weights.head_dim**-0.5 if weights.attention_scale is None else weights.attention_scale
        groups = weights.heads // weights.kv_heads
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        scores = torch.einsum("qhd,khd->hqk", query, key) * scale
        if weights.attention_softcap is not None:
            scores = torch.tanh(scores / weights.attention_softcap) * weights.attention_softcap
        scores = scores.masked_fill(~visible[None], float("-inf"))
        return torch.einsum("hqk,khd->qhd", torch.softmax(scores, dim=-1), value)

    def _norm(self, states: Tensor, weight: Any) -> Tensor:
        """RMSNorm over the last dimension; none where there is no weight."""
        if weight is None:
            return states
        mean_square = states.pow(2).mean(-1, keepdim=True)
        return states * torch.rsqrt(mean_square + self.weights.norm_eps) * self._vector(weight)

    def _linear(self, inputs: Tensor, matrix: Matrix, bias: Any = None) -> Tensor:
        output = inputs @ self._numbers(matrix).T
        return output if bias is None else output + self._vector(bias)

    def _vector(self, array: Any) -> Tensor:
        return torch.from_numpy(np.array(array, dtype=np.float32)).to(self._dtype)

    def _numbers(self, matrix: Matrix) -> Tensor:
        # The weights keep the arrays, so an address stays with its matrix.
        key = (matrix.data.ctypes.data, matrix.outputs)
        if key not in self._dense:
            self._dense[key] = numbers(matrix).to(self._dtype)
        return self._dense[key]


def reference_logits(weights: DecoderWeights, tokens: Sequence[int]) -> Tensor:
    """Logits after each token of a whole text, float32 `[tokens, vocab]`."""
    logits, _ = ReferenceDecoder(weights).forward(tokens)
    return logits.float()
