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
from langchain_specdec.engine.stats import SpeculationStats
from langchain_specdec.events import Token
from langchain_specdec.llms import SpeculativeChunk, SpeculativeLLM

__all__ = ["INSTRUCTION", "Run", "prompt_template", "summarise"]

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


def prompt_template(tokenizer: Any) -> PromptTemplate:
    """The prompt in the model's chat format, the document left open; without a format it is plain text."""
    rendered = _render(tokenizer) if tokenizer.chat_template else f"{_DOCUMENT}\n\n{INSTRUCTION}\n\nSummary:\n"
    # What a chat format has of braces is meant as it is.
    escaped = rendered.replace("{", "{{").replace("}", "}}").replace(_DOCUMENT, "{document}")
    return PromptTemplate.from_template(escaped)


def _render(tokenizer: Any) -> str:
    from jinja2 import TemplateError

    system = {"role": "system", "content": INSTRUCTION}
    try:
        messages = [system, {"role": "user", "content": _DOCUMENT}]
        rendered: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError:  # a format without system messages says so by raising
        messages = [{"role": "user", "content": f"{INSTRUCTION}\n\n{_DOCUMENT}"}]
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return rendered


def summarise(
    backend: LocalBackend,
    document: str,
    show: Callable[[Sequence[Token]], None],
    **params: Any,
) -> Run:
    """Summarise a document by an LCEL chain.

    Args:
        backend: Loaded model.
        document: What to summarise.
        show: Called with the tokens of each step.
        params: Fields of `SpeculativeLLM`.

    Returns:
        The summary and its counts.
    """
    prompt = prompt_template(backend.tokenizer)
    llm = SpeculativeLLM(backend=backend, **params)
    chain: Runnable[dict[str, str], str] = prompt | llm | StrOutputParser()
    watcher = _Watcher(show)
    text = "".join(chain.stream({"document": document}, config={"callbacks": [watcher]}))
    return Run(text, watcher.stats)


class _Watcher(BaseCallbackHandler):
    """Passes on the tokens of every chunk, and keeps the counts that come with the last."""

    raise_error = True

    def __init__(self, show: Callable[[Sequence[Token]], None]) -> None:
        self.stats = SpeculationStats()
        self._show = show

    def on_llm_new_token(self, token: Any, *, chunk: Any = None, **kwargs: Any) -> None:
        """Called by LangChain with every chunk."""
        if isinstance(chunk, SpeculativeChunk) and chunk.tokens:
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
        )
