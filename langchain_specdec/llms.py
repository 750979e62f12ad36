"""`SpeculativeLLM`: the LangChain completion model over any backend."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from pydantic import Field, SkipValidation
from typing_extensions import Self, Unpack, override

from langchain_specdec.completions import batches
from langchain_specdec.completions.completion import Completion, CompletionRequest
from langchain_specdec.completions.events import Event, FinishEvent, Token
from langchain_specdec.construction.constructors import PARAMETERS
from langchain_specdec.errors import MalformedAnswerError
from langchain_specdec.langchain_base import (
    AsyncRunManager,
    Configs,
    RunManager,
    SpeculativeBase,
    checked_configs,
    runs_of,
)
from langchain_specdec.parameter_names import join_stops

if TYPE_CHECKING:
    from langchain_specdec.construction import keywords

# What `BaseLLM.generate` takes beside parameters.
_RUN_OPTIONS = frozenset({"tags", "metadata", "run_name", "run_id"})


class SpeculativeChunk(GenerationChunk):
    """A piece of streamed text that knows its tokens, and which of them were drafted.

    Attributes:
        tokens: The tokens of the decoding step that released the text.
        drafted_tokens: Tokens that were proposed for that step, the rejected ones included.
    """

    tokens: SkipValidation[tuple[Token, ...]] = Field(default=(), exclude=True, repr=False)
    drafted_tokens: SkipValidation[int] = Field(default=0, exclude=True, repr=False)

    @classmethod
    def lc_id(cls) -> list[str]:
        """Stored as what LangChain can load again: a `GenerationChunk`, without the tokens."""
        return GenerationChunk.lc_id()


class SpeculativeLLM(SpeculativeBase, BaseLLM):
    r"""Runs a language model with speculative decoding: the same text, sooner.

    Setup:
        `pip install -e .` in a checkout; the model runs in this process, so no key and no server is needed. To use a
        server instead: `SpeculativeLLM.from_server(base_url)` or `.launch_server(model_id, engine="vllm")`, and of Text
        Generation Inference `.from_tgi(base_url)` or `.launch_tgi(model_id)`.

    Instantiate:
        ```python
        from langchain_specdec import SpeculativeLLM

        llm = SpeculativeLLM(model="HuggingFaceTB/SmolLM2-1.7B-Instruct", max_new_tokens=200)
        ```
        `model` is an id, a local folder or a loaded model, and is loaded at once, with the options of `LocalOptions`.

    Invoke, stream, batch (and `ainvoke`, `astream`, `abatch`):
        ```python
        llm.invoke("Once upon a time")
        for piece in llm.stream("Once upon a time"):
            print(piece, end="", flush=True)
        llm.batch(["One", "Two", "Three"])  # decoded together, as one batch
        ```

    The sampling parameters are fields; each can be given per call too, as in `llm.invoke(prompt, temperature=0.7)`
    or `llm.bind(stop=["\n"])`. `max_tokens` and `stop_sequences` are other names of `max_new_tokens` and `stop`. Stop
    strings of the instance and of the call both apply. None is the default of every field; in a call it is as if not
    given. An unknown parameter raises an `InvalidParameterError`.

    `generation_info` of every `Generation`, and of the last chunk of a stream: `finish_reason` (`length`,
    `stop_sequence` or `eos_token`), `prompt_tokens`, `completion_tokens`, `seed`, `time_to_first_token` (seconds),
    `speculation` (`drafted_tokens`, `accepted_tokens`, `num_steps`, `acceptance_rate`, `tokens_per_step`,
    `decode_seconds`), and `logprobs` where asked for. `llm_output["token_usage"]` sums a batch.

    With `grammar`, a text whose `finish_reason` is `length` is the beginning of one that fits: a server cuts it there,
    and the engine in this process ends it before. What a server wrote against the grammar raises a
    `MalformedAnswerError`, at the end of a stream too.

    One instance serves any number of threads and tasks at a time; closing or cancelling a stream stops its work.
    `close`, or the end of a `with` block, ends the backend. Copies of an instance share its backend.
    """

    streaming: bool | None = False
    """Whether calls report text to callbacks as it comes. Several prompts that are decoded in one call report none."""

    # Narrower than what both models share, where any keyword may come.
    if TYPE_CHECKING:

        def __init__(self, **kwargs: Unpack[keywords.LLMKeywords]) -> None: ...
        @override
        @classmethod
        def from_model_id(  # type: ignore[override]
            cls, model_id: keywords.ModelSource, **kwargs: Unpack[keywords.LLMLoading]
        ) -> Self: ...
        @override
        @classmethod
        def from_tgi(cls, base_url: str, **kwargs: Unpack[keywords.LLMConnection]) -> Self: ...  # type: ignore[override]
        @override
        @classmethod
        def from_server(cls, base_url: str, **kwargs: Unpack[keywords.LLMServer]) -> Self: ...  # type: ignore[override]
        @override
        @classmethod
        def launch_tgi(  # type: ignore[override]
            cls, model_id: str, *, speculate: int | None = 4, **kwargs: Unpack[keywords.LLMLaunch]
        ) -> Self: ...
        @override
        @classmethod
        def launch_server(  # type: ignore[override]
            cls, model_id: str, *, engine: keywords.Engine, **kwargs: Unpack[keywords.LLMLaunchServer]
        ) -> Self: ...

    @property
    def _llm_type(self) -> str:
        return "specdec"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return self._text_identity()

    def generate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        """`BaseLLM.generate`, with parameters of the call counted in by `llm.cache` too."""
        llm, stop, options = self._for_call(stop, kwargs)
        return super(SpeculativeLLM, llm).generate(prompts, stop, callbacks, **options)

    async def agenerate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        """`BaseLLM.agenerate`, with parameters of the call counted in by `llm.cache` too."""
        llm, stop, options = self._for_call(stop, kwargs)
        return await super(SpeculativeLLM, llm).agenerate(prompts, stop, callbacks, **options)

    def batch(
        self, inputs: list[Any], config: Configs = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> list[str]:
        """Decode all inputs together; with `return_exceptions` each has an outcome of its own."""
        if return_exceptions:
            runs = runs_of(self.invoke, inputs, config, kwargs)
            return batches.batch(*runs, return_exceptions=True)
        return super().batch(inputs, checked_configs(config, len(inputs)), **kwargs)

    async def abatch(
        self, inputs: list[Any], config: Configs = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> list[str]:
        """`batch` for an event loop."""
        if return_exceptions:
            runs = runs_of(self.ainvoke, inputs, config, kwargs)
            return await batches.abatch(*runs, return_exceptions=True)
        return await super().abatch(inputs, checked_configs(config, len(inputs)), **kwargs)

    def _for_call(
        self, stop: Sequence[str] | None, kwargs: Mapping[str, Any]
    ) -> tuple[Self, list[str] | None, dict[str, Any]]:
        """A copy with the parameters of one call as fields, since LangChain's cache looks at fields only."""
        named = self._named(kwargs, PARAMETERS | _RUN_OPTIONS)
        stops = join_stops(stop, named.pop("stop", None)) or None
        options = {name: named.pop(name) for name in list(named) if name in _RUN_OPTIONS}
        return (self.model_copy(update=named) if named else self), stops, options

    def _requests(
        self, prompts: Sequence[str], stop: Sequence[str] | None, kwargs: Mapping[str, Any]
    ) -> list[CompletionRequest]:
        params = self._sampling_params(stop, self._named(kwargs, PARAMETERS))
        return [CompletionRequest(prompt, params) for prompt in prompts]

    def _generate(
        self, prompts: list[str], stop: list[str] | None = None, run_manager: RunManager = None, **kwargs: Any
    ) -> LLMResult:
        if self.streaming and len(prompts) == 1:
            return self._result([_join(list(self._stream(prompts[0], stop, run_manager, **kwargs)))])
        completions = self.backend.complete(self._requests(prompts, stop, kwargs))
        return self._result([_generation(completion) for completion in completions])

    async def _agenerate(
        self, prompts: list[str], stop: list[str] | None = None, run_manager: AsyncRunManager = None, **kwargs: Any
    ) -> LLMResult:
        if self.streaming and len(prompts) == 1:
            chunks = [chunk async for chunk in self._astream(prompts[0], stop, run_manager, **kwargs)]
            return self._result([_join(chunks)])
        completions = await self.backend.acomplete(self._requests(prompts, stop, kwargs))
        return self._result([_generation(completion) for completion in completions])

    def _stream(
        self, prompt: str, stop: list[str] | None = None, run_manager: RunManager = None, **kwargs: Any
    ) -> Iterator[GenerationChunk]:
        return self._chunks(self._requests([prompt], stop, kwargs)[0], partial(_chunks, []), run_manager)

    def _astream(
        self, prompt: str, stop: list[str] | None = None, run_manager: AsyncRunManager = None, **kwargs: Any
    ) -> AsyncIterator[GenerationChunk]:
        return self._achunks(self._requests([prompt], stop, kwargs)[0], partial(_chunks, []), run_manager)

    def _result(self, generations: list[Generation]) -> LLMResult:
        infos = [generation.generation_info or {} for generation in generations]
        usage = {name: sum(info[name] for info in infos) for name in ("prompt_tokens", "completion_tokens")}
        usage["total_tokens"] = sum(usage.values())
        output = {"token_usage": usage, "model_name": self.backend.model_name}
        return LLMResult(generations=[[generation] for generation in generations], llm_output=output)


def _generation(completion: Completion) -> Generation:
    _check_form(completion.finish)
    return Generation(text=completion.text, generation_info=completion.info())


def _check_form(finish: FinishEvent) -> None:
    """Raise where a server broke the grammar asked for: what it wrote is no answer."""
    if finish.grammar_error is not None:
        raise MalformedAnswerError(finish.grammar_error)


def _join(chunks: Sequence[GenerationChunk]) -> Generation:
    text = "".join(chunk.text for chunk in chunks)
    return Generation(text=text, generation_info=chunks[-1].generation_info)


def _chunks(tokens: list[Token], event: Event) -> list[GenerationChunk]:
    """The chunk of an event; none where a step released no text. `tokens` collects those of the whole text."""
    if isinstance(event, FinishEvent):
        _check_form(event)
        # LangChain adds up the numbers of chunks that it merges, so only the last chunk carries them.
        return [SpeculativeChunk(text="", generation_info=Completion(tuple(tokens), event).info())]
    tokens.extend(event.tokens)
    if not event.text:
        return []
    return [SpeculativeChunk(text=event.text, tokens=event.tokens, drafted_tokens=event.drafted_tokens)]
