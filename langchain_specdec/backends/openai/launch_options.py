"""Keywords of servers of other engines than TGI that are launched, for editors and type checkers."""

# Of all of these, None is the default. What each is, `OpenAIBackend`, `EngineConfig` and `Server` say;
# tests/unit/langchain/test_keywords.py compares the names and the types.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from typing_extensions import TypedDict

from langchain_specdec.backends.openai.options import OpenAIOptions
from langchain_specdec.backends.remote.launch_options import ServerOptions

if TYPE_CHECKING:
    from pydantic import SecretStr

    from tgi_launcher import Method

EngineName = Literal["vllm", "sglang", "llama-cpp", "specdec"]
"""Engines with OpenAI's protocol that can be launched."""


class EngineOptions(TypedDict, total=False):
    """Fields of `tgi_launcher.EngineConfig`, but `engine`, `model_id` and `api_key`."""

    speculation_method: Method | Literal["ngram", "suffix", "draft-model", "eagle3", "medusa"] | None
    draft_model: str | None
    speculate: int | None
    revision: str | None
    dtype: str | None
    trust_remote_code: bool | None
    max_total_tokens: int | None
    num_shard: int | None
    pipeline_parallel_size: int | None
    data_parallel_size: int | None
    nnodes: int | None
    node_rank: int | None
    master_addr: str | None
    master_port: int | None
    devices: Sequence[int] | None
    hostname: str | None
    port: int | None
    runtime: Literal["auto", "binary", "docker"] | None
    docker_image: str | None
    docker_gpus: bool | None
    shm_size: str | None
    docker_cache: str | None
    launcher_path: str | None
    extra_args: Sequence[str] | None
    hf_token: str | SecretStr | None
    env: Mapping[str, str] | None
    startup_timeout: float | None
    stop_timeout: float | None


class EngineLaunchOptions(OpenAIOptions, ServerOptions, EngineOptions, total=False):
    """Keywords of `launch_engine`, beside the model and the engine."""
