"""Completions by a Text Generation Inference server."""

from langchain_specdec.backends.tgi.backend import TGIBackend

__all__ = ["TGIBackend"]
