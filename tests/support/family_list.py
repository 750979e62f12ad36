"""The model families that are tested, each as configurations of tiny models. docs/models.md is written from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.support import tiny_models as tiny

POSITIONS, WINDOW = 64, 7
SIZES: dict[str, Any] = {
    "vocab_size": tiny.VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": 257,
    "eos_token_id": tiny.EOS,
    "pad_token_id": 0,
    # A random model with tied embeddings repeats its last token for ever.
    "tie_word_embeddings": False,
}
"""What configurations have in common, where they have it at all."""

_ALTERNATING = {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
_SLIDING = {"sliding_window": WINDOW, **_ALTERNATING}
GEMMA3 = {"head_dim": 16, "query_pre_attn_scalar": 24, **_SLIDING}
_PER_LAYER_INPUTS = {"vocab_size_per_layer_input": tiny.VOCAB, "hidden_size_per_layer_input": 8}
# The last two layers read the keys and values of the first two.
_SHARED = {"head_dim": 8, "global_head_dim": 16, **_SLIDING, **_PER_LAYER_INPUTS, "num_kv_shared_layers": 2}
_GEMMA3N = {**_SHARED, "laurel_rank": 4, "altup_num_inputs": 2, "altup_active_idx": 0}
# Layers of full attention have fewer and larger heads, whose values are their keys.
_GEMMA4 = {
    "head_dim": 8, **_SLIDING, "global_head_dim": 16, "num_global_key_value_heads": 1, "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0,
}  # fmt: skip
_MLA = {
    "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
    "v_head_dim": 6,
}  # fmt: skip
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_FOUR = {"num_experts": 4, **_EXPERTS}
_FOUR_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_FOUR_ROUTED = {
    "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, **_EXPERTS,
}  # fmt: skip
_LONG_ROPE = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
_GRANITE = {"attention_multiplier": 0.3, "residual_multiplier": 0.5, "logits_scaling": 2.0}
# With a token for it, it warns of texts that hold that token.
_WITHOUT_PADDING = {"pad_token_id": None}
_SLIDING_QWEN2 = {"use_sliding_window": True, "sliding_window": WINDOW}


@dataclass(frozen=True)
class ModelFamily:
    """A family, and what the engine does with it.

    Attributes:
        label: What people call it.
        model_type: What transformers calls the configuration of its text model.
        cases: Tiny models of it, and how the configuration of each differs from `SIZES`; "model_type" among the
            differences names a model around the text model.
        is_native: Whether a native decoder runs it on a CPU, in float32.
        is_everywhere: Whether it is tested on transformers 4.57 too, and not on 5 alone.
        chains: Why drafts do not branch; "" where they do.
        refused: Why it is refused, as a part of the sentence by which it is; "" where it is not.
    """

    label: str
    model_type: str
    cases: Mapping[str, Mapping[str, Any]]
    is_native: bool = False
    is_everywhere: bool = True
    chains: str = ""
    refused: str = ""


def _one(label: str, model_type: str, differences: Mapping[str, Any] | None = None, **verdict: Any) -> ModelFamily:
    return ModelFamily(label, model_type, {model_type.removesuffix("_text"): differences or {}}, **verdict)


MODEL_FAMILIES = [
    ModelFamily(
        "Llama 1 to 3",
        "llama",
        {
            "llama": {},
            "llama-multi-query": {"num_key_value_heads": 1},
            "llama-multi-head": {"num_key_value_heads": 4},
            "llama-dynamic-rope": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        },
        is_native=True,
    ),
    ModelFamily(
        "Mistral",
        "mistral",
        {"mistral": {"sliding_window": WINDOW}, "mistral-without-window": {"sliding_window": None}},
        is_native=True,
    ),
    ModelFamily(
        "Qwen 1.5 to 2.5",
        "qwen2",
        {
            "qwen2": {},
            "qwen2-some-sliding": {**_SLIDING_QWEN2, "max_window_layers": 1},
            "qwen2-all-sliding": {**_SLIDING_QWEN2, "max_window_layers": 0},
        },
        is_native=True,
    ),
    _one("Qwen 3", "qwen3", {"head_dim": 16}, is_native=True),
    _one("SmolLM3", "smollm3", {"no_rope_layer_interval": 2}, is_native=True),
    _one("Gemma 1", "gemma", {"head_dim": 16}, is_native=True),
    _one("Gemma 2", "gemma2", GEMMA3, is_native=True),
    ModelFamily(
        "Gemma 3 (text)",
        "gemma3_text",
        {"gemma3": GEMMA3, "gemma3-with-images": {"model_type": "gemma3"}},
        is_native=True,
    ),
    ModelFamily(
        "Phi-3, Phi-4",
        "phi3",
        {
            "phi3": {"sliding_window": WINDOW},
            "phi3-partial-rope": {"partial_rotary_factor": 0.5, "sliding_window": None},
            "phi3-long-rope": {
                "max_position_embeddings": 2 * POSITIONS,
                "original_max_position_embeddings": POSITIONS,
                "rope_scaling": _LONG_ROPE,
            },
        },
        is_native=True,
    ),
    _one("Granite", "granite", _GRANITE, is_native=True),
    ModelFamily(
        "GPT-2",
        "gpt2",
        {
            "gpt2": _WITHOUT_PADDING,
            "gpt2-layer-scaling": {
                **_WITHOUT_PADDING,
                "scale_attn_by_inverse_layer_idx": True,
                "reorder_and_upcast_attn": True,
            },
        },
    ),
    ModelFamily(
        "GPT-NeoX, Pythia",
        "gpt_neox",
        {
            "gpt_neox": {"use_parallel_residual": True},
            "gpt_neox-sequential": {"use_parallel_residual": False, "rotary_pct": 1.0},
        },
    ),
    _one("gpt-oss", "gpt_oss", {"head_dim": 8, **_SLIDING, **_FOUR_LOCAL}),
    ModelFamily(
        "Gemma 3n (text)",
        "gemma3n_text",
        {
            "gemma3n": {**_GEMMA3N, "activation_sparsity_pattern": [0.0] * 4},
            "gemma3n-sparse": {**_GEMMA3N, "activation_sparsity_pattern": [0.9, 0.9, 0.0, 0.0]},
        },
    ),
    ModelFamily(
        "Gemma 4 (text)",
        "gemma4_text",
        {
            "gemma4": _SHARED,
            "gemma4-large": _GEMMA4,
            "gemma4-experts": {
                **_GEMMA4,
                "enable_moe_block": True,
                "num_experts": 4,
                "top_k_experts": 2,
                "moe_intermediate_size": 16,
            },
            "gemma4-with-images": {"model_type": "gemma4"},
        },
        is_everywhere=False,
    ),
    _one("Mixtral", "mixtral", {**_FOUR_LOCAL, "sliding_window": None}),
    _one("Qwen 1.5 MoE", "qwen2_moe", {**_FOUR, "shared_expert_intermediate_size": 16}),
    # With three layers it repeats a token.
    _one("Qwen 3 MoE", "qwen3_moe", {"head_dim": 16, "num_hidden_layers": 2, **_FOUR}),
    _one("Granite MoE", "granitemoe", {**_GRANITE, **_FOUR_LOCAL}),
    _one("OLMoE", "olmoe", _FOUR),
    _one("Phi-3.5 MoE", "phimoe", _FOUR_LOCAL, is_everywhere=False),
    _one("GLM-4.5", "glm4_moe", {"head_dim": 8, **_FOUR_ROUTED}),
    _one("Ernie 4.5 MoE", "ernie4_5_moe", {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16}),
    _one("Hunyuan MoE", "hunyuan_v1_moe", {"head_dim": 8, "num_experts": 4, "moe_topk": 2}),
    _one("MiniMax M2", "minimax_m2", {"head_dim": 8, "rotary_dim": 4, **_FOUR_LOCAL}, is_everywhere=False),
    _one("DeepSeek V2", "deepseek_v2", {**_MLA, **_FOUR_ROUTED}),
    _one("DeepSeek V3, R1", "deepseek_v3", {**_MLA, **_FOUR_ROUTED}),
    _one("OLMo", "olmo"),
    _one("OLMo 2", "olmo2"),
    _one("OLMo 3", "olmo3", _SLIDING),
    _one("StableLM", "stablelm"),
    _one("Command R", "cohere"),
    _one("Command R7B, Command A", "cohere2", _SLIDING),
    _one("Phi-1, Phi-2", "phi"),
    _one("GLM-4 (9B)", "glm", {"head_dim": 8}),
    _one("GLM-4 (0414)", "glm4", {"head_dim": 8}),
    _one("EXAONE 4", "exaone4", _SLIDING),
    ModelFamily(
        "Falcon",
        "falcon",
        {
            # With three layers it repeats one token.
            "falcon": {"num_hidden_layers": 4},
            "falcon-multi-head": {"multi_query": False, "parallel_attn": False, "bias": True},
            "falcon-groups": {"new_decoder_architecture": True, "num_kv_heads": 2},
        },
    ),
    _one("OPT", "opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    # Its older code is compiled by what PyTorch warns of.
    _one("StarCoder", "gpt_bigcode", is_everywhere=False),
    _one("StarCoder 2", "starcoder2", {"sliding_window": WINDOW}),
    _one("Nemotron, Minitron", "nemotron"),
    _one("Ernie 4.5", "ernie4_5"),
    _one("Seed-OSS", "seed_oss", {"head_dim": 8}),
    _one("Hunyuan", "hunyuan_v1_dense", {"head_dim": 8}),
    _one("Ministral", "ministral", {"head_dim": 8, **_SLIDING}),
    _one("Ministral 3", "ministral3", {"head_dim": 8}, is_everywhere=False),
    _one("Arcee", "arcee"),
    _one("Helium", "helium", {"head_dim": 8}),
    _one("GPT-J", "gptj", {"rotary_dim": 4}),
    _one(
        "MPT",
        "mpt",
        {"max_seq_len": POSITIONS},
        is_everywhere=False,
        chains="it takes a place in memory for a position",
    ),
    ModelFamily(
        "Falcon with ALiBi",
        "falcon",
        {"falcon-alibi": {"alibi": True}},
        refused="its attention takes distances for positions (ALiBi)",
    ),
    _one("BLOOM", "bloom", refused="its attention takes distances for positions (ALiBi)"),
    _one(
        "Llama 4",
        "llama4_text",
        {**_FOUR_LOCAL, "intermediate_size_mlp": 16},
        refused="it has layers of kind chunked_attention",
    ),
]
