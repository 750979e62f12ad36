"""The weights of a GGUF file, as the native decoder takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from langchain_specdec.errors import ModelLoadError, UnsupportedModelError
from langchain_specdec.models.gguf.config import ARCHITECTURES, GGUFConfig
from langchain_specdec.models.gguf.file import GGUFFile
from langchain_specdec.models.gguf.rotary import FACTORS, rotaries
from langchain_specdec.models.gguf.tensors import read_matrices, read_vector
from langchain_specdec.runner.cpu.decoder_weights import Activation, DecoderWeights, Floats, LayerWeights, Matrix

# What a layer's tensors are called, and what they are here.
_MATRICES = {
    "attn_q": "query", "attn_k": "key", "attn_v": "value", "attn_output": "output",
    "ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down",
}  # fmt: skip
_VECTORS = {
    "attn_norm.weight": "attention_norm", "ffn_norm.weight": "mlp_norm",
    "attn_q_norm.weight": "query_norm", "attn_k_norm.weight": "key_norm",
    "post_attention_norm.weight": "post_attention_norm", "post_ffw_norm.weight": "post_mlp_norm",
    "attn_q.bias": "query_bias", "attn_k.bias": "key_bias", "attn_v.bias": "value_bias",
    "attn_output.bias": "output_bias",
}  # fmt: skip
_NORMS = {"attn_norm.weight", "ffn_norm.weight"}
_HEAD_NORMS = {"attn_q_norm.weight", "attn_k_norm.weight"}
_POST_NORMS = {"post_attention_norm.weight", "post_ffw_norm.weight"}
_BIASES = {"attn_q.bias", "attn_k.bias", "attn_v.bias"}
# What an architecture's layers have beside the matrices and the two norms that all have.
_EXTRAS = {
    "llama": set(), "smollm3": set(), "phi3": set(), "gemma": set(),
    "qwen2": _BIASES, "qwen3": _HEAD_NORMS, "gemma2": _POST_NORMS, "gemma3": _POST_NORMS | _HEAD_NORMS,
}  # fmt: skip
# What they may have.
_OPTIONAL = {name: {*_BIASES, "attn_output.bias"} for name in ("llama", "smollm3", "qwen3")}
# Numbers that are computed anew, or hold for longer texts than are taken.
_UNUSED = {"rope_factors_long.weight"}


def check_tensors(file: GGUFFile, config: GGUFConfig) -> None:
    """Compare the tensors of a file with those that its configuration asks for. Their numbers are not read.

    Raises:
        ModelLoadError: One is missing, or of another size.
        UnsupportedModelError: There is one that models of this kind do not have.
    """
    expected = _expected(file, config)
    for name, shape in expected.items():
        tensor = file.tensors.get(name)
        if tensor is None and _is_optional(name, file):
            continue
        if tensor is None:
            _not_whole(file, f"{name} is missing")
        if tensor.shape != shape:
            _not_whole(file, f"{name} has the size {tensor.shape}, where {shape} is due")
    known = {*expected, *FACTORS, *_UNUSED}
    strange = sorted(name for name in file.tensors.keys() - known if not name.endswith("attn_rot_embd.weight"))
    if strange:
        raise UnsupportedModelError(
            f"The engine cannot run {str(file.path)!r}: it has weights that are not known in a model of its "
            f"architecture ({', '.join(strange[:3])}{', ...' * (len(strange) > 3)}). Give the model in its original "
            "form."
        )


def read_weights(file: GGUFFile, config: GGUFConfig, name: str, tell: Callable[[int, int], None]) -> DecoderWeights:
    """Read the weights of a model into memory, as they are in its file.

    Args:
        file: A file that passes `check_tensors`.
        config: Its configuration.
        name: What the user calls the model.
        tell: Told how many bytes are read, and of how many.

    Raises:
        ModelLoadError: A file cannot be read.
        MissingDependencyError: The package gguf has to dequantise weights, and is not installed.
        UnsupportedModelError: Weights are of a type that nothing here reads.
    """
    kind = ARCHITECTURES[file.fields["general.architecture"]]
    # Others that a file may have are of any size.
    tensors = [tensor for name in _expected(file, config) if (tensor := file.tensors.get(name))]
    matrices = read_matrices([tensor for tensor in tensors if len(tensor.shape) == 2], name, tell)
    vectors = {tensor.name: read_vector(tensor) for tensor in tensors if len(tensor.shape) == 1}
    embedding = matrices["token_embd.weight"]
    softcaps = (getattr(config, f"{what}_logit_softcapping", None) for what in ("attn", "final"))
    attention_softcap, logit_softcap = softcaps
    scalar = getattr(config, "query_pre_attn_scalar", None)
    return DecoderWeights(
        layers=[_layer(i, matrices, vectors, config) for i in range(config.num_hidden_layers)],
        embedding=embedding,
        head=matrices.get("output.weight", embedding),
        final_norm=vectors["output_norm.weight"],
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        norm_eps=config.rms_norm_eps,
        rotary=rotaries(file, config),
        has_rotary_pairs=kind.has_rotary_pairs,
        activation=Activation.GELU_TANH if kind.is_gemma else Activation.SILU,
        embedding_scale=config.hidden_size**0.5 if kind.is_gemma else 1.0,
        attention_scale=scalar**-0.5 if scalar else None,
        attention_softcap=attention_softcap,
        logit_softcap=logit_softcap,
    )


def _layer(index: int, matrices: dict[str, Matrix], vectors: dict[str, Floats], config: GGUFConfig) -> LayerWeights:
    found = {ours: matrices.get(f"blk.{index}.{theirs}.weight") for theirs, ours in _MATRICES.items()}
    if fused := matrices.get(f"blk.{index}.attn_qkv.weight"):
        queries, keys = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
        found["query"] = fused.rows(0, queries)
        found["key"] = fused.rows(queries, queries + keys)
        found["value"] = fused.rows(queries + keys, queries + 2 * keys)
    if found["gate"] is None and (fused := found["up"]):
        found["gate"] = fused.rows(0, config.intermediate_size)
        found["up"] = fused.rows(config.intermediate_size, 2 * config.intermediate_size)
    others = {ours: vectors.get(f"blk.{index}.{theirs}") for theirs, ours in _VECTORS.items()}
    kinds = getattr(config, "layer_types", None)
    is_full = kinds is not None and kinds[index] == "full_attention"
    rotary: int | None = 1 if hasattr(config, "rope_local_base_freq") and not is_full else 0
    if not getattr(config, "no_rope_layers", [1] * config.num_hidden_layers)[index]:
        rotary = None
    return LayerWeights(
        **found,  # type: ignore[arg-type]  # `check_tensors` has seen those that have to be
        **others,  # type: ignore[arg-type]
        rotary=rotary,
        window=None if is_full else config.sliding_window,
    )


def _expected(file: GGUFFile, config: GGUFConfig) -> dict[str, tuple[int, ...]]:
    """The sizes of all tensors that there may be, by name."""
    hidden, mlp, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    architecture = file.fields["general.architecture"]
    layer: dict[str, tuple[int, ...]] = {
        "attn_q.weight": (queries, hidden),
        "attn_k.weight": (keys, hidden),
        "attn_v.weight": (keys, hidden),
        "attn_output.weight": (hidden, queries),
        "ffn_gate.weight": (mlp, hidden),
        "ffn_up.weight": (mlp, hidden),
        "ffn_down.weight": (hidden, mlp),
        **dict.fromkeys(_NORMS, (hidden,)),
    }
    sizes = {"attn_q.bias": (queries,), "attn_k.bias": (keys,), "attn_v.bias": (keys,)}
    for name in _EXTRAS[architecture] | _OPTIONAL.get(architecture, set()):
        layer[name] = (head_dim,) if name in _HEAD_NORMS else sizes.get(name, (hidden,))
    if architecture == "phi3":
        if "blk.0.attn_qkv.weight" in file.tensors:
            for name in ("attn_q.weight", "attn_k.weight", "attn_v.weight"):
                del layer[name]
            layer["attn_qkv.weight"] = (queries + 2 * keys, hidden)
        if "blk.0.ffn_gate.weight" not in file.tensors:
            del layer["ffn_gate.weight"]
            layer["ffn_up.weight"] = (2 * mlp, hidden)
    names = {
        "token_embd.weight": (config.vocab_size, hidden),
        "output.weight": (config.vocab_size, hidden),
        "output_norm.weight": (hidden,),
    }
    return names | {f"blk.{i}.{name}": size for i in range(config.num_hidden_layers) for name, size in layer.items()}


def _is_optional(name: str, file: GGUFFile) -> bool:
    architecture = file.fields["general.architecture"]
    kind = name.split(".", 2)[-1]
    return name == "output.weight" or kind in _OPTIONAL.get(architecture, set())


def _not_whole(file: GGUFFile, what: str) -> NoReturn:
    raise ModelLoadError(f"{str(file.path)!r} is no whole model: {what}. Download it anew.")
