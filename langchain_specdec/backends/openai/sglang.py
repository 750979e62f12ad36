"""SGLang's dialect (0.5.23; python/sglang/srt/entrypoints/openai/protocol.py and serving_completions.py)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from langchain_specdec.backends.openai.chunks import Chunk, ChunkToken, stats_of
from langchain_specdec.backends.openai.dialect import Asked, Dialect, Reader, Refusals, changes_logprobs
from langchain_specdec.backends.openai.plain import openai_body, reason_of, usage_of
from langchain_specdec.completions.stats import SpeculationStats
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.sampling.params import SamplingParams


class SGLangDialect(Dialect):
    """SGLang. It reports acceptance where a request asks for it, which all of these do.

    Args:
        is_deterministic: Whether it was started with `--enable-deterministic-inference`.
    """

    name = "SGLang"
    more_room = "start SGLang with --context-length {num_tokens} or more"
    refusals: ClassVar[Refusals] = (
        (
            "repetition_penalty",
            lambda p: p.repetition_penalty not in (None, 1.0),
            "it looks at the output alone, or at nothing, depending on its release",
        ),
        ("logprobs above 0", lambda p: bool(p.logprobs), "it names the best tokens by their text, not by their ids"),
        (
            "logprobs",
            lambda p: p.logprobs is not None and changes_logprobs(p),
            "it reports them after temperature, penalties and truncation, not the model's own: ask for them in greedy "
            "decoding, or at temperature 1 without more",
        ),
    )

    def __init__(self, *, is_deterministic: bool = False) -> None:
        self._is_deterministic = is_deterministic

    def check(self, params: SamplingParams) -> None:
        """See `Dialect`."""
        super().check(params)
        if params.seed is not None and params.temperature > 0 and not self._is_deterministic:
            msg = (
                "seed cannot be honoured by this SGLang server, which ignores seeds unless it is started with "
                "--enable-deterministic-inference. Start it so, leave seed out, or use a LocalBackend."
            )
            raise InvalidParameterError(msg)

    def grammar(self, grammar: Grammar) -> dict[str, Any]:
        """See `Dialect`."""
        if grammar.regex is not None:
            return {"regex": grammar.regex}
        return {"json_schema": json.dumps(grammar.schema)}

    def body(self, asked: Asked) -> dict[str, Any]:
        """See `Dialect`."""
        params = asked.params
        body = openai_body(asked)
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        body |= {"return_token_ids": True, "return_spec_tokens_details": True}
        # The text is cut here, wherever in a step's tokens a stop string ends.
        body["no_stop_trim"] = True
        if params.temperature > 0:
            body |= {"top_k": params.top_k or -1, "min_p": params.min_p or 0.0}
        if params.ignore_eos:
            body["ignore_eos"] = True
        if params.logprobs is not None:
            body["logprobs"] = 0
        return body | ({} if params.grammar is None else self.grammar(params.grammar))

    def reader(self, params: SamplingParams) -> Reader:
        """See `Dialect`."""
        return SGLangReader()


class SGLangReader(Reader):
    """Pieces with their tokens; what speculation did and the counts come after the last, in pieces of their own."""

    def __init__(self) -> None:
        self._num_tokens = 0

    def read(self, event: Mapping[str, Any]) -> Chunk:
        """See `Reader`."""
        counts: Any = usage_of(event)
        stats = self.stats(event, self._num_tokens)
        if not event["choices"]:
            return Chunk(**counts, stats=stats, is_last=bool(counts))
        choice = event["choices"][0]
        ids, logprobs = choice.get("token_ids") or [], choice.get("logprobs")
        own = logprobs["token_logprobs"] if logprobs else [None] * len(ids)
        tokens = tuple(ChunkToken(int(index), logprob) for index, logprob in zip(ids, own, strict=True))
        if not tokens and choice["text"]:
            # Releases before it could tell them.
            tokens = (ChunkToken(-1),)
        self._num_tokens += len(tokens)
        return Chunk(
            choice["text"], tokens, reason_of(choice, "matched_stop"), stats=stats, decodes_here=bool(ids), **counts
        )

    def stats(self, event: Mapping[str, Any], num_tokens: int) -> SpeculationStats | None:
        """See `Reader`."""
        said = (event.get("sglext") or {}).get("spec_tokens_details")
        if said is None:
            return None
        accepted, drafted = said["spec_num_correct_drafts"], said["spec_num_proposed_drafts"]
        return stats_of(num_tokens, drafted, accepted, said["spec_verify_ct"])
