"""Drafts with a trained head that reads the target's own states: EAGLE-3 (arXiv 2503.01840).

States come from the target's forwards, which run anyway; until a draft is wanted they only wait. The head chooses with
the parameters, penalties, grammar and noise of the request, as the target will.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from langchain_specdec.drafters.base import EMPTY_DRAFT, Draft, Drafter, DraftingRequest, DraftLimits, Proposal
from langchain_specdec.drafters.head_slots import HeadSlot
from langchain_specdec.drafters.head_tree import NUM_BRANCHES, HeadRow, HeadTree, level_kind
from langchain_specdec.drafters.shared_forwards import next_chunks
from langchain_specdec.grammar.token_masks import TokenMask, allowed_tensor
from langchain_specdec.runner.head_runner import HeadRunner, last_of_rows, likeliest_tokens
from langchain_specdec.runner.runner import Runner
from langchain_specdec.runner.step_inputs import RowBatch, to_device
from langchain_specdec.runner.tap_points import LateStates
from langchain_specdec.runner.verify import Verdict, is_gapless
from langchain_specdec.sampling.choice import TableCache, noisy_scores
from langchain_specdec.sampling.noise import Noise

_logger = logging.getLogger(__name__)
# More states than these do not wait for a draft: they take more room than the head's keys and values.
_MAX_WAITING = 256
# Entries beside the last one that a drafting forward takes in; more run apart, without logits.
_MAX_FED = 8


class DraftHeadDrafter(Drafter):
    """Drafts trees, or chains where cost or limits allow no more, by one forward of the head a level.

    Args:
        target: Runs the target. States are tapped from it from here on.
        head: Runs the head; as many slots as the target has.
        source: Names what it drafts among other sources, `"eagle3"` for example.
        chunk: Most entries of a text in one forward.
    """

    def __init__(self, target: Runner, head: HeadRunner, source: str, chunk: int) -> None:
        target.tap(head.tap_points)
        self._target = target
        self._head = head
        self._source = source
        self._chunk = chunk
        self.num_layers = head.num_layers
        self._slots: dict[int, HeadSlot] = {}
        self._tables = TableCache()
        # Requests that the head computes nothing usable for.
        self._given_up: set[int] = set()

    @property
    def num_forwards(self) -> int:
        """Forwards of the head so far, but for those that only took a text in."""
        return self._head.num_forwards

    @property
    def runners(self) -> Sequence[HeadRunner]:
        """What runs the head."""
        return (self._head,)

    def prefill(self, requests: Sequence[DraftingRequest], starts: Sequence[int], stops: Sequence[int]) -> None:
        """Run the head over the same chunk as the target."""
        late = cache(self._target.tapped)
        for row, (request, start, stop) in enumerate(zip(requests, starts, stops, strict=True)):
            self._slot(request, start).add(start, _part(late, row, stop - start))
        self._take_in(requests)

    def follow(self, requests: Sequence[DraftingRequest], verdict: Verdict) -> None:
        """Take in the states along the path that stands."""
        late, width = cache(self._target.tapped), max(map(len, verdict.nodes))
        for row, (request, path) in enumerate(zip(requests, verdict.paths, strict=True)):
            if not path or request.request_id in self._given_up:
                continue
            # The last token of the text is the first that was verified.
            start = len(request.token_ids) - 1
            slot = self._slot(request, start)
            if len(path) == width:
                slot.add_late(start, width, partial(_part, late, row, width))
            elif is_gapless(path):
                # A copy: what waits would keep the states of all tokens that do not stand.
                slot.add(start, _part(late, row, len(path)).clone())
            else:
                order = torch.tensor(path) if verdict.order is None else verdict.order[row][: len(path)]
                slot.add(start, late()[row].index_select(0, order))
        slots = self._slots
        if full := [r for r in requests if r.slot in slots and slots[r.slot].num_waiting > _MAX_WAITING]:
            self._take_in(full)

    def consider(self, request: DraftingRequest, limits: DraftLimits) -> Sequence[Proposal]:
        """Any number of levels, one forward each."""
        if limits.max_depth < 1 or request.request_id in self._given_up:
            return []
        slot = self._slots.get(request.slot)
        if slot is None or slot.request_id != request.request_id or not slot.num_waiting:
            return []
        if slot.end != len(request.token_ids) - 1:
            return []
        if limits.max_nodes:
            # How far a tree grows is seen only as it grows, so one figure does for all of its levels.
            reaches = (request.rates.rate(level_kind(self._source, 0)),) * limits.max_depth
            return [Proposal(reaches=reaches, steps_per_token=1, grows=True, limits=limits)]
        reaches = request.rates.chain([level_kind(self._source, depth) for depth in range(limits.max_depth)])
        return [Proposal(reaches=reaches, steps_per_token=1, limits=limits)]

    def propose(
        self, requests: Sequence[DraftingRequest], proposals: Sequence[Proposal], lengths: Sequence[int]
    ) -> list[Draft]:
        """Grow the trees of all requests that want any, for as long as the next level promises to pay."""
        drafts = [EMPTY_DRAFT] * len(requests)
        rows = [row for row, length in enumerate(lengths) if length > 0]
        if not rows:
            return drafts
        firsts = self._first_rows([requests[row] for row in rows])
        trees: dict[int, HeadTree] = {}
        for row, first in zip(rows, firsts, strict=True):
            limits = proposals[row].limits
            assert limits is not None, "a proposal says by what it was considered"  # noqa: S101
            trees[row] = HeadTree(self._source, requests[row].rates, limits, first, self._head.max_width)
        growing = list(trees)
        while growing:
            for row in self._grow(requests, {row: trees[row] for row in growing}):
                del trees[row]
            gains = {row: gain for row, tree in trees.items() if (gain := tree.go_on()) > 0}
            least = max([trees[row].limits.min_gain for row in gains], default=0.0)
            growing = list(gains) if sum(gains.values()) >= least else []
        for row, tree in trees.items():
            drafts[row] = tree.draft()
        return drafts

    def measure_step(self, request: DraftingRequest) -> float:
        """Time one forward of width 1 after what the slot holds."""
        states = torch.zeros(1, self._head.hidden_size, device=self._head.device)
        batch = RowBatch([request.slot], [self._start(request)], [request.token_ids[-1:]], num_candidates=NUM_BRANCHES)
        started = self._head.clock()
        self._head.likeliest(batch, [states], [1])
        return self._head.clock() - started

    def release(self, request: DraftingRequest) -> None:
        """Forget that the head was of no use for the request; its text stays, and another one may go on from it."""
        self._given_up.discard(request.request_id)

    def let_go(self, slot: int, start: int) -> None:
        """Give back the head's keys and values too."""
        held = self._slots.get(slot)
        if held is not None:
            held.cut(start)
            self._head.cache.wipe(slot, held.length)

    def forget(self) -> None:
        """Take in all texts anew."""
        self._slots.clear()

    def _slot(self, request: DraftingRequest, start: int) -> HeadSlot:
        slot = self._slots.setdefault(request.slot, HeadSlot())
        slot.adopt(request, start)
        return slot

    def _take_in(self, requests: Sequence[DraftingRequest]) -> None:
        """Run all entries whose tokens are known; states that still wait outlive the forward that gave them."""
        self._catch_up(requests, 0)
        for request in requests:
            self._slots[request.slot].keep()

    def _catch_up(self, requests: Sequence[DraftingRequest], left: int) -> None:
        """Run the entries whose tokens are known, but for so many of the last ones, without logits."""
        slots = [self._slots[request.slot] for request in requests]
        while True:
            places = [slot.length for slot in slots]
            # An entry is of the token after its position.
            firsts = [slot.offset + slot.length + 1 for slot in slots]
            lacking = [
                min(slot.num_waiting, len(request.token_ids) - first - left)
                for request, slot, first in zip(requests, slots, firsts, strict=True)
            ]
            counts = next_chunks(places, lacking, self._chunk, self._target.max_length)
            if not counts:
                return
            states = self._condense([slots[row].take(count) for row, count in counts.items()])
            tokens = [requests[row].token_ids[firsts[row] : firsts[row] + count] for row, count in counts.items()]
            batch = RowBatch([requests[row].slot for row in counts], [places[row] for row in counts], tokens)
            self._head.extend(batch, states)

    def _condense(self, waiting: Sequence[Tensor]) -> list[Tensor]:
        """What the head takes of tapped states, by row."""
        together = waiting[0] if len(waiting) == 1 else torch.cat([*waiting])
        return [*self._head.condense(together).split([len(each) for each in waiting])]

    def _first_rows(self, requests: Sequence[DraftingRequest]) -> list[HeadRow]:
        """The entries that lead to each text's last token."""
        self._catch_up(requests, _MAX_FED)
        slots = [self._slots[request.slot] for request in requests]
        places = [slot.length for slot in slots]
        states = self._condense([slot.take(slot.num_waiting) for slot in slots])
        return [
            HeadRow(place, request.token_ids[-len(each) :], [*range(-1, len(each) - 1)], each)
            for request, place, each in zip(requests, places, states, strict=True)
        ]

    def _grow(self, requests: Sequence[DraftingRequest], trees: Mapping[int, HeadTree]) -> list[int]:
        """One forward of the head for the trees of some requests; those for which it computes nothing sound."""
        growing = [requests[index] for index in trees]
        batch, states = self._inputs(growing, [*trees.values()])
        # Of each row the last tokens are what was asked for.
        wanted = [len(tree.asked) for tree in trees.values()]
        noise = Noise.of([request.params for request in growing], [request.seed for request in growing])
        if noise is not None and not noise.is_sampled:
            told, following = self._head.likeliest(batch, states, wanted)
        else:
            logits, following = self._head.run(batch, states, wanted)
            scores = self._scores(requests, trees, last_of_rows(logits.float(), batch, wanted))
            told = likeliest_tokens(scores, None, NUM_BRANCHES)
        left, failed = iter(told), []
        for (index, tree), after in zip(trees.items(), last_of_rows(following, batch, wanted), strict=True):
            candidates = [next(left) for _ in tree.asked]
            if any(found is None for found in candidates):
                self._give_up(requests[index])
                failed.append(index)
                continue
            tree.grow([found or [] for found in candidates], after)
        return failed

    def _inputs(self, requests: Sequence[DraftingRequest], trees: Sequence[HeadTree]) -> tuple[RowBatch, list[Tensor]]:
        """The rows of a forward, and the states beside their tokens, `[tokens, hidden]` each."""
        rows = [tree.row() for tree in trees]
        slots, starts = [request.slot for request in requests], [row.start for row in rows]
        tokens, parents = [row.tokens for row in rows], [row.parents for row in rows]
        return RowBatch(slots, starts, tokens, parents, num_candidates=NUM_BRANCHES), [row.states for row in rows]

    def _start(self, request: DraftingRequest) -> int:
        """Where an entry after all that the slot holds would go."""
        return (self._slots.get(request.slot) or HeadSlot()).length

    def _scores(
        self, requests: Sequence[DraftingRequest], trees: Mapping[int, HeadTree], asked: Sequence[Tensor]
    ) -> Tensor:
        """Scores of all the target's tokens after each node, with what the request asks for, `[nodes, vocab]`."""
        device, vocab_size = asked[0].device, self._target.vocab_size
        counts = [len(each) for each in asked]
        history = next((request.history for request in requests if request.history is not None), None)
        # What leads to a node is asked for penalties alone.
        width, most = max(counts), 0
        if history is not None:
            most = max(len(tree.tokens) for tree in trees.values())
        full = torch.full((len(asked), width, vocab_size), -math.inf, device=device)
        ids = self._head.target_ids
        for row, each in enumerate(asked):
            if ids is None:
                full[row, : len(each), : each.shape[-1]] = each
            else:
                full[row, : len(each)].index_copy_(1, ids, each)
        # One copy takes all to the device: the requests' indices, where the nodes stand in their texts, the tokens of
        # the trees, and which of them lead to which node.
        parts = [1, width, most, width * most]
        packed = np.zeros((len(asked), sum(parts)), dtype=np.int64)
        indices, positions, drafts, ancestors = np.split(packed, np.cumsum(parts[:-1]), axis=1)
        indices[:, 0] = list(trees)
        masks: list[list[TokenMask | None] | None] = []
        for row, (index, tree) in enumerate(trees.items()):
            request = requests[index]
            drafts[row, : len(tree.tokens)] = tree.tokens[:most]
            paths = [tree.path_to(node) for node in tree.asked]
            for place, path in enumerate(paths):
                positions[row, place] = len(request.token_ids) + len(path)
                if most:
                    ancestors[row, [place * most + node for node in path]] = 1
            constraint = request.constraint
            masks.append(
                [constraint.mask_after([tree.tokens[n] for n in path]) for path in paths] if constraint else None
            )
        allowed = allowed_tensor(masks, width, vocab_size, device)
        given = to_device(packed, device).split(parts, 1)
        leads = given[3].reshape(len(asked), width, most).bool()
        table = self._tables.table(requests, vocab_size, device).take(given[0][:, 0])
        scores = noisy_scores(full, table, given[1], history, given[2], leads, allowed, self._target.make_noise)
        return torch.cat([scores[row, :count] for row, count in enumerate(counts)])

    def _give_up(self, request: DraftingRequest) -> None:
        """Draft no more for a request, and leave nothing in its slot that would harm the drafts of the next one."""
        _logger.warning("The draft head computes NaN or infinite scores; a text goes on without its drafts.")
        self._given_up.add(request.request_id)
        self._slots.pop(request.slot, None)
        self._head.cache.wipe(request.slot, 0)


def _part(late: LateStates, row: int, count: int) -> Tensor:
    """The states of a row's first tokens."""
    return late()[row, :count]
