"""The key/value cache: static slots, a length per row, and rollback by writing a length.

Each layer is one buffer `[slots, kv_heads, max_length, head_dim]`. Nothing is ever copied or cut: a forward writes the
keys and values of its tokens at each row's own positions, and what a rejected draft left behind is masked out until
the next forward overwrites it. Layers that keep a state instead of keys and values cannot be masked; see
`layer_states`.

On a CPU the buffers take memory by the tokens that stand in them, in whole pages, and not by what they have room for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from langchain_specdec.runner.layer_states import SlotStates
from langchain_specdec.runner.lazy_memory import LazyZeros
from langchain_specdec.runner.step_inputs import RowInputs
from langchain_specdec.runner.verify import is_gapless


@dataclass(frozen=True)
class ForwardShape:
    """Where the tokens of one forward go.

    A captured forward knows its rows by tensors alone, whose content may change between its replays.

    Attributes:
        length: Positions that any row can see, its own tokens and their padding included.
        slots: Slot of each row, int64 `[rows, 1]`.
        positions: Position of each token in its slot, int64 `[rows, width]`.
        first_slot: The first row's slot, where the rows' slots are neighbours in order, so that a view can stand for
            them; else None.
        start: Position of the first token of a single row; None for several rows, and where the host does not know it.
    """

    length: int
    slots: Tensor
    positions: Tensor
    first_slot: int | None
    start: int | None = None
    _elsewhere: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def from_rows(cls, slots: Sequence[int], starts: Sequence[int], inputs: RowInputs) -> ForwardShape:
        """The shape of rows whose slots and starts the host knows."""
        first, width = slots[0], inputs.tokens.shape[1]
        return cls(
            max(starts) + width,
            inputs.slots[:, None],
            inputs.positions_in_slot,
            first if list(slots) == list(range(first, first + len(slots))) else None,
            starts[0] if len(slots) == 1 else None,
        )

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Slots and positions on a layer's device; copied once, not once a layer, where layers are on several."""
        if device == self.slots.device:
            return self.slots, self.positions
        if device not in self._elsewhere:
            self._elsewhere[device] = self.slots.to(device), self.positions.to(device)
        return self._elsewhere[device]

    def store(self, buffer: Any, states: Tensor) -> Tensor:
        """Write the tokens' keys or values into a layer's buffer and return all that this forward can see."""
        if self.start is not None:
            # One row is the common case, and a plain copy costs a fifth of an indexed one on CPU.
            buffer[self.first_slot, :, self.start : self.start + states.shape[2]].copy_(states[0])
        else:
            slots, positions = self._on(buffer.device)
            buffer[slots, :, positions] = states.transpose(1, 2)
        return self.seen(buffer)

    def seen(self, buffer: Any) -> Tensor:
        """What this forward can see of a layer's buffer, `[rows, kv_heads, length, head_dim]`; a view if it can be."""
        if self.first_slot is None:
            return buffer[:, :, : self.length].index_select(0, self._on(buffer.device)[0][:, 0])  # type: ignore[no-any-return]
        return buffer[self.first_slot : self.first_slot + len(self.slots), :, : self.length]  # type: ignore[no-any-return]


class _SlotLayer(CacheLayerMixin):
    """One layer's buffer. Sliding-window layers keep every position too; the mask hides what is outside."""

    is_sliding = False

    def __init__(self, num_slots: int, max_length: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_slots = num_slots
        self.max_length = max_length
        self.shape: ForwardShape | None = None
        self._lazy_keys: LazyZeros | None = None
        self._lazy_values: LazyZeros | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor | None = None) -> None:
        """Allocate on the layer's own device.

        Zeros, because a masked position still counts as 0 times its value, and 0 times a stray NaN is NaN.
        """
        values = key_states if value_states is None else value_states
        size = (self.num_slots, key_states.shape[1], self.max_length)
        self.keys, self._lazy_keys = _zeros((*size, key_states.shape[3]), key_states)
        self.values, self._lazy_values = _zeros((*size, values.shape[3]), values)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the new tokens' keys and values and return all that this forward can see.

        Args:
            key_states: `[rows, kv_heads, width, head_dim]`.
            value_states: `[rows, kv_heads, width, head_dim]`.
            args: What transformers passes besides; not needed, the shape is known.
            kwargs: Likewise.

        Returns:
            Keys and values, `[rows, kv_heads, length, head_dim]`.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        shape = self.shape
        assert shape is not None, "SlotCache.begin comes before the forward"  # noqa: S101
        return shape.store(self.keys, key_states), shape.store(self.values, value_states)

    @property
    def buffers(self) -> tuple[Tensor, ...]:
        """Keys and values; none before the first forward, and none where the layer reads another one's (Gemma 3n)."""
        return (self.keys, self.values) if self.is_initialized else ()  # type: ignore[return-value]

    def wipe(self, slot: int, start: int) -> None:
        """See `SlotCache.wipe`."""
        if not self.is_initialized:
            return
        for buffer, lazy in (self.keys, self._lazy_keys), (self.values, self._lazy_values):
            assert buffer is not None, "an initialized layer has its buffers"  # noqa: S101
            if lazy is None:
                buffer[slot, :, start:] = 0
                continue
            per_slot, per_head, per_token = (stride * buffer.itemsize for stride in buffer.stride()[:3])
            begin = slot * per_slot
            if start == 0:
                lazy.clear(begin, begin + per_slot)
                continue
            for head in range(buffer.shape[1]):
                lazy.clear(begin + head * per_head + start * per_token, begin + (head + 1) * per_head)

    def get_seq_length(self, *args: object) -> int:
        """0: positions come with every forward, so transformers must not infer them."""
        return 0

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """Unused, since the mask comes with every forward."""
        length = self.shape.length if self.shape else 0
        return length, 0

    def get_max_length(self) -> int:
        """Positions of a slot (transformers 5)."""
        return self.max_length

    def get_max_cache_shape(self) -> int:
        """Positions of a slot (transformers 4)."""
        return self.max_length


def _zeros(size: tuple[int, ...], like: Tensor) -> tuple[Tensor, LazyZeros | None]:
    """Zeros of a type and device, and on a CPU what gives their memory back."""
    if like.device.type != "cpu":
        return torch.zeros(size, dtype=like.dtype, device=like.device), None
    lazy = LazyZeros(math.prod(size) * like.dtype.itemsize)
    return torch.from_numpy(lazy.array).view(like.dtype).view(size), lazy


class SlotCache(Cache):
    """Static slots for all layers of a model.

    Args:
        num_layers: Layers of the model.
        num_slots: Completions that can be held at a time.
        max_length: Positions of a slot. A forward may write up to it, padding included.
        known: Positions that the model knows; None: it does not say. Of chains, only padding lies past the last one,
            for which some models have no place in their tables.

    Attributes:
        states: What layers keep that mix tokens by a state; None where there are no such layers.
    """

    states: SlotStates | None = None

    def __init__(self, num_layers: int, num_slots: int, max_length: int, known: int | None = None) -> None:
        self._known = known
        self._slot_layers = [_SlotLayer(num_slots, max_length) for _ in range(num_layers)]
        super().__init__(layers=list(self._slot_layers))
        self.max_length = max_length
        self.num_slots = num_slots

    def begin(self, shape: ForwardShape, *, is_chain: bool) -> int:
        """Say where the next forward's tokens go, and whether in every row each follows the one before it.

        Returns:
            Positions that it sees.

        Raises:
            ValueError: The forward would write past the end of a slot.
        """
        if shape.length > self.max_length:
            msg = f"a forward to position {shape.length} does not fit into slots of {self.max_length} positions"
            raise ValueError(msg)
        if is_chain and self._known is not None:
            shape = replace(shape, length=min(shape.length, self._known))
        for layer in self._slot_layers:
            layer.shape = shape
        return shape.length

    @torch.inference_mode()
    def keep(self, slot: int, start: int, offsets: Sequence[int], index: Tensor | None = None) -> None:
        """Close the gaps that a tree's rejected branches left: what is at `start + offsets` moves to `start` on.

        Args:
            slot: The slot.
            start: Position of the first node.
            offsets: The nodes that stand, in order.
            index: `offsets` on the device, int64, where it is there already; None copies them.
        """
        if is_gapless(offsets):
            return
        places = start + (torch.tensor(offsets) if index is None else index)
        for layer in self._slot_layers:
            for buffer in layer.buffers:
                buffer[slot, :, start : start + len(offsets)] = buffer[slot, :, places.to(buffer.device)]

    @torch.inference_mode()
    def wipe(self, slot: int, start: int = 0) -> None:
        """Have zeros in a slot from a position on; on a CPU their memory is given back.

        What is masked counts as 0 times its value, and so does no harm unless it is NaN or infinite.
        """
        for layer in self._slot_layers:
            layer.wipe(slot, start)
        if self.states is not None:
            self.states.wipe(slot, start)

    def resumable(self, slot: int, length: int) -> int:
        """Of the first so many tokens of a slot's text, how many can stay, so that another text goes on after them."""
        return length if self.states is None else self.states.resumable(slot, length)

    def release(self) -> None:
        """Let go of all buffers."""
        for layer in self._slot_layers:
            layer.keys = layer.values = layer._lazy_keys = layer._lazy_values = None
            layer.is_initialized = False
        self.states = None
        # Where older versions of transformers keep what layers share.
        vars(self).pop("shared_layers", None)

    @property
    def num_bytes(self) -> int:
        """Bytes that all buffers have room for, once they exist, and those of all states."""
        buffers = sum(int(b.nbytes) for layer in self._slot_layers for b in layer.buffers)
        return buffers + (self.states.num_bytes if self.states is not None else 0)
