"""What both LangChain models share: their backend, the sampling parameters, how they are made and how they stream."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.outputs import ChatGenerationChunk, GenerationChunk
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list
from pydantic import BaseModel, ConfigDict, Field, SecretStr, SkipValidation, create_model, model_validator
from typing_extensions import Self

from langchain_specdec._version import __version__
from langchain_specdec.backends.base import Backend
from langchain_specdec.completions import batches
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.events import Event
from langchain_specdec.completions.stream import NO_LIMIT, CompletionStream, TimeLimit
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.options import options_of
from langchain_specdec.parameter_names import ALIASES, join_stops, named_parameters, refuse_unknown
from langchain_specdec.sampling.params import SamplingParams

if TYPE_CHECKING:
    import os

    from langchain_core.language_models.base import LangSmithParams
    from transformers import PreTrainedModel

_SAMPLING = options_of(SamplingParams)
PARAMETERS = frozenset(_SAMPLING)
"""Names of the sampling parameters; each is a field, and can be given per call."""

RunManager = CallbackManagerForLLMRun | None
AsyncRunManager = AsyncCallbackManagerForLLMRun | None
Configs = RunnableConfig | list[RunnableConfig] | None
Chunk = TypeVar("Chunk", GenerationChunk, ChatGenerationChunk)

_NOT_LOADED: Any = object()


def _declared(name: str) -> Any:
    option = _SAMPLING[name]
    return Field(None if option.default == () else option.default, description=option.help)


class SpeculativeBase(BaseModel):
    """Base of `SpeculativeLLM` and `ChatSpeculative`."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    backend: SkipValidation[Backend] = Field(exclude=True, repr=False)
    """Where completions come from."""
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
    grammar: SkipValidation[Grammar | None] = _declared("grammar")

    # Not a validator: pydantic would wrap the errors. Not shown to type checkers: they know the fields.
    if not TYPE_CHECKING:

        def __init__(self, **values: Any) -> None:
            super().__init__(**self._checked(values))

    else:
        # A field of LangChain's models.
        custom_get_token_ids: Callable[[str], list[int]] | None = None

    @classmethod
    def _checked(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The fields under their own names. Refuses unknown ones, and values out of their range."""
        fields = named_parameters(values, cls.model_fields)
        if "stop" in fields:
            fields["stop"] = join_stops(fields["stop"]) or None
        given = {name: value for name, value in fields.items() if name in PARAMETERS}
        SamplingParams(**{**given, "stop": given.get("stop") or ()})
        backend = fields.get("backend")
        if backend is not _NOT_LOADED and not isinstance(backend, Backend):
            msg = (
                f"backend must be a backend such as LocalBackend(...), got {backend!r}. "
                f"{cls.__name__}.from_model_id(...) loads a model by its id, and from_tgi(...) uses a server."
            )
            raise InvalidParameterError(msg)
        return fields

    @model_validator(mode="after")
    def _note_specdec_version(self) -> Self:
        # langchain-core before 1.4 does not note versions.
        if hasattr(self, "_add_version"):
            self._add_version("langchain-specdec", __version__)
        return self

    @classmethod
    def from_model_id(
        cls,
        model_id: str | os.PathLike[str] | PreTrainedModel,
        *,
        draft_model_id: str | os.PathLike[str] | PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a model into this process.

        Args:
            model_id: Model id of the Hugging Face Hub, local folder, `"embedded"` (a 135M model that comes along), or a
                loaded model.
            draft_model_id: A smaller model with the same tokenizer, given likewise.
            kwargs: Sampling parameters and other fields of this class; all else goes to `LocalBackend`, whose options
                `LocalOptions` lists: `drafter`, `draft_length`, `num_slots`, `max_length`, `dtype`, `device`, ...

        Raises:
            InvalidParameterError: A parameter is unknown or out of its range. Raised before anything is loaded.
            UnsupportedModelError: The model, or the pair of models, cannot be run.
            ModelLoadError: The model or its tokenizer cannot be found or read.
        """
        from langchain_specdec.backends.local import LocalBackend

        loading = inspect.signature(LocalBackend).parameters
        fields, options = cls._split(kwargs, loading)
        refuse_unknown(options, cls._accepted(LocalBackend, {"draft_model_id"}) - {"model", "draft_model"})
        return cls._over(LocalBackend(model_id, draft_model=draft_model_id, **options), fields)

    @classmethod
    def from_tgi(
        cls,
        base_url: str,
        *,
        api_key: str | SecretStr | None = None,
        read_timeout: float | None = 120.0,
        max_retries: int | None = 2,
        **kwargs: Any,
    ) -> Self:
        """Use a Text Generation Inference server. Nothing is sent to it before the first call.

        A chat needs the tokenizer of the server's model, for its chat template. Without `tokenizer=` the first call
        asks the server which model that is, and reads the tokenizer from the model's folder, where the server is on
        this machine, or takes it from the Hugging Face Hub or its cache.

        Args:
            base_url: Root address of the server, such as `"http://127.0.0.1:8080"`.
            api_key: The server's key; a Hugging Face token is refused for hosts that are not Hugging Face's.
            read_timeout: Most seconds to wait for the next token, the first included.
            max_retries: How often a request is sent again that failed before its first token.
            kwargs: Sampling parameters and other fields of this class; all else goes to `TGIBackend`.

        Raises:
            InvalidParameterError: A parameter is unknown or out of its range.
            MissingDependencyError: The client asked for is not installed.
        """
        from langchain_specdec.backends.tgi.backend import TGIBackend

        # A tokenizer is the backend's, which counts by it too.
        fields, options = cls._split(kwargs, {"tokenizer"})
        named: dict[str, Any] = {"api_key": api_key, "read_timeout": read_timeout, "max_retries": max_retries}
        refuse_unknown(options, cls._accepted(TGIBackend, named) - {"base_url", "server"})
        return cls._over(TGIBackend(base_url, **named, **options), fields)

    @classmethod
    def launch_tgi(
        cls,
        model_id: str,
        *,
        speculate: int | None = 4,
        api_key: str | SecretStr | None = None,
        read_timeout: float | None = 120.0,
        max_retries: int | None = 2,
        **kwargs: Any,
    ) -> Self:
        """Start a Text Generation Inference server on this machine and use it; `close` ends it.

        While TGI speculates, it breaks most grammars. Where answers have to be of a given form (structured output,
        forced tool calls, `grammar=`), take one of: `speculate=0`; a second server with `speculate=0` for them; or the
        engine in this process (`from_model_id`), which holds grammars and speculates.

        Args:
            model_id: Model id of the Hugging Face Hub, or a local folder.
            speculate: Tokens to draft per step, by n-grams or by the heads of a Medusa or MLP-speculator model; 0 for
                none, as answers of a given form need it; None for TGI's own choice.
            api_key: Key that the server is to ask for.
            read_timeout: Most seconds to wait for the next token, the first included.
            max_retries: How often a request is sent again that failed before its first token.
            kwargs: Sampling parameters and other fields of this class; all else goes to `TGIBackend`, or else to
                `tgi_launcher.TGIConfig` (`port`, `max_total_tokens`, `quantize`, ...) and `tgi_launcher.TGIServer`
                (`on_progress`, `restart`, ...).

        Raises:
            InvalidParameterError: A parameter is unknown or out of its range. Raised before anything is started.
            MissingDependencyError: The client asked for is not installed.
            tgi_launcher.TGIError: The server did not start.
        """
        from langchain_specdec.backends.tgi.launch import launch_backend

        fields, options = cls._split(kwargs, {"tokenizer"})
        named = {"api_key": api_key, "read_timeout": read_timeout, "max_retries": max_retries}
        return cls._over(launch_backend(model_id, speculate=speculate, **named, **options), fields)

    @classmethod
    def _split(cls, kwargs: Mapping[str, Any], loading: Collection[str] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
        """Fields of this class, checked before a backend is made, and all else, to which `loading` belongs."""
        own = (set(cls.model_fields) - {"backend"} - set(loading)) | set(ALIASES)
        fields = {name: value for name, value in kwargs.items() if name in own}
        named = cls._checked({"backend": _NOT_LOADED, **fields})
        given: dict[str, Any] = {name: cls.model_fields[name] for name in named if name != "backend"}
        definitions: Any = {name: (field.annotation, field) for name, field in given.items()}
        config = ConfigDict(arbitrary_types_allowed=True)
        create_model(cls.__name__, __config__=config, **definitions)(**{name: named[name] for name in given})
        return fields, {name: value for name, value in kwargs.items() if name not in own}

    @classmethod
    def _accepted(cls, backend: Callable[..., Any], others: Collection[str]) -> set[str]:
        """All names that a constructor takes, for messages."""
        own = {name for name in cls.model_fields if name != "backend"} | set(ALIASES)
        return {*inspect.signature(backend).parameters, *own, *others}

    @classmethod
    def _over(cls, backend: Backend, fields: Mapping[str, Any]) -> Self:
        try:
            return cls(backend=backend, **fields)
        except BaseException:
            backend.close()
            raise

    def close(self) -> None:
        """Close the backend, and end its server if it has one. What still runs raises an `EngineClosedError`."""
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @staticmethod
    def _checked_configs(config: Configs, num_inputs: int) -> list[RunnableConfig]:
        """A config for each input of a batch. Refuses a `max_concurrency` with which LangChain would do nothing."""
        # LangChain takes any config for no inputs, but has none to give.
        configs = get_config_list(config, num_inputs) if num_inputs else []
        for each in configs:
            limit = each.get("max_concurrency")
            if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
                msg = f"max_concurrency must be a whole number from 1, or None for no limit, got {limit!r}."
                raise InvalidParameterError(msg)
        return configs

    def batch_as_completed(
        self, inputs: Sequence[Any], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> Generator[batches.Outcome, None, None]:
        """Run all inputs together; the index and the outcome of each, as they come. Leaving it stops the others."""
        runs = self._runs("invoke", inputs, config, kwargs)
        yield from batches.outcomes(*runs, return_exceptions=return_exceptions)

    async def abatch_as_completed(
        self, inputs: Sequence[Any], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> AsyncGenerator[batches.Outcome, None]:
        """`batch_as_completed` for an event loop."""
        runs = self._runs("ainvoke", inputs, config, kwargs)
        async with aclosing(batches.aoutcomes(*runs, return_exceptions=return_exceptions)) as found:
            async for outcome in found:
                yield outcome

    def _runs(
        self, method: str, inputs: Sequence[Any], config: Any, kwargs: Mapping[str, Any]
    ) -> tuple[Callable[[int], Any], int, int | None]:
        """A run of its own for each input: what starts one, how many there are, and how many at a time."""
        configs = self._checked_configs(config, len(inputs))
        invoke = getattr(self, method)
        limit = configs[0].get("max_concurrency") if configs else None
        return lambda index: invoke(inputs[index], configs[index], **kwargs), len(inputs), limit

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
