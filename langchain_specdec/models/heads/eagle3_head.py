"""The EAGLE-3 head: one decoder layer, or few, that draft from a target's hidden states (arXiv 2503.01840).

The head reads states tapped from several of the target's layers, condensed to one vector g_j for text position j. Its
first layer takes the embedding of token j + 1 and g_j, keeps keys and values of its own at position j, and predicts
token j + 2. To draft further it takes its own output as the next g. Names of parameters are those of vLLM's
speculators format.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langchain_specdec.models.heads.eagle3_config import Eagle3Config
from langchain_specdec.models.heads.rotary_frequencies import rotary_frequencies

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda gate: F.gelu(gate, approximate="tanh"),
}
"""What an MLP may do to its gate, by Hugging Face's names."""


class Attend(Protocol):
    """Attention as the caller has it: drafting keeps keys in slots, training masks whole texts."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend with scores multiplied by `head_dim ** -0.5`; queries and keys are turned already.

        Args:
            layer: Which of the head's layers asks.
            query: `[rows, heads, width, head_dim]`.
            key: `[rows, kv_heads, width, head_dim]`.
            value: As `key`.

        Returns:
            `[rows, heads, width, head_dim]`.
        """


class RMSNorm(nn.Module):
    """x / rms(x) * weight (arXiv 1910.07467), in float32 up to the weight.

    Args:
        size: Numbers of a vector.
        eps: What is added to the mean square.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, states: Tensor) -> Tensor:
        """`[..., size]` for `[..., size]`."""
        wide = states.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(states.dtype)


class Eagle3Head(nn.Module):
    """An EAGLE-3 head, which runs in inference and trains under autograd, in any floating type.

    Args:
        config: Its sizes and variants.
        target_ids: The target's number of each draft token, int64 `[draft_vocab_size]`; None: the same numbers.
        embedding: The target's embeddings, `[...]` to `[..., embedding_size]`; asked where `has_embedding` is false.
        output: The target's output layer, `[..., hidden_size]` to `[..., vocab_size]`; asked where `has_output` is
            false.

    Attributes:
        config: As given; its sizes and `tap_points` are attributes of the head, too.
        target_ids: As given, on the head's device.
    """

    target_ids: Tensor | None

    def __init__(
        self,
        config: Eagle3Config,
        target_ids: Tensor | None = None,
        *,
        embedding: Callable[[Tensor], Tensor] | None = None,
        output: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.tap_points = config.tap_points
        self.hidden_size, self.target_hidden_size = config.hidden_size, config.target_hidden_size
        self.num_layers, self.num_heads, self.num_kv_heads = config.num_layers, config.num_heads, config.num_kv_heads
        self.head_dim, self.draft_vocab_size = config.head_dim, config.draft_vocab_size
        self.register_buffer("target_ids", target_ids, persistent=False)
        # In a tuple, so that no module of the target becomes one of the head.
        self._of_target = (embedding, output)
        # Not a buffer: those take the type that the head is moved to, and these are always float32.
        self._frequencies, self._scale = rotary_frequencies(config.rope, config.head_dim)
        hidden, eps, taps = config.hidden_size, config.rms_norm_eps, len(config.tap_points)
        if config.has_embedding:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size)
        if config.norm_before_fc:
            self.input_norm = RMSNorm(taps * config.target_hidden_size, eps)
        if config.fc_norm:
            self.fc_norm = nn.ModuleList(RMSNorm(config.target_hidden_size, eps) for _ in range(taps))
        if config.has_fc:
            self.fc = nn.Linear(taps * config.target_hidden_size, hidden, bias=False)
        self.layers = nn.ModuleList(_Layer(config, is_first=not index) for index in range(config.num_layers))
        self.norm = RMSNorm(hidden, eps)
        if config.has_output:
            self.lm_head = nn.Linear(hidden, config.draft_vocab_size, bias=False)

    def condense(self, states: Tensor) -> Tensor:
        """g: one vector of each position's tapped states.

        Args:
            states: `[..., points, target_hidden_size]`.

        Returns:
            `[..., hidden_size]`.
        """
        states = states.to(self.norm.weight.dtype)
        if self.config.fc_norm:
            states = torch.stack([norm(states[..., i, :]) for i, norm in enumerate(self.fc_norm)], dim=-2)
        together = states.flatten(-2)
        if self.config.norm_before_fc:
            together = self.input_norm(together)
        return self.fc(together) if self.config.has_fc else together

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings of the target's tokens, int64 `[...]` to `[..., embedding_size]`."""
        if self.config.has_embedding:
            return self.embed_tokens(tokens)  # type: ignore[no-any-return]
        embedding = self._of_target[0]
        assert embedding is not None, "a head without a table of its own is given the target's"  # noqa: S101
        return embedding(tokens).to(self.norm.weight.dtype)

    def forward(self, embeddings: Tensor, hidden: Tensor, positions: Tensor, attend: Attend) -> tuple[Tensor, Tensor]:
        """One step over some positions of each row; what they see of each other is the caller's to say.

        Args:
            embeddings: Of token j + 1, `[rows, width, embedding_size]`.
            hidden: g_j, or the head's own output in its place, `[rows, width, hidden_size]`.
            positions: j, int64 `[rows, width]`; adding one number to all of a text changes nothing.
            attend: Attention.

        Returns:
            What `logits` reads, and what the next draft token takes for g; both `[rows, width, hidden_size]`.
        """
        angles = positions[..., None].float() * self._frequencies_on(positions.device)
        # One for all heads.
        turns = tuple((part * self._scale).to(hidden.dtype)[:, None] for part in (angles.cos(), angles.sin()))
        for index, layer in enumerate(self.layers):
            hidden = layer(index, embeddings, hidden, turns, attend)
        outputs = self.norm(hidden)
        return outputs, outputs if self.config.norm_output else hidden

    def logits(self, outputs: Tensor) -> Tensor:
        """Scores of the draft tokens, `[..., hidden_size]` to `[..., draft_vocab_size]`."""
        if self.config.has_output:
            return self.lm_head(outputs)  # type: ignore[no-any-return]
        output = self._of_target[1]
        assert output is not None, "a head without an output layer of its own is given the target's"  # noqa: S101
        return output(outputs)

    def _frequencies_on(self, device: torch.device) -> Tensor:
        if self._frequencies.device != device:
            # Kept: a step that is captured as a CUDA graph cannot copy from the CPU.
            self._frequencies = self._frequencies.to(device)
        return self._frequencies


class _Layer(nn.Module):
    """A decoder layer; the first one attends with the token's embedding beside the state."""

    def __init__(self, config: Eagle3Config, *, is_first: bool) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.norm_before_residual = config.norm_before_residual
        self.is_first = is_first
        self.input_layernorm = RMSNorm(config.embedding_size if is_first else hidden, eps)
        if is_first:
            self.hidden_norm = RMSNorm(hidden, eps)
        self.self_attn = _Attention(config, hidden + config.embedding_size * is_first)
        self.post_attention_layernorm = RMSNorm(hidden, eps)
        self.mlp = _MLP(config)

    def forward(
        self, index: int, embeddings: Tensor, hidden: Tensor, turns: tuple[Tensor, Tensor], attend: Attend
    ) -> Tensor:
        residual = hidden
        if self.is_first:
            normed = self.hidden_norm(hidden)
            residual = normed if self.norm_before_residual else hidden
            inputs = torch.cat([self.input_layernorm(embeddings), normed], dim=-1)
        else:
            inputs = self.input_layernorm(hidden)
        hidden = residual + self.self_attn(index, inputs, turns, attend)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))  # type: ignore[no-any-return]


class _Attention(nn.Module):
    """Rotary attention over grouped keys."""

    def __init__(self, config: Eagle3Config, inputs: int) -> None:
        super().__init__()
        bias, dim = config.attention_bias, config.head_dim
        self.head_dim = dim
        self.q_proj = nn.Linear(inputs, config.num_heads * dim, bias=bias)
        self.k_proj = nn.Linear(inputs, config.num_kv_heads * dim, bias=bias)
        self.v_proj = nn.Linear(inputs, config.num_kv_heads * dim, bias=bias)
        self.o_proj = nn.Linear(config.num_heads * dim, config.hidden_size, bias=bias)
        normed = config.has_qk_norm
        self.q_norm = RMSNorm(dim, config.rms_norm_eps) if normed else nn.Identity()
        self.k_norm = RMSNorm(dim, config.rms_norm_eps) if normed else nn.Identity()

    def forward(self, index: int, inputs: Tensor, turns: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        query, key, value = (
            layer(inputs).unflatten(-1, (-1, self.head_dim)) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        query = _turned(self.q_norm(query).transpose(1, 2), turns)
        key = _turned(self.k_norm(key).transpose(1, 2), turns)
        attended = attend(index, query, key, value.transpose(1, 2))
        return self.o_proj(attended.transpose(1, 2).flatten(-2))  # type: ignore[no-any-return]


class _MLP(nn.Module):
    """A gated MLP."""

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(hidden, inner, bias=bias)
        self.up_proj = nn.Linear(hidden, inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden, bias=bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, states: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(states)) * self.up_proj(states))  # type: ignore[no-any-return]


def _turned(states: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Heads `[rows, heads, width, head_dim]` turned to their positions; number i goes with number i + rotary_dim / 2.

    Args:
        states: The heads.
        turns: Cosines and sines, `[rows, 1, width, rotary_dim / 2]`.
    """
    cos, sin = turns
    half = cos.shape[-1]
    first, second, rest = states.split([half, half, states.shape[-1] - 2 * half], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
