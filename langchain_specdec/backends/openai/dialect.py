"""What differs between kinds of servers: how a completion is asked for, and how its answer is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from langchain_specdec.backends.openai.chunks import Chunk
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.events import FinishReason
from langchain_specdec.completions.server_chat import ServerChat
from langchain_specdec.completions.stats import SpeculationStats
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.sampling.params import SamplingParams

Refusal = tuple[str, Callable[[SamplingParams], bool], str]
"""A parameter that cannot be honoured: name, whether it is asked for, and why not."""
Refusals = tuple[Refusal, ...]
CHAT_PATH = "/v1/chat/completions"
"""Where chats are asked for."""


@dataclass(frozen=True)
class Asked:
    """A completion as it is to be sent.

    Attributes:
        request: What was asked for here.
        model: Name of the model there, or of its adapter.
        prompt: Text or tokens.
        params: What to generate; its stop strings are those to send.
        seed: The seed in force.
        banned: Tokens that are not to be chosen.
        decodes_here: Whether the tokens of the answer are decoded here; else a text is known by the piece only.
    """

    request: CompletionRequest
    model: str
    prompt: str | Sequence[int]
    params: SamplingParams
    seed: int
    banned: Collection[int] = ()
    decodes_here: bool = False

    @property
    def bias(self) -> dict[int, float]:
        """What is added to the logits of tokens."""
        return {**dict.fromkeys(self.banned, -100.0), **(self.params.logit_bias or {})}


class Reader(ABC):
    """Reads one answer."""

    @abstractmethod
    def read(self, event: Mapping[str, Any]) -> Chunk:
        """The piece that an event is.

        Raises:
            KeyError, TypeError, ValueError: It is none.
        """

    def stats(self, event: Mapping[str, Any], num_tokens: int) -> SpeculationStats | None:
        """What speculation did by an event, where it tells.

        Args:
            event: The event, also one of a chat.
            num_tokens: Tokens of the answer.
        """
        return None

    def end_of(self, event: Mapping[str, Any]) -> FinishReason | None:
        """Why an answer ended by the event that follows its last piece, where that tells it better."""
        return None


class Dialect(ABC):
    """One kind of server. It holds nothing of a request."""

    name: ClassVar[str]
    """What such a server is called, in messages."""
    path: ClassVar[str] = "/v1/completions"
    """Where completions are asked for."""
    takes_token_ids: ClassVar[bool] = True
    """Whether a prompt may be tokens."""
    tells_token_ids: ClassVar[bool] = True
    """Whether the tokens of an answer are told, so that special ones can be read."""
    tells_counts: ClassVar[bool] = True
    """Whether every answer ends with its counts, after which nothing comes."""
    takes_logprob_token_ids: ClassVar[bool] = False
    """Whether a request may name tokens whose log probabilities it is told."""
    takes_adapters: ClassVar[bool] = False
    """Whether a request may name an adapter in the place of the model."""
    is_own: ClassVar[bool] = False
    """Whether this package's engine runs there, with thoughts, calls and ends as those of a model in this process."""
    writes_prompts: ClassVar[bool] = False
    """Whether chats are sent as messages where no tokenizer was given, since it does not tell which its model has."""
    takes_found_images: ClassVar[bool] = False
    """Whether the results of tools may hold images."""
    of_completions: ClassVar[tuple[str, ...]] = ("prompt", "return_token_ids")
    """Fields that a completion has and a chat has not."""
    more_room: ClassVar[str]
    """How it gets a longer context, with `{num_tokens}`."""
    refusals: ClassVar[Refusals] = ()
    """What it cannot honour, beside grammars."""
    max_seed: ClassVar[int] = 2**63 - 1
    """The largest seed."""

    def check(self, params: SamplingParams) -> None:
        """Refuse what such a server would ignore or do otherwise.

        Raises:
            InvalidParameterError: A parameter asks for what it cannot do.
        """
        for name, is_asked, reason in (*(() if self.takes_adapters else _NO_ADAPTERS), *self.refusals):
            if is_asked(params):
                msg = f"{name} cannot be honoured by {self.name} ({reason}). Leave it out, or use a LocalBackend."
                raise InvalidParameterError(msg)
        if params.seed is not None and params.seed > self.max_seed:
            msg = f"seed must be at most {self.max_seed} for {self.name}, got {params.seed}."
            raise InvalidParameterError(msg)
        if params.grammar is not None:
            self.grammar(params.grammar)

    def seed(self, seed: int) -> int:
        """The seed in force in place of one that was drawn."""
        return seed % (self.max_seed + 1)

    @abstractmethod
    def grammar(self, grammar: Grammar) -> dict[str, Any]:
        """The fields of a request that ask for a grammar.

        Raises:
            InvalidParameterError: It cannot hold such a one.
        """

    @abstractmethod
    def body(self, asked: Asked) -> dict[str, Any]:
        """The body of a request, for an answer that comes piece by piece."""

    @abstractmethod
    def reader(self, params: SamplingParams) -> Reader:
        """What reads the answer to such a request."""

    def chat_body(self, asked: Asked, chat: ServerChat) -> dict[str, Any]:
        """The body of a request of `/v1/chat/completions`.

        Raises:
            InvalidParameterError: It cannot be honoured.
        """
        grammar = asked.params.grammar
        body = self.body(replace(asked, params=replace(asked.params, grammar=None)))
        for name in self.of_completions:
            body.pop(name, None)
        body["messages"] = [self._message(message) for message in self._messages(chat)]
        for name in ("tools", "tool_choice", "parallel_tool_calls"):
            value = getattr(chat, name)
            if value or value is False:
                body[name] = value
        body |= {} if grammar is None else self.chat_grammar(grammar)
        return body | self.thinking(chat.reasoning, chat.template_variables)

    def chat_grammar(self, grammar: Grammar) -> dict[str, Any]:
        """The fields of a chat that ask for a grammar. Raises as `grammar` does."""
        return self.grammar(grammar) if grammar.regex is not None else as_response_format(grammar)

    def thinking(self, reasoning: bool | str | None, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a chat that say whether, or how much, the model is to think, and what its template is told.

        Raises:
            InvalidParameterError: There is no such field.
        """
        given = {**variables, **({"enable_thinking": reasoning} if isinstance(reasoning, bool) else {})}
        fields: dict[str, Any] = {"chat_template_kwargs": given} if given else {}
        return fields | ({"reasoning_effort": reasoning} if isinstance(reasoning, str) else {})

    def _messages(self, chat: ServerChat) -> Sequence[Mapping[str, Any]]:
        return chat.messages if self.is_own else chat.with_form_prompt()

    def _message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message as such a server takes it."""
        content = message["content"]
        if message["role"] != "tool" or isinstance(content, str) or self.takes_found_images:
            return dict(message)
        return {**message, "content": "".join(part.get("text", _NOT_SHOWN) for part in content)}

    def _no_regex(self) -> InvalidParameterError:
        return InvalidParameterError(
            f"A regular expression cannot be held by {self.name}, whose requests take JSON schemas only. Give a "
            f"schema, or use a LocalBackend."
        )


_NOT_SHOWN = "\n[image, left out: it cannot be shown here]\n"
_NO_ADAPTERS: Refusals = (
    ("adapter", lambda p: p.adapter is not None, "adapters of a server are not chosen from here"),
)


def as_response_format(grammar: Grammar) -> dict[str, Any]:
    """A JSON schema as OpenAI's `response_format`."""
    schema = {"name": "answer", "strict": True, "schema": grammar.schema}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def changes_logprobs(params: SamplingParams) -> bool:
    """Whether log probabilities after sampling are others than the model's own."""
    is_cut = bool(params.top_k) or params.top_p not in (None, 1.0) or bool(params.min_p)
    is_scaled = params.temperature not in (0.0, 1.0)
    return params.needs_history or bool(params.logit_bias) or (params.temperature > 0 and (is_scaled or is_cut))
