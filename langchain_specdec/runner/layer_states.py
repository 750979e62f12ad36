"""What recurrent layers keep of the texts in the slots, and how they go back to where a draft was rejected.

A state stands for all tokens before one position and cannot be cut. So a layer keeps a snapshot of it before the latest
tokens of a slot, what it read of those tokens, and its state after them. A forward that goes on from between, because
the end of a draft was rejected, has this layer alone read the accepted tokens again: no forward of its own. Snapshots
are never written to, so a failed forward can run again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

TAIL = 64
"""Texts can go on from any of so many latest tokens at least, and of as many at the end of the prompt: in a chat,
templates often change what ended the last prompt."""
SNAPSHOTS = 3
"""How many a layer keeps of a slot at most: before a prompt's last tokens, and before and after the latest ones."""

Mixer = Callable[[Tensor, "RowStates"], Tensor]
"""A layer's own forward: what it reads `[rows, width, hidden]` and where its states are; `[rows, width, hidden]`."""


class RowStates:
    """The states of one layer for some rows, as transformers' layers ask their cache for them.

    They may be written in place.

    Args:
        conv: Latest inputs of the convolution, `[rows, channels, kernel]`; None before the first token.
        recurrent: The recurrent state, `[rows, ...]`; None before the first token, and where the layer has none.
    """

    def __init__(self, conv: Tensor | None = None, recurrent: Tensor | None = None) -> None:
        self.conv = conv
        self.recurrent = recurrent

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """The latest inputs of the convolution."""
        return self.conv

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """The recurrent state."""
        return self.recurrent

    def update_conv_state(
        self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, conv_kernel_size: int | None = None
    ) -> Tensor:
        """Take in further inputs of the convolution; those before and these, of a first forward padded in front."""
        kept = self.conv.shape[-1] if self.conv is not None else conv_kernel_size or conv_states.shape[-1]
        if self.conv is not None:
            seen = torch.cat([self.conv, conv_states], -1)
        else:
            seen = torch.nn.functional.pad(conv_states, (max(kept - conv_states.shape[-1], 0), 0))
        self.conv = seen[..., -kept:]
        return seen

    def update_recurrent_state(self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0) -> Tensor:
        """Replace the recurrent state."""
        self.recurrent = recurrent_states
        return recurrent_states

    def is_recording_past(self, layer_idx: int) -> bool:
        """Never: what is rejected is run again from a snapshot."""
        return False


class Row(NamedTuple):
    """Where the tokens of one row of a forward go: its slot, their first position, and how many there are."""

    slot: int
    start: int
    size: int


@dataclass(frozen=True)
class _Snapshot:
    """The states of one row, `[1, ...]`, after so many tokens. Nobody writes to it."""

    position: int
    conv: Tensor | None = None
    recurrent: Tensor | None = None


@dataclass(frozen=True)
class _Span:
    """Some tokens of a text: the states before them, what the layer read of them, and the states after if kept."""

    begin: _Snapshot
    inputs: Tensor
    end: _Snapshot | None = None

    @property
    def stop(self) -> int:
        return self.begin.position + self.inputs.shape[1]

    def cut(self, position: int) -> _Span | None:
        """Without what comes from a position on; None where it begins later."""
        if position >= self.stop:
            return self
        count = position - self.begin.position
        return _Span(self.begin, self.inputs[:, :count]) if count >= 0 else None


class _LayerStates:
    """The states of one layer in all slots; see `SlotStates`."""

    def __init__(self, tail: int) -> None:
        self._tail = tail
        self._latest: dict[int, _Span] = {}
        # The ends of the prompts.
        self._prompts: dict[int, _Span] = {}

    def run(self, mixer: Mixer, hidden: Tensor, rows: Sequence[Row]) -> Tensor:
        """Run the layer on the tokens of some rows, whose padding it neither reads nor writes."""
        spans = [self._go_back(row, hidden) for row in rows]
        _, begins = _advance(mixer, [s.begin for s in spans], [s.inputs for s in spans], [s.end for s in spans])
        inputs = [hidden[index : index + 1, : row.size] for index, row in enumerate(rows)]
        ends = [max(row.size - self._tail, 0) for row in rows]
        first, middles = _advance(mixer, begins, [x[:, :end] for x, end in zip(inputs, ends, strict=True)])
        tails = [x[:, end:].clone() for x, end in zip(inputs, ends, strict=True)]
        last, after = _advance(mixer, middles, tails)
        for row, span, latest in zip(rows, spans, map(_Span, middles, tails, after), strict=True):
            if row.start and row.size > self._tail:
                # A forward that fails in a later layer runs again from here, where the latest tokens do not reach back.
                self._prompts[row.slot] = _Span(span.begin, span.inputs)
            self._latest[row.slot] = latest
        width = hidden.shape[1]
        return torch.cat([_joined([*parts], width) for parts in zip(first, last, strict=True)])

    def _go_back(self, row: Row, hidden: Tensor) -> _Span:
        """What leads up to a row's first token. Whatever the slot knows of a text beyond it is another text's."""
        slot, start = row.slot, row.start
        span = next((s for s in self._spans(slot) if s.begin.position <= start <= s.stop), None)
        if (prompt := self._prompts.pop(slot, None)) is not None and (prompt := prompt.cut(start)) is not None:
            self._prompts[slot] = prompt
        cut = span.cut(start) if span is not None else None
        if cut is not None:
            return cut
        if start:
            msg = f"slot {slot} holds no recurrent state from which a text could go on at position {start}"
            raise RuntimeError(msg)
        return _Span(_Snapshot(0), hidden[:1, :0])

    def _spans(self, slot: int) -> Iterable[_Span]:
        return (spans[slot] for spans in (self._latest, self._prompts) if slot in spans)

    def keep_prompt(self, slot: int) -> None:
        """Keep what a slot holds of its latest tokens, the end of a prompt, until another text takes its place."""
        latest, before = self._latest[slot], self._prompts.get(slot)
        begin, inputs = latest.begin, latest.inputs
        # The last part of a prompt that is read in several may be short.
        if before is not None and before.stop == begin.position and inputs.shape[1] < self._tail:
            both = torch.cat([before.inputs, inputs], 1)
            if both.shape[1] <= 2 * self._tail:
                begin, inputs = before.begin, both
        # The states after it are rarely asked for, and as large as those before it.
        self._prompts[slot] = _Span(begin, inputs)

    def resumable(self, slot: int, length: int) -> int:
        """See `SlotStates.resumable`."""
        return max((min(length, s.stop) for s in self._spans(slot) if s.begin.position <= length), default=0)

    def wipe(self, slot: int, start: int) -> None:
        """See `SlotStates.wipe`."""
        for spans in (self._latest, self._prompts):
            if (span := spans.pop(slot, None)) is not None and start and (span := span.cut(start)) is not None:
                spans[slot] = span

    @property
    def num_bytes(self) -> int:
        """Memory that the states take, and what has been read."""
        spans = [span for slot in self._latest.keys() | self._prompts.keys() for span in self._spans(slot)]
        snapshots = [snapshot for span in spans for snapshot in (span.begin, span.end) if snapshot is not None]
        tensors = [*(s.conv for s in snapshots), *(s.recurrent for s in snapshots), *(span.inputs for span in spans)]
        # What several share counts once.
        storages = {t.data_ptr(): t.untyped_storage() for t in tensors if t is not None}
        return sum(storage.nbytes() for storage in storages.values())


class SlotStates:
    """The states of all layers that have any, in all slots.

    Args:
        tail: Most tokens of a row that may be rejected. Of longer rows, prompts, as many at the end can be changed.
    """

    def __init__(self, tail: int = TAIL) -> None:
        # By their place in the model, from their first forward on.
        self._layers: defaultdict[int, _LayerStates] = defaultdict(lambda: _LayerStates(tail))
        self._rows: Sequence[Row] = ()

    def begin(self, rows: Sequence[Row]) -> None:
        """Say where the next forward's tokens go."""
        self._rows = rows

    def run(self, layer: int, mixer: Mixer, hidden: Tensor) -> Tensor:
        """Run one layer on the tokens of the forward that has begun.

        Args:
            layer: Its place in the model.
            mixer: Its own forward.
            hidden: What it reads, `[rows, width, hidden]`; rows end in padding.

        Raises:
            RuntimeError: A row goes on from where its slot holds no state.
        """
        return self._layers[layer].run(mixer, hidden, self._rows)

    def keep_prompts(self, slots: Iterable[int]) -> None:
        """Say that the latest tokens of some slots may end a prompt, from which other texts can go on."""
        for slot in slots:
            for layer in self._layers.values():
                layer.keep_prompt(slot)

    def resumable(self, slot: int, length: int) -> int:
        """Of the first so many tokens of a slot's text, how many can stay, so that another text goes on after them."""
        while True:
            # Where a forward has failed, layers may differ.
            shorter = min((layer.resumable(slot, length) for layer in self._layers.values()), default=0)
            if shorter == length:
                return length
            length = shorter

    def wipe(self, slot: int, start: int = 0) -> None:
        """Forget what a slot holds from a position on."""
        for layer in self._layers.values():
            layer.wipe(slot, start)

    @property
    def num_bytes(self) -> int:
        """Memory that all states take now."""
        return sum(layer.num_bytes for layer in self._layers.values())


def _advance(
    mixer: Mixer,
    states: Sequence[_Snapshot],
    inputs: Sequence[Tensor],
    known: Sequence[_Snapshot | None] | None = None,
) -> tuple[list[Tensor], list[_Snapshot]]:
    """Run a layer over some tokens of each row, rows of equal width together, since it knows no padding.

    Args:
        mixer: The layer's own forward.
        states: The states before them, by row.
        inputs: What it reads of them, `[1, width, hidden]` of each row; the width may be 0.
        known: The states after them, where they are known already; such rows have no outputs.

    Returns:
        What it computes for them, `[1, width, hidden]` of each row, and the states after them.
    """
    outputs, after = [x[:, :0] for x in inputs], list(states)
    groups: dict[tuple[int, bool], list[int]] = defaultdict(list)
    for index, (state, x) in enumerate(zip(states, inputs, strict=True)):
        end = known[index] if known is not None else None
        if end is not None:
            after[index] = end
        elif x.shape[1]:
            groups[x.shape[1], state.position == 0].append(index)
    for (width, _), members in groups.items():
        before = [states[i] for i in members]
        rows = RowStates(_gathered([s.conv for s in before]), _gathered([s.recurrent for s in before]))
        output = mixer(torch.cat([inputs[i] for i in members]), rows)
        for place, index in enumerate(members):
            outputs[index] = output[place : place + 1]
            position = states[index].position + width
            after[index] = _Snapshot(position, _picked(rows.conv, place), _picked(rows.recurrent, place))
    return outputs, after


def _gathered(states: Sequence[Tensor | None]) -> Any:
    """A copy of some rows' states; None where they have none."""
    kept = [state for state in states if state is not None]
    return torch.cat(kept) if kept else None


def _picked(states: Tensor | None, row: int) -> Tensor | None:
    """One row's states, in memory of their own."""
    if states is None:
        return None
    own = states[row : row + 1]
    return own if own.nbytes == own.untyped_storage().nbytes() else own.clone()


def _joined(parts: list[Tensor], width: int) -> Tensor:
    """What a layer computed for the parts of a row, `[1, width, hidden]`, padded with zeros."""
    row = torch.cat(parts, 1) if parts[0].shape[1] else parts[1]
    return torch.nn.functional.pad(row, (0, 0, 0, width - row.shape[1])) if row.shape[1] < width else row
