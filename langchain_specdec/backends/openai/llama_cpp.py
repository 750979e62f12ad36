"""llama.cpp's dialect: its own `/completion`, which tells tokens, timings and drafts (tools/server/README.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from langchain_specdec.backends.openai.chunks import Chunk, ChunkToken, stats_of
from langchain_specdec.backends.openai.dialect import Asked, Dialect, Reader, Refusals
from langchain_specdec.completions.events import FinishReason
from langchain_specdec.completions.server_chat import ServerChat
from langchain_specdec.completions.stats import SpeculationStats
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.sampling.params import SamplingParams

_NO_LOGPROBS = (
    "logprobs cannot be honoured by this llama.cpp server, which speculates: it leaves out those of drafted tokens. "
    "Start it with --spec-type none, leave logprobs out, or use a LocalBackend."
)
_REASONS: dict[str, FinishReason] = {"eos": "eos_token", "word": "stop_sequence", "limit": "length"}


class LlamaCppDialect(Dialect):
    """llama-server. It always reports what speculation did.

    Args:
        context: Most tokens of a prompt and its completion together.
    """

    name = "llama.cpp's server"
    path = "/completion"
    more_room = "start llama-server with --ctx-size {num_tokens} or more for each slot"
    # 2**32 - 1 draws one.
    max_seed = 2**32 - 2
    of_completions = ("prompt", "n_predict", "return_tokens")
    refusals: ClassVar[Refusals] = (
        ("presence_penalty", lambda p: p.presence_penalty != 0.0, "it counts the prompt, too"),
        ("frequency_penalty", lambda p: p.frequency_penalty != 0.0, "it counts the prompt, too"),
    )

    def __init__(self, context: int) -> None:
        self._context = context

    def grammar(self, grammar: Grammar) -> dict[str, Any]:
        """See `Dialect`."""
        # A grammar for llguidance would hold one, but most are built without, and end themselves by it.
        if grammar.regex is not None:
            raise self._no_regex()
        return {"json_schema": grammar.schema}

    def body(self, asked: Asked) -> dict[str, Any]:
        """See `Dialect`."""
        params = asked.params
        body: dict[str, Any] = {
            "prompt": asked.prompt if isinstance(asked.prompt, str) else list(asked.prompt),
            "n_predict": params.max_new_tokens,
            "stream": True,
            "return_tokens": True,
            "temperature": params.temperature,
            # In this order, and no others, whatever the server was started with.
            "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],
            "mirostat": 0,
            "top_k": params.top_k or 0,
            "top_p": 1.0 if params.top_p is None else params.top_p,
            "min_p": params.min_p or 0.0,
            "seed": asked.seed,
            "stop": list(params.stop),
            "ignore_eos": params.ignore_eos,
        }
        if params.repetition_penalty is not None:
            # The whole context counts. Later releases refuse -1, which meant that.
            body |= {"repeat_penalty": params.repetition_penalty, "repeat_last_n": self._context}
        if asked.bias:
            body["logit_bias"] = [[token, bias] for token, bias in asked.bias.items()]
        if params.logprobs is not None:
            body["n_probs"] = max(params.logprobs, 1)
        return body | ({} if params.grammar is None else self.grammar(params.grammar))

    def chat_body(self, asked: Asked, chat: ServerChat) -> dict[str, Any]:
        """See `Dialect`."""
        if isinstance(chat.tool_choice, Mapping):
            # The name of a tool would not be looked at.
            name = chat.tool_choice["function"]["name"]
            only = [tool for tool in chat.tools if tool["function"]["name"] == name]
            chat = replace(chat, tools=only, tool_choice="required")
        body = super().chat_body(asked, chat)
        limit = asked.params.max_new_tokens
        return {**body, "model": asked.model, "max_tokens": limit, "stream_options": {"include_usage": True}}

    def reader(self, params: SamplingParams) -> Reader:
        """See `Dialect`."""
        return LlamaCppReader(has_logprobs=params.logprobs is not None)


class LlamaCppReader(Reader):
    """A token a piece, but for those of one character, which come together with the id of the last.

    Args:
        has_logprobs: Whether log probabilities were asked for.
    """

    def __init__(self, *, has_logprobs: bool = False) -> None:
        self._has_logprobs = has_logprobs
        self._num_tokens = 0

    def read(self, event: Mapping[str, Any]) -> Chunk:
        """See `Reader`."""
        text, predicted = event["content"], int(event["tokens_predicted"])
        num_tokens, self._num_tokens = predicted - self._num_tokens, max(predicted, self._num_tokens)
        tokens: tuple[ChunkToken, ...] = ()
        if num_tokens > 0 or text:
            ids = event.get("tokens") or [-1]
            probs = (event.get("completion_probabilities") or [{}])[-1]
            if self._has_logprobs and "logprob" not in probs and event.get("tokens"):
                raise InvalidParameterError(_NO_LOGPROBS)
            top = tuple((int(one["id"]), float(one["logprob"])) for one in probs.get("top_logprobs", ()))
            tokens = (ChunkToken(int(ids[-1]), probs.get("logprob"), top, max(num_tokens, 0)),)
        prompt_tokens = int(event["tokens_evaluated"])
        if not event["stop"]:
            return Chunk(text, tokens, prompt_tokens=prompt_tokens)
        return Chunk(
            text,
            tokens,
            _REASONS[event["stop_type"]],
            prompt_tokens,
            predicted,
            event["timings"].get("cache_n"),
            self.stats(event, predicted),
            is_last=True,
        )

    def stats(self, event: Mapping[str, Any], num_tokens: int) -> SpeculationStats | None:
        """See `Reader`."""
        if (timings := event.get("timings")) is None:
            return None
        num_tokens = num_tokens or timings["predicted_n"]
        return stats_of(num_tokens, timings.get("draft_n", 0), timings.get("draft_n_accepted", 0))
