"""Reads what a native decoder runs of an EAGLE-3 head, beside a target whose tables it may share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from langchain_specdec.models.heads.eagle3_head import Eagle3Head
from langchain_specdec.models.heads.rotary_frequencies import rotary_frequencies
from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.runner.cpu.decoder_trial import native_library
from langchain_specdec.runner.cpu.decoder_weights import (
    Activation,
    DecoderWeights,
    Floats,
    Format,
    LayerWeights,
    Matrix,
    StateInput,
)
from langchain_specdec.runner.cpu.matrix_layers import MatrixEmbedding, MatrixLinear, matrix_of, narrowed
from langchain_specdec.runner.cpu.native_decoder import NativeDecoder
from langchain_specdec.runner.cpu.native_head_runner import HeadWeights, NativeHeadRunner
from langchain_specdec.runner.cpu.quantized_blocks import can_quantize, quantized_matrix
from langchain_specdec.runner.cpu.rotary import Rotary

_ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
}
_SHARED_TYPES = (torch.float32, torch.float16, torch.bfloat16)


def native_head(
    head: Eagle3Head,
    target: LoadedModel,
    *,
    num_slots: int,
    max_length: int,
    max_width: int,
    num_threads: int,
    beside: NativeDecoder | None = None,
    rounds: bool = True,
) -> NativeHeadRunner | None:
    """A runner of a head in the native decoder; None where it does not run this head, or there is none here.

    Args:
        head: The head, which is not needed any more afterwards: nothing of it changes later.
        target: What it drafts for, with its runner made: tables that the head has not are the target's own memory.
        num_slots: Slots of its cache.
        max_length: Positions of a slot that text can use.
        max_width: Most tokens of a row of a draft.
        num_threads: Threads that share a forward, the calling one included.
        beside: See `NativeDecoder`.
        rounds: See `head_weights`.

    Raises:
        MemoryError: There is no memory for it.
    """
    library, weights = native_library(), head_weights(head, target, rounds=rounds)
    if library is None or weights is None:
        return None
    return NativeHeadRunner(weights, library, num_slots, max_length, max_width, num_threads, beside)


@torch.no_grad()
def head_weights(head: Eagle3Head, target: LoadedModel, *, rounds: bool = True) -> HeadWeights | None:
    """What a native decoder needs of a head; None where the head has something that it does not run.

    Args:
        head: On the CPU.
        target: See `native_head`.
        rounds: Whether the head's matrices are rounded to blocks of Q8_0, 34 bytes for 32 numbers: about half of
            bfloat16's, and a draft reads all of them. Drafts change the speed alone, and the relative error of a
            matrix is some 0.5%. Otherwise their numbers stay as they are, as those of norms, biases and embeddings do.
    """
    config = head.config
    layers: list[Any] = [*head.layers]
    activation = _ACTIVATIONS.get(config.activation)
    if activation is None or config.mlp_bias or config.num_heads % config.num_kv_heads:
        return None
    if head.norm.weight.device.type != "cpu":
        return None
    embedding, output = _embedding(head, target), _output(head, target, rounds=rounds)
    if embedding is None or output is None:
        return None
    frequencies, scale = rotary_frequencies(config.rope, config.head_dim)
    decoder = DecoderWeights(
        layers=[_layer(layer, rounds=rounds) for layer in layers],
        embedding=embedding[0],
        head=output[0],
        final_norm=_floats(head.norm.weight),
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        norm_eps=config.rms_norm_eps,
        rotary=[Rotary(_floats(frequencies), scale)],
        activation=activation,
        embedding_scale=embedding[1],
        head_bias=output[1],
        state=StateInput(
            _floats(layers[0].hidden_norm.weight),
            config.norm_before_residual,
            _matrix(head.fc.weight, rounds=rounds) if config.has_fc else None,
        ),
    )
    point_norms: list[Any] = [*head.fc_norm] if config.fc_norm else []
    return HeadWeights(
        decoder,
        config.tap_points,
        head.target_ids,
        config.norm_output,
        _floats(torch.stack([norm.weight for norm in point_norms])) if point_norms else None,
        _floats(head.input_norm.weight) if config.norm_before_fc else None,
    )


def _layer(layer: Any, *, rounds: bool) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp

    def matrix(linear: nn.Linear) -> Matrix:
        return _matrix(linear.weight, rounds=rounds)

    def bias(linear: nn.Linear) -> Floats | None:
        return None if linear.bias is None else _floats(linear.bias)

    def head_norm(norm: Any) -> Floats | None:
        return None if isinstance(norm, nn.Identity) else _floats(norm.weight)

    return LayerWeights(
        query=matrix(attention.q_proj),
        key=matrix(attention.k_proj),
        value=matrix(attention.v_proj),
        output=matrix(attention.o_proj),
        gate=matrix(mlp.gate_proj),
        up=matrix(mlp.up_proj),
        down=matrix(mlp.down_proj),
        attention_norm=_floats(layer.input_layernorm.weight),
        mlp_norm=_floats(layer.post_attention_layernorm.weight),
        query_norm=head_norm(attention.q_norm),
        key_norm=head_norm(attention.k_norm),
        query_bias=bias(attention.q_proj),
        key_bias=bias(attention.k_proj),
        value_bias=bias(attention.v_proj),
        output_bias=bias(attention.o_proj),
    )


def _embedding(head: Eagle3Head, target: LoadedModel) -> tuple[Matrix, float] | None:
    """The head's or its target's, and what its numbers are multiplied by."""
    if head.config.has_embedding:
        return _exact(head.embed_tokens.weight), 1.0
    model: Any = target.model
    if not isinstance(model, nn.Module):
        return model.weights.embedding, model.weights.embedding_scale
    module: Any = target.model
    table = module.get_input_embeddings()
    scale = getattr(table, "embed_scale", None)
    matrix = _shared(table)
    return None if matrix is None else (matrix, 1.0 if scale is None else float(scale))


def _output(head: Eagle3Head, target: LoadedModel, *, rounds: bool) -> tuple[Matrix, Floats | None] | None:
    """The head's or its target's, with its bias."""
    if head.config.has_output:
        return _matrix(head.lm_head.weight, rounds=rounds), None
    model: Any = target.model
    if not isinstance(model, nn.Module):
        return model.weights.head, None
    module: Any = target.model
    layer = module.get_output_embeddings()
    matrix = _shared(layer)
    return None if matrix is None else (matrix, None if layer.bias is None else _floats(layer.bias))


def _shared(layer: Any) -> Matrix | None:
    """The weight of a layer of the target, where it is; None where a native decoder cannot read it there."""
    if isinstance(layer, (MatrixLinear, MatrixEmbedding)):
        return layer.matrix
    if not isinstance(layer, (nn.Linear, nn.Embedding)) or type(layer.weight.data) is not Tensor:
        return None
    weight = layer.weight
    is_read = weight.dtype in _SHARED_TYPES and weight.device.type == "cpu" and weight.is_contiguous()
    return matrix_of(weight) if is_read else None


def _matrix(weight: Tensor, *, rounds: bool) -> Matrix:
    if rounds:
        matrix = matrix_of(weight)
        rounded = quantized_matrix(matrix, Format.Q8_0) if can_quantize(matrix) else None
        if rounded is not None:
            return rounded
    return _exact(weight)


def _exact(weight: Tensor) -> Matrix:
    """Its own memory, or fewer bytes that hold the same numbers."""
    return narrowed(weight) if weight.dtype == torch.float32 else matrix_of(weight)


def _floats(tensor: Tensor) -> Floats:
    array: Floats = tensor.detach().float().contiguous().numpy()
    return array
