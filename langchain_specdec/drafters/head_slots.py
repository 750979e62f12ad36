"""What a draft head knows of the text in each slot: entries that it has run, and states that wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from langchain_specdec.drafters.base import DraftingRequest


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
        waiting: States of the positions after those, `[count, points, hidden]` each.
        num_waiting: Positions whose states wait.
    """

    request_id: int = -1
    namespace: str = ""
    text: Sequence[int] = ()
    offset: int = 0
    length: int = 0
    waiting: list[Tensor] = field(default_factory=list)
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
        self.cut(position)
        if self.end < position:
            # States are missing in between, so that the head begins anew here.
            self.offset, self.length, self.waiting, self.num_waiting = position, 0, [], 0
        self.waiting.append(states)
        self.num_waiting += len(states)

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
        kept: list[Tensor] = []
        for states in self.waiting:
            if room > 0:
                kept.append(states[:room])
            room -= len(states)
        self.waiting = kept

    def take(self, count: int) -> Tensor:
        """The first states that wait, of which the head is going to run the entries, `[count, points, hidden]`."""
        together = self.waiting[0] if len(self.waiting) == 1 else torch.cat(self.waiting)
        self.waiting = [together[count:]] if count < len(together) else []
        self.length += count
        self.num_waiting -= count
        return together[:count]

    def keep(self) -> None:
        """Have memory of its own for what waits."""
        self.waiting = [states.clone() for states in self.waiting]
