"""`ChatSpeculative`: the LangChain chat model over any backend."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, MessageLikeRepresentation
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from pydantic import Field, PrivateAttr, SecretStr
from typing_extensions import Self, Unpack, override

from langchain_specdec.backends.base import SHORT_TEXT
from langchain_specdec.chat.call import CALL_OPTIONS, AskedCall, ReadyCall, check_parallel_tool_calls, render
from langchain_specdec.chat.image_prompts import num_tokens, template_for
from langchain_specdec.chat.messages import size_of
from langchain_specdec.chat.profile import profile_of
from langchain_specdec.chat.reasoning_options import REASONING_OPTIONS, check_reasoning_options
from langchain_specdec.chat.schemas import as_tool, is_response
from langchain_specdec.chat.server_call import server_call
from langchain_specdec.chat.structured_output import forced_tools
from langchain_specdec.chat.structured_runnable import structured
from langchain_specdec.chat.template import ChatTemplate
from langchain_specdec.chat.thinking import check_thinking
from langchain_specdec.completions import batches
from langchain_specdec.completions.stream import NO_LIMIT, TimeLimit, checked_timeout
from langchain_specdec.construction.constructors import PARAMETERS
from langchain_specdec.errors import SpecDecError
from langchain_specdec.langchain_base import AsyncRunManager, Configs, RunManager, SpeculativeBase, runs_of
from langchain_specdec.sampling.params import SamplingParams

if TYPE_CHECKING:
    from langchain_core.language_models.model_profile import ModelProfile

    from langchain_specdec.construction import keywords

Tool = dict[str, Any] | type | Callable[..., Any] | BaseTool
Messages = LanguageModelInput | Iterable[MessageLikeRepresentation]


class ChatSpeculative(SpeculativeBase, BaseChatModel):
    """Chats with a language model by speculative decoding: the same answer, sooner.

    Instantiate (the model runs in this process, so no key and no server is needed):
        ```python
        from langchain_specdec import ChatSpeculative
        model = ChatSpeculative(model="HuggingFaceTB/SmolLM2-1.7B-Instruct", max_tokens=200)
        ```
        `model` is an id, a local folder or a loaded model, and is loaded at once, with the options of `LocalOptions`.

    Invoke, stream, batch (and `ainvoke`, `astream`, `abatch`):
        ```python
        model.invoke("Why is the sky blue?")
        for chunk in model.stream([("system", "Answer in one sentence."), ("human", "Why is the sky blue?")]):
            print(chunk.text, end="", flush=True)
        ```

    Tools:
        ```python
        model.bind_tools([get_weather]).invoke("How warm is it in Paris?").tool_calls
        model.bind_tools([get_weather], tool_choice="any")  # a call, whatever the model thinks
        ```
        The model's own chat template tells it about the tools; where that knows none, a generic prompt does. What the
        model writes is parsed in the format of its family; a call that cannot be read is in `invalid_tool_calls`.

    Structured output:
        ```python
        model.with_structured_output(Person).invoke("Mary is 34 years old.")  # a Person
        ```
        The answer is decoded under a grammar, so that it fits; one of a server that does not is an error, never data.
        Beside tools, `response_format` leaves the model the choice: a call, or the object.

    Thinking:
        ```python
        model.invoke("Is 91 prime?", reasoning=False)  # True, or an effort, where the model's template knows that
        ```
        What a model thinks is told apart from its answer, as `reasoning` blocks of `content_blocks`; its tokens are in
        `usage_metadata["output_token_details"]["reasoning"]`. An answer of a given form comes after the thought.

    Messages are rendered by the model's chat template. Their texts are data: a special token of the template that
    arrives in a message is read as plain text. Images in them, in base64, go to a model that reads images. An answer is
    a new turn, also where the last message is the assistant's; `continue_final_message=True` in a call goes on with
    that one instead.

    The sampling parameters are fields; each can be given per call too, as in `model.invoke(messages, temperature=0.7)`.
    `max_tokens` and `stop_sequences` are other names of `max_new_tokens` and `stop`. Stop strings of the instance and
    of the call both apply. None is the default of every field; an unknown parameter raises an `InvalidParameterError`.

    `usage_metadata` counts tokens; `input_token_details.cache_read` those that an earlier call had left in the engine.
    `response_metadata`: `model_name`, `finish_reason` (`length`, `stop_sequence` or `eos_token`), `seed`,
    `time_to_first_token` (seconds), `speculation` (`drafted_tokens`, `accepted_tokens`, `num_steps`, `acceptance_rate`,
    `tokens_per_step`, `decode_seconds`), `logprobs` where asked for, and `form_error`: what is wrong with the form.

    One instance serves any number of threads and tasks at a time; closing or cancelling a stream stops its work.
    `close`, or the end of a `with` block, ends the backend. Copies of an instance share its backend.

    Raises:
        UnsupportedModelError: The model has no chat template.
    """

    streaming: bool | None = False
    """Whether `invoke` and `ainvoke` report text to callbacks as it comes."""
    timeout: float | None = None
    """Seconds after which a call ends with a `CompletionTimeoutError`."""
    max_retries: int | None = 2
    """Accepted as by other chat models. A model in this process has no connection to retry."""
    api_key: SecretStr | None = Field(default=None, exclude=True)
    """Accepted as by other chat models. A model in this process asks for none."""
    tokenizer: Any = Field(default=None, exclude=True, repr=False)
    """A loaded Hugging Face tokenizer with the chat template. None is the backend's."""
    chat_template: str | None = Field(default=None, repr=False)
    """A Jinja template in place of the model's own, or the name of one of several that it has."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Further variables of the template."""
    reasoning: bool | str | None = Field(default=None, description=REASONING_OPTIONS["reasoning"].help)
    max_reasoning_tokens: int | None = Field(default=None, description=REASONING_OPTIONS["max_reasoning_tokens"].help)
    stop_in_reasoning: bool | None = Field(default=False, description=REASONING_OPTIONS["stop_in_reasoning"].help)

    _cached_template: tuple[Any, ChatTemplate] | None = PrivateAttr(default=None)
    # What the profile is where none was given.
    _own_profile: ModelProfile | None = PrivateAttr(default=None)
    # A template is compiled the first time, which takes longer than all else.
    _has_rendered: bool = PrivateAttr(default=False)

    if TYPE_CHECKING:  # narrower than what both models share, where any keyword may come

        def __init__(self, **kwargs: Unpack[keywords.ChatKeywords]) -> None: ...
        @override
        @classmethod
        def from_model_id(  # type: ignore[override]
            cls, model_id: keywords.ModelSource, **kwargs: Unpack[keywords.ChatLoading]
        ) -> Self: ...
        @override
        @classmethod
        def from_tgi(cls, base_url: str, **kwargs: Unpack[keywords.ChatConnection]) -> Self: ...  # type: ignore[override]
        @override
        @classmethod
        def from_server(cls, base_url: str, **kwargs: Unpack[keywords.ChatServer]) -> Self: ...  # type: ignore[override]
        @override
        @classmethod
        def launch_tgi(  # type: ignore[override]
            cls, model_id: str, *, speculate: int | None = 4, **kwargs: Unpack[keywords.ChatLaunch]
        ) -> Self: ...
        @override
        @classmethod
        def launch_server(  # type: ignore[override]
            cls, model_id: str, *, engine: keywords.Engine, **kwargs: Unpack[keywords.ChatLaunchServer]
        ) -> Self: ...

    @classmethod
    def _checked(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        check_reasoning_options(values)
        return super()._checked(values)

    def _check_made(self) -> None:
        if not self._must_ask:
            check_thinking(self.reasoning, self.max_reasoning_tokens, self._template_of(self._known_tokenizer))

    @property
    def _known_tokenizer(self) -> Any:
        """The tokenizer with the template, as far as it is known without asking a server."""
        return (self.backend.private_tokenizer or self.backend.tokenizer) if self.tokenizer is None else self.tokenizer

    @property
    def _must_ask(self) -> bool:
        """Whether a server has to be asked for the model whose template it is."""
        return self.backend.is_remote and self._known_tokenizer is None

    @property
    def _template(self) -> ChatTemplate:
        return self._template_of(self._load_tokenizer())

    def _load_tokenizer(self, limit: TimeLimit = NO_LIMIT) -> Any:
        return self.backend.load_tokenizer(limit.seconds) if self.tokenizer is None else self.tokenizer

    def _template_of(self, own: Any) -> ChatTemplate:
        # A copy carries it along, and may have other values of these fields.
        key = (own, self.chat_template, repr(self.chat_template_kwargs))
        cached = self._cached_template
        if cached is None or any(a is not b and a != b for a, b in zip(cached[0], key, strict=True)):
            made = template_for(self.backend, own, self.chat_template, self.chat_template_kwargs)
            self._cached_template = cached = key, made
        return cached[1]

    @property
    def _llm_type(self) -> str:
        return "specdec-chat"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        # No answer in a cache may match before the template is known.
        unknown = "the server's" if self.backend.writes_prompts else f"not known yet ({uuid.uuid4()})"
        identity = unknown if self._must_ask else self._template_of(self._known_tokenizer).identity
        thinking = {name: getattr(self, name) for name in REASONING_OPTIONS}
        return {**self._text_identity(), **thinking, "chat_template": identity}

    def _resolve_model_profile(self) -> ModelProfile:
        given: dict[str, Any] = {"max_new_tokens": self.max_new_tokens}  # None is the default
        template = None
        if not self._must_ask:
            with contextlib.suppress(SpecDecError):
                template = self._template_of(self._known_tokenizer)
        self._own_profile = profile_of(self.backend, SamplingParams(**given).max_new_tokens, template)
        return {**self._own_profile}

    def _renew_profile(self) -> None:
        """Have the profile say what is known by now, unless one was given. LangChain 1.0 has no profiles."""
        if (own := self._own_profile) is not None and getattr(self, "profile", None) == own:
            self.profile = self._resolve_model_profile()

    @property
    def model_name(self) -> str:
        """Name of the model, as the backend tells it: a server is asked, and `profile` says then what it can do."""
        name = super().model_name
        self._renew_profile()
        return name

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other values of fields. Its profile follows from them, unless one was given."""
        copied = super().model_copy(update=update, deep=deep)
        if "profile" not in (update or {}):
            copied._renew_profile()
        return copied

    def get_num_tokens_from_messages(self, messages: Messages, tools: Sequence[Tool] | None = None) -> int:
        """Tokens of the prompt that `invoke` would make of this, with these tools; 0 without messages."""
        given: Any = list(messages) if isinstance(messages, Iterator) else messages
        asked = self._convert_input(given).to_messages(), [as_tool(tool) for tool in tools or ()]
        return num_tokens(*asked, self._template.with_reasoning(self.reasoning), self.backend)

    def bind_tools(
        self,
        tools: Sequence[Tool],
        *,
        tool_choice: dict[str, Any] | str | bool | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Tell the model about tools.

        Args:
            tools: Functions, `BaseTool`s, Pydantic classes, typed dictionaries, dataclasses, JSON schemas with a title,
                or tools as OpenAI, Anthropic and Bedrock describe them.
            tool_choice: None or `"auto"`: the model decides. `"none"`: it knows the tools, and its answer is text.
                `"any"`, `"required"`, True: the answer is calls, whose arguments fit the schemas of the tools, but for
                parts that no grammar holds. The name of a tool: it is one such call.
            strict: Noted in the tools.
            parallel_tool_calls: False: an answer ends after its first call, and no token is decoded after it. True: it
                may have several. None: the same, unless a tool is the form of an answer (LangChain's `ToolStrategy`).
            kwargs: Parameters of the calls.

        Raises:
            InvalidParameterError: `tool_choice` or `parallel_tool_calls` is no such choice, or a tool has no name or no
                JSON schema.
        """
        converted = [as_tool(tool, strict) for tool in tools]
        forced_tools(converted, tool_choice)
        check_parallel_tool_calls(parallel_tool_calls)
        if parallel_tool_calls is None and any(map(is_response, tools)):
            parallel_tool_calls = False  # an agent takes two responses for an error
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        if parallel_tool_calls is not None:
            kwargs["parallel_tool_calls"] = parallel_tool_calls
        return self.bind(tools=converted, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Answers as objects of a class, or as dictionaries that fit a schema, whatever the model.

        Only tokens that fit are ever chosen, and the answer ends before `max_new_tokens` do. Objects get no properties
        but those that the schema names. A server may break its grammar, or cut the answer: that is an error.

        Args:
            schema: Pydantic class, typed dictionary, dataclass, JSON schema, or a tool or response format as OpenAI
                takes it. Answers are objects of a Pydantic class, and dictionaries (or what else the schema allows)
                otherwise.
            method: `"json_schema"`: the answer is JSON that fits the schema. `"function_calling"`: it is a call of a
                tool with these parameters. `"json_mode"`: it is some JSON object, for which the prompt has to ask.
            include_raw: Return `raw`, `parsed` and `parsing_error` instead of raising what goes wrong in parsing.
            strict: Noted in the schema; what is generated always fits.
            kwargs: Parameters of the calls. With `tools`, and `include_raw`, the model may call one of them instead;
                tools that were bound before are not kept by LangChain.

        Raises:
            InvalidParameterError: There is no such method, or it does not go with `tools`, or `schema` has no JSON
                schema. One that cannot be held is refused in a call, before decoding.
        """
        return structured(self, schema, method, include_raw=include_raw, strict=strict, kwargs=kwargs)

    def batch(
        self, inputs: list[Any], config: Configs = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> list[AIMessage]:
        """Answer all inputs together, in one batch of the engine."""
        runs = runs_of(self.invoke, inputs, config, kwargs)
        return batches.batch(*runs, return_exceptions=return_exceptions)

    async def abatch(
        self, inputs: list[Any], config: Configs = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> list[AIMessage]:
        """`batch` for an event loop."""
        runs = runs_of(self.ainvoke, inputs, config, kwargs)
        return await batches.abatch(*runs, return_exceptions=return_exceptions)

    def _prepare(
        self, messages: Sequence[BaseMessage], stop: Sequence[str] | None, kwargs: Mapping[str, Any]
    ) -> ReadyCall:
        """Everything that can be refused is refused here."""
        asked = self._check(messages, stop, kwargs)
        return self._render(asked, None if asked.sends_images(self.backend) else self._load_tokenizer(asked.limit))

    async def _aprepare(
        self, messages: Sequence[BaseMessage], stop: Sequence[str] | None, kwargs: Mapping[str, Any]
    ) -> ReadyCall:
        """The same for an event loop, which long messages, schemas or a first call would block, or a server asked."""
        has_schemas = bool(kwargs.get("tools") or kwargs.get("response_format"))
        is_short = not has_schemas and size_of(messages) <= SHORT_TEXT
        arguments = messages, stop, kwargs
        asked = self._check(*arguments) if is_short else await asyncio.to_thread(self._check, *arguments)
        own = self.tokenizer
        if own is None and not asked.sends_images(self.backend):
            own = await self.backend.aload_tokenizer(asked.limit.seconds)
        is_quick = is_short and self._has_rendered and not asked.images
        return self._render(asked, own) if is_quick else await asyncio.to_thread(self._render, asked, own)

    def _check(
        self, messages: Sequence[BaseMessage], stop: Sequence[str] | None, kwargs: Mapping[str, Any]
    ) -> AskedCall:
        """What can be refused before a server is asked for its model."""
        named = self._named(kwargs, PARAMETERS | CALL_OPTIONS)
        fields = {name: getattr(self, name) for name in REASONING_OPTIONS}
        options = {name: named.pop(name, fields.get(name)) for name in CALL_OPTIONS}
        seconds = checked_timeout(self.timeout if options["timeout"] is None else options["timeout"])
        limit = TimeLimit(seconds, time.monotonic())
        return AskedCall.of(messages, self._sampling_params(stop, named), options, limit, self.backend)

    def _render(self, asked: AskedCall, own: Any) -> ReadyCall:
        """The prompt, by the tokenizer with the template; where a server has told none, the messages for it."""
        self._renew_profile()
        has_blocks = self.output_version == "v1"
        if asked.sends_images(self.backend) or (own is None and self.backend.takes_messages):
            given = self.chat_template, self.chat_template_kwargs
            return server_call(asked, self.backend, *given, has_blocks=has_blocks)
        template_of = own if self.backend.is_remote and self.tokenizer is None else None
        call = render(asked, self._template_of(own), self.backend, template_of, has_blocks=has_blocks)
        self._has_rendered = True
        return call

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: RunManager = None, **kwargs: Any
    ) -> ChatResult:
        call = self._prepare(messages, stop, kwargs)
        with self._start(call.request, call.limit) as stream:
            return ChatResult(generations=[call.reader.generation(list(stream.whole()))])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncRunManager = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = await self._aprepare(messages, stop, kwargs)
        with await self._astart(call.request, call.limit) as stream:
            return ChatResult(generations=[call.reader.generation([event async for event in stream.whole()])])

    def _stream(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: RunManager = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        call = self._prepare(messages, stop, kwargs)
        return self._chunks(call.request, call.reader.chunks, run_manager, call.limit)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncRunManager = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        call = await self._aprepare(messages, stop, kwargs)
        async with aclosing(self._achunks(call.request, call.reader.chunks, run_manager, call.limit)) as chunks:
            async for chunk in chunks:
                yield chunk
