"""`DocumentSummarizer`: a LangChain runnable that summarises documents of any length."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass
from typing import Any, get_args

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import BasePromptTemplate, PromptTemplate
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import BaseModel

from langchain_specdec.completions import batches
from langchain_specdec.documents.plan import Method, Plan, Stage, Step
from langchain_specdec.documents.room import Room
from langchain_specdec.errors import GenerationError, InvalidParameterError, SpecDecError
from langchain_specdec.langchain_base import Configs, concurrency_of, runs_of

# Small models heed this one best of some that were tried.
INSTRUCTION = "Summarize the text above in a few sentences, with names and dates as in the text."
"""What is asked for where nothing else is."""

DocumentInput = str | Document | Iterable[str | Document]
_PROMPT = "{text}\n\n{instruction}"
# A completion has to be told where it begins.
_PROMPT_OF_COMPLETIONS = "{text}\n\n{instruction}\n\nSummary:\n"


@dataclass(frozen=True)
class SummaryProgress:
    """How far a summary is.

    Attributes:
        stage: `"stuff"` (the whole text), `"map"` (pieces of it), `"reduce"` (summaries of pieces) or `"refine"` (the
            summary so far, and the next piece).
        level: 1 for the text itself, 2 for summaries of its pieces, 3 for summaries of those, ...
        done: Prompts of this stage and level that are answered.
        total: How many there are.
    """

    stage: Stage
    level: int
    done: int
    total: int


class DocumentSummarizer(Runnable[DocumentInput, str]):
    """Summarises documents that may be longer than the context of a model.

    ```python
    from langchain_specdec import ChatSpeculative, DocumentSummarizer

    model = ChatSpeculative.from_model_id("embedded", max_new_tokens=200)
    print(DocumentSummarizer(model).invoke(text))
    ```

    What it takes: a string, a `Document`, or a list of either, which becomes one summary; `batch` makes one of each. It
    is read in pieces where the model has no room for the whole: cut between documents, or else paragraphs, lines,
    sentences, words. Lengths are counted by the model's own tokenizer, in its chat format. Nothing is left out.

    All pieces of a level run together, `max_concurrency` of the config at a time. `stream` gives the text of the last
    call as it comes. Callbacks see each call as a run of its own (`map 2 of 7`). Parameters of the model can be given
    per call: `summarizer.invoke(text, temperature=0.7)`.

    Args:
        model: A chat model or a completion model of LangChain, also with parameters bound to it, or configurable ones.
        method: `"stuff"`: the whole text in one prompt. `"map_reduce"`: a summary of each piece, all at once, and one
            of the summaries, again in pieces while they are too long. `"refine"`: a summary of the first piece,
            rewritten with each following one. `"auto"`: `stuff` where the text has room, else `map_reduce`.
        instruction: What to do with the text; it follows the text, so that what was read of it serves for the next
            instruction too.
        combine_instruction: What to do with summaries of pieces; None is `instruction`.
        prompt: A prompt with the variable `text`, and `instruction` where it has a place. None is a user's message
            with both; a completion model gets `Summary:` behind them.
        max_input_tokens: Most tokens of a prompt. None is what the model says: `max_length` less `max_new_tokens`, or
            `max_input_tokens` of another model's `profile`.
        on_progress: Told a `SummaryProgress` where a stage begins, and after each of its prompts, in the caller's
            thread or event loop.

    Raises:
        InvalidParameterError: One of them is wrong. In a call: there is no text, or what the model has room for is not
            known.
        PromptTooLongError: In a call: there is no room for the text (`"stuff"`), or for pieces of it.
        GenerationError: In a call: a prompt failed, or the summaries of pieces are as long as the pieces. The message
            names the piece. An error of this package keeps its class.
    """

    def __init__(
        self,
        model: Runnable[Any, Any],
        *,
        method: Method = "auto",
        instruction: str = INSTRUCTION,
        combine_instruction: str | None = None,
        prompt: BasePromptTemplate[Any] | None = None,
        max_input_tokens: int | None = None,
        on_progress: Callable[[SummaryProgress], None] | None = None,
    ) -> None:
        if method not in get_args(Method):
            msg = f"method must be one of {', '.join(map(repr, get_args(Method)))}, got {method!r}."
            raise InvalidParameterError(msg)
        for name, value in (("instruction", instruction), ("combine_instruction", combine_instruction)):
            if not (isinstance(value, str) and value.strip()) and not (name != "instruction" and value is None):
                msg = f"{name} must be a text that says what to do, got {value!r}."
                raise InvalidParameterError(msg)
        if max_input_tokens is not None and (type(max_input_tokens) is not int or max_input_tokens < 1):
            msg = f"max_input_tokens must be a whole number from 1, or None, got {max_input_tokens!r}."
            raise InvalidParameterError(msg)
        self.model = model
        self.method: Method = method
        self.instruction = instruction
        self.combine_instruction = combine_instruction
        self.max_input_tokens = max_input_tokens
        self.on_progress = on_progress
        is_chat = Room(model, max_input_tokens, {}).is_chat
        self.prompt: BasePromptTemplate[Any] = PromptTemplate.from_template(
            _PROMPT if is_chat else _PROMPT_OF_COMPLETIONS
        )
        if prompt is not None:
            self.prompt = _checked_prompt(prompt)

    def invoke(self, input: DocumentInput, config: RunnableConfig | None = None, **kwargs: Any) -> str:  # noqa: A002
        """Summarise a document, or several together."""
        return self._call_with_config(self._invoke, input, config, **kwargs)

    async def ainvoke(self, input: DocumentInput, config: RunnableConfig | None = None, **kwargs: Any) -> str:  # noqa: A002
        """`invoke` for an event loop; cancelling it stops all its calls."""
        return await self._acall_with_config(self._ainvoke, input, config, **kwargs)

    def stream(
        self,
        input: DocumentInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[str]:
        """The text of the summary as it comes, after what has to be read before."""
        yield from self._transform_stream_with_config(iter([input]), self._stream, config, **kwargs)

    async def astream(
        self,
        input: DocumentInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[str]:
        """`stream` for an event loop; leaving it stops all its calls."""

        async def inputs() -> AsyncIterator[DocumentInput]:
            yield input

        pieces: Any = self._atransform_stream_with_config(inputs(), self._astream, config, **kwargs)
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece

    def batch(
        self,
        inputs: list[DocumentInput],
        config: Configs = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """A summary of each input, all at once."""
        runs = runs_of(self.invoke, inputs, config, kwargs)
        return batches.batch(*runs, return_exceptions=return_exceptions)

    async def abatch(
        self,
        inputs: list[DocumentInput],
        config: Configs = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """`batch` for an event loop."""
        runs = runs_of(self.ainvoke, inputs, config, kwargs)
        return await batches.abatch(*runs, return_exceptions=return_exceptions)

    def _invoke(self, document: DocumentInput, run_manager: object, config: RunnableConfig, **kwargs: Any) -> str:
        calls = self._last_calls(document, config, kwargs)
        summary = calls.invoke(0)
        self._tell(calls.step, 1)
        return summary

    async def _ainvoke(
        self, document: DocumentInput, run_manager: object, config: RunnableConfig, **kwargs: Any
    ) -> str:
        calls = await self._alast_calls(document, config, kwargs)
        summary = await calls.ainvoke(0)
        self._tell(calls.step, 1)
        return summary

    def _stream(
        self, documents: Iterator[DocumentInput], run_manager: object, config: RunnableConfig, **kwargs: Any
    ) -> Iterator[str]:
        calls = self._last_calls(next(documents), config, kwargs)
        yield from calls.stream()
        self._tell(calls.step, 1)

    async def _astream(
        self, documents: AsyncIterator[DocumentInput], run_manager: object, config: RunnableConfig, **kwargs: Any
    ) -> AsyncIterator[str]:
        calls = await self._alast_calls(await anext(documents), config, kwargs)
        async with aclosing(calls.astream()) as pieces:
            async for piece in pieces:
                yield piece
        self._tell(calls.step, 1)

    def _last_calls(self, document: DocumentInput, config: RunnableConfig, kwargs: Mapping[str, Any]) -> Calls:
        """Run all steps but the last, and prepare that one."""
        plan, steps = self._begin(document, config, kwargs)
        calls = self._calls(plan, next(steps), config, kwargs)
        while not calls.step.is_last:
            answers = calls.no_answers()
            with closing(batches.outcomes(calls.invoke, *calls.size, return_exceptions=False)) as found:
                for done, (index, answer) in enumerate(found, 1):
                    answers[index] = answer
                    self._tell(calls.step, done)
            calls = self._calls(plan, steps.send(answers), config, kwargs)
        return calls

    async def _alast_calls(self, document: DocumentInput, config: RunnableConfig, kwargs: Mapping[str, Any]) -> Calls:
        # In a thread, because long texts are counted, and a server may be asked.
        plan, steps = await asyncio.to_thread(self._begin, document, config, kwargs)
        calls = self._calls(plan, await asyncio.to_thread(next, steps), config, kwargs)
        while not calls.step.is_last:
            answers = calls.no_answers()
            async with aclosing(batches.aoutcomes(calls.ainvoke, *calls.size, return_exceptions=False)) as found:
                done = 0
                async for index, answer in found:
                    answers[index] = answer
                    done += 1
                    self._tell(calls.step, done)
            calls = self._calls(plan, await asyncio.to_thread(steps.send, answers), config, kwargs)
        return calls

    def _begin(
        self, document: DocumentInput, config: RunnableConfig, kwargs: Mapping[str, Any]
    ) -> tuple[Plan, Generator[Step, list[str], None]]:
        room = Room(self.model, self.max_input_tokens, kwargs, config)
        plan = Plan(self.method, self.prompt, self.instruction, self.combine_instruction or self.instruction, room)
        return plan, plan.steps(_texts(document))

    def _calls(self, plan: Plan, step: Step, config: RunnableConfig, kwargs: Mapping[str, Any]) -> Calls:
        if step.first == 1:  # else the end of the step before has told it
            self._tell(step, 0)
        model = self.model.bind(**kwargs) if kwargs else self.model
        return Calls(step, self.prompt | model | StrOutputParser(), plan, config)

    def _tell(self, step: Step, done: int) -> None:
        if self.on_progress is not None:
            self.on_progress(SummaryProgress(step.stage, step.level, step.first - 1 + done, step.total))


class Calls:
    """The calls of a step.

    Args:
        step: The step.
        chain: What each of its prompts runs through.
        plan: What the step belongs to.
        config: That of the summary, of which each call is a child.
    """

    def __init__(self, step: Step, chain: Runnable[Any, str], plan: Plan, config: RunnableConfig) -> None:
        self.step = step
        self._chain = chain
        self._inputs = [plan.values(text, step.instruction) for text in step.texts]
        self._config = config
        self._limit = concurrency_of(config)

    @property
    def size(self) -> tuple[int, int | None]:
        """How many there are, and how many may run at a time."""
        return len(self._inputs), self._limit

    def no_answers(self) -> list[str]:
        """A place for each answer."""
        return [""] * len(self._inputs)

    def invoke(self, index: int) -> str:
        """The answer of a call."""
        with self._named(index):
            return self._chain.invoke(self._inputs[index], self._config_of(index))

    async def ainvoke(self, index: int) -> str:
        """The same for an event loop."""
        with self._named(index):
            return await self._chain.ainvoke(self._inputs[index], self._config_of(index))

    def stream(self) -> Iterator[str]:
        """The answer of the only call as it comes."""
        with self._named(0):
            yield from self._chain.stream(self._inputs[0], self._config_of(0))

    async def astream(self) -> AsyncGenerator[str, None]:
        """The same for an event loop."""
        pieces: Any = self._chain.astream(self._inputs[0], self._config_of(0))
        with self._named(0):
            async with aclosing(pieces):
                async for piece in pieces:
                    yield piece

    def _config_of(self, index: int) -> RunnableConfig:
        step, number = self.step, self.step.first + index
        name = step.stage if step.total == 1 else f"{step.stage} {number} of {step.total}"
        of_summary = {"stage": step.stage, "level": step.level, "piece": number, "num_pieces": step.total}
        metadata = {
            **self._config.get("metadata", {}),
            **{f"summary_{key}": value for key, value in of_summary.items()},
        }
        return {**self._config, "run_name": name, "metadata": metadata}

    @contextmanager
    def _named(self, index: int) -> Iterator[None]:
        """Have an error say of which piece it is, where there are several."""
        try:
            yield
        except Exception as error:
            if self.step.total == 1:
                raise
            what = "text" if self.step.level == 1 else f"summaries (level {self.step.level})"
            where = f"Piece {self.step.first + index} of {self.step.total} of the {what}: "
            if isinstance(error, SpecDecError):
                # A copy, because what else it holds, such as whether a retry helps, is not in its message.
                named = copy.copy(error)
                named.args = (f"{where}{error}",)
                raise named from error
            failure = GenerationError(f"{where}{type(error).__name__}: {error}")
            failure.is_retryable = getattr(error, "is_retryable", failure.is_retryable)
            raise failure from error


def _texts(document: Any) -> list[str]:
    # Pydantic's objects are iterables of their fields.
    if isinstance(document, Iterable) and not isinstance(document, (str, bytes, Mapping, BaseModel)):
        return [_text_of(part) for part in document]
    return [_text_of(document)]


def _text_of(part: Any) -> str:
    text = part.page_content if isinstance(part, Document) else part
    if not isinstance(text, str):
        msg = f"A document must be a string, a Document, or a list of them, got {type(part).__name__}."
        if isinstance(part, BaseMessage):
            msg += " The text of a message is its .text; behind a chat model put StrOutputParser()."
        raise InvalidParameterError(msg)
    return text


def _checked_prompt(prompt: Any) -> BasePromptTemplate[Any]:
    if not isinstance(prompt, BasePromptTemplate):
        msg = (
            "prompt must be a prompt template, such as ChatPromptTemplate.from_messages([('human', '{text}')]), "
            f"got {type(prompt).__name__}."
        )
        raise InvalidParameterError(msg)
    variables = set(prompt.input_variables)
    if "text" not in variables or variables - {"text", "instruction"}:
        msg = (
            "prompt must have the variable text, may have instruction, and no other without a value, "
            f"got {', '.join(sorted(variables)) or 'none'}."
        )
        raise InvalidParameterError(msg)
    return prompt
