"""Tiny random models that read images, with their tokenizers and processors, and what transformers writes by them."""

from __future__ import annotations

import inspect
import io
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from PIL import Image
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForImageTextToText

from tests.support import tiny_models as tiny

BEGIN, PART, END = "<image>", "<part>", "</image>"
VOCAB = 264
_TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 257,
    "eos_token_id": tiny.EOS,
    "pad_token_id": 0,
}
_ENCODER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 4,
}
_GEMMA_LAYERS = ["sliding_attention", "full_attention"] * 2
_MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
_QWEN_IDS = {"vision_start_token_id": 258, "image_token_id": 259, "vision_end_token_id": 260, "video_token_id": 261}
_GEMMA4_IDS = {
    "boi_token_id": 258,
    "image_token_id": 259,
    "eoi_token_id": 260,
    "video_token_id": 261,
    "audio_token_id": 262,
}
_QWEN_ENCODER = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}


def _configs() -> dict[str, dict[str, Any]]:
    qwen_text = {**_TEXT, "hidden_size": 64, "rope_parameters": _MROPE, "rope_scaling": _MROPE}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    states = {
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_conv_kernel_dim": 4,
    }
    encoder3 = {
        **_QWEN_ENCODER,
        "hidden_size": 16,
        "intermediate_size": 32,
        "out_hidden_size": 64,
        "num_position_embeddings": 64,
    }
    deepstack = {**encoder3, "deepstack_visual_indexes": [0, 1]}
    return {
        "gemma3": {
            "text_config": {**_TEXT, "layer_types": _GEMMA_LAYERS, "sliding_window": 12, "query_pre_attn_scalar": 16},
            "vision_config": {**_ENCODER, "model_type": "siglip_vision_model", "image_size": 16},
            "mm_tokens_per_image": 4,
            "boi_token_index": 258,
            "image_token_index": 259,
            "eoi_token_index": 260,
        },
        "gemma4": {
            "text_config": {
                **_TEXT,
                "layer_types": _GEMMA_LAYERS,
                "sliding_window": 12,
                "global_head_dim": 16,
                "num_global_key_value_heads": 2,
                "hidden_size_per_layer_input": 8,
                "vocab_size_per_layer_input": VOCAB,
                "num_kv_shared_layers": 0,
                "use_bidirectional_attention": "vision",
            },
            "vision_config": {
                **_ENCODER,
                "model_type": "gemma4_vision",
                "num_key_value_heads": 2,
                "head_dim": 8,
                "pooling_kernel_size": 2,
            },
            "audio_config": None,
            **_GEMMA4_IDS,
        },
        "qwen2_vl": {
            "text_config": qwen_text,
            "vision_config": {**_QWEN_ENCODER, "embed_dim": 16, "hidden_size": 64, "mlp_ratio": 2},
            **_QWEN_IDS,
        },
        "qwen2_5_vl": {
            "text_config": qwen_text,
            "vision_config": {
                **_QWEN_ENCODER,
                "hidden_size": 16,
                "intermediate_size": 32,
                "out_hidden_size": 64,
                "window_size": 16,
                "fullatt_block_indexes": [1],
            },
            **_QWEN_IDS,
        },
        "qwen3_vl": {"text_config": qwen_text, "vision_config": deepstack, **_QWEN_IDS},
        "qwen3_vl_moe": {
            "text_config": {**qwen_text, **experts, "decoder_sparse_step": 1},
            "vision_config": deepstack,
            **_QWEN_IDS,
        },
        "qwen3_5": {"text_config": {**qwen_text, **states}, "vision_config": encoder3, **_QWEN_IDS},
        "qwen3_5_moe": {
            "text_config": {**qwen_text, **states, **experts, "shared_expert_intermediate_size": 16},
            "vision_config": encoder3,
            **_QWEN_IDS,
        },
    }


LABELS = {
    "gemma3": "Gemma 3",
    "gemma4": "Gemma 4",
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "qwen3_vl_moe": "Qwen3-VL MoE",
    "qwen3_5": "Qwen 3.5",
    "qwen3_5_moe": "Qwen 3.5 MoE",
}
"""What each family is called."""
FAMILIES = tuple(LABELS)
OF_STATES = ("qwen3_5", "qwen3_5_moe")
"""Those with layers that keep a recurrent state."""
SINCE_5 = ("gemma4", *OF_STATES)
"""Those that transformers 4.57 lacks."""


def params(families: Iterable[str]) -> list[Any]:
    """Families as parameters of tests, skipped where this version of transformers lacks them."""
    lacks = pytest.mark.skip(reason=f"transformers {transformers.__version__} lacks this family")
    return [pytest.param(name, marks=[] if name in CONFIG_MAPPING else lacks) for name in families]


def tokenizer() -> Any:
    """Bytes, and the tokens that begin an image, stand for its parts, and end it."""
    made = tiny.byte_tokenizer()
    made.add_special_tokens({"additional_special_tokens": [BEGIN, PART, END]})
    return made


def image_processor(family: str) -> Any:
    if family == "gemma3":
        from transformers import Gemma3ImageProcessor

        return _made(Gemma3ImageProcessor, size={"height": 16, "width": 16})
    if family == "gemma4":
        from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

        return Gemma4ImageProcessorPil(patch_size=4, pooling_kernel_size=2, max_soft_tokens=70)
    from transformers import Qwen2VLImageProcessor

    sizes = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    return _made(Qwen2VLImageProcessor, min_pixels=64, max_pixels=1024, **sizes)


def _made(of: Any, **options: Any) -> Any:
    return of(**options)


@cache
def model(family: str) -> Any:
    torch.manual_seed(2)
    config = AutoConfig.for_model(family, tie_word_embeddings=False, **_configs()[family])
    made = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            # What a state forgets is left as it is.
            if parameter.ndim > 1 and "conv1d" not in name:
                # Some begin as zeros, and images would make no difference.
                parameter.normal_(std=0.16)
    return made


def picture(seed: int, width: int = 24, height: int = 16) -> bytes:
    """A PNG of random coloured squares."""
    generator = torch.Generator().manual_seed(seed)
    squares = torch.randint(0, 256, (4, 6, 3), generator=generator, dtype=torch.uint8).numpy()
    file = io.BytesIO()
    Image.fromarray(squares).resize((width, height), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


class Processor(NamedTuple):
    """What a processor of transformers is to the loader."""

    tokenizer: Any
    image_processor: Any
    chat_template: str | None = None

    def __call__(self) -> None:
        raise NotImplementedError


def processor(family: str) -> Processor:
    return Processor(tokenizer(), image_processor(family))


def generated(family: str, prompt_ids: list[int], images: Any, num_tokens: int) -> list[int]:
    """What transformers' own greedy decoding writes after a prompt with images."""
    with torch.inference_mode():
        out = model(family).generate(
            **_inputs(family, prompt_ids, images),
            attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.int64),
            max_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return list(out[0, len(prompt_ids) :].tolist())


def last_logits(family: str, prompt_ids: list[int], images: Any) -> torch.Tensor:
    """The logits after a prompt with images, `[vocab]`, by a forward of transformers that caches nothing."""
    with torch.inference_mode():
        logits: torch.Tensor = model(family)(**_inputs(family, prompt_ids, images), use_cache=False).logits[0, -1]
    return logits


def _inputs(family: str, prompt_ids: list[int], images: Any) -> dict[str, Any]:
    """A prompt with images as transformers takes it."""
    given = {name: torch.cat([image.inputs[name] for image in images]) for name in (images[0].inputs if images else ())}
    kinds = torch.zeros(1, len(prompt_ids), dtype=torch.int64)
    for image in images:
        kinds[0, image.start : image.stop] = 1
    takes = inspect.signature(model(family).forward).parameters
    # transformers 4 looks for the marks around images itself.
    given |= {name: kinds for name in ("token_type_ids", "mm_token_type_ids") if name in takes}
    return {"input_ids": torch.tensor([prompt_ids]), **given}
