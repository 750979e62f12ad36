"""GGUF files: read as they are, without llama.cpp and without transformers' model code."""

from langchain_specdec.models.gguf.model import GGUFModel, read_gguf

__all__ = ["GGUFModel", "read_gguf"]
