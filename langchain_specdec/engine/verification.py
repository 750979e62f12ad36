"""One verification: drafts go to the device, the target's picks and the paths that stand come back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from langchain_specdec.drafters.base import Draft
from langchain_specdec.engine.request import Request
from langchain_specdec.grammar.token_masks import allowed_tensor
from langchain_specdec.runner.kv_cache import is_gapless
from langchain_specdec.runner.model_runner import ModelRunner
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.runner.step_logits import StepLogits
from langchain_specdec.runner.verify import Verification, accept_picks
from langchain_specdec.sampling.choice import SamplingTable, pick_tokens
from langchain_specdec.sampling.noise import Noise

__all__ = ["Verdict", "Verifier"]


@dataclass(frozen=True)
class Verdict:
    """What the target says of the drafts of one step, row by row.

    Attributes:
        nodes: The tokens that were verified: the last one of the text and the draft.
        picks: The target's pick after each node.
        paths: The nodes that stand, in order; the first is 0. The pick after the last one is new (the bonus token).
        logits: The target's after each node, `[rows, width, vocab]`.
        order: The nodes on the device, those that stand first, int64 `[rows, width]`; None where no path has gaps.
    """

    nodes: Sequence[Sequence[int]]
    picks: list[list[int]]
    paths: list[list[int]]
    logits: StepLogits
    order: Tensor | None

    def tokens(self, row: int) -> list[int]:
        """What the text of a row goes on with: the target's picks along the path."""
        return [self.picks[row][node] for node in self.paths[row]]


class Verifier:
    """Has the target check drafts, in one forward.

    Args:
        runner: The target model.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._table: SamplingTable | None = None
        self._table_ids: tuple[int, ...] = ()

    def verify(self, requests: Sequence[Request], drafts: Sequence[Draft]) -> Verdict:
        """The target's verdict on each request's draft."""
        batch = RowBatch(
            [r.slot for r in requests],
            [r.num_cached for r in requests],
            [[r.token_ids[-1], *d.tokens] for r, d in zip(requests, drafts, strict=True)],
            [[-1, *(p + 1 for p in d.parents)] for d in drafts],
            Noise.of([r.params for r in requests], [r.seed for r in requests]),
        )
        verification = self._runner.verify(batch)
        verdict = verification.verdict
        if verdict is None:
            verdict = self._pick(requests, drafts, verification)
        # The only wait for the device in a step.
        picks, stands = verdict.tolist()
        paths = [[node for node, is_standing in enumerate(row) if is_standing] for row in stands]
        for row, request in enumerate(requests):
            if request.constraint is not None:
                paths[row] = _end_in_time(request, picks[row], paths[row])
        # Sorted on the device, so that closing the gaps of trees takes no further copy to it.
        order = None if all(map(is_gapless, paths)) else verdict[1].argsort(dim=-1, descending=True, stable=True)
        return Verdict(batch.tokens, picks, paths, verification.logits, order)

    def _pick(self, requests: Sequence[Request], drafts: Sequence[Draft], verification: Verification) -> Tensor:
        """The picks and which nodes stand, where they take more than logits and noise: penalties, grammars, top-p."""
        logits, inputs = verification.logits.tensor, verification.inputs
        masks = [
            r.constraint.masks(d.tokens, d.parents) if r.constraint else None
            for r, d in zip(requests, drafts, strict=True)
        ]
        allowed = allowed_tensor(masks, logits.shape[1], logits.shape[2], logits.device)
        history = next((r.history for r in requests if r.history is not None), None)
        draft_ids, ancestors = inputs.tokens[:, 1:], inputs.layout.ancestors[:, :, 1:]
        table = self._sampling_table(requests, logits)
        picks = pick_tokens(logits, table, inputs.next_positions, history, draft_ids, ancestors, allowed)
        return accept_picks(picks, inputs)

    def _sampling_table(self, requests: Sequence[Request], logits: Tensor) -> SamplingTable:
        ids = tuple(r.request_id for r in requests)
        if self._table is None or self._table_ids != ids:
            params, seeds, slots = zip(*((r.params, r.seed, r.slot) for r in requests), strict=True)
            self._table = SamplingTable(params, seeds, slots, logits.shape[-1], logits.device)
            self._table_ids = ids
        return self._table


def _end_in_time(request: Request, picks: list[int], path: list[int]) -> list[int]:
    """The path up to where an answer under a grammar has to begin to end; the pick there is replaced."""
    assert request.constraint is not None  # noqa: S101 - for the type checker
    kept = request.constraint.in_time([picks[node] for node in path], request.num_remaining)
    path = path[: len(kept)]
    picks[path[-1]] = kept[-1]
    return path
