"""Writes a head in the format of vLLM's speculators, which vLLM and SGLang load, too."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from langchain_specdec.errors import UnsupportedModelError
from langchain_specdec.models.heads.eagle3_config import Eagle3Config
from langchain_specdec.models.heads.eagle3_head import Eagle3Head
from langchain_specdec.paths import write_output


def save_head(
    head: Eagle3Head,
    folder: str | os.PathLike[str],
    target_name: str,
    architectures: Sequence[str],
    num_speculative_tokens: int,
) -> Path:
    """Write a head's config.json and model.safetensors, in the type that it is in.

    Its format has been read in https://github.com/vllm-project/speculators. `Eagle3Speculator` is the name by which
    SGLang knows it.

    Args:
        head: The head.
        folder: Where to write; made where it is not there.
        target_name: Id or folder of the model that it drafts for, from which vLLM serves both.
        architectures: Of that model, as its config.json says.
        num_speculative_tokens: How many tokens a server is to draft by default.

    Returns:
        The folder.

    Raises:
        UnsupportedModelError: The format has no words for such a head.
    """
    config = head.config
    if not config.has_fc or config.embedding_size != config.hidden_size:
        msg = (
            "The head cannot be saved in the format of speculators, which knows none without fc, nor one whose "
            "embeddings have another size than its states."
        )
        raise UnsupportedModelError(msg)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # A copy of each: the format takes no two names for the same memory.
    weights = {name: weight.detach().cpu().clone().contiguous() for name, weight in head.state_dict().items()}
    if head.target_ids is not None:
        ids = head.target_ids.cpu()
        weights["d2t"] = ids - torch.arange(len(ids))
        weights["t2d"] = torch.zeros(config.vocab_size, dtype=torch.bool).index_fill(0, ids, value=True)
    # By `save_file` it would be its owner's alone, whom a server need not run as.
    write_output(folder / "model.safetensors", save(weights, metadata={"format": "pt"}))
    written = {
        "architectures": ["Eagle3Speculator"],
        "draft_vocab_size": config.draft_vocab_size,
        "dtype": str(head.norm.weight.dtype).removeprefix("torch."),
        "eagle_aux_hidden_state_layer_ids": list(config.tap_points),
        "fc_norm": config.fc_norm,
        "norm_before_fc": config.norm_before_fc,
        "norm_before_residual": config.norm_before_residual,
        "norm_output": config.norm_output,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [
                {
                    "accept_tolerance": 0.0,
                    "proposal_type": "greedy",
                    "speculative_tokens": num_speculative_tokens,
                    "verifier_accept_k": 1,
                }
            ],
            "verifier": {"architectures": list(architectures), "name_or_path": target_name},
        },
        "speculators_model_type": "eagle3",
        "target_hidden_size": None if config.target_hidden_size == config.hidden_size else config.target_hidden_size,
        "transformer_layer_config": _layer_config(config),
    }
    (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    return folder


def _layer_config(config: Eagle3Config) -> dict[str, Any]:
    """The head's layers as Llama's or Qwen3's, in words that transformers 4 and 5 read."""
    rope = dict(config.rope)
    theta, partial = rope.pop("rope_theta"), rope.pop("partial_rotary_factor", None)
    layer: dict[str, Any] = {
        "attention_bias": config.attention_bias,
        "head_dim": config.head_dim,
        "hidden_act": config.activation,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_positions,
        "mlp_bias": config.mlp_bias,
        "model_type": "qwen3" if config.has_qk_norm else "llama",
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
        "rope_theta": theta,
        "tie_word_embeddings": False,
        "vocab_size": config.vocab_size,
    }
    return layer if partial is None else layer | {"partial_rotary_factor": partial}
