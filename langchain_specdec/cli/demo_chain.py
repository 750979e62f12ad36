"""What the demo runs: a summarizer of LangChain over one loaded model, with and without speculation."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.outputs import LLMResult
from langchain_core.prompts import PromptTemplate

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.chat.template import ChatTemplate
from langchain_specdec.cli.demo_text import sentence_check
from langchain_specdec.cli.summarize import what_of
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.events import Token
from langchain_specdec.completions.stats import SpeculationStats
from langchain_specdec.documents.summarizer import DocumentSummarizer
from langchain_specdec.llms import SpeculativeChunk, SpeculativeLLM
from langchain_specdec.models.private_tokenizer import PrivateTokenizer
from langchain_specdec.pages.page import Step
from langchain_specdec.progress import Progress

# The first words are those of a data set that the embedded model was trained on (smol-summarize); it heeds them best.
INSTRUCTION = (
    "Provide a concise, objective summary of the input text as a list of key points, "
    "with names and dates as in the text."
)
_DOCUMENT = "<<the document>>"
# Of a document that is read in pieces, the characters that are enough to measure by.
_BEGINNING = 4000


@dataclass(frozen=True)
class Run:
    """One summary and how it came about.

    Attributes:
        text: The summary.
        stats: Counts of all answers that it took.
        answers: All answers, the summary last.
        finish_reason: How the summary ended.
    """

    text: str
    stats: SpeculationStats
    answers: Sequence[str] = ()
    finish_reason: str = "eos_token"


class _WholeSentences(SpeculativeLLM):
    """Ends near `max_new_tokens` at a sentence instead of in the middle of one."""

    def _requests(self, *args: Any) -> list[CompletionRequest]:
        requests = super()._requests(*args)
        return [
            r if r.params.ignore_eos else replace(r, make_end_check=sentence_check(r.params.max_new_tokens))
            for r in requests
        ]


def prompt_template(tokenizer: Any, model_name: str) -> PromptTemplate:
    """The prompt in the model's chat format, the `text` left open; without a format it is plain text.

    Raises:
        InvalidParameterError: The format cannot be rendered.
    """
    private = PrivateTokenizer.of(tokenizer)
    if private.copied.chat_template:
        messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": _DOCUMENT}]
        rendered = ChatTemplate(private, model_name).text(messages)
    else:
        rendered = f"{_DOCUMENT}\n\n{INSTRUCTION}\n\nSummary:\n"
    # What a chat format has of braces is meant as it is.
    escaped = rendered.replace("{", "{{").replace("}", "}}").replace(_DOCUMENT, "{text}")
    return PromptTemplate.from_template(escaped)


def summarise(
    backend: LocalBackend,
    document: str,
    show: Callable[[Sequence[Token]], None],
    steps: list[Step] | None = None,
    tell: Progress | None = None,
    **params: Any,
) -> Run:
    """Summarise a document by a LangChain runnable, in pieces if it is longer than the context.

    Args:
        backend: Loaded model.
        document: What to summarise.
        show: Called with the tokens of each step of the summary.
        steps: Takes what each step that released text added to it.
        tell: Told how far the summary is.
        params: Fields of `SpeculativeLLM`.

    Returns:
        The summary and its counts.

    Raises:
        PromptTooLongError: There is no room for pieces of the document.
        GenerationError: The summaries of pieces are as long as the pieces.
    """
    watcher = _Watcher(show, [] if steps is None else steps)
    summarizer = DocumentSummarizer(
        _WholeSentences(backend=backend, **params),
        prompt=prompt_template(backend.private_tokenizer, backend.model_name),
        on_progress=None if tell is None else lambda p: tell(what_of(p), p.done, p.total),
    )
    text = "".join(summarizer.stream(document, config={"callbacks": [watcher]}))
    return Run(text, watcher.stats, watcher.answers, watcher.finish_reason)


def beginning_of(document: str, backend: LocalBackend) -> str:
    """What to read of a document to measure what steps cost: all of it if it has room with a summary beside it."""
    most = backend.max_length // 2
    return document if len(document) < _BEGINNING or len(backend.token_ids(document)) < most else document[:_BEGINNING]


class _Watcher(BaseCallbackHandler):
    """Passes on the tokens of every chunk, and adds up the counts that come with the last of each answer."""

    raise_error = True

    def __init__(self, show: Callable[[Sequence[Token]], None], steps: list[Step]) -> None:
        self.stats = SpeculationStats()
        self.answers: list[str] = []
        self.finish_reason = ""
        self._show = show
        self._steps = steps
        self._lock = threading.Lock()  # summaries of pieces are written at the same time

    def on_llm_new_token(self, token: Any, *, chunk: Any = None, **kwargs: Any) -> None:
        """Called by LangChain with every chunk of the last answer, the only one that is streamed."""
        if isinstance(chunk, SpeculativeChunk) and chunk.tokens:
            self._steps.append(Step.of(chunk.tokens, chunk.drafted_tokens))
            self._show(chunk.tokens)

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        """Called by LangChain at the end of every answer."""
        generation = response.generations[0][0]
        info = generation.generation_info or {}
        counts = info["speculation"]
        stats = SpeculationStats(
            drafted_tokens=counts["drafted_tokens"],
            accepted_tokens=counts["accepted_tokens"],
            num_steps=counts["num_steps"],
            emitted_tokens=info["completion_tokens"],
            decode_seconds=counts["decode_seconds"],
            drafted_per_position=counts["drafted_per_position"],
            accepted_per_position=counts["accepted_per_position"],
            drafted_by_source=counts["drafted_by_source"],
            accepted_by_source=counts["accepted_by_source"],
        )
        with self._lock:
            self.stats += stats
            self.answers.append(generation.text)
            self.finish_reason = info["finish_reason"]
