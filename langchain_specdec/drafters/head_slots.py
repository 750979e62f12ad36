"""What a draft head knows of the text in each slot: entries that it has run, and states that wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from langchain_specdec.drafters.base import DraftingRequest
from langchain_specdec.runner.tap_points import LateStates


@dataclass
class HeadSlot:
    """A slot's text, as far as a head has followed it. Entry i stands for position `offset + i` of the text.

    Attributes:
        request_id: Whose text it is.
        namespace: Whose it is for; nothing is kept for another one.
        text: The text. Its owner goes on with it.
        offset: Position of the first entry. Of what stands before it, the target had keys and values at hand, and gave
            no states.
        length: Entries that the head has run.
        waiting: States of the positions after those: how many, and what gives them, `[count, points, hidden]`.
        num_waiting: Positions whose states wait.
    """

    request_id: int = -1
    namespace: str = ""
    text: Sequence[int] = ()
    offset: int = 0
    length: int = 0
    waiting: list[tuple[int, LateStates]] = field(default_factory=list)
    num_waiting: int = 0

    @property
    def end(self) -> int:
        """Position in the text after the last one whose state is known."""
        return self.offset + self.length + self.num_waiting

    def adopt(self, request: DraftingRequest, start: int) -> None:
        """Follow the text of a request, of which the target holds so many tokens of an earlier text.

        The last of those entries may be of the token that went on there, not here. Its state is gone, and one wrong
        entry does less harm than a gap.
        """
        if self.request_id == request.request_id:
            return
        tokens = request.token_ids
        common, limit = 0, min(start, len(self.text)) if self.namespace == request.namespace else 0
        while common < limit and self.text[common] == tokens[common]:
            common += 1
        self.cut(common)
        self.request_id, self.namespace, self.text = request.request_id, request.namespace, tokens

    def add(self, position: int, states: Tensor) -> None:
        """Take in states from a position on, `[count, points, hidden]`; they are not copied."""
        self.add_late(position, *_given(states))

    def add_late(self, position: int, count: int, states: LateStates) -> None:
        """Take in what gives the states of so many positions from one on."""
        self.cut(position)
        if self.end < position:
            # States are missing in between, so that the head begins anew here.
            self.offset, self.length, self.waiting, self.num_waiting = position, 0, [], 0
        self.waiting.append((count, states))
        self.num_waiting += count

    def cut(self, position: int) -> None:
        """Forget all from a position on."""
        if position >= self.end:
            return
        held = position - self.offset
        if held <= self.length:
            self.offset, self.length, self.waiting = min(self.offset, position), max(held, 0), []
            self.num_waiting = 0
            return
        self.num_waiting = room = held - self.length
        kept: list[tuple[int, LateStates]] = []
        for count, states in self.waiting:
            if room > 0:
                kept.append((count, states) if count <= room else _given(states()[:room]))
            room -= count
        self.waiting = kept

    def take(self, count: int) -> Tensor:
        """The first states that wait, of which the head is going to run the entries, `[count, points, hidden]`."""
        pieces = [states() for _, states in self.waiting]
        together = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        self.waiting = [_given(together[count:])] if count < len(together) else []
        self.length += count
        self.num_waiting -= count
        return together[:count]

    def keep(self) -> None:
        """Have memory of its own for what waits."""
        self.waiting = [_given(states().clone()) for _, states in self.waiting]


def _given(states: Tensor) -> tuple[int, LateStates]:
    return len(states), lambda: states
