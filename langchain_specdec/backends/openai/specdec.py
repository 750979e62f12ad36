"""The dialect of `specdec serve`: this package's engine in another process, asked for the same request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter

from langchain_specdec.backends.openai.chunks import Chunk
from langchain_specdec.backends.openai.dialect import Asked, Dialect, Reader
from langchain_specdec.backends.openai.plain import openai_body
from langchain_specdec.backends.openai.vllm import VLLMReader, held_by_vllm, logprobs_of
from langchain_specdec.completions.events import FinishReason
from langchain_specdec.completions.request_fields import fields_of
from langchain_specdec.completions.stats import SpeculationStats
from langchain_specdec.grammar.call_grammar import CallGrammar
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.sampling.params import SamplingParams

_STATS = TypeAdapter(SpeculationStats)
_FINISH_REASON: TypeAdapter[FinishReason] = TypeAdapter(FinishReason)


class SpecdecDialect(Dialect):
    """`specdec serve`. VLLM's fields ask for tokens and forms, and a field of its own for what nobody else has."""

    name = "specdec serve"
    more_room = "start the server with --max-length {num_tokens} or more"
    takes_adapters = True
    takes_logprob_token_ids = True
    is_own = True
    takes_found_images = True
    of_completions = ("prompt", "return_token_ids", "stream_interval", "specdec")
    max_seed = 2**64 - 1

    def grammar(self, grammar: Grammar) -> dict[str, Any]:
        """See `Dialect`."""
        return {} if isinstance(grammar, CallGrammar) else held_by_vllm(grammar)

    def body(self, asked: Asked) -> dict[str, Any]:
        """See `Dialect`."""
        params, told = asked.params, fields_of(asked.request)
        # The server knows which of them its model has.
        body = openai_body(replace(asked, banned=()))
        body["return_token_ids"] = True
        if not asked.decodes_here:
            body["stream_interval"] = 1
        if told:
            body["specdec"] = told
        sampled = ("top_k", "min_p") if params.temperature > 0 else ()
        for name in (*sampled, "repetition_penalty", "ignore_eos"):
            if getattr(params, name):
                body[name] = getattr(params, name)
        body |= logprobs_of(asked, 0)
        return body | ({} if params.grammar is None else self.grammar(params.grammar))

    def chat_grammar(self, grammar: Grammar) -> dict[str, Any]:
        """See `Dialect`."""
        if grammar.regex is not None:
            return {"response_format": {"type": "regex", "value": grammar.regex}}
        return super().chat_grammar(grammar)

    def reader(self, params: SamplingParams) -> Reader:
        """See `Dialect`."""
        return SpecdecReader()


class SpecdecReader(VLLMReader):
    """Pieces with their tokens, and at the end all that the engine tells, in the field `specdec`."""

    def read(self, event: Mapping[str, Any]) -> Chunk:
        """See `Reader`."""
        chunk = super().read(event)
        if event["choices"] and (prompt := event["choices"][0].get("prompt_token_ids")) is not None:
            chunk = replace(chunk, prompt_tokens=len(prompt))
        return replace(chunk, finish_reason=self.end_of(event))

    def end_of(self, event: Mapping[str, Any]) -> FinishReason | None:
        """See `Reader`."""
        told = event.get("specdec")
        return _FINISH_REASON.validate_python(told["finish_reason"]) if told else None

    def stats(self, event: Mapping[str, Any], num_tokens: int) -> SpeculationStats | None:
        """See `Reader`."""
        if not (told := event.get("specdec")):
            return None
        said = {name: value for name, value in told["speculation"].items() if value is not None}
        stats = _STATS.validate_python(said)
        stats.emitted_tokens = num_tokens
        return stats

    def _reason(self, choice: Mapping[str, Any]) -> FinishReason | None:
        # The last event tells it in this package's words.
        return None
