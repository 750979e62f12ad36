"""What a GGUF file says of its model, under the names of Hugging Face's configurations."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from langchain_specdec.errors import ModelLoadError, UnsupportedModelError
from langchain_specdec.models.gguf.file import GGUFFile

_FULL, _SLIDING = "full_attention", "sliding_attention"
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

    def number(self, name: str, default: float | None = None) -> Any:
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
            raise ModelLoadError(f"{str(self._file.path)!r} is no whole model: {key} is {value!r}. Download it anew.")
        return value

    def optional(self, name: str) -> Any:
        """A number above 0; None where there is none, or where it is 0."""
        return self.number(name) if self._file.fields.get(f"{self._architecture}.{name}") else None

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
    elif name not in ARCHITECTURES:
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
    name = file.fields.get("general.architecture", "")
    kind, keys = architecture_of(file), Keys(file, name)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelLoadError(f"{str(file.path)!r} is no whole model: token_embd.weight is missing. Download it anew.")
    heads, hidden = keys.number("attention.head_count"), keys.number("embedding_length")
    layers = keys.number("block_count")
    head_dim = keys.number("attention.key_length", hidden // heads or 1)
    window = keys.optional("attention.sliding_window")
    positions = keys.number("context_length")
    scaling = _scaling(file, keys)
    if scaling and scaling["rope_type"] == "longrope":
        # The factors for short texts are those that hold for them whatever comes later.
        positions = min(positions, scaling["original_max_position_embeddings"])
    config = GGUFConfig(
        model_type="mistral" if kind.model_type == "llama" and window else kind.model_type,
        torch_dtype="float32",
        vocab_size=embedding.shape[0],
        hidden_size=hidden,
        intermediate_size=keys.number("feed_forward_length"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys.number("attention.head_count_kv", heads),
        head_dim=head_dim,
        max_position_embeddings=positions,
        rms_norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
        rope_theta=keys.number("rope.freq_base", 10000.0),
        rope_scaling=scaling,
        sliding_window=window if window and window < positions else None,
        tie_word_embeddings="output.weight" not in file.tensors,
        **_special_tokens(file),
    )
    rotary_dim = keys.number("rope.dimension_count", head_dim)
    if rotary_dim != head_dim:
        config.partial_rotary_factor = rotary_dim / head_dim
    if kind.is_gemma:
        config.hidden_activation = config.hidden_act = "gelu_pytorch_tanh"
    if kind.full_every:
        config.sliding_window = window
        config.layer_types = [_FULL if (i + 1) % kind.full_every == 0 else _SLIDING for i in range(layers)]
        by_heads = (name, layers) in _SCALED_BY_HEADS
        config.query_pre_attn_scalar = hidden // heads if by_heads else head_dim
        config.attn_logit_softcapping = keys.optional("attn_logit_softcapping")
        config.final_logit_softcapping = keys.optional("final_logit_softcapping")
        if not window:
            keys.number("attention.sliding_window")
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
        scaling["original_max_position_embeddings"] = keys.number("rope.scaling.original_context_length")
    for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
        if kind == "yarn" and (beta := keys.optional(f"rope.scaling.{theirs}")):
            scaling[ours] = float(beta)
    if kind == "longrope":
        scaling["attention_factor"] = float(keys.number("rope.scaling.attn_factor", 1.0))
    return scaling


def _special_tokens(file: GGUFFile) -> dict[str, int | None]:
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    count = len(file.fields.get("tokenizer.ggml.tokens", ()))
    ids = {ours: file.fields.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in names.items()}
    return {name: index if isinstance(index, int) and 0 <= index < count else None for name, index in ids.items()}


def _article(kind: object) -> str:
    known = {"adapter": "an adapter", "mmproj": "the part of one that sees images", "imatrix": "statistics for one"}
    return known.get(str(kind), f"a {kind!r}")
