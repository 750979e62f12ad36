"""Drafts with an assistant of Gemma 4, which reads keys and values out of its target's slots."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from langchain_specdec.drafters.base import DraftingRequest
from langchain_specdec.drafters.draft_head import DraftHeadDrafter
from langchain_specdec.drafters.head_tree import NUM_BRANCHES, HeadTree
from langchain_specdec.runner.step_inputs import RowBatch


class AssistantDrafter(DraftHeadDrafter):
    """Grows trees as a head does, but no token has an entry that another one would see.

    Args: see `DraftHeadDrafter`; the head is an `AssistantRunner` of the same target.
    """

    def _inputs(self, requests: Sequence[DraftingRequest], trees: Sequence[HeadTree]) -> tuple[RowBatch, list[Tensor]]:
        rows, counts = [tree.row() for tree in trees], [len(tree.asked) for tree in trees]
        tokens = [row.tokens[-count:] for row, count in zip(rows, counts, strict=True)]
        states = [row.states[-count:] for row, count in zip(rows, counts, strict=True)]
        starts = [self._start(request) for request in requests]
        return RowBatch([r.slot for r in requests], starts, tokens, num_candidates=NUM_BRANCHES), states

    def _start(self, request: DraftingRequest) -> int:
        return len(request.token_ids) - 1
