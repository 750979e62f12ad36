"""Models with the shape of well-known ones and random weights, to measure speed where the real ones cannot be had.

Speed hardly depends on the values of the weights, text does: a random model writes nonsense that repeats itself, and a
random draft model never agrees with it. So they serve for the cost of steps, for memory, and for drafts of set
agreement, and say nothing about acceptance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.models.devices import resolve_device

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_PREFIX = "random:"
_LLAMA_3 = {
    "model_type": "llama",
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
}
_QWEN_1 = {"model_type": "qwen2", "max_position_embeddings": 32768, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6}


def _shape(base: Mapping[str, Any], width: int, inner: int, layers: int, heads: int, kv: int, **more: Any) -> Any:
    return {
        **base,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        **more,
    }


SHAPES: Mapping[str, Mapping[str, Any]] = {
    "llama-8b": _shape(_LLAMA_3, 4096, 14336, 32, 32, 8),
    "llama-3b": _shape(_LLAMA_3, 3072, 8192, 28, 24, 8, head_dim=128, tie_word_embeddings=True),
    "llama-1b": _shape(_LLAMA_3, 2048, 8192, 16, 32, 8, head_dim=64, tie_word_embeddings=True),
    "qwen1.5-1.8b": _shape(_QWEN_1, 2048, 5504, 24, 16, 16, vocab_size=151936),
    "qwen1.5-0.5b": _shape(_QWEN_1, 1024, 2816, 24, 16, 16, vocab_size=151936, tie_word_embeddings=True),
    "qwen2.5-1.5b": _shape(_QWEN_1, 1536, 8960, 28, 12, 2, vocab_size=151936, tie_word_embeddings=True),
    "qwen2.5-0.5b": _shape(_QWEN_1, 896, 4864, 24, 14, 2, vocab_size=151936, tie_word_embeddings=True),
    "smollm2-135m": _shape(
        _LLAMA_3,
        576,
        1536,
        30,
        9,
        3,
        vocab_size=49152,
        max_position_embeddings=8192,
        rope_theta=100000.0,
        tie_word_embeddings=True,
    ),
    "tiny": _shape(_LLAMA_3, 64, 128, 2, 4, 2, vocab_size=512, max_position_embeddings=4096),
}
"""Configurations by name, as the published models have them; `tiny` is for tests."""


def is_random(model: str) -> bool:
    """Whether a model with random weights is asked for."""
    return model.startswith(_PREFIX)


def random_model(model: str, dtype: str, device: str | None) -> tuple[Any, Any]:
    """Make a model with random weights, on its device at once, and a tokenizer for it.

    Args:
        model: `"random:SHAPE"`.
        dtype: Name of a torch dtype; `"auto"` is float32 on CPU and bfloat16 elsewhere.
        device: Where to put it; None is the best there is.

    Returns:
        The model in eval mode, and a tokenizer that takes bytes for tokens and knows every id of the vocabulary.

    Raises:
        InvalidParameterError: The shape or the dtype does not exist.
    """
    from transformers import AutoConfig, AutoModelForCausalLM  # real models may do without

    shape = model.removeprefix(_PREFIX)
    if shape not in SHAPES:
        msg = f"There are no random weights of the shape {shape!r}. Shapes: {', '.join(SHAPES)}."
        raise InvalidParameterError(msg)
    placed = resolve_device(device)
    name = ("float32" if placed.type == "cpu" else "bfloat16") if dtype == "auto" else dtype
    values = dict(SHAPES[shape])
    config = AutoConfig.for_model(**values, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    # All models get the same seed: a random draft model never agrees with its target anyway.
    torch.manual_seed(0)
    with placed:
        built: Any = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, name))
    built.config._name_or_path = model
    return built.eval().requires_grad_(requires_grad=False), _byte_tokenizer(values["vocab_size"])


def _byte_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: number for number, text in enumerate(alphabet)}
    vocabulary |= {f"<{number}>": number for number in range(len(alphabet), vocab_size)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
