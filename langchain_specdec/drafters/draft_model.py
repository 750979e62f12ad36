"""A small model as drafter, with cache slots of its own that follow the target's.

It chooses its tokens with the parameters, penalties and noise of the request, exactly as the target will: where the
two models agree on a distribution they agree on the token. Where its tokenizer is another one, it chooses among the
tokens that both have, as the target numbers them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from langchain_specdec.drafters.acceptance import DraftKind
from langchain_specdec.drafters.base import EMPTY_DRAFT, Draft, Drafter, DraftingRequest, DraftLimits, Proposal
from langchain_specdec.drafters.draft_text import DraftText
from langchain_specdec.drafters.shared_forwards import next_chunks
from langchain_specdec.grammar.token_masks import allowed_tensor
from langchain_specdec.models.common_vocabulary import CommonVocabulary
from langchain_specdec.runner.runner import Runner
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.sampling.choice import TableCache, pick_tokens
from langchain_specdec.sampling.noise import Noise

if TYPE_CHECKING:
    from langchain_specdec.runner.model_runner import PickDraft

_logger = logging.getLogger(__name__)


@dataclass
class _SlotContents:
    """The tokens whose keys and values stand in a slot, and how many of them are known to be the request's text."""

    request_id: int = -1
    namespace: str = ""
    token_ids: list[int] = field(default_factory=list)
    num_confirmed: int = 0


class DraftModelDrafter(Drafter):
    """Drafts with a causal language model.

    One drafted token is one forward of width 1, the first one apart: it also takes in whatever the cache lacks. Each
    feeds the next on the device, and only the whole chain comes back, unless a grammar has to see each token. The
    cache rolls back with the target's by forgetting a length, as the target's does.

    Args:
        runner: Runs the draft model; as many slots as the target has.
        vocab_size: Number of tokens the target knows; logits beyond it are padding and never drafted.
        prefill_chunk: Most tokens of a row in one forward.
        common: What it has in common with the target's tokenizer; None where that is its own.
    """

    def __init__(
        self, runner: Runner, vocab_size: int, prefill_chunk: int, common: CommonVocabulary | None = None
    ) -> None:
        self._runner = runner
        self.num_layers = len(runner.cache)
        self._target_vocab_size = vocab_size
        self._vocab_size = min(vocab_size, runner.vocab_size) if common is None else runner.vocab_size
        self._common = common
        self._texts: dict[int, DraftText] = {}
        self._prefill_chunk = prefill_chunk
        self._contents: dict[int, _SlotContents] = {}
        self._tables = TableCache()
        # Requests that the draft model computes nothing usable for.
        self._given_up: set[int] = set()
        self._is_told_unfit = False

    @property
    def num_forwards(self) -> int:
        """Forwards of the draft model so far."""
        return self._runner.num_forwards

    @property
    def runners(self) -> Sequence[Runner]:
        """What runs the draft model."""
        return (self._runner,)

    def prepare(self, rows: int, lengths: range, *, is_sampled: bool) -> None:
        """Make the draft model's graphs."""
        self._runner.prepare_drafts(rows, lengths, self._vocab_size, is_sampled=is_sampled)

    def prefill(self, requests: Sequence[DraftingRequest], starts: Sequence[int], stops: Sequence[int]) -> None:
        """Run the draft model over the same chunk as the target."""
        if self._can_run():
            ends = [self._text(r).end_of(stop) for r, stop in zip(requests, stops, strict=True)]
            # A text without room will have none later, so nothing of it is read.
            rows = [row for row, request in enumerate(requests) if self._has_room(request)]
            self._catch_up([requests[row] for row in rows], [ends[row] for row in rows])

    def consider(self, request: DraftingRequest, limits: DraftLimits) -> Sequence[Proposal]:
        """Any number of tokens, one forward each."""
        if request.request_id in self._given_up or not self._can_run() or not self._has_room(request):
            return []
        reaches = request.rates.chain(model_kinds(limits.max_depth))
        return [Proposal(reaches=reaches, steps_per_token=1, limits=limits)] if reaches else []

    def propose(
        self, requests: Sequence[DraftingRequest], proposals: Sequence[Proposal], lengths: Sequence[int]
    ) -> list[Draft]:
        """Decode `max(lengths)` tokens for all requests that want any."""
        rows = [row for row, length in enumerate(lengths) if length > 0]
        drafts = [EMPTY_DRAFT] * len(requests)
        if rows:
            # Nobody waits for a graph before the first token.
            self._runner.begin_turn(may_capture=all(len(r.token_ids) > r.num_prompt_tokens for r in requests))
            chains = self._decode([requests[row] for row in rows], max(lengths))
            for row, chain in zip(rows, chains, strict=True):
                drafts[row] = Draft.chain(chain[: lengths[row]], model_kinds(len(chain[: lengths[row]])))
        return drafts

    def forget(self) -> None:
        """Take in all texts anew."""
        self._contents.clear()

    def let_go(self, slot: int, start: int) -> None:
        """Give back the draft model's keys and values too."""
        if (contents := self._contents.get(slot)) is not None:
            del contents.token_ids[start:]
            contents.num_confirmed = min(contents.num_confirmed, start)
        self._runner.cache.wipe(slot, start)

    def release(self, request: DraftingRequest) -> None:
        """Forget that the model was of no use for the request."""
        self._given_up.discard(request.request_id)
        self._texts.pop(request.request_id, None)

    def measure_step(self, request: DraftingRequest) -> float:
        """Time one forward of width 1 after what the slot holds; 0 where the model cannot run, nor offers drafts."""
        if not self._can_run():
            return 0.0
        held = self._contents.setdefault(request.slot, _SlotContents()).token_ids
        # As drafts of this request will run: they may have a graph, which other kinds may not.
        noise = Noise.of([request.params], [request.seed])
        batch = RowBatch([request.slot], [len(held)], [self._known(held[-1:]) or [0]], noise=noise)
        pick = self._pick([request], noise)
        self._runner.begin_turn()
        started = self._runner.clock()
        self._runner.chain(batch, 1, self._vocab_size, pick)
        return self._runner.clock() - started

    def _can_run(self) -> bool:
        """Whether the draft model is still where and what it was: texts go on without it where it was moved."""
        reason = self._runner.why_unfit
        if reason is not None and not self._is_told_unfit:
            _logger.warning("The draft model cannot run here any more: %s. Texts go on without its drafts.", reason)
        self._is_told_unfit = reason is not None
        return reason is None

    def _text(self, request: DraftingRequest) -> DraftText:
        """The request's text, in the draft model's tokens."""
        if self._common is None:
            return DraftText(request.token_ids, None)
        if request.request_id not in self._texts:
            self._texts[request.request_id] = DraftText(request.token_ids, self._common)
        return self._texts[request.request_id]

    def _has_room(self, request: DraftingRequest) -> bool:
        """Whether the text fits into a slot: it may be longer in tokens of another tokenizer, and have none at all."""
        return self._common is None or 0 < len(self._text(request).ids) <= self._runner.max_length

    def _roll_back(self, request: DraftingRequest) -> list[int]:
        """Forget what the slot holds beyond the request's text; rollback is finding a length.

        The last token is never kept: it has to run again for its logits.

        Returns:
            The tokens that the slot still holds, to be extended by what is run next.
        """
        contents = self._contents.setdefault(request.slot, _SlotContents())
        if contents.request_id != request.request_id:
            contents.request_id, contents.num_confirmed = request.request_id, 0
            if contents.namespace != request.namespace:
                contents.token_ids.clear()
                contents.namespace = request.namespace
        held, tokens = contents.token_ids, self._text(request).ids
        length, limit = contents.num_confirmed, min(len(held), len(tokens) - 1)
        while length < limit and held[length] == tokens[length]:
            length += 1
        del held[length:]
        contents.num_confirmed = length
        return held

    def _known(self, tokens: Sequence[int]) -> list[int]:
        """The tokens, with 0 for ids that only the target's padded vocabulary has; the draft would fail on them."""
        return [token if token < self._runner.vocab_size else 0 for token in tokens]

    def _catch_up(self, requests: Sequence[DraftingRequest], stops: Sequence[int]) -> None:
        """Run the model over tokens up to `stops` that the slots lack, without logits, in chunks."""
        room, helds = self._runner.max_length, [self._roll_back(request) for request in requests]
        while True:
            starts = [len(held) for held in helds]
            lacking = [min(stop, room) - start for stop, start in zip(stops, starts, strict=True)]
            counts = next_chunks(starts, lacking, self._prefill_chunk, room)
            if not counts:
                return
            chunks = {row: self._text(requests[row]).ids[starts[row] : starts[row] + n] for row, n in counts.items()}
            self._runner.prefill(
                RowBatch(
                    [requests[row].slot for row in chunks],
                    [starts[row] for row in chunks],
                    [self._known(chunk) for chunk in chunks.values()],
                )
            )
            for row, chunk in chunks.items():
                helds[row].extend(chunk)

    def _decode(self, requests: Sequence[DraftingRequest], steps: int) -> list[list[int]]:
        texts = [self._text(r).ids for r in requests]
        # Missing tokens (after lookups, say) run first in chunks; they would make the first forward of all rows wide.
        self._catch_up(requests, [max(len(text) - 2, 0) for text in texts])
        held = [self._roll_back(r) for r in requests]
        fed = [text[len(h) :] for text, h in zip(texts, held, strict=True)]
        noise = Noise.of([r.params for r in requests], [r.seed for r in requests])
        tokens = [self._known(new) for new in fed]
        batch = RowBatch([r.slot for r in requests], [len(h) for h in held], tokens, noise=noise)
        pick = self._pick(requests, noise)
        chains = self._runner.chain(batch, steps, self._vocab_size, pick)
        for request, contents, new, chain in zip(requests, held, fed, chains, strict=True):
            if chain:
                contents.extend([*new, *chain[:-1]])
            else:
                self._give_up(request)
        return pick.chains(chains) if isinstance(pick, _CommonPick) else chains

    def _give_up(self, request: DraftingRequest) -> None:
        """Draft no more for a request, and leave nothing in its slot that would harm the drafts of the next one."""
        _logger.warning("The draft model computes NaN or infinite scores; a text goes on without its drafts.")
        self._given_up.add(request.request_id)
        self._contents.pop(request.slot, None)
        self._runner.cache.wipe(request.slot)

    def _pick(self, requests: Sequence[DraftingRequest], noise: Noise | None) -> PickDraft | None:
        """How tokens are chosen; None where noise alone decides."""
        if self._common is None:
            return self._pick_by_more(requests) if noise is None else None
        pick = self._pick_by_more(requests)
        return _CommonPick(self._common, pick, requests, self._target_vocab_size, self._runner.device)

    def _pick_by_more(self, requests: Sequence[DraftingRequest]) -> PickDraft:
        """How tokens are chosen where more than noise decides. Only a grammar has to see each of them."""
        device = self._runner.device
        vocab_size = self._vocab_size if self._common is None else self._target_vocab_size
        table = self._tables.table(requests, vocab_size, device)
        history = next((r.history for r in requests if r.history is not None), None)

        def pick(logits: Tensor, positions: Tensor, drafts: Tensor) -> Tensor:
            allowed = None
            if any(r.constraint for r in requests):
                chains = drafts.tolist()
                masks = [
                    [r.constraint.mask_after(c)] if r.constraint else None
                    for r, c in zip(requests, chains, strict=True)
                ]
                allowed = allowed_tensor(masks, 1, logits.shape[2], device)
            ancestors = torch.ones(len(requests), 1, drafts.shape[1], dtype=torch.bool, device=device)
            return pick_tokens(logits, table, positions, history, drafts, ancestors, allowed, self._runner.make_noise)

        return pick


class _CommonPick:
    """Has tokens picked among those that target and draft model have in common, as the target numbers them.

    Args:
        common: What they have in common.
        pick: Picks tokens of the target.
        requests: What is drafted for, a row each.
        vocab_size: Number of the target's logits.
        device: Where the draft model's are.
    """

    def __init__(
        self,
        common: CommonVocabulary,
        pick: PickDraft,
        requests: Sequence[DraftingRequest],
        vocab_size: int,
        device: torch.device,
    ) -> None:
        self._common = common
        self._pick = pick
        self._lengths = torch.tensor([[len(request.token_ids)] for request in requests], device=device)
        self._vocab_size = vocab_size
        self._picked: Tensor | None = None

    def __call__(self, logits: Tensor, positions: Tensor, drafts: Tensor) -> Tensor:
        """See `PickDraft`. Noise goes by positions in the target's text, not by those in the draft model's."""
        before = drafts if self._picked is None else self._picked
        picked = self._pick(self._common.scores(logits, self._vocab_size), self._lengths + drafts.shape[1], before)
        self._picked = torch.cat([before, picked], 1)
        return self._common.theirs(picked)

    def chains(self, chains: Sequence[Sequence[int]]) -> list[list[int]]:
        """The picks that were sound, by row, up to the first token that the draft model has not.

        That one too, which a grammar has made it pick: whether such picks are right is seen by it.
        """
        picked = [[] for _ in chains] if self._picked is None else self._picked.tolist()
        return [
            row[: 1 + sum(1 for _ in takewhile(self._common.__contains__, row))] if chain else []
            for row, chain in zip(picked, chains, strict=True)
        ]


def model_kinds(count: int) -> list[DraftKind]:
    """Kinds of the tokens that a draft model computes one after the other."""
    return [("model", place) for place in range(count)]
