"""Models and tokenizers as transformers reads them: found, read, checked and put in place."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from langchain_specdec.errors import InvalidParameterError, UnsupportedModelError
from langchain_specdec.models import embedded
from langchain_specdec.models.adapters import (
    Parts,
    check_mergeable,
    check_without_adapters,
    find_adapter,
    find_parts,
    merged,
)
from langchain_specdec.models.checkpoint import explained, read_weights
from langchain_specdec.models.common_vocabulary import ModelTokens
from langchain_specdec.models.compatibility import check_supported
from langchain_specdec.models.devices import check_device_map, resolve_device, resolve_dtype
from langchain_specdec.models.image_families import auto_class, make_image_reader
from langchain_specdec.models.loaded_model import LoadedModel, eos_token_ids
from langchain_specdec.models.model_source import check_source
from langchain_specdec.models.private_tokenizer import PrivateTokenizer, apart, check_tokenizer
from langchain_specdec.models.quantized_loading import check_plain, option_of, quantized_loading
from langchain_specdec.models.quiet_loading import quiet_loading
from langchain_specdec.progress import Progress
from langchain_specdec.runner import attention

_ATTENTION_CHOICES = (attention.ATTENTION_NAME, "sdpa", "eager")


@quiet_loading()
def load_pretrained(
    model: str | os.PathLike[str] | PreTrainedModel,
    tokenizer: Any = None,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: Any = None,
    revision: str | None = None,
    attn_implementation: str | None = None,
    quantization: Any = None,
    adapter: str | os.PathLike[str] | None = None,
    trust_remote_code: bool = False,
    token: str | bool | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Load a model and its tokenizer, or take ones that are loaded already; see `loader.load_model`.

    Raises:
        UnsupportedModelError: The engine cannot run this kind of model. Raised before its weights are read.
        InvalidParameterError: Parameters contradict each other or do not exist. Raised before anything is read.
        ModelLoadError: The model or its tokenizer cannot be found or read, or weights are missing.
        MissingDependencyError: An adapter is to be merged, and PEFT is not installed, or too old; or the model is to be
            quantised on a GPU, and no package that does it is installed.
    """
    attention.register()
    _check_choice("attn_implementation", attn_implementation, _ATTENTION_CHOICES)
    if device is not None and device_map is not None:
        msg = "Give device or device_map, not both."
        raise InvalidParameterError(msg)
    tokenizer, processor = apart(tokenizer)
    if tokenizer is not None:
        check_tokenizer(tokenizer)
    placed = resolve_device(device)
    check_device_map(device_map)
    resolved_dtype = resolve_dtype(dtype, placed)
    loaded: Any
    by_runner: str | None = None
    if isinstance(model, torch.nn.Module):
        source = getattr(model.config, "_name_or_path", "")
        name = source or type(model).__name__
        parts = Parts(source, revision, None, source)
        if tokenizer is None and not source:
            msg = f"The loaded {type(model).__name__} has no name to find its tokenizer by: give tokenizer= too."
            raise InvalidParameterError(msg)
        check_without_adapters(model, name)
        given = {
            "dtype": dtype != "auto" and resolved_dtype != model.dtype,
            "device_map": device_map is not None,
            option_of(quantization): quantization is not None,
            "adapter": adapter is not None,
            # Else it is the tokenizer's.
            "revision": revision is not None and tokenizer is not None,
        }
        _check_loaded(model, name, given)
        check_supported(model.config, type(model))
        _check_attention(type(model), model.config, attn_implementation)
        loaded = model if device is None else model.to(placed)  # type: ignore[arg-type]
    else:
        name = source = str(model)
        how = quantized_loading(quantization, resolved_dtype, placed, device_map)
        by_runner = how.by_runner
        source, revision = check_source(model, revision=revision, token=token)
        if name == embedded.EMBEDDED_MODEL_ID:
            source = str(embedded.model_path(progress=progress))
        found = None if adapter is None else find_adapter(adapter, token)
        parts = find_parts(source, name, found, revision, token)
        hub: dict[str, Any] = {"revision": parts.revision, "trust_remote_code": trust_remote_code, "token": token}
        hub = {key: value for key, value in hub.items() if value is not None}
        what = name if parts.source == source else f"{parts.source}, the base of {name}"
        with explained(what, parts.source):
            config = AutoConfig.from_pretrained(parts.source, **hub)
            model_class = _model_class(config)
            check_supported(config, model_class)
            check_plain(config, quantization, what)
            check_mergeable(parts, how.config or getattr(config, "quantization_config", None))
            _check_attention(model_class, config, attn_implementation)
        if how.config is not None and device_map is None:
            device_map = {"": placed}
        options: dict[str, Any] = {
            "attn_implementation": attn_implementation or _best_attention(model_class, config),
            "device_map": device_map,
            "quantization_config": how.config,
        }
        hub |= {key: value for key, value in options.items() if value is not None}
        loaded = read_weights(auto_class(config), parts.source, what, dtype=how.dtype, **hub)
        if _is_quantised(config) and not _is_quantised(loaded.config):
            # What was dequantised, as MXFP4 is on a CPU, older versions of transformers leave in bfloat16.
            loaded = loaded.to(loaded.dtype)
        if parts.adapter is not None:
            loaded = merged(loaded, parts, token)
        if device_map is None:
            loaded = loaded.to(placed)
        loaded.eval()
    if tokenizer is not None:
        private = PrivateTokenizer.of(tokenizer)
    else:
        of_adapter = parts.adapter is not None and parts.tokenizer == parts.adapter.place
        revision = parts.adapter.revision if parts.adapter is not None and of_adapter else parts.revision
        advice = (
            " Add the tokenizer's files (tokenizer.json and tokenizer_config.json), or give a loaded one as tokenizer=."
        )
        with explained(f"the tokenizer of {name}", parts.tokenizer, advice):
            tokenizer = AutoTokenizer.from_pretrained(
                parts.tokenizer,
                trust_remote_code=trust_remote_code,
                revision=revision or "main",
                token=token,
            )
        private = PrivateTokenizer(tokenizer, is_ours=True)
    _check_embeddings(loaded, name)
    _set_attention(loaded, attn_implementation)
    code = {"trust_remote_code": trust_remote_code, "token": token, "revision": parts.revision or "main"}
    reader, why_no_images = make_image_reader(loaded, private.copied, processor, parts.source, **code)
    return LoadedModel(
        loaded,
        private,
        name,
        eos_token_ids(loaded, private.copied),
        is_owned=loaded is not model,
        adapter=None if parts.adapter is None else parts.adapter.name,
        quantization=by_runner,
        image_reader=reader,
        why_no_images=why_no_images,
    )


@quiet_loading()
def tokens_of(model: str | os.PathLike[str]) -> ModelTokens:
    """The tokens of a model, of which neither weights nor code are read.

    Args:
        model: Model id or folder, or those of an adapter that names its base.

    Raises:
        UnsupportedModelError: The engine cannot run this kind of model.
        ModelLoadError: It, or its tokenizer, cannot be found or read.
    """
    name = str(model)
    source, revision = check_source(model)
    parts = find_parts(source, name, None, revision, None)
    config = _supported(parts, name)
    with explained(f"the tokenizer of {name}", parts.source):
        tokenizer = AutoTokenizer.from_pretrained(parts.tokenizer, revision=parts.revision or "main")
    return ModelTokens(name, PrivateTokenizer(tokenizer, is_ours=True), config.get_text_config().vocab_size)


@quiet_loading()
def config_of(model: str | os.PathLike[str]) -> Any:
    """The configuration of a model, as `tokens_of` finds it.

    Raises:
        UnsupportedModelError: The engine cannot run this kind of model.
        ModelLoadError: It cannot be found or read.
    """
    name = str(model)
    source, revision = check_source(model)
    return _supported(find_parts(source, name, None, revision, None), name)


def _supported(parts: Parts, name: str) -> Any:
    """The configuration of a model that the engine runs."""
    with explained(name, parts.source):
        config = AutoConfig.from_pretrained(parts.source, revision=parts.revision or "main")
    check_supported(config, _model_class(config))
    return config


def _is_quantised(config: Any) -> bool:
    return getattr(config, "quantization_config", None) is not None


def _check_choice(name: str, value: object, allowed: tuple[str, ...], of: str = "") -> None:
    if value is not None and value not in allowed:
        msg = f"{name}{of} must be one of {', '.join(map(repr, allowed))} or None, got {value!r}."
        raise InvalidParameterError(msg)


def _check_loaded(model: Any, name: str, given: dict[str, bool]) -> None:
    """Nothing that only loading can do may be asked of a loaded model; `given` says what is."""
    if too_late := [parameter for parameter, is_given in given.items() if is_given]:
        msg = (
            f"{name} is loaded already ({str(model.dtype).removeprefix('torch.')}), which is too late for "
            f"{', '.join(too_late)}. Give its id or folder instead, or load it that way yourself."
        )
        raise InvalidParameterError(msg)


def _check_embeddings(model: Any, name: str) -> None:
    """Refuse a model whose embeddings device_map keeps off every device; the engine's tensors go where they are."""
    if model.get_input_embeddings().weight.is_meta:
        msg = (
            f"The input embeddings of {name} are kept off the devices (device_map left them to the CPU or the disk), "
            f"and the engine needs them on one. Allow more memory, or give a device_map that places them."
        )
        raise UnsupportedModelError(msg)


def _model_class(config: Any) -> type | None:
    try:
        classes: Any = auto_class(config)._model_mapping[type(config)]
    except KeyError:
        return None
    chosen: type = classes[0] if isinstance(classes, tuple) else classes
    return chosen


def _check_attention(model_class: Any, config: Any, implementation: str | None) -> None:
    text = config.get_text_config()
    # gpt-oss has sinks, which it says by its class alone.
    lacks_sdpa = getattr(text, "attn_logit_softcapping", None) or not getattr(model_class, "_supports_sdpa", True)
    if (implementation == "sdpa" and lacks_sdpa) or (implementation is not None and _has_own_scaling(config)):
        _check_choice("attn_implementation", implementation, ("eager",), f" of a {config.model_type!r} model like this")


def _has_own_scaling(config: Any) -> bool:
    """Whether it is a GPT-2 with a scaling of its scores that transformers 4 tells only to its own attention."""
    by_layer = getattr(config, "scale_attn_by_inverse_layer_idx", False)
    return by_layer or not getattr(config, "scale_attn_weights", True)


def _best_attention(model_class: type | None, config: Any) -> str | None:
    """The attention to run a model with; None is what transformers chooses."""
    if not getattr(model_class, "_supports_attention_backend", False):
        return None
    return "eager" if _has_own_scaling(config) else attention.ATTENTION_NAME


def _set_attention(model: Any, implementation: str | None) -> None:
    """Have the model call an attention that takes the engine's masks."""
    text = model.config.get_text_config()
    if implementation is None:
        implementation = _best_attention(type(model), text) or text._attn_implementation
        if implementation not in _ATTENTION_CHOICES:
            implementation = "eager"
    if text._attn_implementation != implementation and model._can_set_attn_implementation():
        model.set_attn_implementation(implementation)
    if text._attn_implementation != implementation:
        msg = (
            f"{type(model).__name__} keeps to the attention {text._attn_implementation!r} that it was loaded with and "
            f"cannot change to {implementation!r}. Load it with attn_implementation={implementation!r}."
        )
        raise UnsupportedModelError(msg)
