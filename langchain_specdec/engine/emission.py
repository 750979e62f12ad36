"""What a step hands out: the accepted tokens, up to where the text ends. Nothing else passes tokens to readers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from langchain_specdec.completions.events import FinishEvent, Token, TokenEvent
from langchain_specdec.drafters.acceptance import FORCED, source_of
from langchain_specdec.drafters.base import Draft
from langchain_specdec.engine.request import Request
from langchain_specdec.runner.verify import Verdict

if TYPE_CHECKING:
    from langchain_specdec.runner.cpu.native_cache import NativeCache
    from langchain_specdec.runner.kv_cache import SlotCache


class UnsoundScoresError(Exception):
    """A text has no next token: the scores for it are NaN or infinite."""


class Emitter:
    """Takes accepted tokens into the requests and passes them to their readers.

    Args:
        cache: The target's, whose slots keep what the texts keep.
    """

    def __init__(self, cache: SlotCache | NativeCache) -> None:
        self._cache = cache

    def emit(
        self, requests: Sequence[Request], drafts: Sequence[Draft], verdict: Verdict
    ) -> list[tuple[Request, Exception]]:
        """Hand out what stands, request by request.

        Returns:
            Requests whose tokens could not be handed out, with the error; the others went on.
        """
        failures: list[tuple[Request, Exception]] = []
        for row, (request, draft) in enumerate(zip(requests, drafts, strict=True)):
            path = verdict.paths[row]
            if not path:
                request.stats.drafted_tokens += len(draft)
                request.stats.add_positions(draft.depth, 0)
                request.stats.add_sources(map(source_of, draft.kinds), ())
                failures.append((request, UnsoundScoresError()))
                continue
            try:
                tokens = self._read(request, verdict, row)
                self._advance(request, [token.id for token in tokens], verdict, row)
                _count(request, draft, tokens, path)
                request.stream.put(TokenEvent(tokens, len(draft)))
                _finish(request)
            except Exception as error:
                failures.append((request, error))
        return failures

    @staticmethod
    def _read(request: Request, verdict: Verdict, row: int) -> tuple[Token, ...]:
        """The tokens with the text that each releases, up to the one that ends the text."""
        tokens: list[Token] = []
        path = verdict.paths[row]
        for node, token_id in zip(path, verdict.tokens(row), strict=True):
            text = request.stopper.add(token_id)
            logprob, top = _logprobs(verdict, row, node, token_id, request)
            # The last pick is the target's own: no draft token follows the path's end.
            tokens.append(Token(token_id, text, node != path[-1], logprob, top))
            if request.is_finished:
                break
        return tuple(tokens)

    def _advance(self, request: Request, token_ids: list[int], verdict: Verdict, row: int) -> None:
        """Take the tokens into all that follows the text: cache, grammar and counts for penalties."""
        count = len(token_ids)
        order = verdict.order[row][:count] if verdict.order is not None else None
        self._cache.keep(request.slot, request.num_cached, verdict.paths[row][:count], order)
        request.token_ids.extend(token_ids)
        if request.constraint is not None:
            request.constraint.advance(token_ids)
        request.num_cached += count
        if verdict.has_unsound(row):
            # A draft that is rejected must leave nothing that could harm its text.
            self._cache.wipe(request.slot, request.num_cached)
        if request.history is not None:
            request.history.append(request.slot, token_ids)


def _count(request: Request, draft: Draft, tokens: Sequence[Token], path: Sequence[int]) -> None:
    stats = request.stats
    stats.num_steps += 1
    stats.drafted_tokens += len(draft)
    accepted = sum(bool(token.drafted) for token in tokens)
    stats.accepted_tokens += accepted
    stats.add_positions(draft.depth, accepted)
    kinds = [draft.kinds[node - 1] for node in path[1 : len(tokens) + 1]]
    stats.add_sources(map(source_of, draft.kinds), map(source_of, kinds))
    stats.forced_tokens += kinds.count(FORCED)
    stats.emitted_tokens += len(tokens)
    stats.plain_seconds += len(tokens) * request.plain_token_seconds


def _finish(request: Request) -> None:
    reason = request.stopper.finish_reason
    if reason is not None:
        counts = request.num_prompt_tokens, request.num_output_tokens
        request.stream.put(FinishEvent(reason, *counts, request.seed, request.stats, request.num_reused))


def _logprobs(
    verdict: Verdict, row: int, node: int, token_id: int, request: Request
) -> tuple[float | None, dict[int, float] | None]:
    if not request.wants_logprobs:
        return None, None
    logprobs: Tensor = verdict.logits.tensor[row, node].float().log_softmax(-1)
    top = logprobs.topk(request.params.logprobs or 0)
    told = dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    if named := request.logprob_token_ids:
        told |= zip(named, logprobs[list(named)].tolist(), strict=True)
    return float(logprobs[token_id]), told
