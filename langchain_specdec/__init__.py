"""The fastest honest way to run a language model inside LangChain: the same text, sooner, by speculative decoding."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from langchain_specdec._version import __version__

if TYPE_CHECKING:
    from langchain_specdec.backends.local import LocalBackend
    from langchain_specdec.backends.openai import OpenAIBackend
    from langchain_specdec.backends.tgi import TGIBackend
    from langchain_specdec.chat_models import ChatSpeculative
    from langchain_specdec.decisions import SpeculativeDecisions
    from langchain_specdec.documents.summarizer import DocumentSummarizer
    from langchain_specdec.grammar.grammar import Grammar
    from langchain_specdec.llms import SpeculativeLLM
    from langchain_specdec.sampling.params import SamplingParams
    from langchain_specdec.training.recorder import DraftRecorder

__all__ = [
    "ChatSpeculative",
    "DocumentSummarizer",
    "DraftRecorder",
    "Grammar",
    "LocalBackend",
    "OpenAIBackend",
    "SamplingParams",
    "SpeculativeDecisions",
    "SpeculativeLLM",
    "TGIBackend",
    "__version__",
]

# Imported on first use: torch and transformers take seconds, which `specdec --help` should not.
_HOMES = {
    "ChatSpeculative": "langchain_specdec.chat_models",
    "DocumentSummarizer": "langchain_specdec.documents.summarizer",
    "DraftRecorder": "langchain_specdec.training.recorder",
    "Grammar": "langchain_specdec.grammar.grammar",
    "LocalBackend": "langchain_specdec.backends.local",
    "OpenAIBackend": "langchain_specdec.backends.openai",
    "SamplingParams": "langchain_specdec.sampling.params",
    "SpeculativeDecisions": "langchain_specdec.decisions",
    "SpeculativeLLM": "langchain_specdec.llms",
    "TGIBackend": "langchain_specdec.backends.tgi",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
