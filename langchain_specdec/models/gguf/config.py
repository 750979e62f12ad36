"""What a GGUF file says of its model, under the names of Hugging Face's configurations."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NoReturn

from langchain_specdec.errors import ModelLoadError, UnsupportedModelError
from langchain_specdec.models.gguf.file import GGUFFile

_FULL, _SLIDING = "full_attention", "sliding_attention"
# Each takes memory in a rotary table.
_MOST_POSITIONS = 2**20
# Of numbers in a head: each takes memory in a rotary table too. Models have 256 at most.
_MOST_HEAD_DIM = 512
_SCALINGS = ("none", "linear", "yarn", "longrope")


@dataclass(frozen=True)
class Architecture:
    """What holds for all models of one architecture, and is not in their files.

    Attributes:
        model_type: Hugging Face's name.
        has_rotary_pairs: Whether neighbours of a query turn with each other.
        is_gemma: Whether embeddings are scaled, gates go through GELU, and one was added to the weights of norms.
        full_every: Each so-manieth layer sees all positions, and the others a window of them; 0: all see the same.
        rotary_every: Each so-manieth layer is not turned by positions (NoPE); 0: all are.
    """

    model_type: str
    has_rotary_pairs: bool = False
    is_gemma: bool = False
    full_every: int = 0
    rotary_every: int = 0


# By the name in `general.architecture`. Mistral and SmolLM 1 and 2 call themselves "llama".
ARCHITECTURES = {
    "llama": Architecture("llama", has_rotary_pairs=True),
    "smollm3": Architecture("smollm3", has_rotary_pairs=True, rotary_every=4),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "phi3": Architecture("phi3"),
    "gemma": Architecture("gemma", is_gemma=True),
    "gemma2": Architecture("gemma2", is_gemma=True, full_every=2),
    "gemma3": Architecture("gemma3_text", is_gemma=True, full_every=6),
}
# Their heads are fewer than a head's size tells, and their scores are scaled by that: Gemma 2 and 3 of 27B, by layers.
_SCALED_BY_HEADS = {("gemma2", 46), ("gemma3", 62)}


class GGUFConfig(SimpleNamespace):
    """Plain values under the names of a Hugging Face configuration."""

    def get_text_config(self, **_: Any) -> GGUFConfig:
        """Itself: none of these models sees more than text."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """All values, but those that begin with "_"."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


class Keys:
    """The metadata that a model's architecture has keys for.

    Args:
        file: The file.
        architecture: How it calls it.
    """

    def __init__(self, file: GGUFFile, architecture: str) -> None:
        self._file = file
        self._architecture = architecture

    def number(self, name: str, default: float | None = None) -> float:
        """A number above 0; of a list with one for each layer, the one that is all of them.

        Raises:
            ModelLoadError: There is none, or it is not above 0.
            UnsupportedModelError: Layers differ.
        """
        key = f"{self._architecture}.{name}"
        value = self._file.fields.get(key, default)
        if isinstance(value, list):
            if len(set(value)) > 1:
                raise UnsupportedModelError(
                    f"The engine cannot run {str(self._file.path)!r}: its layers differ ({key}). Give another model."
                )
            value = value[0] if value else None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 2**63:
            _not_whole(self._file, f"{key} is {value!r}")
        return value

    def count(self, name: str, default: int | None = None) -> int:
        """A whole number above 0; see `number`."""
        value = self.number(name, default)
        if not isinstance(value, int):
            _not_whole(self._file, f"{self._architecture}.{name} is {value!r}")
        return value

    def has(self, name: str) -> bool:
        """Whether there is such a key, and its value is not 0."""
        return bool(self._file.fields.get(f"{self._architecture}.{name}"))

    def text(self, name: str, default: str) -> str:
        """A text."""
        return str(self._file.fields.get(f"{self._architecture}.{name}", default))


def architecture_of(file: GGUFFile) -> Architecture:
    """The architecture of a model.

    Raises:
        UnsupportedModelError: It is none of those that are known here, or it is no language model.
    """
    kind = file.fields.get("general.type", "model")
    name = file.fields.get("general.architecture")
    reason = None
    if kind != "model":
        reason = f"it holds no model but {_article(kind)}; give the model's own file"
    elif not isinstance(name, str) or name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        reason = f"its architecture is {name!r}; GGUF files of {known} work. Give the model in its original form"
    elif file.fields.get(f"{name}.expert_count"):
        reason = "it is a mixture of experts, which is not read from GGUF files. Give the model in its original form"
    if reason:
        raise UnsupportedModelError(f"The engine cannot run {str(file.path)!r}: {reason}.")
    return ARCHITECTURES[str(name)]


def read_config(file: GGUFFile) -> GGUFConfig:
    """The configuration of a model.

    Raises:
        ModelLoadError: Something is missing.
        UnsupportedModelError: The engine cannot run such a model.
    """
    kind, name = architecture_of(file), file.fields["general.architecture"]
    keys = Keys(file, name)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or not embedding.shape[0]:
        _not_whole(file, f"token_embd.weight is {'missing' if embedding is None else 'empty'}")
    layers, hidden = keys.count("block_count"), keys.count("embedding_length")
    if layers > len(file.tensors):
        _not_whole(file, f"{name}.block_count is {layers}, and there are {len(file.tensors)} tensors")
    heads = keys.count("attention.head_count")
    kv_heads = keys.count("attention.head_count_kv", heads)
    head_dim = keys.count("attention.key_length", hidden // heads or 1)
    rotary_dim = keys.count("rope.dimension_count", head_dim)
    if heads % kv_heads or rotary_dim % 2 or rotary_dim > head_dim:
        _not_whole(
            file, f"{heads} heads of {head_dim} numbers, {rotary_dim} of which turn, do not fit {kv_heads} heads"
        )
    if head_dim > _MOST_HEAD_DIM:
        raise UnsupportedModelError(
            f"The engine cannot run {str(file.path)!r}: its heads have {head_dim} numbers; up to {_MOST_HEAD_DIM} "
            "work. Give another model."
        )
    base = keys.number("rope.freq_base", 10000.0)
    if base <= 1:
        _not_whole(file, f"{name}.rope.freq_base is {base}")
    window = keys.count("attention.sliding_window") if keys.has("attention.sliding_window") else None
    positions = min(keys.count("context_length"), _MOST_POSITIONS)
    scaling = _scaling(file, keys)
    if scaling and scaling["rope_type"] == "longrope":
        # The factors for short texts are those that hold for them whatever comes later.
        positions = min(positions, scaling["original_max_position_embeddings"])
    config = GGUFConfig(
        model_type="mistral" if kind.model_type == "llama" and window else kind.model_type,
        torch_dtype="float32",
        vocab_size=embedding.shape[0],
        hidden_size=hidden,
        intermediate_size=keys.count("feed_forward_length"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=positions,
        rms_norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
        rope_theta=base,
        rope_scaling=scaling,
        sliding_window=window if window and window < positions else None,
        tie_word_embeddings="output.weight" not in file.tensors,
        **_special_tokens(file),
    )
    if rotary_dim != head_dim:
        config.partial_rotary_factor = rotary_dim / head_dim
    if name != "qwen2" and "blk.0.attn_q.bias" in file.tensors:
        config.attention_bias = True
    if kind.is_gemma:
        config.hidden_activation = config.hidden_act = "gelu_pytorch_tanh"
    if kind.full_every:
        config.sliding_window = window or keys.count("attention.sliding_window")
        config.layer_types = [_FULL if (i + 1) % kind.full_every == 0 else _SLIDING for i in range(layers)]
        by_heads = (name, layers) in _SCALED_BY_HEADS
        config.query_pre_attn_scalar = hidden // heads if by_heads else head_dim
        for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
            setattr(config, cap, keys.number(cap) if keys.has(cap) else None)
    if name == "gemma3":
        config.rope_local_base_freq = keys.number("rope.freq_base_swa", 10000.0)
    if kind.rotary_every:
        config.no_rope_layers = [int((i + 1) % kind.rotary_every != 0) for i in range(layers)]
        config.no_rope_layer_interval = kind.rotary_every
    return config


def _scaling(file: GGUFFile, keys: Keys) -> dict[str, Any] | None:
    kind = keys.text("rope.scaling.type", "none")
    if kind == "none" and "rope_factors_short.weight" in file.tensors:
        kind = "longrope"
    if kind not in _SCALINGS:
        raise UnsupportedModelError(
            f"The engine cannot run {str(file.path)!r}: its positions are scaled by {kind!r}; "
            f"{', '.join(_SCALINGS[1:])} work. Give the model in its original form."
        )
    if kind == "none":
        return None
    scaling: dict[str, Any] = {"rope_type": kind}
    if kind in ("linear", "yarn"):
        scaling["factor"] = float(keys.number("rope.scaling.factor"))
    if kind != "linear":
        scaling["original_max_position_embeddings"] = keys.count("rope.scaling.original_context_length")
    for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
        if kind == "yarn" and keys.has(f"rope.scaling.{theirs}"):
            scaling[ours] = float(keys.number(f"rope.scaling.{theirs}"))
    if kind == "longrope":
        scaling["attention_factor"] = float(keys.number("rope.scaling.attn_factor", 1.0))
    return scaling


def _special_tokens(file: GGUFFile) -> dict[str, int | None]:
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    tokens = file.fields.get("tokenizer.ggml.tokens")
    count = len(tokens) if isinstance(tokens, list) else 0
    ids = {ours: file.fields.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in names.items()}
    return {name: index if isinstance(index, int) and 0 <= index < count else None for name, index in ids.items()}


def _not_whole(file: GGUFFile, what: str) -> NoReturn:
    raise ModelLoadError(f"{str(file.path)!r} is no whole model: {what}. Download it anew.")


def _article(kind: object) -> str:
    known = {"adapter": "an adapter", "mmproj": "the part of one that sees images", "imatrix": "statistics for one"}
    return known.get(str(kind), f"a {kind!r}")
