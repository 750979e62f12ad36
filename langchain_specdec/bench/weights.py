"""One set of weights for everybody: loaded once, and arranged so that each contestant runs in its own best form.

transformers' `generate` and what builds on it get the model as transformers makes it. The engine gets a second module
over the very same weights, with its own attention. On CPU the engine keeps its linear layers packed, so there, and
only there, these weights are in memory twice.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from langchain_specdec.bench.random_weights import is_random, random_model
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.models.loader import load_model
from langchain_specdec.progress import Progress
from langchain_specdec.runner.cpu.compiled_layers import CompiledLayers, can_compile
from langchain_specdec.runner.cpu.kernel_linear import PanelWeight
from langchain_specdec.runner.cpu.packed_layers import can_pack, pack_linears
from langchain_specdec.runner.cuda.capture import can_capture
from langchain_specdec.runner.cuda.graph_store import GraphStore
from langchain_specdec.runner.trials import CompileMode


@dataclass(frozen=True)
class Weights:
    """A model in the forms that contestants run it in.

    Attributes:
        ours: For the engine; None where only peers take part.
        peer: As transformers runs it; None where only the engine takes part.
        tokenizer: Its tokenizer.
        name: Model id or folder.
        eos_token_ids: Tokens that end a text.
        num_bytes: Bytes of weights that a decoding step of the engine reads, or of a peer where it takes no part.
        dtype: Their type.
        device: Where they are.
        num_packed: Linear layers that the engine holds packed.
        compiled: Runs the engine's layers compiled; all its contestants share the graphs. None runs them as they are.
        obstacle: Why they are not compiled, or its steps not captured, although that was asked for; empty where they
            are.
        captured: The graphs of the engine's contestants, which have their own, on CUDA; filled as these are made. None
            where steps are not captured.
    """

    ours: LoadedModel | None
    peer: Any
    tokenizer: Any
    name: str
    eos_token_ids: tuple[int, ...]
    num_bytes: int
    dtype: torch.dtype
    device: torch.device
    num_packed: int
    compiled: CompiledLayers | None
    obstacle: str
    captured: list[GraphStore] | None = None


def load_weights(
    model: str | PreTrainedModel,
    tokenizer: Any = None,
    *,
    for_ours: bool,
    for_peers: bool,
    dtype: str,
    device: str | None,
    compile: CompileMode = "off",  # noqa: A002 - the name that users give
    progress: Progress | None = None,
) -> Weights:
    """Load a model once, for the engine, for peers, or for both.

    Args:
        model: Model id, folder, `"embedded"`, `"random:SHAPE"`, or a loaded model, which is given up to the bench.
        tokenizer: A loaded model's tokenizer.
        for_ours: Whether the engine takes part.
        for_peers: Whether peers do.
        dtype: As in `LocalBackend`.
        device: As in `LocalBackend`.
        compile: As in `LocalBackend`, but that graphs are made when a contestant warms up.
        progress: Told while the embedded model is prepared.

    Raises:
        InvalidParameterError: The layers have to be compiled, or the steps captured, and cannot be.
        SpecDecError: As `load_model` does.
    """
    if isinstance(model, str) and is_random(model):
        model, tokenizer = random_model(model, dtype, device)
        dtype = "auto"
    loaded = load_model(model, tokenizer, dtype=dtype, device=device, progress=progress)
    num_bytes = step_bytes(loaded.model)
    peer = _peer(loaded.model) if for_peers else None
    num_packed = 0
    if for_ours and can_pack(loaded.model):
        num_packed = pack_linears(loaded.model)
        num_bytes -= _narrowed_bytes(loaded.model)
    compiled, obstacle = _compiled(loaded, compile) if for_ours else (None, "")
    is_captured = for_ours and compile != "off" and not obstacle and loaded.model.device.type == "cuda"
    return Weights(
        loaded if for_ours else None,
        peer,
        loaded.tokenizer,
        loaded.name,
        loaded.eos_token_ids,
        num_bytes,
        loaded.model.dtype,
        loaded.model.device,
        num_packed,
        compiled,
        obstacle,
        [] if is_captured else None,
    )


def _compiled(loaded: LoadedModel, mode: CompileMode) -> tuple[CompiledLayers | None, str]:
    if mode == "off":
        return None, ""
    is_cuda = loaded.model.device.type == "cuda"
    obstacle = can_capture(loaded.model) if is_cuda else can_compile(loaded.model)
    if obstacle is None:
        return None if is_cuda else CompiledLayers(loaded.model, mode), ""
    if mode != "auto":
        done = "captured" if is_cuda else "compiled"
        msg = f"{loaded.name} cannot be {done}: {obstacle}. Leave out --compile, or set it to auto or off."
        raise InvalidParameterError(msg)
    return None, obstacle


def _peer(model: Any) -> Any:
    """A second module over the same weights, as transformers would have loaded it."""
    shared = {id(tensor): tensor for tensor in model.parameters()}
    peer = copy.deepcopy(model, shared)
    soft_cap = getattr(peer.config.get_text_config(), "attn_logit_softcapping", None)
    # transformers' own choice where nothing is asked for.
    peer.set_attn_implementation("sdpa" if getattr(peer, "_supports_sdpa", True) and not soft_cap else "eager")
    # The checkpoint's defaults (top_p, a repetition penalty, ...) would add to the parameters of a run.
    peer.generation_config = GenerationConfig()
    return peer


def step_bytes(model: torch.nn.Module) -> int:
    """Bytes of weights that a decoding step of one token reads: all of them, but of an embedding only a row.

    An embedding that is the head too is read whole, as the head.
    """
    embedding = model.get_input_embeddings().weight  # type: ignore[operator]
    head = model.get_output_embeddings()  # type: ignore[operator]
    is_tied = head is not None and head.weight is embedding
    parameters = {id(p): p for p in model.parameters() if p is not embedding or is_tied}
    return sum(p.numel() * p.element_size() for p in parameters.values())


def _narrowed_bytes(model: torch.nn.Module) -> int:
    """Bytes that a step is spared by packing: weights in float32 that bfloat16 holds exactly are kept in that."""
    panels = [module for module in model.modules() if isinstance(module, PanelWeight)]
    return sum(p.out_features * p.panels.shape[1] * 2 for p in panels if p.panels.dtype == torch.bfloat16)
