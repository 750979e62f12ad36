"""Tiny models of Gemma 4 and assistants for them, of random weights or such that know what the model writes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

WINDOW = 6
_SIZES = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 16,
    "sliding_window": WINDOW,
    "max_position_embeddings": 256,
}
_LAYERS = ["sliding_attention", "full_attention"]


def gemma4_config(vocab: int = 258, hidden: int = 32, **differences: Any) -> Any:
    """That of a model whose last two layers share the keys of the two before them."""
    sizes = {
        **_SIZES, "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": 48, "num_hidden_layers": 6,
        "layer_types": _LAYERS * 3, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": vocab, "tie_word_embeddings": False, **differences,
    }  # fmt: skip
    return AutoConfig.for_model("gemma4_text", **sizes)


def assistant_config(
    vocab: int = 258, hidden: int = 16, backbone: int = 32, *, centroids: int = 0, kind: str = "gemma4"
) -> Any:
    """That of an assistant, which scores tokens by so many centroids, the best two of them; 0: all tokens."""
    text = {
        **_SIZES, "model_type": f"{kind}_text", "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": 24,
        "num_hidden_layers": 3, "layer_types": ["sliding_attention", *_LAYERS], "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 0, "num_kv_shared_layers": 3,
    }  # fmt: skip
    return AutoConfig.for_model(
        f"{kind}_assistant", text_config=text, backbone_hidden_size=backbone, use_ordered_embeddings=bool(centroids),
        num_centroids=centroids or 2048, centroid_intermediate_top_k=2,
    )  # fmt: skip


def gemma4(**differences: Any) -> Any:
    """A random model."""
    return _made(gemma4_config(**differences))


def assistant(**differences: Any) -> Any:
    """A random assistant."""
    made = _made(assistant_config(**differences), 1)
    if made.masked_embedding is not None:
        order = torch.randperm(made.vocab_size, generator=torch.Generator().manual_seed(3))
        made.masked_embedding.token_ordering.copy_(order)
    return made


def knowing_pair(following: Tensor) -> tuple[Any, Any]:
    """A model that writes after each token the one that follows it, and an assistant that knows it."""
    size = len(following)
    model = gemma4(vocab=size, hidden=size, hidden_size_per_layer_input=0, num_kv_shared_layers=0)
    pair = model, assistant(vocab=size, hidden=size, backbone=size)
    with torch.no_grad():
        for model in pair:
            for name, weight in model.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    weight.zero_()
                if name.endswith("norm.weight"):
                    weight.fill_(1.0)
            model.lm_head.weight.zero_()
            model.lm_head.weight[following, torch.arange(size)] = 1.0
        pair[0].model.embed_tokens.weight.copy_(torch.eye(size))
        pair[1].pre_projection.weight.copy_(torch.cat([torch.eye(size), torch.zeros(size, size)], 1))
    return pair


def _made(config: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(15.0)
    return model.requires_grad_(False)
