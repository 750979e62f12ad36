"""Runs a draft head's module by PyTorch, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from langchain_specdec.runner.attention import slot_attention
from langchain_specdec.runner.cuda.attention_backend import pinned_backends
from langchain_specdec.runner.head_runner import Candidates, likeliest_by_logits
from langchain_specdec.runner.kv_cache import ForwardShape, SlotCache
from langchain_specdec.runner.model_inputs import visible_keys
from langchain_specdec.runner.step_inputs import RowBatch, RowInputs
from langchain_specdec.runner.trials import step_clock


class ModuleHeadRunner:
    """Runs a head's module; see `HeadRunner`.

    Args:
        head: An `Eagle3Head`, or a module of the same interface.
        num_slots: As the target's.
        max_length: As the target's.
        max_width: Most tokens of a row in `run`.
    """

    has_own_threads = False
    work_bytes = 0
    clock = staticmethod(step_clock)

    def __init__(self, head: Any, num_slots: int, max_length: int, max_width: int) -> None:
        self._head = head
        weight: Tensor = head.norm.weight
        self.device, self._dtype = weight.device, weight.dtype
        self.tap_points: tuple[int, ...] = head.tap_points
        self.target_ids: Tensor | None = head.target_ids
        self.vocab_size: int = head.draft_vocab_size
        self.hidden_size: int = head.hidden_size
        self.num_layers: int = head.num_layers
        self.max_width = max_width
        self.num_forwards = 0
        self.bytes_per_token = 2 * head.num_layers * head.num_kv_heads * head.head_dim * weight.itemsize
        self.cache = SlotCache(head.num_layers, num_slots, max_length + max_width)
        self._asker = nn.Identity()

    def note_weights(self) -> bool:
        """They never do: the head is nobody else's."""
        return False

    @torch.inference_mode()
    def condense(self, states: Tensor) -> Tensor:
        """See `HeadRunner.condense`."""
        condensed: Tensor = self._head.condense(states.to(self.device, self._dtype))
        return condensed

    @torch.inference_mode()
    def extend(self, batch: RowBatch, hidden: Sequence[Tensor]) -> None:
        """See `HeadRunner.extend`."""
        self._forward(batch, hidden)

    @torch.inference_mode()
    def run(
        self, batch: RowBatch, hidden: Sequence[Tensor], wanted: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `HeadRunner.run`; logits of all are at hand."""
        self.num_forwards += 1
        outputs, following = self._forward(batch, hidden)
        return self._head.logits(outputs), following

    @torch.inference_mode()
    def likeliest(
        self, batch: RowBatch, hidden: Sequence[Tensor], wanted: Sequence[int]
    ) -> tuple[list[Candidates | None], Tensor]:
        """See `HeadRunner.likeliest`."""
        return likeliest_by_logits(self, batch, hidden, wanted)

    def release(self) -> None:
        """See `HeadRunner.release`."""
        self._head = None
        self.cache.release()

    def _forward(self, batch: RowBatch, hidden: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        inputs = RowInputs.from_batch(batch, self.device)
        length = self.cache.begin(ForwardShape.from_rows(batch.slots, batch.starts, inputs), is_chain=inputs.is_chain)
        positions = inputs.starts[:, None] + inputs.depths
        causal, _ = visible_keys(inputs, positions, length)
        mask = causal[:, None]

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            slots: Any = self.cache.layers[layer]
            keys, values = slots.update(key, value)
            return slot_attention(self._asker, query, keys, values, mask)[0].transpose(1, 2)

        embeddings = self._head.embed(inputs.tokens)
        with pinned_backends(self.device):
            given: tuple[Tensor, Tensor] = self._head(
                embeddings, padded(hidden, batch.width).to(self._dtype), positions, attend
            )
        return given


def padded(rows: Sequence[Tensor], width: int) -> Tensor:
    """Rows `[count, hidden]` as one tensor, `[rows, width, hidden]`."""
    if len(rows) == 1:
        return rows[0][None]
    together = rows[0].new_zeros(len(rows), width, rows[0].shape[-1])
    for row, states in enumerate(rows):
        together[row, : len(states)] = states
    return together
