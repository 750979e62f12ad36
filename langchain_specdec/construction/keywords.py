"""Keywords that make the LangChain models, for editors and type checkers (PEP 692).

What each is, its field, `SamplingParams` or `LocalOptions` says; tests/unit/langchain/test_keywords.py compares the
names and the types.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import TypedDict

from langchain_specdec.backends.base import Backend
from langchain_specdec.backends.local_options import LocalOptions
from langchain_specdec.backends.openai.launch_options import EngineLaunchOptions, EngineName
from langchain_specdec.backends.openai.options import OpenAIOptions
from langchain_specdec.backends.tgi.launch_options import ConnectionOptions, LaunchOptions
from langchain_specdec.grammar.grammar import Grammar

if TYPE_CHECKING:
    from langchain_core.caches import BaseCache
    from langchain_core.callbacks import Callbacks
    from langchain_core.language_models.model_profile import ModelProfile
    from langchain_core.rate_limiters import BaseRateLimiter
    from pydantic import SecretStr
    from transformers import PreTrainedModel

    ModelSource = str | os.PathLike[str] | PreTrainedModel


Engine = EngineName | Literal["tgi"]
"""Engines that `launch_server` starts."""


class SamplingFields(TypedDict, total=False):
    """The sampling parameters, which are fields."""

    max_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop: str | Sequence[str] | None
    ignore_eos: bool | None
    logprobs: int | None
    # As an option of loading, it is one that is merged.
    adapter: str | os.PathLike[str] | None
    grammar: Grammar | None
    # Their other names.
    max_tokens: int | None
    stop_sequences: str | Sequence[str] | None


class LLMFields(SamplingFields, total=False):
    """Fields of `SpeculativeLLM`: the sampling parameters, its own, and those of LangChain's models."""

    streaming: bool | None
    name: str | None
    cache: BaseCache | bool | None
    verbose: bool
    callbacks: Callbacks
    tags: list[str] | None
    metadata: dict[str, Any] | None
    custom_get_token_ids: Callable[[str], list[int]] | None


class ChatFields(LLMFields, total=False):
    """Fields of `ChatSpeculative`, but those that are options of a server too."""

    timeout: float | None
    chat_template: str | None
    chat_template_kwargs: dict[str, Any] | None
    reasoning: bool | str | None
    max_reasoning_tokens: int | None
    stop_in_reasoning: bool | None
    rate_limiter: BaseRateLimiter | None
    disable_streaming: bool | Literal["tool_calling"]
    output_version: str | None
    profile: ModelProfile | None


class DecisionFields(TypedDict, total=False):
    """Fields of `SpeculativeDecisions`."""

    name: str | None
    chat_template: str | None
    chat_template_kwargs: dict[str, Any] | None


class Loading(LocalOptions, total=False):
    """Options of a model that is loaded: those of `LocalBackend`, and another name of one."""

    tokenizer: Any
    draft_model_id: ModelSource | None


class Origin(TypedDict, total=False):
    """Where completions come from: a model, under one of its names, or a backend."""

    model: ModelSource | None
    backend: Backend | None
    model_id: ModelSource | None
    model_name: ModelSource | None


class LLMLoading(LLMFields, Loading, total=False):
    """Keywords of `SpeculativeLLM.from_model_id`."""


class LLMKeywords(LLMLoading, Origin, total=False):
    """Keywords of `SpeculativeLLM`."""


class LLMConnection(LLMFields, ConnectionOptions, total=False):
    """Keywords of `SpeculativeLLM.from_tgi`."""


class LLMServer(LLMFields, OpenAIOptions, total=False):
    """Keywords of `SpeculativeLLM.from_server`."""


class LLMLaunch(LLMFields, LaunchOptions, total=False):
    """Keywords of `SpeculativeLLM.launch_tgi`."""


class LLMLaunchServer(LLMFields, EngineLaunchOptions, total=False):
    """Keywords of `SpeculativeLLM.launch_server`."""


class ChatLoading(ChatFields, Loading, total=False):
    """Keywords of `ChatSpeculative.from_model_id`."""

    api_key: str | SecretStr | None
    max_retries: int | None


class ChatKeywords(ChatLoading, Origin, total=False):
    """Keywords of `ChatSpeculative`."""


class DecisionLoading(DecisionFields, Loading, total=False):
    """Keywords of `SpeculativeDecisions.from_model_id`."""


class DecisionKeywords(DecisionLoading, Origin, total=False):
    """Keywords of `SpeculativeDecisions`."""


class DecisionServer(DecisionFields, OpenAIOptions, total=False):
    """Keywords of `SpeculativeDecisions.from_server`."""


class DecisionLaunchServer(DecisionFields, EngineLaunchOptions, total=False):
    """Keywords of `SpeculativeDecisions.launch_server`."""


class ChatConnection(ChatFields, ConnectionOptions, total=False):
    """Keywords of `ChatSpeculative.from_tgi`."""


class ChatServer(ChatFields, OpenAIOptions, total=False):
    """Keywords of `ChatSpeculative.from_server`."""


class ChatLaunch(ChatFields, LaunchOptions, total=False):
    """Keywords of `ChatSpeculative.launch_tgi`."""


class ChatLaunchServer(ChatFields, EngineLaunchOptions, total=False):
    """Keywords of `ChatSpeculative.launch_server`."""
