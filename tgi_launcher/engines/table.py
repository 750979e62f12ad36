"""The engines beside TGI, by their names."""

from __future__ import annotations

from tgi_launcher.engines import llama_cpp, sglang, specdec, vllm
from tgi_launcher.engines.facts import EngineFacts

ENGINES: dict[str, EngineFacts] = {
    engine.FACTS.name: engine.FACTS for engine in (vllm, sglang, llama_cpp, specdec)
}  # fmt: skip
