"""Hybrid families as tiny random models: layers that keep a recurrent or convolution state, beside attention."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import Cache
from transformers.utils import logging

from langchain_specdec.runner.attention import ATTENTION_NAME
from tests.support.model_families import SIZES

_ATTENTION_LAST = [*["linear_attention"] * 3, "full_attention"]
_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "head_dim": 8,
    "layer_types": _ATTENTION_LAST,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_SHARED_EXPERT = {**_EXPERTS, "shared_expert_intermediate_size": 16}
_MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 2,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
_CONVOLUTIONS = {"layer_types": ["conv", "conv", "full_attention", "conv"]}
_ATTENTION_THIRD = ["linear_attention", "linear_attention", "full_attention", "linear_attention"]
HYBRIDS: dict[str, dict[str, Any]] = {
    "qwen3_next": {**_DELTA, **_SHARED_EXPERT},
    "qwen3_5_text": _DELTA,
    "qwen3_5_moe_text": {**_DELTA, **_SHARED_EXPERT},
    "lfm2": {**_CONVOLUTIONS, "block_multiple_of": 8},
    "lfm2_moe": {**_CONVOLUTIONS, **_EXPERTS, "num_dense_layers": 1},
    "falcon_h1": {**_MAMBA2, "mamba_d_ssm": 64},
    "granitemoehybrid": {
        **_MAMBA2,
        "layer_types": _ATTENTION_THIRD,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 32,
    },
    "bamba": {**_MAMBA2, "attn_layer_indices": [2]},
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "linear_attention"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 2,
        "chunk_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "moe_shared_expert_intermediate_size": 16,
        "head_dim": 8,
        "n_group": 1,
        "topk_group": 1,
    },
    "olmo_hybrid": {**_DELTA, "linear_num_key_heads": 4},
}
"""Type of model, and how its configuration differs from `SIZES`."""
HYBRID_LABELS = {
    "qwen3_next": "Qwen3-Next",
    "qwen3_5_text": "Qwen 3.5 (text)",
    "qwen3_5_moe_text": "Qwen 3.5 MoE (text)",
    "lfm2": "LFM2",
    "lfm2_moe": "LFM2 MoE",
    "falcon_h1": "Falcon H1",
    "granitemoehybrid": "Granite 4",
    "bamba": "Bamba",
    "jamba": "Jamba",
    "nemotron_h": "Nemotron-H",
    "olmo_hybrid": "OLMo Hybrid",
}
"""What each family is called."""
MISSING = [name for name in HYBRIDS if name not in CONFIG_MAPPING or not hasattr(Cache, "get_conv_state")]
"""Those that this version of transformers lacks, or goes on from whose states by single tokens only."""


def hybrid_config(name: str, **overrides: Any) -> Any:
    """A configuration of a tiny model."""
    return AutoConfig.for_model(name, **{**SIZES, "num_hidden_layers": 4, **HYBRIDS[name], **overrides})


def make_hybrid(name: str, dtype: torch.dtype = torch.float64, positions: int = 256, **overrides: Any) -> Any:
    """A random model whose matrices are large enough for its choices to depend on the context."""
    level = logging.get_verbosity()
    # Kernels for GPUs that are not installed are told of.
    logging.set_verbosity_error()
    try:
        config = hybrid_config(name, max_position_embeddings=positions, **overrides)
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION_NAME).eval()
    finally:
        logging.set_verbosity(level)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            # What a state forgets is left as it is.
            if parameter.ndim > 1 and not any(part in parameter_name for part in ("conv", "A_log")):
                parameter.mul_(15.0)
    if dtype == torch.float64 and hasattr(model, "set_experts_implementation"):
        # Grouped products know no float64.
        model.set_experts_implementation("eager")
    return model.to(dtype)
