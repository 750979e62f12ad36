"""What a LangChain model has room for: tokens of a prompt, counted by the model itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.language_models import BaseChatModel, BaseLanguageModel
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable, RunnableConfig, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import merge_configs
from langchain_core.runnables.configurable import DynamicRunnable

from langchain_specdec.chat.special_tokens import ProtectedEncoder
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.langchain_base import SpeculativeBase
from langchain_specdec.parameter_names import ALIASES
from langchain_specdec.sampling.params import SamplingParams

# Tokens that a tokenizer puts before a prompt, which `get_num_tokens` does not count.
_IN_FRONT = 4
# Until a server has said what it has room for.
_PATIENCE_SECONDS = 30.0


class Room:
    """The model behind a runnable, and what it has room for.

    Args:
        model: A LangChain model, or one with parameters bound to it, or configurable ones.
        max_input_tokens: Most tokens of a prompt; None is what the model says.
        kwargs: Parameters of the call.
        config: That of the call, by which a configurable model is chosen.

    Raises:
        InvalidParameterError: It is no model, or what it has room for is not known.
    """

    def __init__(
        self,
        model: Runnable[Any, Any],
        max_input_tokens: int | None,
        kwargs: Mapping[str, Any],
        config: RunnableConfig | None = None,
    ) -> None:
        bound: dict[str, Any] = dict(kwargs)
        while isinstance(model, (RunnableBindingBase, DynamicRunnable)):
            if isinstance(model, RunnableBindingBase):
                bound = {**model.kwargs, **bound}
                config = merge_configs(model.config, config)
                model = model.bound
            else:
                model, config = model.prepare(config)
        self._model = _checked(model)
        self._given = max_input_tokens
        named = {ALIASES.get(name, name): value for name, value in bound.items() if value is not None}
        self.max_new_tokens: int | None = named.get("max_new_tokens", _max_new_tokens(self._model))
        self._limit: int | None = None

    @property
    def is_chat(self) -> bool:
        """Whether prompts become messages in the model's chat format."""
        return isinstance(self._model, BaseChatModel)

    def more_room(self, num_tokens: int, num_new_tokens: int | None = None) -> str | None:
        """What the user can do to have room for so many tokens of a prompt; None where nothing helps.

        Args:
            num_tokens: Of the prompt.
            num_new_tokens: Tokens beside it; None is `max_new_tokens`.
        """
        if self._given is not None and self._given == self.limit:
            return f"give max_input_tokens={num_tokens} or more"
        if isinstance(self._model, SpeculativeBase):
            beside = (self.max_new_tokens or 0) if num_new_tokens is None else num_new_tokens
            return self._model.backend.more_room(num_tokens + beside + _IN_FRONT)
        return None

    def count(self, prompt: PromptValue) -> int:
        """Tokens of a prompt, those of the chat format included."""
        if self.is_chat:
            return self._model.get_num_tokens_from_messages(prompt.to_messages())
        return self._model.get_num_tokens(prompt.to_string())

    @property
    def limit(self) -> int:
        """Most tokens of a prompt.

        Raises:
            InvalidParameterError: It is not known.
        """
        if self._limit is None:
            self._limit = self.limit_beside(self.max_new_tokens or 0)
        return self._limit

    def limit_beside(self, num_new_tokens: int) -> int:
        """Most tokens of a prompt beside so many new ones.

        Raises:
            InvalidParameterError: It is not known.
        """
        known = [limit for limit in (self._given, self._model_limit(num_new_tokens)) if limit is not None]
        if not known:
            msg = (
                f"What {type(self._model).__name__} has room for is not known. Give the most tokens that a prompt "
                "may have: DocumentSummarizer(model, max_input_tokens=...)."
            )
            raise InvalidParameterError(msg)
        return min(known)

    def _model_limit(self, num_new_tokens: int) -> int | None:
        if not isinstance(self._model, SpeculativeBase):
            profile = getattr(self._model, "profile", None) or {}
            limit: int | None = profile.get("max_input_tokens")
            return limit
        backend = self._model.backend
        if backend.is_remote and backend.max_length is None:
            backend.name_within(_PATIENCE_SECONDS)  # it is told with the name
        if backend.max_length is None:
            return None
        room = backend.max_length - num_new_tokens
        return max(min(room, backend.max_prompt_length or room) - _IN_FRONT, 0)

    def as_data(self, text: str) -> str:
        """A document as it may stand in a prompt: in one that is all text, what looks like a special token is none."""
        if self.is_chat or not isinstance(self._model, SpeculativeBase):
            return text
        tokenizer = self._model.backend.private_tokenizer
        return text if tokenizer is None else ProtectedEncoder(tokenizer, "").as_data(text)


def _checked(model: Any) -> BaseLanguageModel[Any]:
    if isinstance(model, RunnableWithFallbacks):
        msg = (
            "Each model counts tokens and has room of its own, so give the fallbacks to the summariser: "
            "DocumentSummarizer(model).with_fallbacks([DocumentSummarizer(other)])."
        )
        raise InvalidParameterError(msg)
    if not isinstance(model, BaseLanguageModel):
        msg = (
            f"model must be a LangChain model, such as ChatSpeculative or SpeculativeLLM, got {type(model).__name__}. "
            "A chain of a prompt and a model has no place here: give the prompt as prompt=, and the model alone."
        )
        raise InvalidParameterError(msg)
    return model


def _max_new_tokens(model: BaseLanguageModel[Any]) -> int | None:
    if isinstance(model, SpeculativeBase):
        given: dict[str, Any] = {"max_new_tokens": model.max_new_tokens}  # None is the default
        return SamplingParams(**given).max_new_tokens
    limit = getattr(model, "max_tokens", None)
    return limit if isinstance(limit, int) else None
