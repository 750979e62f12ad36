"""What an EAGLE-3 head is made of: sizes, and the variants that its formats know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Eagle3Config:
    """Sizes and variants of an `Eagle3Head`, whatever format they were read from.

    Attributes:
        tap_points: Layers of the target whose incoming states the head reads; the target's number of layers stands
            for what its final norm gives.
        hidden_size: Numbers of a state of the head.
        target_hidden_size: Numbers of a state of the target.
        embedding_size: Numbers of a token's embedding, in the head's own table or the target's.
        intermediate_size: Numbers between the two halves of an MLP.
        num_heads: Heads of queries.
        num_kv_heads: Heads of keys and values.
        head_dim: Numbers of a head.
        vocab_size: Tokens of the target.
        draft_vocab_size: Tokens that the head drafts.
        num_layers: Layers. Those after the first read the state alone, without the embedding.
        rms_norm_eps: What RMSNorms add to the mean square.
        rope: `rope_theta`, `rope_type` and what else that kind takes, by Hugging Face's names.
        max_positions: Positions that it was made for, by its configuration; texts may be longer.
        activation: Of the MLPs' gates, by Hugging Face's name.
        norm_before_residual: Whether the first layer's residual is the normed state.
        norm_before_fc: Whether the tapped states are normed together before `fc`.
        fc_norm: Whether each of the tapped states is normed alone before `fc`.
        norm_output: Whether the next draft token reads the normed output, and not what the norm took in.
        attention_bias: Whether attention's four layers have biases.
        mlp_bias: Whether the MLP's three layers have biases.
        has_qk_norm: Whether queries and keys are normed by head, as Qwen3's.
        has_fc: Whether `fc` condenses the tapped states; else the only one of them is taken as it is.
        has_embedding: Whether it has a table of embeddings of its own; else it reads the target's.
        has_output: Whether it has an output layer of its own; else it goes through the target's.
    """

    tap_points: tuple[int, ...]
    hidden_size: int
    target_hidden_size: int
    embedding_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    draft_vocab_size: int
    num_layers: int = 1
    rms_norm_eps: float = 1e-6
    rope: Mapping[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0})
    max_positions: int = 2048
    activation: str = "silu"
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    has_qk_norm: bool = False
    has_fc: bool = True
    has_embedding: bool = False
    has_output: bool = True
