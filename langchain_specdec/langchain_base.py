"""What both LangChain models share: their backend, the sampling parameters, how they are made and how they stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.outputs import ChatGenerationChunk, GenerationChunk
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list
from pydantic import Field, SkipValidation, model_validator
from typing_extensions import Self

from langchain_specdec._version import __version__
from langchain_specdec.completions import batches
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.events import Event
from langchain_specdec.completions.stream import NO_LIMIT, CompletionStream, TimeLimit
from langchain_specdec.construction.constructors import LOADING, PARAMETERS, ModelConstructors
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.options import options_of
from langchain_specdec.parameter_names import ALIASES, LOADING_ALIASES, join_stops, named_parameters, refuse_unknown
from langchain_specdec.sampling.params import SamplingParams

if TYPE_CHECKING:
    from langchain_core.language_models.base import LangSmithParams

_SAMPLING = options_of(SamplingParams)
RunManager = CallbackManagerForLLMRun | None
AsyncRunManager = AsyncCallbackManagerForLLMRun | None
Configs = RunnableConfig | list[RunnableConfig] | None
Chunk = TypeVar("Chunk", GenerationChunk, ChatGenerationChunk)


def _declared(name: str) -> Any:
    option = _SAMPLING[name]
    return Field(None if option.default == () else option.default, description=option.help)


def concurrency_of(config: RunnableConfig) -> int | None:
    """Most runs at a time by a config; None for no limit.

    Raises:
        InvalidParameterError: It is no such number. With 0 nothing would ever run.
    """
    limit = config.get("max_concurrency")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        msg = f"max_concurrency must be a whole number from 1, or None for no limit, got {limit!r}."
        raise InvalidParameterError(msg)
    return limit


def checked_configs(config: Configs, number: int) -> list[RunnableConfig]:
    """A config for each input of a batch. Raises as `concurrency_of` does."""
    # LangChain takes any config for no inputs, but has none to give.
    configs = get_config_list(config, number) if number else []
    for each in configs:
        concurrency_of(each)
    return configs


def runs_of(
    invoke: Callable[..., Any], inputs: Sequence[Any], config: Configs, kwargs: Mapping[str, Any]
) -> tuple[Callable[[int], Any], int, int | None]:
    """A run of its own for each input: what starts one, how many there are, and how many at a time."""
    configs = checked_configs(config, len(inputs))
    limit = concurrency_of(configs[0]) if configs else None
    return lambda index: invoke(inputs[index], configs[index], **kwargs), len(inputs), limit


class SpeculativeBase(ModelConstructors):
    """Base of `SpeculativeLLM` and `ChatSpeculative`."""

    # The sampling parameters, as `SamplingParams` declares them. None is the default of each.
    max_new_tokens: int | None = _declared("max_new_tokens")
    temperature: float | None = _declared("temperature")
    top_k: int | None = _declared("top_k")
    top_p: float | None = _declared("top_p")
    min_p: float | None = _declared("min_p")
    repetition_penalty: float | None = _declared("repetition_penalty")
    presence_penalty: float | None = _declared("presence_penalty")
    frequency_penalty: float | None = _declared("frequency_penalty")
    logit_bias: dict[int, float] | None = _declared("logit_bias")
    seed: int | None = _declared("seed")
    stop: list[str] | None = _declared("stop")
    ignore_eos: bool | None = _declared("ignore_eos")
    logprobs: int | None = _declared("logprobs")
    adapter: str | None = _declared("adapter")
    grammar: SkipValidation[Grammar | None] = _declared("grammar")

    if TYPE_CHECKING:
        # A field of LangChain's models.
        custom_get_token_ids: Callable[[str], list[int]] | None = None

    @model_validator(mode="after")
    def _note_specdec_version(self) -> Self:
        # langchain-core before 1.4 does not note versions.
        if hasattr(self, "_add_version"):
            self._add_version("langchain-specdec", __version__)
        return self

    @property
    def model_name(self) -> str:
        """Name of the model, as the backend tells it: a server is asked."""
        return self.backend.model_name

    @property
    def model(self) -> str:
        """The same, under the name of the keyword."""
        return self.model_name

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other values of fields. It has the same backend, and so the same model.

        Raises:
            InvalidParameterError: There is no such field.
        """
        self._refuse_fixed(update or ())
        refuse_unknown(update or (), {*type(self).model_fields, *ALIASES})
        named = {ALIASES.get(name, name): value for name, value in (update or {}).items()}
        return super().model_copy(update=named, deep=deep)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        backend = self.backend
        # A server is not asked for its model's name.
        yield ("base_url", getattr(backend, "base_url", None)) if backend.is_remote else ("model", backend.model_name)
        fields = type(self).model_fields
        for name, value in super().__repr_args__():
            is_shown = name in fields and name not in ("metadata", "profile")
            if is_shown and value not in (None, fields[str(name)].get_default(call_default_factory=True)):
                yield name, value

    def _named(self, values: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
        """Parameters of a call under their own names, without those that are None; see `named_parameters`."""
        self._refuse_fixed(name for name in values if name not in known)
        return named_parameters(values, known)

    @classmethod
    def _refuse_fixed(cls, names: Iterable[str]) -> None:
        """Refuse what a model was made with, where it is given later."""
        for name in names:
            own = LOADING_ALIASES.get(name, name)
            if own == "model":
                msg = (
                    f"{name} is chosen when a {cls.__name__} is made, not later: make one for each model, and choose "
                    "among them by configurable_alternatives."
                )
                raise InvalidParameterError(msg)
            if own in LOADING and own not in cls.model_fields:
                msg = f"{name} is set when a model is loaded, not later: {cls.__name__}(model=..., {name}=...)."
                raise InvalidParameterError(msg)

    def batch_as_completed(
        self, inputs: Sequence[Any], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> Generator[batches.Outcome, None, None]:
        """Run all inputs together; the index and the outcome of each, as they come. Leaving it stops the others."""
        model: Any = self  # a LangChain model
        runs = runs_of(model.invoke, inputs, config, kwargs)
        yield from batches.outcomes(*runs, return_exceptions=return_exceptions)

    async def abatch_as_completed(
        self, inputs: Sequence[Any], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> AsyncGenerator[batches.Outcome, None]:
        """`batch_as_completed` for an event loop."""
        model: Any = self
        runs = runs_of(model.ainvoke, inputs, config, kwargs)
        async with aclosing(batches.aoutcomes(*runs, return_exceptions=return_exceptions)) as found:
            async for outcome in found:
                yield outcome

    def get_token_ids(self, text: str) -> list[int]:
        """The tokens of a text, by the model's own tokenizer."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return self.backend.token_ids(text)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        named = {ALIASES.get(name, name): value for name, value in kwargs.items() if value is not None}
        if (named.get("timeout") or getattr(self, "timeout", None)) is not None:
            # The timeout of the call, which begins after this, is not for its trace.
            self.backend.name_within(0.0)
        params: LangSmithParams = super()._get_ls_params(stop=stop, **kwargs)  # type: ignore[misc]
        params["ls_provider"] = "specdec"
        params["ls_model_name"] = named.get("model") or self.backend.model_name
        params["ls_temperature"] = named.get("temperature", self.temperature)
        params["ls_max_tokens"] = named.get("max_new_tokens", self.max_new_tokens)
        if stops := join_stops(self.stop, stop, named.get("stop")):
            params["ls_stop"] = stops
        return params

    def _start(self, request: CompletionRequest, limit: TimeLimit) -> CompletionStream:
        stream = self.backend.stream(request)
        stream.set_timeout(*limit)
        return stream

    async def _astart(self, request: CompletionRequest, limit: TimeLimit) -> CompletionStream:
        stream = (await self.backend.astart([request]))[0]
        stream.set_timeout(*limit)
        return stream

    def _chunks(
        self,
        request: CompletionRequest,
        read: Callable[[Event], Sequence[Chunk]],
        run_manager: RunManager,
        limit: TimeLimit = NO_LIMIT,
    ) -> Iterator[Chunk]:
        """The chunks of a completion.

        Args:
            request: What to complete.
            read: Gives the chunks of an event; none where a step released nothing.
            run_manager: Told of each chunk. LangChain does that itself, unless it was called past it.
            limit: Of its time.
        """
        with self._start(request, limit) as stream:
            for event in stream:
                for chunk in read(event):
                    if run_manager is not None:
                        run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    async def _achunks(
        self,
        request: CompletionRequest,
        read: Callable[[Event], Sequence[Chunk]],
        run_manager: AsyncRunManager,
        limit: TimeLimit = NO_LIMIT,
    ) -> AsyncGenerator[Chunk, None]:
        with await self._astart(request, limit) as stream:
            async for event in stream:
                for chunk in read(event):
                    if run_manager is not None:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    def _sampling_params(self, stop: Sequence[str] | None, named: Mapping[str, Any]) -> SamplingParams:
        """The parameters of one call. Stop strings of the instance and of the call both apply.

        Args:
            stop: LangChain's own argument.
            named: Parameters of the call, under their own names; none of them is None.
        """
        values = {name: getattr(self, name) for name in PARAMETERS} | dict(named)
        return SamplingParams(**{**values, "stop": join_stops(self.stop, stop, named.get("stop"))})

    def _text_identity(self) -> dict[str, Any]:
        """All that the text depends on, so that a cache never answers for another model, seed or stop."""
        params = {name: getattr(self, name) for name in _SAMPLING}
        # LangChain's cache puts the stop strings of the call under "stop", in place of what stands there.
        params["default_stop"] = params.pop("stop")
        return {**self.backend.identity, **params}
