"""Model families as tiny random models, and what each writes by itself, without a cache."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import dynamic_rope_update
from transformers.utils import logging

from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.models.loader import load_model
from tests.support import tiny_models as tiny
from tests.support.family_list import GEMMA3 as GEMMA3
from tests.support.family_list import MODEL_FAMILIES
from tests.support.family_list import POSITIONS as POSITIONS
from tests.support.family_list import SIZES as SIZES
from tests.support.family_list import WINDOW as WINDOW

# None is the engine's own attention, the others are transformers'.
ATTENTIONS = [None, "sdpa", "eager"]
MAX_WIDTH = 6

FAMILY_OF = {name: family for family in MODEL_FAMILIES for name in family.cases}
"""The family of each tiny model."""
FAMILIES = [name for name, family in FAMILY_OF.items() if not family.chains and not family.refused]
"""Drafts may branch."""
CHAINS = [name for name, family in FAMILY_OF.items() if family.chains]
"""Drafts may not."""
REFUSED = [name for name, family in FAMILY_OF.items() if family.refused]
NATIVE = [name for name in FAMILIES if FAMILY_OF[name].is_native and "model_type" not in FAMILY_OF[name].cases[name]]
"""Run by a native decoder, which models that also read images are not."""
WITH_EXPERTS = [name for name in FAMILIES if any("experts" in key for key in FAMILY_OF[name].cases[name])]

IS_TRANSFORMERS_5 = int(transformers.__version__.partition(".")[0]) >= 5
# What these do to their scores, transformers' sdpa does not.
WITHOUT_SDPA = ("gemma2", "gpt2-layer-scaling", "gpt_oss")
# transformers' own attentions are the same code in all other families.
_WITH_ALL_ATTENTIONS = {*NATIVE, "gpt2", "gpt2-layer-scaling", "gpt_neox", "gpt_oss", "gemma3n", "gemma4", "stablelm"}
# Their frequencies depend on the largest position, which transformers looks up on the host in each forward; those of
# a longrope since some version of 5 no more. Falcon's keys are chosen by a list of the host's, and Gemma 3n's
# sparse activations ask the host whether a number is sound.
WAITING_FAMILIES = {"llama-dynamic-rope", "phimoe", "falcon", "falcon-groups", "gemma3n-sparse"}
if "torch.where" not in inspect.getsource(dynamic_rope_update):
    WAITING_FAMILIES |= {"phi3-long-rope"}

_ENCODER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 4,
}
# What else the configurations of models that also read images have.
_VISION: dict[str, dict[str, Any]] = {
    "gemma3": {
        "vision_config": {**_ENCODER, "model_type": "siglip_vision_model", "image_size": 8},
        "mm_tokens_per_image": 1,
        "image_token_index": 255,
    },
    "gemma4": {
        "vision_config": {**_ENCODER, "model_type": "gemma4_vision", "num_key_value_heads": 2, "head_dim": 8},
        "audio_config": None,
    },
}


def is_testable(name: str) -> bool:
    """Whether this version of transformers has a family, and runs it as later ones do."""
    return IS_TRANSFORMERS_5 or FAMILY_OF[name].is_everywhere


def params(names: Iterable[str], attentions: Sequence[str | None] = ()) -> list[Any]:
    """Names as parameters of tests, with each attention that a family knows, and skipped where it is unknown."""
    skip = pytest.mark.skip(reason=f"transformers {transformers.__version__} lacks this family, or runs it otherwise")
    cases: list[Any] = [(name,) for name in names]
    if attentions:
        cases = [(*case, attention) for case in cases for attention in attentions if _knows(case[0], attention)]
    return [pytest.param(*case, marks=[] if is_testable(case[0]) else skip) for case in cases]


def _knows(name: str, attention: str | None) -> bool:
    if attention == "sdpa" and name in WITHOUT_SDPA:
        return False
    return attention is None or name in _WITH_ALL_ATTENTIONS


CASES = params(FAMILIES, ATTENTIONS)
TEXT_CASES = [*params(FAMILIES, [None]), *params(["llama", "gemma3", "gpt2"], ["sdpa", "eager"])]
"""Where logits of `CASES` are right, the engine cannot tell attentions apart: few are enough for texts."""


def make_config(name: str) -> Any:
    level = logging.get_verbosity()
    # Some of the odd configurations here are warned of.
    logging.set_verbosity_error()
    try:
        return _make_config(name)
    finally:
        logging.set_verbosity(level)


def _make_config(name: str) -> Any:
    family = FAMILY_OF[name]
    differences = dict(family.cases[name])
    model_type = differences.pop("model_type", family.model_type)
    if model_type in _VISION:
        text = family.cases[name.partition("-")[0]]
        return AutoConfig.for_model(
            model_type,
            text_config={**SIZES, **text, "model_type": family.model_type},
            tie_word_embeddings=False,
            **_VISION[model_type],
        )
    known = AutoConfig.for_model(model_type)
    sizes = {key: value for key, value in SIZES.items() if hasattr(known, key)}
    return AutoConfig.for_model(model_type, **sizes | differences)


def make_model(name: str, device: str = "cpu", attention: str = "eager") -> Any:
    """A random model whose matrices are large enough for its choices to depend on the context."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(make_config(name), attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(15.0)
    return model.to(device)


@functools.cache
def make_reference(name: str, device: str) -> Any:
    return make_model(name, device)


def reference_logits(name: str, device: str, tokens: Sequence[int]) -> Any:
    """The model's own logits over a whole text, without a cache."""
    return _reference_logits(name, device, tuple(tokens))


# Tests of one family by different attentions ask for the same texts, one test after the other.
@functools.lru_cache(maxsize=500)
def _reference_logits(name: str, device: str, tokens: tuple[int, ...]) -> Any:
    with torch.inference_mode():
        ids = torch.tensor([tokens], device=device)
        # Without a cache, layers that share keys and values compute their own on transformers 4.
        shares = "num_kv_shared_layers" in FAMILY_OF[name].cases[name]
        return make_reference(name, device)(input_ids=ids, use_cache=shares).logits[0]


@functools.cache
def reference_text(name: str, device: str, prompt: tuple[int, ...], num_tokens: int) -> list[int]:
    """What the model writes by itself, every token from a forward over the whole text."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(int(reference_logits(name, device, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def load(name: str, device: str, attention: str | None = None) -> LoadedModel:
    # What StableLM's attention is has to be said when it is made (transformers 4).
    model = make_model(name, device, (name == "stablelm" and attention) or "eager")
    return load_model(model, tiny.byte_tokenizer(), attn_implementation=attention)
