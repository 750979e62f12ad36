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
from langchain_core.runnables.config import get_config_list
from pydantic import Field, SkipValidation
from typing_extensions import Self

from langchain_specdec.completions.completion import Completion, CompletionRequest
from langchain_specdec.completions.events import FinishEvent, Token, TokenEvent
from langchain_specdec.langchain_base import PARAMETERS, SpeculativeFace
from langchain_specdec.parameter_names import ALIASES, join_stops, named_parameters
from langchain_specdec.sampling.params import SamplingParams

if TYPE_CHECKING:
    from langchain_core.language_models.base import LangSmithParams

__all__ = ["SpeculativeChunk", "SpeculativeLLM"]

# What `BaseLLM.generate` takes beside parameters.
_RUN_OPTIONS = frozenset({"tags", "metadata", "run_name", "run_id"})
# More threads than a batch has slots for would only wait.
_MAX_THREADS = 64


class SpeculativeChunk(GenerationChunk):
    """A piece of streamed text that knows its tokens, and which of them were drafted.

    Attributes:
        tokens: The tokens of the decoding step that released the text.
    """

    tokens: SkipValidation[tuple[Token, ...]] = Field(default=(), exclude=True, repr=False)

    @classmethod
    def lc_id(cls) -> list[str]:
        """Stored as what LangChain can load again: a `GenerationChunk`, without the tokens."""
        return GenerationChunk.lc_id()


class SpeculativeLLM(SpeculativeFace, BaseLLM):
    r"""Runs a language model with speculative decoding: the same text, sooner.

    Setup:
        `pip install langchain-specdec`; the model runs in this process, so no key and no server is needed. To use a
        Text Generation Inference server instead: `SpeculativeLLM.from_tgi(base_url)` or `.launch_tgi(model_id)`.

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
    or `llm.bind(stop=["\n"])`. `max_tokens` and `stop_sequences` are other names of `max_new_tokens` and `stop`. Stop
    strings of the instance and of the call both apply. An unknown parameter raises an `InvalidParameterError`.

    `generation_info` of every `Generation`, and of the last chunk of a stream: `finish_reason` (`length`,
    `stop_sequence` or `eos_token`), `prompt_tokens`, `completion_tokens`, `seed`, `speculation` (`drafted_tokens`,
    `accepted_tokens`, `num_steps`, `acceptance_rate`, `tokens_per_step`, `decode_seconds`), and `logprobs` where asked
    for. `llm_output["token_usage"]` sums a batch.

    One instance serves any number of threads and tasks at a time; closing or cancelling a stream stops its work.
    `close`, or the end of a `with` block, ends the backend. Copies of an instance share its backend.
    """

    streaming: bool = False
    """Whether `invoke` and `ainvoke` report text to callbacks as it comes. Batches never do."""

    @property
    def _llm_type(self) -> str:
        return "specdec"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return self._text_identity()

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        named = {ALIASES.get(name, name): value for name, value in kwargs.items()}
        params["ls_provider"] = "specdec"
        params["ls_model_name"] = self.backend.model_name
        params["ls_temperature"] = named.get("temperature", self.temperature)
        params["ls_max_tokens"] = named.get("max_new_tokens", self.max_new_tokens)
        if stops := join_stops(self.stop, stop, named.get("stop")):
            params["ls_stop"] = stops
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
        llm, stop, options = self._for_call(stop, kwargs)
        return super(SpeculativeLLM, llm).generate(prompts, stop, callbacks, **options)

    async def agenerate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        """`BaseLLM.agenerate`, with parameters of the call counted in by `llm.cache` too."""
        llm, stop, options = self._for_call(stop, kwargs)
        return await super(SpeculativeLLM, llm).agenerate(prompts, stop, callbacks, **options)

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
            threads = min(len(inputs), _MAX_THREADS)
            configs = get_config_list(config, len(inputs))
            configs = [{**c, "max_concurrency": c.get("max_concurrency") or threads} for c in configs]
            return Runnable.batch(self, inputs, configs, return_exceptions=True, **kwargs)
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

    def _for_call(
        self, stop: Sequence[str] | None, kwargs: Mapping[str, Any]
    ) -> tuple[Self, list[str] | None, dict[str, Any]]:
        """A copy with the parameters of one call as fields, since LangChain's cache looks at fields only."""
        named = named_parameters(kwargs, PARAMETERS | _RUN_OPTIONS)
        stops = join_stops(stop, named.pop("stop", None)) or None
        options = {name: named.pop(name) for name in list(named) if name in _RUN_OPTIONS}
        return (self.model_copy(update=named) if named else self), stops, options

    def _params(self, stop: Sequence[str] | None, kwargs: Mapping[str, Any]) -> SamplingParams:
        return self._sampling_params(stop, named_parameters(kwargs, PARAMETERS))

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
        tokens: list[Token] = []
        with self.backend.stream(CompletionRequest(prompt, self._params(stop, kwargs))) as events:
            for event in events:
                chunk = _chunk(event, tokens)
                if chunk is None:
                    continue
                if run_manager is not None:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        tokens: list[Token] = []
        with self.backend.stream(CompletionRequest(prompt, self._params(stop, kwargs))) as events:
            async for event in events:
                chunk = _chunk(event, tokens)
                if chunk is None:
                    continue
                if run_manager is not None:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

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


def _generation(completion: Completion) -> Generation:
    return Generation(text=completion.text, generation_info=completion.info())


def _join(chunks: Sequence[GenerationChunk]) -> Generation:
    text = "".join(chunk.text for chunk in chunks)
    return Generation(text=text, generation_info=chunks[-1].generation_info)


def _chunk(event: TokenEvent | FinishEvent, tokens: list[Token]) -> GenerationChunk | None:
    """The chunk of an event; None where a step released no text. Collects the tokens for the final one."""
    if isinstance(event, FinishEvent):
        # LangChain adds numbers up when it merges chunks, so they stand in one chunk only: this, the last.
        return SpeculativeChunk(text="", generation_info=Completion(tuple(tokens), event).info())
    tokens.extend(event.tokens)
    return SpeculativeChunk(text=event.text, tokens=event.tokens) if event.text else None
