"""Model families as tiny random models, and what each writes by itself, without a cache."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import dynamic_rope_update
from transformers.utils import logging

from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.models.loader import load_model
from tests.support import tiny_models as tiny

# None is the engine's own attention, the others are transformers'.
ATTENTIONS = [None, "sdpa", "eager"]
POSITIONS, WINDOW, MAX_WIDTH = 64, 7, 6

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
ALTERNATING = {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
GEMMA3 = {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": WINDOW, **ALTERNATING}
GPT2: dict[str, Any] = {
    "vocab_size": tiny.VOCAB,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": POSITIONS,
    "bos_token_id": 257,
    "eos_token_id": tiny.EOS,
    "tie_word_embeddings": False,
}
# The last two layers read the keys and values of the first two.
SHARED_LAYERS = {
    "head_dim": 8,
    "sliding_window": WINDOW,
    **ALTERNATING,
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": tiny.VOCAB,
    "hidden_size_per_layer_input": 8,
    "activation_sparsity_pattern": [0.0] * 4,
}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
LONG_ROPE = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}

# Type of model, and how its configuration differs from SIZES.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-multi-query": ("llama", {"num_key_value_heads": 1}),
    "llama-multi-head": ("llama", {"num_key_value_heads": 4}),
    "llama-dynamic-rope": ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
    "mistral": ("mistral", {"sliding_window": WINDOW}),
    "mistral-without-window": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2-some-sliding": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen2-all-sliding": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 0},
    ),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 2}),
    "gemma2": ("gemma2", {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": WINDOW, **ALTERNATING}),
    "gemma3": ("gemma3_text", GEMMA3),
    "gemma3-with-images": ("gemma3", {}),
    "phi3": ("phi3", {"sliding_window": WINDOW}),
    "phi3-long-rope": (
        "phi3",
        {
            "max_position_embeddings": 2 * POSITIONS,
            "original_max_position_embeddings": POSITIONS,
            "rope_scaling": LONG_ROPE,
        },
    ),
    "gpt2": ("gpt2", {}),
    "gpt2-layer-scaling": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
    "gpt_neox": ("gpt_neox", {"use_parallel_residual": True}),
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False, "rotary_pct": 1.0}),
}
# Families that the loader compares with their own forward before it lets them through.
OTHER_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "olmo2": ("olmo2", {}),
    "granite": ("granite", {"attention_multiplier": 0.3, "residual_multiplier": 0.5, "logits_scaling": 2.0}),
    "cohere": ("cohere", {}),
    "stablelm": ("stablelm", {}),
    "gemma3n": ("gemma3n_text", {**SHARED_LAYERS, "laurel_rank": 4, "altup_num_inputs": 2, "altup_active_idx": 0}),
}
if "gemma4_text" in CONFIG_MAPPING:
    OTHER_FAMILIES["gemma4"] = ("gemma4_text", SHARED_LAYERS)
ALL_FAMILIES = FAMILIES | OTHER_FAMILIES
# Families with ALiBi, which take a token's place in its slot for its position.
WITHOUT_TREES: dict[str, tuple[str, dict[str, Any]]] = {"mpt": ("mpt", {"max_seq_len": POSITIONS})}
# What these do to their scores, transformers' sdpa does not.
WITHOUT_SDPA = ("gemma2", "gpt2-layer-scaling")
# Their frequencies depend on the largest position, which transformers looks up on the host in each forward; those of
# the second one since some version of 5 no more.
WAITING_FAMILIES = {"llama-dynamic-rope"}
if "torch.where" not in inspect.getsource(dynamic_rope_update):
    WAITING_FAMILIES |= {"phi3-long-rope"}
CASES = [(n, a) for n in ALL_FAMILIES for a in ATTENTIONS if not (a == "sdpa" and n in WITHOUT_SDPA)]


def make_config(name: str) -> Any:
    level = logging.get_verbosity()
    # Some of the odd configurations here are warned of.
    logging.set_verbosity_error()
    try:
        return _make_config(name)
    finally:
        logging.set_verbosity(level)


def _make_config(name: str) -> Any:
    model_type, differences = (ALL_FAMILIES | WITHOUT_TREES)[name]
    if model_type == "gpt2":
        return AutoConfig.for_model("gpt2", **GPT2 | differences)
    if model_type == "gemma3":
        vision = {**VISION, "model_type": "siglip_vision_model", "image_size": 8, "patch_size": 4}
        return AutoConfig.for_model(
            "gemma3",
            text_config=SIZES | GEMMA3,
            vision_config=vision,
            mm_tokens_per_image=1,
            image_token_index=255,
            tie_word_embeddings=False,
        )
    sizes = dict(SIZES)
    if model_type in ("gpt_neox", "mpt"):
        del sizes["num_key_value_heads"]
    return AutoConfig.for_model(model_type, **sizes | differences)


def make_model(name: str, device: str = "cpu", attention: str = "eager") -> Any:
    """A random model whose matrices are large enough for its choices to depend on the context."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(make_config(name), attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(15.0)
    return model.to(device)


@functools.cache
def make_reference(name: str, device: str) -> Any:
    return make_model(name, device)


def reference_logits(name: str, device: str, tokens: Sequence[int]) -> Any:
    """The model's own logits over a whole text, without a cache."""
    return _reference_logits(name, device, tuple(tokens))


# Tests of one family by different attentions ask for the same texts, one test after the other.
@functools.lru_cache(maxsize=500)
def _reference_logits(name: str, device: str, tokens: tuple[int, ...]) -> Any:
    with torch.inference_mode():
        ids = torch.tensor([tokens], device=device)
        # Without a cache, layers that share keys and values compute their own on transformers 4.
        shares = "num_kv_shared_layers" in (ALL_FAMILIES | WITHOUT_TREES)[name][1]
        return make_reference(name, device)(input_ids=ids, use_cache=shares).logits[0]


@functools.cache
def reference_text(name: str, device: str, prompt: tuple[int, ...], num_tokens: int) -> list[int]:
    """What the model writes by itself, every token from a forward over the whole text."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(int(reference_logits(name, device, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def load(name: str, device: str, attention: str | None = None) -> LoadedModel:
    # What StableLM's attention is has to be said when it is made (transformers 4).
    model = make_model(name, device, (name == "stablelm" and attention) or "eager")
    return load_model(model, tiny.byte_tokenizer(), attn_implementation=attention)
