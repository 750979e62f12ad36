"""Completions by servers that speak OpenAI's protocol: vLLM, SGLang, llama.cpp, `specdec serve`, and others."""

from langchain_specdec.backends.openai.backend import OpenAIBackend

__all__ = ["OpenAIBackend"]
