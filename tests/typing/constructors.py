"""What a type checker says of calls of the constructors. Nothing here is run: `make lint` checks it.

Right calls pass. Of each wrong one mypy has to complain, for a `type: ignore` that ignores nothing is an error of its
own (`warn_unused_ignores`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from langchain_specdec import (
    ChatSpeculative,
    Grammar,
    LocalBackend,
    OpenAIBackend,
    SpeculativeDecisions,
    SpeculativeLLM,
    TGIBackend,
)


def right(loaded: Any, options: dict[str, Any]) -> None:
    SpeculativeLLM(model="embedded")
    SpeculativeLLM(model=Path("folder"), drafter="prompt_lookup", draft_length=4, max_length=2048, device="cpu")
    SpeculativeLLM(model=loaded, tokenizer=loaded, draft_model="id", max_tokens=9, stop="x", grammar=Grammar(regex="a"))
    SpeculativeLLM(backend=LocalBackend("embedded", num_slots=2), temperature=0.5, tags=["a"], cache=False)
    ChatSpeculative(model="embedded", timeout=3, api_key="none", chat_template="x", disable_streaming="tool_calling")
    ChatSpeculative(model_id="embedded", stop_sequences=["x"], logit_bias={3: 1.0}, seed=None)
    ChatSpeculative(model_name="embedded", **options)
    ChatSpeculative(backend=TGIBackend("http://127.0.0.1:8080"), tokenizer=loaded)
    ChatSpeculative.from_model_id("embedded", draft_model_id="embedded", dtype="float32")
    ChatSpeculative.from_tgi("http://127.0.0.1:8080", api_key="key", read_timeout=None, client="auto", timeout=3)
    ChatSpeculative.from_server("http://127.0.0.1:8000", api_key="key", model="id", read_timeout=None, timeout=3)
    SpeculativeLLM.from_server("http://127.0.0.1:8000", max_concurrency=4, tokenizer=loaded, stop=["x"])
    ChatSpeculative(backend=OpenAIBackend("http://127.0.0.1:8000", model="id"))
    SpeculativeLLM.launch_tgi("id", speculate=None, port=8080, restart="on-failure", quantize="awq", devices=[0])
    SpeculativeLLM.launch_server("id", engine="vllm", speculate=4, num_shard=2, restart="never", max_tokens=9)
    ChatSpeculative.launch_server("id", engine="specdec", draft_model="id", read_timeout=None, reasoning=True)
    ChatSpeculative.launch_server("id", engine="llama-cpp", speculation_method="ngram", extra_args=["--mlock"])
    model: ChatSpeculative = ChatSpeculative.launch_tgi("id", tokenizer="id", chat_template="x")
    names: list[str] = [model.model, model.model_name]
    names.sort()
    SpeculativeDecisions(backend=model.backend, chat_template_kwargs={"enable_thinking": True}, name="router")
    judge: SpeculativeDecisions = SpeculativeDecisions.from_model_id("embedded", num_slots=2, chat_template="x")
    names.append(judge.model)


def wrong() -> None:
    ChatSpeculative(model="x", drafter=3)  # type: ignore[arg-type]
    ChatSpeculative(model="x", drafter="guess")  # type: ignore[arg-type]
    ChatSpeculative(model="x", draftr="auto")  # type: ignore[call-arg]
    ChatSpeculative(model=3)  # type: ignore[arg-type]
    ChatSpeculative("x")  # type: ignore[call-arg]
    ChatSpeculative(model="x", base_url="http://127.0.0.1:8080")  # type: ignore[call-arg]
    ChatSpeculative(backend="x")  # type: ignore[arg-type]
    SpeculativeLLM(model="x", temprature=1)  # type: ignore[call-arg]
    SpeculativeLLM(model="x", max_length="2048")  # type: ignore[arg-type]
    SpeculativeLLM(model="x", chat_template="x")  # type: ignore[call-arg]
    SpeculativeLLM.from_model_id("x", max_lenght=3)  # type: ignore[call-arg]
    SpeculativeLLM.from_model_id("x", chat_template="x")  # type: ignore[call-arg]
    SpeculativeLLM.from_tgi("http://127.0.0.1:8080", drafter="none")  # type: ignore[call-arg]
    SpeculativeLLM.from_tgi("http://127.0.0.1:8080", max_retries="2")  # type: ignore[arg-type]
    SpeculativeLLM.from_server("http://127.0.0.1:8000", client="auto")  # type: ignore[call-arg]
    ChatSpeculative.from_server("http://127.0.0.1:8000", model=3)  # type: ignore[arg-type]
    ChatSpeculative.launch_tgi("x", quantize="no such way")  # type: ignore[arg-type]
    ChatSpeculative.launch_tgi("x", on_progres=print)  # type: ignore[call-arg]
    SpeculativeLLM.launch_server("x", engine="ollama")  # type: ignore[arg-type]
    SpeculativeLLM.launch_server("x")  # type: ignore[call-arg]
    ChatSpeculative.launch_server("x", engine="vllm", num_shards=2)  # type: ignore[call-arg]
    ChatSpeculative.launch_server("x", engine="vllm", speculation_method="guess")  # type: ignore[arg-type]
    LocalBackend("x", compile="fast")  # type: ignore[arg-type]
    SpeculativeDecisions(model="x", max_tokens=3)  # type: ignore[call-arg]
    SpeculativeDecisions.from_model_id("x", tempreature=1)  # type: ignore[call-arg]
    LocalBackend("x", max_lenght=3)  # type: ignore[call-arg]
