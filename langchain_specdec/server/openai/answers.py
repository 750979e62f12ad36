"""Parts of OpenAI's answers: counts, ends, log probabilities, and what speculation did."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_specdec.completions.completion import Completion
from langchain_specdec.completions.events import FinishEvent, Token
from langchain_specdec.completions.stats import SpeculationStats
from langchain_specdec.server.served_model import ServedModel

_REASONS = {"eos_token": "stop", "stop_sequence": "stop", "length": "length"}


def new_id(kind: str) -> str:
    """An id of an answer, such as `chatcmpl-...`."""
    return f"{kind}-{secrets.token_hex(12)}"


def finish_reason(finish: FinishEvent, *, has_calls: bool = False) -> str:
    """Why an answer ended, in OpenAI's words."""
    reason = _REASONS[finish.finish_reason]
    return "tool_calls" if has_calls and reason == "stop" else reason


def usage(finishes: Sequence[FinishEvent], reasoning_tokens: int | None = None) -> dict[str, Any]:
    """Counts of one or several completions."""
    prompt = sum(finish.prompt_tokens for finish in finishes)
    written = sum(finish.completion_tokens for finish in finishes)
    counts: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": sum(finish.cached_tokens or 0 for finish in finishes)},
    }
    if reasoning_tokens is not None:
        counts["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens}
    return counts


def speculation(finishes: Sequence[FinishEvent]) -> dict[str, Any]:
    """What speculation did: `metrics` as vLLM tells it, and `specdec` with all that this engine knows of each text."""
    stats = sum((finish.speculation for finish in finishes), SpeculationStats())
    told = []
    for finish in finishes:
        info = Completion((), finish).info()
        told.append({name: info[name] for name in _TOLD if name in info})
    return {"metrics": {"speculative_decoding": _as_vllm(stats)}, "specdec": told[0] if len(told) == 1 else told}


_TOLD = ("finish_reason", "seed", "time_to_first_token", "speculation")


def _as_vllm(stats: SpeculationStats) -> dict[str, Any]:
    drafted, accepted = stats.drafted_per_position, stats.accepted_per_position
    num_steps = drafted[0] if drafted else 0
    # Steps that accepted so many tokens: those that accepted at least as many, without those that accepted more.
    at_least = [num_steps, *accepted]
    histogram = [count - more for count, more in zip(at_least, [*at_least[1:], 0], strict=True)]
    return {
        "mean_acceptance_length": 1.0 + stats.accepted_tokens / num_steps if num_steps else None,
        "draft_acceptance_rate": stats.acceptance_rate if stats.drafted_tokens else None,
        "acceptance_histogram": histogram,
        "num_spec_steps": num_steps,
        "num_accepted_draft_tokens": stats.accepted_tokens,
        "num_draft_tokens": stats.drafted_tokens,
        "num_spec_tokens": len(drafted),
        "per_step_accepted": None,
        "per_step_drafted": None,
    }


async def token_names(served: ServedModel, tokens: Sequence[Token], *, by_id: bool) -> Mapping[int, bytes]:
    """What the tokens that log probabilities name are called.

    Args:
        served: The model.
        tokens: The tokens of a text.
        by_id: Whether they are called by their ids, as vLLM does where `return_tokens_as_token_ids` asks for it: texts
            of several tokens may be the same.
    """
    ids = {token.id for token in tokens} | {other for token in tokens for other in token.top_logprobs or ()}
    if by_id:
        return {token: b"token_id:%d" % token for token in ids}
    return await served.token_names(sorted(ids))


def chat_logprobs(tokens: Sequence[Token], names: Mapping[int, bytes]) -> dict[str, Any]:
    """Log probabilities as `/v1/chat/completions` has them."""

    def one(token: int, logprob: float | None) -> dict[str, Any]:
        spelled = names[token]
        return {"token": spelled.decode(errors="replace"), "logprob": _finite(logprob), "bytes": list(spelled)}

    content = [
        {**one(token.id, token.logprob), "top_logprobs": [one(*pair) for pair in _best_first(token)]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def text_logprobs(tokens: Sequence[Token], names: Mapping[int, bytes], offset: int) -> dict[str, Any]:
    """The same as `/v1/completions` has them.

    Args:
        tokens: The tokens.
        names: What tokens spell.
        offset: Characters of the text before the first.
    """
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "text_offset": offsets,
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        "tokens": [names[token.id].decode(errors="replace") for token in tokens],
        "top_logprobs": [
            {names[other].decode(errors="replace"): _finite(logprob) for other, logprob in _best_first(token)}
            for token in tokens
        ],
    }


def _best_first(token: Token) -> list[tuple[int, float]]:
    return sorted((token.top_logprobs or {}).items(), key=lambda pair: -pair[1])


def _finite(logprob: float | None) -> float | None:
    """JSON has no infinity: OpenAI's least number stands for it."""
    return logprob if logprob is None or logprob > -9999.0 else -9999.0
