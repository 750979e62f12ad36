"""Linear layers with their weights packed once for the CPU.

A decoding step multiplies a few rows by every weight of the model. Weights that are arranged beforehand make that as
fast as they can be read, so a wider step costs hardly more than a narrow one, and that is what makes drafting pay on a
CPU. The arranging and the product are those of `panel_linear`, or of `onednn_linear` where the first cannot be had.

Layers that read the same input (query, key and value; gate and up) are packed as one product: the small ones among
them cost more to start than to compute.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from langchain_specdec.runner.cpu.kernel_linear import PanelWeight, can_use_panels
from langchain_specdec.runner.cpu.onednn_linear import OneDNNWeight, can_use_onednn
from langchain_specdec.runner.cpu.weight_numbers import first_numbers, without_numbers
from langchain_specdec.runner.model_config import text_modules

# Names of sibling layers that Hugging Face models call one after the other on the same input.
_SHARED_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
# Smaller layers gain nothing, and some models read or write the weights of their smallest ones (Gemma 3n).
_MIN_WEIGHTS = 256
# Layers whose weight the layer around them reads by itself (Jamba, as the other models after Mamba 1).
_READ_BY_OTHERS = {"dt_proj"}


class PackedLinear(nn.Module):
    """A linear layer, or several with the same input, that holds its weight in the layout of its product only.

    Args:
        linears: The layers to take over; of a model that `can_pack`. The outputs stand one after the other.

    Attributes:
        samples: The first numbers of each layer's weight, by which models are told apart.
    """

    def __init__(self, *linears: nn.Linear) -> None:
        super().__init__()
        self.in_features = linears[0].in_features
        self.out_features = sum(linear.out_features for linear in linears)
        self.bias = _joined_bias(linears)
        weights = [linear.weight.detach() for linear in linears]
        self.samples = [first_numbers(weight) for weight in weights]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        self.product = PanelWeight(weight) if can_use_panels(weight.dtype) else OneDNNWeight(weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """`inputs @ weight.T + bias`, for `[..., in_features]`."""
        output: Tensor = self.product(inputs, self.bias)
        return output


class _Part(nn.Module):
    """Stands for one layer of a joint `PackedLinear`. The first computes for all, the others take their share of it.

    A layer that is called with another input than the first one's, whatever the reason, computes anew.
    """

    def __init__(self, joint: PackedLinear, start: int, size: int) -> None:
        super().__init__()
        self._joint = joint
        self._start, self._stop = start, start + size
        self.in_features, self.out_features = joint.in_features, size
        # What the first part computed last: input and output. One attribute, so that threads see both or neither.
        self._computed: tuple[Tensor, Tensor] | None = None
        # In a list, so that it is no submodule; empty for the first part itself: modules that hold themselves stay in
        # memory until Python looks for cycles, which it seldom does.
        self._first: list[_Part] = []

    @classmethod
    def from_joint(cls, joint: PackedLinear, sizes: Sequence[int]) -> list[_Part]:
        """Parts of these sizes, in the order in which they are called."""
        starts = itertools.accumulate(sizes, initial=0)
        parts = [cls(joint, start, size) for start, size in zip(starts, sizes, strict=False)]
        for part in parts[1:]:
            part._first = [parts[0]]
        return parts

    def forward(self, inputs: Tensor) -> Tensor:
        """This layer's share of the joint output, `[..., out_features]`; a view."""
        first = self._first[0] if self._first else self
        computed = None if first is self else first._computed
        if computed is None or computed[0] is not inputs:
            computed = (inputs, self._joint(inputs))
        # The last part lets go of the tensors.
        first._computed = None if self._stop == self._joint.out_features else computed
        return computed[1][..., self._start : self._stop]


class _TiedEmbedding(nn.Embedding):
    """An embedding whose table is the head's weight, and is read from where that is packed.

    Its own weight keeps its shape and its type, and has no memory and no numbers; nothing reads it.
    """

    def __init__(self, embedding: nn.Embedding, packed: PanelWeight) -> None:
        nothing = without_numbers(embedding, embedding.weight.dtype)
        super().__init__(embedding.num_embeddings, embedding.embedding_dim, _weight=nothing)
        # In a list, so that it is no second name for the head's submodule.
        self._packed = [packed]

    def forward(self, index: Tensor) -> Tensor:
        """`[..., embedding_dim]` for `[...]`."""
        return self._packed[0].rows(index)


def can_pack(model: nn.Module) -> bool:
    """Whether packing would work: the model is on CPU, in types that can be packed on this processor."""
    parameters = list(model.parameters())
    dtypes = {p.dtype for p in parameters}
    return all(p.device.type == "cpu" for p in parameters) and all(
        can_use_panels(dtype) or can_use_onednn(dtype) for dtype in dtypes
    )


def pack_linears(model: nn.Module, packed: Callable[[Tensor], None] | None = None) -> int:
    """Replace the model's linear layers by packed ones, in place. Quantised and other special layers stay.

    So do those of encoders of images, which read them in ways of their own. The model computes as before, but its state
    dict lacks the packed weights: only for a model that nobody else uses.

    Args:
        model: On CPU, in eval mode.
        packed: Told each weight of which there is a packed copy now. The model no longer reads it, unless another layer
            has the same one.

    Returns:
        Number of layers replaced.
    """
    count = 0
    tables = {
        id(child.weight): (parent, name)
        for parent in text_modules(model)
        for name, child in parent.named_children()
        if type(child) is nn.Embedding and child.max_norm is None
    }
    for parent, names in list(_groups(model)):
        linears = [getattr(parent, name) for name in names]
        count += len(linears)
        joint = PackedLinear(*linears)
        parts = [joint] if len(linears) == 1 else _Part.from_joint(joint, [linear.out_features for linear in linears])
        for name, part in zip(names, parts, strict=True):
            setattr(parent, name, part)
        table = tables.get(id(linears[0].weight)) if len(linears) == 1 else None
        if table is not None and isinstance(joint.product, PanelWeight):
            holder, name = table
            setattr(holder, name, _TiedEmbedding(getattr(holder, name), joint.product))
        if packed is not None:
            for linear in linears:
                packed(linear.weight.detach())
    return count


def _groups(model: nn.Module) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
    """Where linear layers hang, and under which names; those of one input together."""
    for parent in text_modules(model):
        linears = {name: child for name, child in parent.named_children() if type(child) is nn.Linear}
        names = [name for name, child in linears.items() if _pays(child) and name not in _READ_BY_OTHERS]
        for group in _SHARED_INPUT:
            if set(group) <= set(names) and len({getattr(parent, name).in_features for name in group}) == 1:
                names = [name for name in names if name not in group]
                yield parent, group
        for name in names:
            yield parent, (name,)


def _pays(linear: nn.Linear) -> bool:
    # Weights of other classes, quantised ones say, bring a product of their own.
    return type(linear.weight.data) is Tensor and linear.weight.numel() >= _MIN_WEIGHTS


def _joined_bias(linears: Sequence[nn.Linear]) -> Tensor | None:
    if all(linear.bias is None for linear in linears):
        return None
    biases = [
        linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach()
        for linear in linears
    ]
    return torch.cat(biases)
