"""Weights and tokenizers, and the checks that a model, or a pair of models, can be run at all."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from langchain_specdec import embedded
from langchain_specdec.engine import attention
from langchain_specdec.engine.runner import ModelRunner
from langchain_specdec.errors import InvalidParameterError, UnsupportedModelError

__all__ = ["LoadedModel", "check_pair", "default_device", "load_model", "make_runner"]

_ATTENTION_CHOICES = (attention.ATTENTION_NAME, "sdpa", "eager")
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
# Families whose cached forward is compared with the uncached one in the tests; others are compared when loaded.
_TESTED_FAMILIES = {
    "gemma2", "gemma3_text", "gpt2", "gpt_neox", "llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3",
}  # fmt: skip
_DEFAULT_MAX_LENGTH = 8192
# Share of the free memory that the slots may take where max_length is not given.
_CACHE_SHARE = 0.5
_PROBE_TEXTS = (
    "The quick brown fox jumps over 13 lazy dogs.\n\n\tdef f(x): return x ** 2  # twice",
    "Grüße aus Köln, 東京 \U0001f600 — naïve café?",
    " leading and trailing spaces  ",
)


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to run, with its tokenizer.

    Attributes:
        model: Causal language model in eval mode.
        tokenizer: Its tokenizer.
        name: Model id or folder, for messages and identification.
        eos_token_ids: Tokens that end a text.
    """

    model: Any
    tokenizer: Any
    name: str
    eos_token_ids: tuple[int, ...]

    @property
    def max_positions(self) -> int | None:
        """Positions that the model was made for; None where it does not say."""
        config = self.model.config.get_text_config()
        limit = getattr(config, "max_position_embeddings", None)
        return int(limit) if limit else None


def default_device() -> torch.device:
    """The best device there is: CUDA, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def load_model(
    model: str | os.PathLike[str] | PreTrainedModel,
    tokenizer: Any = None,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: Any = None,
    revision: str | None = None,
    attn_implementation: str | None = None,
    quantization_config: Any = None,
    trust_remote_code: bool = False,
    token: str | bool | None = None,
    progress: embedded.Progress | None = None,
) -> LoadedModel:
    """Load a model and its tokenizer, or take ones that are loaded already.

    Args:
        model: Model id, local folder, `"embedded"`, or a loaded model.
        tokenizer: A loaded tokenizer; None loads the model's own.
        dtype: `"auto"` is the checkpoint's type on a GPU and float32 on CPU; else a torch dtype or its name.
        device: Where to put it; None is the best there is. Not together with `device_map`.
        device_map: Passed to transformers, for models spread over devices (needs accelerate).
        revision: Branch, tag or commit of the model id.
        attn_implementation: None is the engine's own; `"sdpa"` and `"eager"` are transformers'.
        quantization_config: Passed to transformers.
        trust_remote_code: Whether code that comes with the model may run. Off unless asked for.
        token: Access token of the Hugging Face Hub; None takes the one that is logged in.
        progress: Told about each step of preparing the embedded model.

    Raises:
        UnsupportedModelError: The engine cannot run this kind of model. Raised before its weights are read.
        InvalidParameterError: Parameters contradict each other or do not exist.
        OSError: transformers cannot find or read the model.
    """
    attention.register()
    _check_choice("attn_implementation", attn_implementation, _ATTENTION_CHOICES)
    if device is not None and device_map is not None:
        msg = "Give device or device_map, not both."
        raise InvalidParameterError(msg)
    if isinstance(model, torch.nn.Module):
        name = getattr(model.config, "_name_or_path", "") or type(model).__name__
        check_supported(model.config, type(model))
        loaded: Any = model
        source = getattr(model.config, "_name_or_path", "")
        if tokenizer is None and not source:
            msg = f"The loaded {type(model).__name__} has no name to find its tokenizer by: give tokenizer= too."
            raise InvalidParameterError(msg)
        if device is not None:
            loaded = loaded.to(torch.device(device))
    else:
        name = source = str(model)
        if name == embedded.EMBEDDED_MODEL_ID:
            source, revision = str(embedded.model_path(progress=progress)), None
        hub: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code, "token": token}
        hub = {key: value for key, value in hub.items() if value is not None}
        config = AutoConfig.from_pretrained(source, **hub)
        check_supported(config, _model_class(config))
        placed = default_device() if device is None else torch.device(device)
        if quantization_config is not None:
            hub["quantization_config"] = quantization_config
            device_map = device_map if device_map is not None else {"": placed}
        if device_map is not None:
            hub["device_map"] = device_map
        loaded = AutoModelForCausalLM.from_pretrained(source, dtype=_resolve_dtype(dtype, placed), **hub)
        if device_map is None:
            loaded = loaded.to(placed)
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(
            source, trust_remote_code=trust_remote_code, revision=revision or "main", token=token
        )
    loaded.eval()
    _set_attention(loaded, attn_implementation)
    return LoadedModel(loaded, tokenizer, name, _eos_token_ids(loaded, tokenizer))


def make_runner(loaded: LoadedModel, *, num_slots: int, max_length: int | None, max_width: int) -> ModelRunner:
    """Give a loaded model its slots.

    Args:
        loaded: The model.
        num_slots: Completions that can run at a time.
        max_length: Positions of a slot; None is what the model was made for, up to 8192 and to half of the free
            memory for all slots.
        max_width: Most tokens of a row in a verification.

    Raises:
        InvalidParameterError: `max_length` is more than the model was made for.
        UnsupportedModelError: The model does not work with the engine's cache.
    """
    limit = loaded.max_positions
    if max_length is not None and limit is not None and max_length > limit:
        msg = f"max_length is {max_length}, but {loaded.name} was made for {limit} positions at most."
        raise InvalidParameterError(msg)
    if max_length is None:
        max_length = _default_max_length(loaded, num_slots)
    runner = ModelRunner(loaded.model, num_slots, max_length, max_width)
    if loaded.model.config.get_text_config().model_type not in _TESTED_FAMILIES:
        _check_cached_forward(runner, loaded.name)
    return runner


def check_supported(config: Any, model_class: type | None) -> None:
    """Raise an `UnsupportedModelError` where the configuration alone shows that the engine cannot run the model."""
    text = config.get_text_config()
    name = text.model_type
    reason = None
    layers = set(getattr(text, "layer_types", None) or ()) - _KNOWN_LAYERS
    if getattr(config, "is_encoder_decoder", False):
        reason = "it is an encoder-decoder model; the engine runs decoder-only models"
    elif getattr(model_class, "_is_stateful", False):
        reason = "it keeps a recurrent state, which cannot be rolled back when a draft is rejected"
    elif layers:
        reason = f"it has layers of kind {', '.join(sorted(layers))}; only full and sliding-window attention works"
    elif getattr(text, "attention_chunk_size", None):
        reason = "it uses chunked attention; only full and sliding-window attention works"
    elif getattr(text, "num_hidden_layers", None) is None:
        reason = "its configuration names no number of layers"
    if reason:
        msg = f"The engine cannot run a model of type {name!r}: {reason}. Use transformers or a TGI server for it."
        raise UnsupportedModelError(msg)


def check_pair(target: LoadedModel, draft: LoadedModel) -> None:
    """Raise an `UnsupportedModelError` unless both models read and write the same tokens.

    Equal sizes prove nothing, so the vocabularies are compared entry by entry, and what some texts become.
    """
    ours, theirs = target.tokenizer.get_vocab(), draft.tokenizer.get_vocab()
    advice = f"Choose a draft model of {target.name}'s own family, or drafter='prompt_lookup', which needs none."
    if ours != theirs:
        different = [t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t)]
        example = min(different)
        msg = (
            f"{draft.name} cannot draft for {target.name}: {len(different)} entries of their vocabularies differ "
            f"(for example {example!r}: {ours.get(example)} and {theirs.get(example)}). {advice}"
        )
        raise UnsupportedModelError(msg)
    for text in _PROBE_TEXTS:
        first, second = (t.tokenizer(text, add_special_tokens=False).input_ids for t in (target, draft))
        if first != second:
            msg = (
                f"{draft.name} cannot draft for {target.name}: their vocabularies are equal, but they split "
                f"{text!r} differently ({first[:8]} and {second[:8]} ...). {advice}"
            )
            raise UnsupportedModelError(msg)


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        msg = f"{name} must be one of {', '.join(map(repr, allowed))} or None, got {value!r}."
        raise InvalidParameterError(msg)


def _model_class(config: Any) -> type | None:
    try:
        found = AutoModelForCausalLM._model_mapping[type(config)]
    except KeyError:
        return None
    return found[0] if isinstance(found, tuple) else found


def _resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> str | torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    resolved = getattr(torch, str(dtype).removeprefix("torch."), None)
    if not isinstance(resolved, torch.dtype) or not resolved.is_floating_point:
        msg = f"dtype must be 'auto', 'float32', 'bfloat16', 'float16' or a torch dtype, got {dtype!r}."
        raise InvalidParameterError(msg)
    return resolved


def _set_attention(model: Any, implementation: str | None) -> None:
    """Have the model call the engine's attention, or transformers' where asked for or where it knows no other."""
    if implementation is None:
        flexible = getattr(model, "_supports_attention_backend", False)
        implementation = attention.ATTENTION_NAME if flexible else "eager"
    model.set_attn_implementation(implementation)


def _eos_token_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    found: set[int] = set()
    generation = getattr(model, "generation_config", None)
    for value in (getattr(generation, "eos_token_id", None), tokenizer.eos_token_id):
        if value is not None:
            found.update(value if isinstance(value, (list, tuple)) else [value])
    return tuple(sorted(found))


def _default_max_length(loaded: LoadedModel, num_slots: int) -> int:
    config = loaded.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_position = 2 * config.num_hidden_layers * heads * head_dim * loaded.model.dtype.itemsize
    fitting = int(_free_memory(loaded.model.device) * _CACHE_SHARE) // (per_position * num_slots)
    limit: int = min(loaded.max_positions or _DEFAULT_MAX_LENGTH, _DEFAULT_MAX_LENGTH, fitting)
    return max(limit, 1)


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        # Not every system tells; 4 GiB is there on any that runs a language model.
        return 4 * 2**30


def _check_cached_forward(runner: ModelRunner, name: str) -> None:
    """Compare a forward over the slots with the model's own over the same tokens."""
    tokens = [t % runner.vocab_size for t in (11, 7, 5, 13, 3, 2)]
    half = len(tokens) // 2
    try:
        runner.prefill([0], [0], [tokens[:half]])
        ours = runner.forward([0], [half], [tokens[half:]])[0].float()
        with torch.inference_mode():
            ids = torch.tensor([tokens], device=runner.device)
            theirs = runner.model(input_ids=ids, use_cache=False).logits[0, half:].float()
    except Exception as error:
        msg = f"{name} does not run on the engine's cache: {type(error).__name__}: {error}"
        raise UnsupportedModelError(msg) from error
    similarity = torch.nn.functional.cosine_similarity(ours, theirs, dim=-1).min().item()
    exact = runner.model.dtype == torch.float32
    if not similarity > (0.9999 if exact else 0.98):
        msg = (
            f"{name} computes other logits on the engine's cache than by itself (cosine similarity "
            f"{similarity:.4f}), so its text would change. The engine does not support this model."
        )
        raise UnsupportedModelError(msg)
