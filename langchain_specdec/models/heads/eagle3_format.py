"""EAGLE-3 heads as their config.json and the shapes of their weights tell of them, in both formats that there are.

The classic one is of SafeAILab's EAGLE, SpecForge, AngelSlim and, with another name for its layers, DeepSpec; the other
one of vLLM's speculators, as RedHatAI's.
What the weights say counts: a configuration's number of layers, for one, is often the target's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn

from langchain_specdec.errors import UnsupportedModelError
from langchain_specdec.models.heads.eagle3_config import Eagle3Config
from langchain_specdec.models.heads.eagle3_head import ACTIVATIONS
from langchain_specdec.models.heads.head_source import HeadSource
from langchain_specdec.models.heads.rotary_frequencies import KINDS
from langchain_specdec.models.heads.target_sizes import TargetSizes

Shapes = Mapping[str, tuple[int, ...]]
# States that a head reads where it names no layers.
_NUM_TAPS = 3
# What each kind of rotary positions has to be told.
_ROPE_NEEDS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor",),
}
# Without these, nothing can be said of its sizes.
_ESSENTIAL = (
    "norm.weight", "layers.0.input_layernorm.weight", "layers.0.self_attn.q_proj.weight",
    "layers.0.self_attn.k_proj.weight", "layers.0.mlp.gate_proj.weight",
)  # fmt: skip
_TAP_IDS = "eagle_aux_hidden_state_layer_ids"


def format_name(source: HeadSource) -> str:
    """What the format of an EAGLE-3 head is called, for people."""
    is_classic = source.config.get("speculators_model_type") is None
    return "EAGLE-3, as of SafeAILab and SpecForge" if is_classic else "EAGLE-3, as of vLLM's speculators"


def check_kind(source: HeadSource) -> None:
    """Raise an `UnsupportedModelError` where a head is certainly none of EAGLE-3."""
    config = source.config
    kind = config.get("speculators_model_type")
    names = " ".join(map(str, config.get("architectures") or ()))
    if kind is None and "eagle3" not in names.lower():
        marks = (config.get("model_type"), *re.findall(r"(?i)dflash|dspark|medusa|mlpspeculator|peagle|eagle", names))
        known = ("eagle", "medusa", "mlp_speculator", "dflash", "dspark", "mlpspeculator", "peagle")
        kind = next((str(mark).lower() for mark in marks if str(mark).lower() in known), None)
        kind = "dflash" if config.get("dflash_config") else kind
    if kind not in (None, "eagle3"):
        why = (
            "it drafts several tokens in one forward"
            if kind in ("peagle", "dflash", "dspark")
            else "it works otherwise"
        )
        _refuse(source, f"it is a head of kind {kind!r}, and {why}. Of trained heads, EAGLE-3's run here")


def read_format(source: HeadSource, shapes: Shapes, target: TargetSizes) -> Eagle3Config:
    """The configuration of a head, as far as it makes sense by itself; `check_head` says whether it fits the target.

    Args:
        source: The head.
        shapes: Of its weights, under the names of `Eagle3Head`.
        target: What it is to draft for: some things a head leaves to be those of its target.

    Raises:
        UnsupportedModelError: It is a head of another kind, lacks what each has, or has what none here does.
    """
    check_kind(source)
    _check_weights(source, shapes)
    config = source.config
    layer = config.get("transformer_layer_config") or config
    hidden, embedding_size = shapes["norm.weight"][0], shapes["layers.0.input_layernorm.weight"][0]
    queries, keys = (shapes[f"layers.0.self_attn.{name}_proj.weight"][0] for name in "qk")
    # Both Llama's and Qwen3's default, which configurations of the speculators format leave out.
    num_heads = int(layer.get("num_attention_heads") or 32)
    head_dim = queries // num_heads
    num_kv_heads = keys // max(head_dim, 1)
    is_whole = head_dim * num_heads == queries and head_dim * num_kv_heads == keys and num_kv_heads > 0
    if not is_whole or num_heads % num_kv_heads or layer.get("head_dim") not in (None, head_dim):
        _refuse(
            source,
            f"its config.json tells of {num_heads} heads of queries, and of head_dim {layer.get('head_dim')}, and its "
            f"weights have {queries} numbers for all queries and {keys} for all keys. Take files that belong together",
        )
    if (activation := layer.get("hidden_act") or "silu") not in ACTIVATIONS:
        _refuse(source, f"its MLP has the activation {activation!r}; {', '.join(ACTIVATIONS)} are known")
    if "sliding_attention" in (layer.get("layer_types") or ()):
        _refuse(source, "its attention has a sliding window, and heads here see the whole text")
    has_fc = _flag(config, "use_aux_hidden_state", default=True)
    has_output = "lm_head.weight" in shapes
    draft_vocab = shapes["lm_head.weight"][0] if has_output else config.get("draft_vocab_size") or target.vocab_size
    max_positions = int(layer.get("max_position_embeddings") or 2048)
    return Eagle3Config(
        tap_points=_tap_points(source, target) if has_fc else (target.num_layers,),
        hidden_size=hidden,
        target_hidden_size=int(config.get("target_hidden_size") or target.hidden_size),
        embedding_size=embedding_size,
        intermediate_size=shapes["layers.0.mlp.gate_proj.weight"][0],
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=next(
            (shapes[name][0] for name in ("t2d", "embed_tokens.weight") if name in shapes), target.vocab_size
        ),
        draft_vocab_size=draft_vocab,
        num_layers=1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("layers.")),
        rms_norm_eps=float(layer.get("rms_norm_eps") or 1e-6),
        rope=_rope(source, layer, max_positions),
        max_positions=max_positions,
        activation=activation,
        norm_before_residual=_flag(config, "norm_before_residual"),
        norm_before_fc="input_norm.weight" in shapes or _flag(config, "norm_before_fc"),
        fc_norm="fc_norm.0.weight" in shapes or _flag(config, "fc_norm") or _flag(config, "use_aux_norm"),
        norm_output=_flag(config, "norm_output"),
        attention_bias="layers.0.self_attn.q_proj.bias" in shapes,
        mlp_bias="layers.0.mlp.gate_proj.bias" in shapes,
        has_qk_norm="layers.0.self_attn.q_norm.weight" in shapes,
        has_fc=has_fc,
        has_embedding="embed_tokens.weight" in shapes,
        has_output=has_output,
    )


def _refuse(source: HeadSource, reason: str) -> NoReturn:
    raise UnsupportedModelError(f"The head {source.name} cannot be run: {reason}.")


def _check_weights(source: HeadSource, shapes: Shapes) -> None:
    names = " ".join(shapes)
    if "kv_a_proj" in names:
        _refuse(source, "its attention is of DeepSeek's kind (MLA); heads with Llama's or Qwen3's layers run here")
    if "pre_feedforward_layernorm" in names:
        _refuse(source, "its layer is Gemma's; heads with Llama's or Qwen3's layers run here")
    if "mask_hidden" in shapes:
        _refuse(source, "it is a P-EAGLE head, which drafts several tokens in one forward; EAGLE-3's run here")
    if "layers.0.self_attn.q_proj.weight" in shapes and "layers.0.hidden_norm.weight" not in shapes:
        _refuse(
            source,
            "it is no head of EAGLE-3, whose first layer norms a state (hidden_norm) beside the token. One of EAGLE-1 "
            "or EAGLE-2 reads the last layer alone, and drafts worse: look for an EAGLE-3 head of the model",
        )
    if lacking := [name for name in _ESSENTIAL if name not in shapes]:
        _refuse(source, f"its files lack {', '.join(lacking)}. Download it anew, or give another head")


def _flag(config: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    """A switch, which stands in the configuration itself, or in its `eagle_config`."""
    value = config.get(name)
    value = (config.get("eagle_config") or {}).get(name) if value is None else value
    return default if value is None else bool(value)


def _tap_points(source: HeadSource, target: TargetSizes) -> tuple[int, ...]:
    """The layers whose incoming states a head reads.

    Two conventions are about: most name the layer that a state enters, as vLLM reads them, and ModelOpt and older heads
    of SpecForge the layer that it leaves, one less. The first state is that between the target's second layer and its
    third in nearly all heads, so that 1 in its place tells the latter, as SGLang has it
    (https://github.com/sgl-project/sglang/pull/25454).
    """
    config, layers = source.config, target.num_layers
    if left := config.get("target_layer_ids"):
        # DeepSpec's name for them, https://github.com/deepseek-ai/DeepSpec: hidden_states[i + 1].
        return tuple(int(layer) + 1 for layer in left)
    default = (2, layers // 2, layers - 3)
    ids = config.get(_TAP_IDS) or (config.get("eagle_config") or {}).get(_TAP_IDS)
    if not ids:
        return default
    points = tuple(map(int, ids))
    if points == tuple(point - 1 for point in default) or ("speculators_model_type" not in config and points[0] == 1):
        return tuple(point + 1 for point in points)
    return points


def _rope(source: HeadSource, layer: Mapping[str, Any], max_positions: int) -> dict[str, Any]:
    """Rotary positions in the words of transformers 5, from those of any version.

    The first EAGLE-3 heads name no `rope_theta`, and were trained with 10000 whatever the target has.
    """
    rope = dict(layer.get("rope_parameters") or layer.get("rope_scaling") or {})
    rope = dict(rope.get("full_attention") or rope)
    kind = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    rope.pop("type", None)
    # For text alone, the three positions that images have are one.
    kind = "default" if kind == "mrope" or "mrope_section" in rope else kind
    if kind not in KINDS:
        _refuse(source, f"its rotary positions are of kind {kind!r}; {', '.join(KINDS)} are known")
    if lacking := [name for name in _ROPE_NEEDS.get(kind, ()) if rope.get(name) is None]:
        _refuse(source, f"its config.json gives no {', '.join(lacking)} for rotary positions of kind {kind!r}")
    theta = rope.get("rope_theta") or layer.get("rope_theta") or 10000.0
    partial = rope.get("partial_rotary_factor") or layer.get("partial_rotary_factor")
    rope |= {"rope_type": kind, "rope_theta": float(theta)}
    if partial is not None:
        rope["partial_rotary_factor"] = float(partial)
    if kind == "yarn":
        rope["original_max_position_embeddings"] = rope.get("original_max_position_embeddings") or max_positions
    return rope
