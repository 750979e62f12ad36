"""Heads that draft for a model, in the formats that TGI reads: their guess is always the last token once more."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def write_medusa(folder: Path, base: str, output: torch.Tensor, num_heads: int = 2) -> Path:
    """Write Medusa heads, version 1, of one layer each.

    Args:
        folder: A new folder.
        base: Folder of the model they belong to.
        output: Its output embeddings: (vocabulary size, hidden size).
        num_heads: How many there are to be.
    """
    hidden = output.shape[1]
    weights: dict[str, torch.Tensor] = {}
    for head in range(num_heads):
        # A layer adds what it makes of its input to it: nothing.
        weights[f"{head}.0.linear.weight"] = torch.zeros(hidden, hidden)
        weights[f"{head}.0.linear.bias"] = torch.zeros(hidden)
        weights[f"{head}.1.weight"] = output
    # No key `architectures`: TGI would not load the heads.
    config = {"medusa_num_heads": num_heads, "medusa_num_layers": 1, "base_model_name_or_path": base}
    return _write(folder, config, "medusa_lm_head.safetensors", weights)


def write_mlp_speculator(folder: Path, base: str, output: torch.Tensor, num_heads: int = 2) -> Path:
    """Write an MLP speculator whose heads share their weights; the parameters are those of `write_medusa`.

    Its state is the model's hidden state x beside -x. As gelu(x) - gelu(-x) = x, all is linear but the scale, which
    does not matter to the best token.
    """
    vocab, hidden = output.shape
    inner = 2 * hidden
    one = torch.eye(hidden)
    apart = torch.cat([one, -one])
    weights = {
        "speculator.emb.0.weight": torch.zeros(vocab, inner),
        "speculator.proj.0.weight": apart,
        "speculator.proj.1.weight": torch.cat([apart, -apart], dim=1),
        "speculator.head.0.weight": torch.cat([output, -output], dim=1),
        "speculator.ln.0.weight": torch.ones(inner),
        "speculator.ln.0.bias": torch.zeros(inner),
    }
    config = {
        "model_type": "mlp_speculator",
        "architectures": ["MLPSpeculatorPreTrainedModel"],
        "n_predict": num_heads,
        "inner_dim": inner,
        "emb_dim": hidden,
        "vocab_size": vocab,
        "tie_weights": True,
        "scale_input": False,
        "base_model_name_or_path": base,
    }
    _write(folder, config, "model.safetensors", weights)
    # Of Medusa heads TGI takes the base model's.
    for file in Path(base).glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def _write(folder: Path, config: dict[str, Any], name: str, weights: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    # Copies, since safetensors takes no memory that tensors share.
    small = {key: value.detach().to(torch.bfloat16).clone().contiguous() for key, value in weights.items()}
    save_file(small, folder / name, metadata={"format": "pt"})
    return folder
