"""EAGLE-3 heads of random weights for tiny targets, written in each layout that there is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True)
class TinyHead:
    """Sizes and variants of a head; the defaults fit `target_of` that is not told otherwise.

    Attributes:
        taps: Layers whose incoming states it reads; None: its files do not say, which stands for [2, L // 2, L - 3].
        draft_vocab: Tokens that it drafts; None: all of the target's, without d2t and t2d.
        rope: As in a configuration of transformers 4: `rope_theta`, `rope_scaling` and `partial_rotary_factor`.
        table: A table of embeddings to write as its own; None: it has none.
        seed: Of its weights.
    """

    target_hidden: int = 32
    vocab: int = 258
    hidden: int = 32
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 8
    mlp: int = 48
    layers: int = 1
    taps: tuple[int, ...] | None = (2, 3, 5)
    draft_vocab: int | None = 60
    eps: float = 1e-5
    activation: str = "silu"
    rope: Mapping[str, Any] = field(default_factory=dict)
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    has_fc: bool = True
    has_output: bool = True
    table: Tensor | None = None
    seed: int = 0

    def weights(self) -> dict[str, Tensor]:
        """Its weights and maps in float32, by the names of speculators."""
        generator = torch.Generator().manual_seed(self.seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator) * (0.6 if len(shape) == 1 else shape[-1] ** -0.5)

        def norm(size: int) -> Tensor:
            return 1 + random(size)

        hidden, taps = self.hidden, len(self.taps or (0, 0, 0))
        width = self.target_hidden if self.table is None else self.table.shape[1]
        weights: dict[str, Tensor] = {"norm.weight": norm(hidden)}
        if self.has_fc:
            weights["fc.weight"] = random(hidden, taps * self.target_hidden)
        if self.norm_before_fc:
            weights["input_norm.weight"] = norm(taps * self.target_hidden)
        if self.fc_norm:
            weights |= {f"fc_norm.{i}.weight": norm(self.target_hidden) for i in range(taps)}
        for index in range(self.layers):
            inputs, prefix = (width + hidden, "layers.0.") if not index else (hidden, f"layers.{index}.")
            weights[f"{prefix}input_layernorm.weight"] = norm(hidden if index else width)
            if not index:
                weights[f"{prefix}hidden_norm.weight"] = norm(hidden)
            weights[f"{prefix}post_attention_layernorm.weight"] = norm(hidden)
            sizes = {"q": self.heads, "k": self.kv_heads, "v": self.kv_heads}
            linear = {f"self_attn.{name}_proj": (count * self.head_dim, inputs) for name, count in sizes.items()}
            linear["self_attn.o_proj"] = (hidden, self.heads * self.head_dim)
            linear |= {f"mlp.{name}_proj": (self.mlp, hidden) for name in ("gate", "up")}
            linear["mlp.down_proj"] = (hidden, self.mlp)
            for name, (outputs, width_in) in linear.items():
                weights[f"{prefix}{name}.weight"] = random(outputs, width_in)
                if self.attention_bias if "attn" in name else self.mlp_bias:
                    weights[f"{prefix}{name}.bias"] = random(outputs)
            if self.qk_norm:
                weights |= {f"{prefix}self_attn.{name}_norm.weight": norm(self.head_dim) for name in "qk"}
        if self.has_output:
            weights["lm_head.weight"] = random(self.draft_vocab or self.vocab, hidden)
        if self.table is not None:
            weights["embed_tokens.weight"] = self.table
        if self.draft_vocab is not None:
            ids = torch.randperm(self.vocab, generator=generator)[: self.draft_vocab].sort().values
            weights["d2t"] = ids - torch.arange(len(ids))
            weights["t2d"] = torch.zeros(self.vocab, dtype=torch.bool).index_fill(0, ids, value=True)
        return weights

    def speculators_config(self) -> dict[str, Any]:
        """Its config.json as RedHatAI's heads have it."""
        layer = self._layer() | {"model_type": "qwen3" if self.qk_norm else "llama"}
        return {
            "architectures": ["Eagle3DraftModel"],
            "draft_vocab_size": self.draft_vocab or self.vocab,
            "eagle_aux_hidden_state_layer_ids": None if self.taps is None else list(self.taps),
            **self._flags(),
            "speculators_config": {
                "algorithm": "eagle3",
                "default_proposal_method": "greedy",
                "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 3}],
                "verifier": {"architectures": ["LlamaForCausalLM"], "name_or_path": "owner/tiny"},
            },
            "speculators_model_type": "eagle3",
            "target_hidden_size": None if self.target_hidden == self.hidden else self.target_hidden,
            "transformer_layer_config": layer,
        }

    def classic_config(self) -> dict[str, Any]:
        """Its config.json as SpecForge's heads have it, with the target's number of layers in it."""
        eagle: dict[str, Any] = {"use_aux_hidden_state": self.has_fc, **self._flags()}
        if self.taps is not None:
            eagle["eagle_aux_hidden_state_layer_ids"] = list(self.taps)
        return {
            "architectures": ["LlamaForCausalLMEagle3"],
            "draft_vocab_size": self.draft_vocab,
            "eagle_config": eagle,
            "target_hidden_size": self.target_hidden,
            **self._layer(),
            "num_hidden_layers": 36,
        }

    def write(self, folder: Path, layout: str = "speculators", files: str = "safetensors") -> Path:
        """Write it.

        Args:
            folder: A new folder.
            layout: `"speculators"` or `"classic"`.
            files: `"safetensors"`, `"sharded"` or `"bin"`.
        """
        folder.mkdir(parents=True)
        config = self.speculators_config() if layout == "speculators" else self.classic_config()
        weights = self.weights()
        if layout == "classic":
            weights = {name.replace("layers.0.", "midlayer."): weight for name, weight in weights.items()}
        write_files(folder, config, weights, files)
        return folder

    def _flags(self) -> dict[str, bool]:
        names = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
        return {name: getattr(self, name) for name in names}

    def _layer(self) -> dict[str, Any]:
        return {
            "attention_bias": self.attention_bias,
            "head_dim": self.head_dim,
            "hidden_act": self.activation,
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "max_position_embeddings": 512,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": self.eps,
            "vocab_size": self.vocab,
            **self.rope,
        }


def write_files(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], files: str) -> None:
    """Write a config.json and weights, as `TinyHead.write` does."""
    (folder / "config.json").write_text(json.dumps(config))
    weights = {name: weight.clone() for name, weight in weights.items()}
    if files == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
        return
    if files == "safetensors":
        save_file(weights, folder / "model.safetensors")
        return
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(weights)}
    for part in set(places.values()):
        save_file({name: weight for name, weight in weights.items() if places[name] == part}, folder / part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def target_of(head: TinyHead, **options: Any) -> Any:
    """A random Llama of five layers that a head fits."""
    from tests.support.tiny_models import tiny_model

    sizes = {"hidden_size": head.target_hidden, "vocab_size": head.vocab, "num_hidden_layers": 5}
    return tiny_model(**sizes | options)
