"""Keywords of connections to TGI servers and of servers that are launched, for editors and type checkers."""

# Of all of these, None is the default. What each is, `TGIBackend`, `TGIConfig` and `TGIServer` say;
# tests/unit/langchain/test_keywords.py compares the names and the types.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import TypedDict

from langchain_specdec.backends.remote.launch_options import ServerOptions

if TYPE_CHECKING:
    from pydantic import SecretStr


class ConnectionOptions(TypedDict, total=False):
    """Keywords of `TGIBackend`."""

    api_key: str | SecretStr | None
    client: str | None
    read_timeout: float | None
    max_retries: int | None
    max_concurrency: int | None
    tokenizer: Any


class ConfigOptions(TypedDict, total=False):
    """Fields of `tgi_launcher.TGIConfig`, but `model_id`, `speculate` and `api_key`."""

    revision: str | None
    dtype: Literal["float16", "bfloat16"] | None
    # fmt: off
    quantize: Literal[
        "awq", "compressed-tensors", "eetq", "exl2", "gptq", "marlin",
        "bitsandbytes", "bitsandbytes-nf4", "bitsandbytes-fp4", "fp8",
    ] | None
    # fmt: on
    kv_cache_dtype: Literal["fp8_e4m3fn", "fp8_e5m2"] | None
    trust_remote_code: bool | None
    tokenizer_config_path: str | None
    lora_adapters: str | None
    rope_scaling: Literal["linear", "dynamic"] | None
    rope_factor: float | None
    huggingface_hub_cache: str | None
    weights_cache_override: str | None
    max_concurrent_requests: int | None
    max_input_tokens: int | None
    max_total_tokens: int | None
    max_batch_prefill_tokens: int | None
    max_batch_total_tokens: int | None
    max_batch_size: int | None
    max_waiting_tokens: int | None
    waiting_served_ratio: float | None
    max_best_of: int | None
    max_stop_sequences: int | None
    max_top_n_tokens: int | None
    max_client_batch_size: int | None
    payload_limit: int | None
    enable_prefill_logprobs: bool | None
    disable_grammar_support: bool | None
    validation_workers: int | None
    num_shard: int | None
    cpu: bool | None
    devices: Sequence[int] | None
    cuda_memory_fraction: float | None
    cuda_graphs: Sequence[int] | None
    disable_custom_kernels: bool | None
    hostname: str | None
    port: int | None
    prometheus_port: int | None
    master_port: int | None
    shard_uds_path: str | None
    cors_allow_origin: Sequence[str] | None
    otlp_endpoint: str | None
    otlp_service_name: str | None
    usage_stats: Literal["on", "no-stack", "off"] | None
    graceful_termination_timeout: int | None
    runtime: Literal["auto", "binary", "docker"] | None
    launcher_path: str | None
    docker_image: str | None
    docker_gpus: bool | None
    shm_size: str | None
    docker_cache: str | None
    hf_token: str | SecretStr | None
    env: Mapping[str, str] | None
    log_level: Literal["info", "debug"] | None
    startup_timeout: float | None
    stop_timeout: float | None


class LaunchOptions(ConnectionOptions, ServerOptions, ConfigOptions, total=False):
    """Keywords of `launch_backend`, beside the model and how far it speculates."""
