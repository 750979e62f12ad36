"""vLLM's dialect (0.32; vllm/entrypoints/openai/completion/protocol.py and serving.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from langchain_specdec.backends.openai.chunks import Chunk, ChunkToken, stats_of
from langchain_specdec.backends.openai.dialect import Asked, Dialect, Reader
from langchain_specdec.backends.openai.plain import openai_body, reason_of, usage_of
from langchain_specdec.completions.events import FinishReason
from langchain_specdec.completions.stats import SpeculationStats
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.sampling.params import SamplingParams


class VLLMDialect(Dialect):
    """vLLM. It reports acceptance where it was started with `--per-request-spec-decode-metrics summary`."""

    name = "vLLM"
    more_room = "start vLLM with --max-model-len {num_tokens} or more"
    takes_adapters = True
    takes_logprob_token_ids = True

    def grammar(self, grammar: Grammar) -> dict[str, Any]:
        """See `Dialect`."""
        return held_by_vllm(grammar)

    def body(self, asked: Asked) -> dict[str, Any]:
        """See `Dialect`."""
        params = asked.params
        # Where it speculates it takes no biases, so only those of the request are sent.
        body = openai_body(replace(asked, banned=()))
        # Counts with every piece, so that an answer that is cut here has them too.
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        body["return_token_ids"] = True
        # The text is cut here, wherever in a step's tokens a stop string ends.
        body["include_stop_str_in_output"] = True
        if params.temperature > 0:
            # Else the model's own defaults would apply.
            body |= {"top_k": params.top_k or 0, "min_p": params.min_p or 0.0}
        if params.repetition_penalty is not None:
            body["repetition_penalty"] = params.repetition_penalty
        if params.ignore_eos:
            body["ignore_eos"] = True
        # Without a number of the best ones, it tells none of those that are named either.
        body |= logprobs_of(asked, 1)
        return body | ({} if params.grammar is None else self.grammar(params.grammar))

    def reader(self, params: SamplingParams) -> Reader:
        """See `Dialect`."""
        return VLLMReader()


def logprobs_of(asked: Asked, least: int) -> dict[str, Any]:
    """The fields that ask for log probabilities.

    Args:
        asked: The completion.
        least: How many of the best tokens are asked for at least, where others are named.
    """
    named, number = list(asked.request.logprob_token_ids), asked.params.logprobs
    if number is None and not named:
        return {}
    fields: dict[str, Any] = {"logprobs": number or 0, "return_tokens_as_token_ids": True}
    return {**fields, "logprobs": max(number or 0, least), "logprob_token_ids": named} if named else fields


def held_by_vllm(grammar: Grammar) -> dict[str, Any]:
    """The field that asks for a grammar."""
    return {"structured_outputs": {"json": grammar.schema} if grammar.regex is None else {"regex": grammar.regex}}


class VLLMReader(Reader):
    """Pieces with the tokens of a step; the counts, and what speculation did, come after the last."""

    def read(self, event: Mapping[str, Any]) -> Chunk:
        """See `Reader`."""
        counts: Any = usage_of(event)
        if not event["choices"]:
            return Chunk(**counts, stats=self.stats(event, counts.get("completion_tokens") or 0), is_last=True)
        choice = event["choices"][0]
        ids = choice.get("token_ids") or []
        reason = self._reason(choice)
        return Chunk(
            choice["text"],
            self._tokens(ids, choice.get("logprobs"), choice["text"]),
            reason,
            decodes_here=bool(ids),
            **counts,
        )

    def _tokens(self, ids: list[int], logprobs: Mapping[str, Any] | None, text: str) -> tuple[ChunkToken, ...]:
        if not ids:
            # A server that was told not to tell them.
            return (ChunkToken(-1),) if text else ()
        if not logprobs:
            return tuple(ChunkToken(int(index)) for index in ids)
        own, tops = logprobs["token_logprobs"], logprobs["top_logprobs"]
        return tuple(
            ChunkToken(int(index), logprob, _top(top)) for index, logprob, top in zip(ids, own, tops, strict=True)
        )

    def _reason(self, choice: Mapping[str, Any]) -> FinishReason | None:
        return reason_of(choice, "stop_reason")

    def stats(self, event: Mapping[str, Any], num_tokens: int) -> SpeculationStats | None:
        """See `Reader`."""
        said = (event.get("metrics") or {}).get("speculative_decoding")
        if said is None:
            return None
        accepted, drafted = said["num_accepted_draft_tokens"], said["num_draft_tokens"]
        num_steps, width = said["num_spec_steps"], said.get("num_spec_tokens") or 0
        stats = stats_of(num_tokens, drafted, accepted, num_steps)
        # Steps that accepted 0, 1, 2, ... tokens; each drafted as many as the longest only if the sum says so.
        histogram = said.get("acceptance_histogram") or []
        is_even = drafted == num_steps * width and len(histogram) == width + 1
        if is_even and stats.accepted_tokens == accepted and num_steps:
            stats.drafted_per_position = [num_steps] * width
            stats.accepted_per_position = [sum(histogram[place + 1 :]) for place in range(width)]
        return stats


def _top(top: Mapping[str, float] | None) -> tuple[tuple[int, float], ...]:
    """The best tokens, best first; their names are `token_id:N`."""
    named = [(int(name.removeprefix("token_id:")), logprob) for name, logprob in (top or {}).items()]
    return tuple(sorted(named, key=lambda pair: -pair[1]))
