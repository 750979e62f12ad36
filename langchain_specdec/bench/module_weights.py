"""A Hugging Face module in the forms that contestants run it in: as transformers makes it, and as the engine has it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import GenerationConfig

from langchain_specdec.models.decoder_families import decoder_weights
from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.models.make_runner import make_runner
from langchain_specdec.runner.cpu.decoder_weights import DecoderWeights
from langchain_specdec.runner.cpu.kernel_linear import PanelWeight
from langchain_specdec.runner.cpu.native_runner import NativeRunner
from langchain_specdec.runner.cpu.packed_layers import PackedLinear

# Positions of a slot that is made for the arranging alone.
_LENGTH = 64


def as_peer(model: Any) -> Any:
    """A second module over the same weights, as transformers would have loaded it."""
    shared = {id(tensor): tensor for tensor in model.parameters()}
    peer = copy.deepcopy(model, shared)
    soft_cap = getattr(peer.config.get_text_config(), "attn_logit_softcapping", None)
    # transformers' own choice where nothing is asked for.
    peer.set_attn_implementation("sdpa" if getattr(peer, "_supports_sdpa", True) and not soft_cap else "eager")
    # The checkpoint's defaults (top_p, a repetition penalty, ...) would add to the parameters of a run.
    peer.generation_config = GenerationConfig()
    return peer


def arrange(loaded: LoadedModel) -> tuple[DecoderWeights | None, int]:
    """Have the engine arrange a model's weights on a CPU, as it does with one that it has loaded itself.

    Args:
        loaded: The model, which is nobody else's.

    Returns:
        What its native decoder runs, None where it runs the module; and how many linear layers it has packed.
    """
    runner = make_runner(loaded, num_slots=1, max_length=_LENGTH, max_width=1)
    runner.release()
    weights = decoder_weights(loaded.model) if isinstance(runner, NativeRunner) else None
    return weights, sum(isinstance(module, PackedLinear) for module in loaded.model.modules())


def step_bytes(model: torch.nn.Module) -> int:
    """Bytes of weights that a decoding step of one token reads: all of them, but of an embedding only a row.

    An embedding that is the head too is read whole, as the head.
    """
    embedding = model.get_input_embeddings().weight  # type: ignore[operator]
    head = model.get_output_embeddings()  # type: ignore[operator]
    is_tied = head is not None and head.weight is embedding
    parameters = {id(p): p for p in model.parameters() if p is not embedding or is_tied}
    return sum(p.numel() * p.element_size() for p in parameters.values())


def narrowed_bytes(model: torch.nn.Module) -> int:
    """Bytes that packing spares a step: weights in float32 that bfloat16 holds exactly are packed in that."""
    panels = [module for module in model.modules() if isinstance(module, PanelWeight)]
    return sum(p.out_features * p.panels.shape[1] * 2 for p in panels if p.panels.dtype == torch.bfloat16)
