"""Servers of OpenAI's protocol alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from langchain_specdec.backends.openai.chunks import Chunk, ChunkToken
from langchain_specdec.backends.openai.dialect import Asked, Dialect, Reader, Refusals, as_response_format
from langchain_specdec.completions.events import FinishReason
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.grammar.json_schema import closed
from langchain_specdec.sampling.params import SamplingParams

_UNKNOWN = "OpenAI's protocol has no such parameter"
_REASONS: dict[str, FinishReason] = {"stop": "eos_token", "length": "length"}


def usage_of(event: Mapping[str, Any]) -> dict[str, int | None]:
    """What an event tells of the counts of an answer; nothing where it tells none."""
    usage = event.get("usage")
    if not usage:
        return {}
    details = usage.get("prompt_tokens_details") or {}
    return {
        "prompt_tokens": _count(usage.get("prompt_tokens")),
        "completion_tokens": _count(usage.get("completion_tokens")),
        "cached_tokens": _count(details.get("cached_tokens")),
        "reasoning_tokens": _count((usage.get("completion_tokens_details") or {}).get("reasoning_tokens")),
    }


def _count(value: Any) -> int | None:
    if value is None:
        return None
    count = int(value)
    if not 0 <= count < 2**31:
        msg = f"{count} is no count of tokens"
        raise ValueError(msg)
    return count


def reason_of(choice: Mapping[str, Any], stop_key: str) -> FinishReason | None:
    """Why an answer ended, by a server that names the stop string under `stop_key`; None where it has not.

    Raises:
        ValueError: The server has another reason.
    """
    reason = choice.get("finish_reason")
    if reason is None or reason == "length":
        return reason
    if reason != "stop":
        msg = f"the answer ended by {reason!r}"
        raise ValueError(msg)
    return "stop_sequence" if isinstance(choice.get(stop_key), str) else "eos_token"


def known_reason(reasons: Mapping[str, FinishReason], reason: str | None) -> FinishReason | None:
    """Why an answer ended, by what a server calls it; None where it has not.

    Raises:
        ValueError: The server has another reason.
    """
    if reason and reason not in reasons:
        msg = f"the answer ended by {reason!r}"
        raise ValueError(msg)
    return reasons[reason] if reason else None


def openai_body(asked: Asked) -> dict[str, Any]:
    """The fields that all servers of OpenAI's protocol know."""
    params = asked.params
    body: dict[str, Any] = {
        "model": asked.model,
        "prompt": asked.prompt if isinstance(asked.prompt, str) else list(asked.prompt),
        "max_tokens": params.max_new_tokens,
        "temperature": params.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if params.temperature > 0:
        body |= {"seed": asked.seed, "top_p": 1.0 if params.top_p is None else params.top_p}
    if params.stop:
        body["stop"] = list(params.stop)
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(params, name):
            body[name] = getattr(params, name)
    if asked.bias:
        body["logit_bias"] = {str(token): bias for token, bias in asked.bias.items()}
    return body


class PlainReader(Reader):
    """Pieces of text; a piece counts as one token until the server has told how many there were."""

    def read(self, event: Mapping[str, Any]) -> Chunk:
        """See `Reader`."""
        counts = usage_of(event)
        if not event["choices"]:
            # Some begin with such a piece, which tells of filters.
            return Chunk(**counts, is_last=bool(counts))  # type: ignore[arg-type]
        choice = event["choices"][0]
        text = choice["text"] or ""
        tokens = (ChunkToken(-1),) if text else ()
        reason = known_reason(_REASONS, choice.get("finish_reason"))
        return Chunk(text, tokens, reason, **counts)  # type: ignore[arg-type]


class PlainDialect(Dialect):
    """A server that is not known to be more.

    Stop strings are not sent: its `stop` could mean one of them as well as the end of the text. They are found here,
    and the connection is closed.
    """

    name = "this server, which speaks no more than OpenAI's protocol,"
    writes_prompts = True
    takes_token_ids = False
    tells_token_ids = False
    # Many do not know `stream_options`.
    tells_counts = False
    more_room = "start the server with a longer context ({num_tokens} tokens or more)"
    refusals: ClassVar[Refusals] = (
        ("top_k", lambda p: bool(p.top_k) and p.temperature > 0, _UNKNOWN),
        ("min_p", lambda p: bool(p.min_p) and p.temperature > 0, _UNKNOWN),
        ("ignore_eos", lambda p: p.ignore_eos, _UNKNOWN),
        ("repetition_penalty", lambda p: p.repetition_penalty not in (None, 1.0), _UNKNOWN),
        ("logprobs", lambda p: p.logprobs is not None, "it names tokens by their text, not by their ids"),
        ("temperature", lambda p: p.temperature > 2.0, "OpenAI's protocol allows 2 at most"),
    )

    def grammar(self, grammar: Grammar) -> dict[str, Any]:
        """See `Dialect`."""
        if grammar.regex is not None:
            raise self._no_regex()
        return as_response_format(grammar)

    def body(self, asked: Asked) -> dict[str, Any]:
        """See `Dialect`."""
        body = openai_body(asked)
        body.pop("stop", None)
        return body | ({} if asked.params.grammar is None else self.grammar(asked.params.grammar))

    def chat_grammar(self, grammar: Grammar) -> dict[str, Any]:
        """See `Dialect`."""
        if grammar.schema == {"type": "object"}:
            return {"response_format": {"type": "json_object"}}
        # OpenAI wants it said that objects have no other properties.
        return self.grammar(grammar if grammar.regex is not None else Grammar(schema=closed(grammar.schema)))

    def thinking(self, reasoning: bool | str | None, variables: Mapping[str, Any]) -> dict[str, Any]:
        """See `Dialect`."""
        if variables or reasoning is True:
            name = "chat_template_kwargs" if variables else "reasoning=True"
            msg = (
                f"{name} cannot be honoured by {self.name} whose only word for it is an effort. Give "
                f"reasoning='low', 'medium', 'high' or False, or the model's tokenizer: tokenizer=."
            )
            raise InvalidParameterError(msg)
        return {} if reasoning is None else {"reasoning_effort": reasoning or "none"}

    def _message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        told = super()._message(message)
        # Some refuse what they do not know.
        told.pop("reasoning_content", None)
        return told

    def reader(self, params: SamplingParams) -> Reader:
        """See `Dialect`."""
        return PlainReader()
