"""What the demo runs: LangChain chains over one loaded model, with and without speculation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import LLMResult
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import Runnable

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.chat.special_tokens import ProtectedEncoder
from langchain_specdec.chat.template import ChatTemplate
from langchain_specdec.completions.events import Token
from langchain_specdec.completions.stats import SpeculationStats
from langchain_specdec.llms import SpeculativeChunk, SpeculativeLLM
from langchain_specdec.pages.page import Step

# The first words are those of a data set that the embedded model was trained on (smol-summarize); it heeds them best.
INSTRUCTION = (
    "Provide a concise, objective summary of the input text as a list of key points, "
    "with names and dates as in the text."
)
_DOCUMENT = "<<the document>>"


@dataclass(frozen=True)
class Run:
    """One summary and how it came about."""

    text: str
    stats: SpeculationStats


def prompt_template(tokenizer: Any, model_name: str) -> PromptTemplate:
    """The prompt in the model's chat format, the document left open; without a format it is plain text.

    Raises:
        InvalidParameterError: The format cannot be rendered.
    """
    if tokenizer.chat_template:
        messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": _DOCUMENT}]
        rendered = ChatTemplate(tokenizer, model_name).text(messages)
    else:
        rendered = f"{_DOCUMENT}\n\n{INSTRUCTION}\n\nSummary:\n"
    # What a chat format has of braces is meant as it is.
    escaped = rendered.replace("{", "{{").replace("}", "}}").replace(_DOCUMENT, "{document}")
    return PromptTemplate.from_template(escaped)


def as_data(tokenizer: Any, model_name: str, document: str) -> str:
    """The document as text that may stand in a prompt: what looks like a special token is broken up, so it is none."""
    has_format = bool(tokenizer.chat_template)
    encoder = ChatTemplate(tokenizer, model_name).encoder if has_format else ProtectedEncoder(tokenizer, "")
    return encoder.as_data(document)


def summarise(
    backend: LocalBackend,
    document: str,
    show: Callable[[Sequence[Token]], None],
    steps: list[Step] | None = None,
    **params: Any,
) -> Run:
    """Summarise a document by an LCEL chain.

    Args:
        backend: Loaded model.
        document: What to summarise.
        show: Called with the tokens of each step.
        steps: Takes what each step that released text added to it.
        params: Fields of `SpeculativeLLM`.

    Returns:
        The summary and its counts.
    """
    prompt = prompt_template(backend.tokenizer, backend.model_name)
    llm = SpeculativeLLM(backend=backend, **params)
    chain: Runnable[dict[str, str], str] = prompt | llm | StrOutputParser()
    watcher = _Watcher(show, [] if steps is None else steps)
    data = as_data(backend.tokenizer, backend.model_name, document)
    text = "".join(chain.stream({"document": data}, config={"callbacks": [watcher]}))
    return Run(text, watcher.stats)


class _Watcher(BaseCallbackHandler):
    """Passes on the tokens of every chunk, and keeps the counts that come with the last."""

    raise_error = True

    def __init__(self, show: Callable[[Sequence[Token]], None], steps: list[Step]) -> None:
        self.stats = SpeculationStats()
        self._show = show
        self._steps = steps

    def on_llm_new_token(self, token: Any, *, chunk: Any = None, **kwargs: Any) -> None:
        """Called by LangChain with every chunk."""
        if isinstance(chunk, SpeculativeChunk) and chunk.tokens:
            self._steps.append(Step.of(chunk.tokens, chunk.drafted_tokens))
            self._show(chunk.tokens)

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        """Called by LangChain at the end."""
        info = response.generations[0][0].generation_info or {}
        counts = info["speculation"]
        self.stats = SpeculationStats(
            drafted_tokens=counts["drafted_tokens"],
            accepted_tokens=counts["accepted_tokens"],
            num_steps=counts["num_steps"],
            emitted_tokens=info["completion_tokens"],
            decode_seconds=counts["decode_seconds"],
            drafted_per_position=counts["drafted_per_position"],
            accepted_per_position=counts["accepted_per_position"],
        )
