"""One verification: drafts go to the device, the target's picks and the paths that stand come back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from torch import Tensor

from langchain_specdec.drafters.base import Draft
from langchain_specdec.engine.request import Request
from langchain_specdec.grammar.constraint import Constraint
from langchain_specdec.grammar.token_masks import allowed_tensor
from langchain_specdec.runner.runner import Runner
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.runner.verify import Verdict, Verification, accept_picks, is_gapless
from langchain_specdec.sampling.choice import TableCache, pick_tokens
from langchain_specdec.sampling.noise import Noise


class Verifier:
    """Has the target check drafts, in one forward.

    Args:
        runner: The target model.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._tables = TableCache()

    def verify(self, requests: Sequence[Request], drafts: Sequence[Draft], num_candidates: int) -> Verdict:
        """The target's verdict on each request's draft, with so many of its best tokens besides its picks."""
        has_drafts = any(d.tokens for d in drafts)
        batch = RowBatch(
            [r.slot for r in requests],
            [r.num_cached for r in requests],
            [[r.token_ids[-1], *d.tokens] for r, d in zip(requests, drafts, strict=True)],
            [[-1, *[p + 1 for p in d.parents]] for d in drafts] if has_drafts else None,
            Noise.of([r.params for r in requests], [r.seed for r in requests]),
            num_candidates,
            any(r.wants_logprobs for r in requests),
        )
        verification = self._runner.verify(batch)
        verdict: Any = verification.verdict
        if verdict is None:
            verdict = self._pick(requests, drafts, verification, num_candidates)
        # The only wait for the device in a step.
        picks, stands, *ranked = verdict.tolist()
        paths = [_path(*row) for row in zip(picks, stands, strict=True)]
        for row, request in enumerate(requests):
            if request.constraint is not None and paths[row]:
                paths[row] = _end_in_time(request.constraint, picks[row], paths[row], request.num_remaining)
        order = None
        if isinstance(verdict, Tensor) and not all(map(is_gapless, paths)):
            # Sorted on the device, so that closing the gaps of trees takes no further copy to it.
            order = verdict[1].argsort(dim=-1, descending=True, stable=True)
        return Verdict(batch.tokens, picks, paths, verification.logits, order, ranked)

    def _pick(
        self, requests: Sequence[Request], drafts: Sequence[Draft], verification: Verification, num_candidates: int
    ) -> Tensor:
        """The picks and which nodes stand, where they take more than logits and noise: penalties, grammars, top-p."""
        logits, inputs = verification.logits.tensor, verification.inputs
        masks = [
            r.constraint.masks(d.tokens, d.parents) if r.constraint else None
            for r, d in zip(requests, drafts, strict=True)
        ]
        allowed = allowed_tensor(masks, logits.shape[1], logits.shape[2], logits.device)
        history = next((r.history for r in requests if r.history is not None), None)
        draft_ids, ancestors = inputs.tokens[:, 1:], inputs.ancestors[:, :, 1:]
        table = self._tables.table(requests, logits.shape[2], logits.device)
        make_noise = self._runner.make_noise
        picks = pick_tokens(logits, table, inputs.next_positions, history, draft_ids, ancestors, allowed, make_noise)
        # Masks hide scores that are not sound, so the model's own are asked.
        return accept_picks(picks, logits.amax(-1), logits, inputs, num_candidates)


def _path(picks: Sequence[int], stands: Sequence[int]) -> list[int]:
    """The nodes that stand, up to the first one without a pick."""
    return list(takewhile(lambda node: picks[node] >= 0, (node for node, stand in enumerate(stands) if stand)))


def _end_in_time(constraint: Constraint, picks: list[int], path: list[int], remaining: int) -> list[int]:
    """The path up to where an answer under a grammar has to begin to end; the pick there is replaced."""
    kept = constraint.in_time([picks[node] for node in path], remaining)
    path = path[: len(kept)]
    picks[path[-1]] = kept[-1]
    return path
