"""Hugging Face modules as the arrays that a native decoder runs.

A family stands here if all that it computes is known. A module that differs in anything from what transformers makes
of one, by a class, a hook, a bias or a buffer, is of none of them, and runs as a module.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langchain_specdec.models.known_families import FAMILIES, Family
from langchain_specdec.models.matrix_replacement import replace_matrices
from langchain_specdec.runner.cpu.decoder_weights import (
    Activation,
    DecoderWeights,
    Floats,
    LayerWeights,
    Matrix,
)
from langchain_specdec.runner.cpu.mapped_weights import MappedWeights, copy_mapped
from langchain_specdec.runner.cpu.matrix_layers import MatrixEmbedding, MatrixLinear, narrowed, plain_matrix
from langchain_specdec.runner.cpu.rotary import Rotary
from langchain_specdec.runner.model_config import max_positions, num_key_value_heads

_DEFAULT_POSITIONS = 8192
# At so many positions a rotary embedding is looked at.
_ASKED_POSITIONS = 32
_SLIDING = "sliding_attention"
# What modules of all families are made of beside their own classes. Dropout does nothing in eval mode.
_COMMON = (nn.Linear, nn.Embedding, nn.ModuleList, nn.Dropout, MatrixLinear, MatrixEmbedding)
# Models whose weights a native decoder was given.
_given: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_BUFFERS = ("inv_freq", "embed_scale", "rows")
_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.SILU: F.silu,
    Activation.GELU_TANH: lambda gate: F.gelu(gate, approximate="tanh"),
    Activation.GELU: F.gelu,
}


class _UnknownError(Exception):
    """A model is not what a native decoder runs; the message says why, as the rest of a sentence."""


def decoder_weights(model: nn.Module) -> DecoderWeights | None:
    """What a native decoder needs of a model; None where it is not of a family that one runs.

    Linear layers and embeddings whose numbers fit into fewer bytes are replaced in the model by layers over these
    arrays, and what stays in float32 is the model's own memory: nothing is there twice, and the model can still be
    called. Weights that are mapped from files get memory of their own. Of a model that was given before, which others
    may hold by now, nothing is replaced: these are arrays over what it has.

    Args:
        model: In eval mode, and nobody else's the first time. Where the answer is None it is as it was.
    """
    if why_not_native(model) is not None:
        return None
    with torch.no_grad():
        if model not in _given:
            _share_weights(model)
            _given.add(model)
        return _Reader(model).weights()


def was_given(model: nn.Module) -> bool:
    """Whether `decoder_weights` has read a model before."""
    return model in _given


def why_not_native(model: nn.Module) -> str | None:
    """Why a native decoder cannot run a model, as the rest of a sentence; None where it can."""
    try:
        with torch.no_grad():
            _check_modules(model)
            _check_sizes(_Reader(model).weights(), model.config)
    except _UnknownError as reason:
        return str(reason)
    except AttributeError as error:
        return f"it is not as in the versions of transformers that are known ({error})"
    return None


def _check_modules(model: nn.Module) -> None:
    """Refuse whatever else than its known classes may decide what a model computes, and where."""
    family, home = _family_of(model), type(model).__module__
    for name, module in model.named_modules():
        kind, where, settings = type(module), name or "it", vars(module)
        is_own = kind.__module__ == home and kind.__name__.startswith(family.prefix)
        if not is_own and kind not in _COMMON and not name.endswith(("act_fn", "activation_fn")):
            msg = f"{where} is a {kind.__name__}"
            raise _UnknownError(msg)
        if is_own and kind.forward.__module__ != home:
            msg = f"the forward of {kind.__name__} was replaced"
            raise _UnknownError(msg)
        if module._forward_hooks or module._forward_pre_hooks or "_hf_hook" in settings or "forward" in settings:
            msg = f"{where} has hooks, or a forward of its own"
            raise _UnknownError(msg)
        if isinstance(module, nn.Embedding) and module.max_norm is not None:
            msg = f"{where} changes its weights when it is called"
            raise _UnknownError(msg)
    for name, parameter in model.named_parameters():
        is_plain = type(parameter) is nn.Parameter and type(parameter.data) is Tensor
        if not is_plain or parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            msg = f"{name} is not float32 on CPU"
            raise _UnknownError(msg)
    for name, buffer in model.named_buffers():
        if buffer.device.type != "cpu" or not name.endswith(_BUFFERS):
            msg = f"{name} is a buffer that is not known, or is not on CPU"
            raise _UnknownError(msg)


def _family_of(model: nn.Module) -> Family:
    kind = type(model)
    family = FAMILIES.get(f"{kind.__module__}.{kind.__qualname__}")
    if family is None:
        msg = f"a {kind.__name__} is of no family that it runs"
        raise _UnknownError(msg)
    return family


def _check_sizes(weights: DecoderWeights, config: Any) -> None:
    """Refuse matrices that do not fit each other, of a module that was changed."""
    hidden, query, key = config.hidden_size, weights.heads * weights.head_dim, weights.kv_heads * weights.head_dim
    vocab, mlp = weights.vocab, weights.layers[0].gate.outputs
    wanted = [(weights.embedding, vocab, hidden), (weights.head, vocab, hidden)]
    for layer in weights.layers:
        wanted += [(layer.query, query, hidden), (layer.key, key, hidden), (layer.value, key, hidden)]
        wanted += [(layer.gate, mlp, hidden), (layer.up, mlp, hidden)]
        wanted += [(layer.output, hidden, query), (layer.down, hidden, mlp)]
    if weights.heads % weights.kv_heads or any((m.outputs, m.inputs) != (rows, size) for m, rows, size in wanted):
        msg = "its layers have other sizes than its configuration says"
        raise _UnknownError(msg)


def _share_weights(model: nn.Module) -> None:
    """Have the matrices of a model in as few bytes as they need, each once."""
    mapped = MappedWeights()
    replace_matrices(model, _narrowed, mapped.drop)
    copy_mapped(model, mapped)


def _narrowed(weight: Tensor, is_table: bool) -> Matrix | None:
    """A weight in fewer bytes; None where it is best left as it is."""
    del is_table
    matrix = narrowed(weight)
    return None if matrix.data.ctypes.data == weight.data_ptr() else matrix


class _Reader:
    """Reads a model of a known family, and refuses what a native decoder would compute otherwise.

    Args:
        model: Whose modules and forwards are transformers' own.
    """

    def __init__(self, model: Any) -> None:
        self._family = _family_of(model)
        self._model, self._base, self._config = model, model.model, model.config
        self._read: set[int] = set()
        self._epsilons: set[float] = set()

    def weights(self) -> DecoderWeights:
        """Arrays over all of the model's memory."""
        family, config, base, head = self._family, self._config, self._base, self._model.lm_head
        # transformers runs so many.
        layers = list(base.layers)[: config.num_hidden_layers]
        attentions = [layer.self_attn for layer in layers]
        if not all(attention.is_causal for attention in attentions):
            msg = "its tokens see those that come later"
            raise _UnknownError(msg)
        rotaries = self._rotaries()
        scale = getattr(base.embed_tokens, "embed_scale", None)
        score_cap, logit_cap = (getattr(config, name) if name else None for name in family.softcaps)
        residual, logits_divisor = (float(getattr(config, name)) if name else 1.0 for name in family.scales)
        weights = DecoderWeights(
            layers=[self._layer(layer, index, list(rotaries)) for index, layer in enumerate(layers)],
            embedding=self._matrix(base.embed_tokens),
            head=self._matrix(head),
            final_norm=self._norm(base.norm),
            heads=config.num_attention_heads,
            kv_heads=num_key_value_heads(config),
            head_dim=_same("head size", (attention.head_dim for attention in attentions)),
            norm_eps=0.0,
            rotary=list(rotaries.values()),
            activation=_same("activation", (_activation(layer.mlp) for layer in layers)),
            embedding_scale=family.embedding_scale(config) if scale is None else float(scale),
            attention_scale=_same("scale", (attention.scaling for attention in attentions)),
            attention_softcap=score_cap,
            logit_softcap=logit_cap,
            residual_scale=residual,
            logit_scale=1.0 / logits_divisor,
            head_bias=self._vector(head.bias),
        )
        if unused := [name for name, parameter in self._model.named_parameters() if id(parameter) not in self._read]:
            msg = f"{unused[0]} has no place in it"
            raise _UnknownError(msg)
        return replace(weights, norm_eps=_same("epsilon", self._epsilons))

    def _layer(self, layer: Any, index: int, rotaries: Sequence[str]) -> LayerWeights:
        family, attention, mlp = self._family, layer.self_attn, layer.mlp
        if family.is_fused:
            queries = self._config.num_attention_heads * attention.head_dim
            keys = num_key_value_heads(self._config) * attention.head_dim
            query, key, value = self._split(attention.qkv_proj, (queries, keys, keys))
            inner = mlp.down_proj.in_features
            (gate, _), (up, _) = self._split(mlp.gate_up_proj, (inner, inner))
        else:
            query, key, value = (self._linear(attention, name) for name in ("q_proj", "k_proj", "v_proj"))
            gate, up = self._matrix(mlp.gate_proj), self._matrix(mlp.up_proj)
        output, output_bias = self._linear(attention, "o_proj")
        has_output_norms = family.has_output_norms
        before_mlp = layer.pre_feedforward_layernorm if has_output_norms else layer.post_attention_layernorm
        kind = self._kind(index)
        return LayerWeights(
            query=query[0],
            key=key[0],
            value=value[0],
            output=output,
            gate=gate,
            up=up,
            down=self._matrix(mlp.down_proj),
            attention_norm=self._norm(layer.input_layernorm),
            mlp_norm=self._norm(before_mlp),
            query_norm=self._norm(attention.q_norm) if family.has_head_norms else None,
            key_norm=self._norm(attention.k_norm) if family.has_head_norms else None,
            post_attention_norm=self._norm(layer.post_attention_layernorm) if has_output_norms else None,
            post_mlp_norm=self._norm(layer.post_feedforward_layernorm) if has_output_norms else None,
            query_bias=query[1],
            key_bias=key[1],
            value_bias=value[1],
            output_bias=output_bias,
            # SmolLM3 has layers without.
            rotary=(rotaries.index(kind) if kind in rotaries else 0) if getattr(attention, "use_rope", True) else None,
            window=self._window(kind),
        )

    def _kind(self, index: int) -> str:
        return str(self._config.layer_types[index]) if self._family.windows == "by_kind" else ""

    def _window(self, kind: str) -> int | None:
        has_one = self._family.windows == "all" or kind == _SLIDING
        window = self._config.sliding_window if has_one else None
        return None if window is None else int(window)

    def _rotaries(self) -> dict[str, Rotary]:
        """By the kinds of layers that have one of their own; one under "" where all have the same."""
        module, local = self._base.rotary_emb, getattr(self._base, "rotary_emb_local", None)
        length = max_positions(self._config) or _DEFAULT_POSITIONS
        if local is not None:  # Gemma 3 in transformers 4
            return {"full_attention": _rotary(module, length), _SLIDING: _rotary(local, length)}
        kinds = getattr(module, "layer_types", None)
        if kinds:
            return {kind: _rotary(module, length, kind) for kind in kinds}
        return {"": _rotary(module, length)}

    def _matrix(self, layer: Any) -> Matrix:
        """The weight of a layer, whose bias is another matter."""
        if isinstance(layer, (MatrixLinear, MatrixEmbedding)):
            if isinstance(layer, MatrixEmbedding):
                self._read.add(id(layer.weight))
            return layer.matrix
        self._read.add(id(layer.weight))
        return plain_matrix(layer.weight)

    def _linear(self, parent: Any, name: str) -> tuple[Matrix, Floats | None]:
        layer = getattr(parent, name)
        return self._matrix(layer), self._vector(layer.bias)

    def _split(self, layer: Any, sizes: Sequence[int]) -> list[tuple[Matrix, Floats | None]]:
        """The parts of a layer that is several."""
        matrix, bias = self._matrix(layer), self._vector(layer.bias)
        ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
        if ends[-1] != matrix.outputs:
            msg = "its layers have other sizes than its configuration says"
            raise _UnknownError(msg)
        spans = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        return [(matrix.rows(s.start, s.stop), None if bias is None else bias[s]) for s in spans]

    def _norm(self, norm: Any) -> Floats:
        self._epsilons.add(float(_one_of(norm, "variance_epsilon", "eps")))
        self._read.add(id(norm.weight))
        weight = norm.weight.detach()
        return _floats(weight + self._family.norm_offset if self._family.norm_offset else weight)

    def _vector(self, parameter: nn.Parameter | None) -> Floats | None:
        if parameter is None:
            return None
        self._read.add(id(parameter))
        return _floats(parameter)


def _rotary(module: Any, length: int, *kind: str) -> Rotary:
    # Before its frequencies are read: kinds that change them with a text's length are then as for short ones.
    positions = torch.linspace(0, max(length - 2, 0), _ASKED_POSITIONS, dtype=torch.float64, device="cpu").long()
    asked = module(torch.zeros(1, dtype=torch.float32, device="cpu"), positions[None], *kind)
    prefix = "".join(f"{name}_" for name in kind)
    frequencies, scale = (getattr(module, f"{prefix}{name}") for name in ("inv_freq", "attention_scaling"))
    found = Rotary(_floats(frequencies.clone()), float(scale))
    for turned, known in zip(asked, found.turns(positions), strict=True):
        halves = torch.cat([known, known], dim=1)
        if turned[0].shape != halves.shape or not torch.allclose(turned[0], halves, rtol=0, atol=1e-6):
            msg = "its rotary embedding does not turn halves of heads, or not evenly"
            raise _UnknownError(msg)
    return found


def _activation(mlp: Any) -> Activation:
    """Which one a module computes, whatever it is called: transformers has several names for each."""
    module = _one_of(mlp, "act_fn", "activation_fn")
    inputs = torch.linspace(-30.0, 30.0, 1001)
    outputs = module(inputs)
    for activation, function in _ACTIVATIONS.items():
        if torch.allclose(outputs, function(inputs), rtol=1e-6, atol=1e-6):
            return activation
    msg = f"the activation of its MLPs is {type(module).__name__}"
    raise _UnknownError(msg)


def _one_of(module: Any, first: str, second: str) -> Any:
    return getattr(module, first) if hasattr(module, first) else getattr(module, second)


def _same(what: str, values: Iterable[Any]) -> Any:
    """The value that all have."""
    found = set(values)
    if len(found) != 1:
        msg = f"its layers differ in their {what}"
        raise _UnknownError(msg)
    return found.pop()


def _floats(tensor: Tensor) -> Floats:
    array: Floats = tensor.detach().float().contiguous().numpy()
    return array
