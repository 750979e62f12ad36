"""TGIConfig: what a server is to be, validated as TGI would, before anything starts."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator, model_validator
from typing_extensions import Self

from tgi_launcher.cpu import cpu_conflict, wants_cpu, with_cpu_settings
from tgi_launcher.field_options import (
    Count,
    Group,
    Port,
    Positive,
    checked_devices,
    checked_env,
    checked_hostname,
    checked_key,
    checked_size,
    option,
)
from tgi_launcher.model_info import ModelInfo, find_model_info
from tgi_launcher.paths import absolute, absolute_adapters, absolute_program, expanded

DEFAULT_IMAGE = "ghcr.io/huggingface/text-generation-inference:3.3.7"

# Names that people may try, and the field to use instead.
_OLD_NAMES = {
    "max_input_length": "max_input_tokens",
    "max_batch_prefill_token": "max_batch_prefill_tokens",
    "num_shards": "num_shard",
    "host": "hostname",
    "gpus": "devices",
    "image": "docker_image",
    "sharded": "num_shard",
}
# Files that somebody may take for a model.
_WEIGHT_FILES = {".gguf", ".ggml", ".safetensors", ".bin", ".pt", ".pth"}


class TGIConfig(BaseModel):
    """A Text Generation Inference server, before it is started.

    Fields named like an option of `text-generation-launcher` are that option; None leaves it to TGI. Values that TGI
    would refuse, some of them only after the model is loaded, raise pydantic's `ValidationError` here. Secrets never
    show in `repr`, in logs or on a command line of this package.
    """

    # An input may hold a secret. The messages below show the values that are none.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    model_id: str = option(..., "Model id of the Hugging Face Hub, or a local folder.", Group.MODEL)
    speculate: Count | None = option(
        None,
        "Tokens to draft per step; 0 turns speculation off. Left out, TGI uses all heads of a Medusa or MLP-speculator "
        "model, and does not speculate with any other; other engines decide by themselves.",
        Group.SPECULATION,
    )

    revision: str | None = option(None, "Revision of the model on the Hub.", Group.MODEL)
    dtype: Literal["float16", "bfloat16"] | None = option(None, "Type of the weights.", Group.MODEL)
    quantize: (
        Literal[
            "awq", "compressed-tensors", "eetq", "exl2", "gptq", "marlin",
            "bitsandbytes", "bitsandbytes-nf4", "bitsandbytes-fp4", "fp8",
        ]
        | None
    ) = option(None, "Quantization of the weights.", Group.MODEL)  # fmt: skip
    kv_cache_dtype: Literal["fp8_e4m3fn", "fp8_e5m2"] | None = option(None, "Type of the KV cache.", Group.MODEL)
    trust_remote_code: bool = option(False, "Run Python code that comes with the model.", Group.MODEL)
    tokenizer_config_path: str | None = option(None, "File with another chat template.", Group.MODEL)
    lora_adapters: str | None = option(None, "LoRA adapters, as `id` or `id=path`, comma-separated.", Group.MODEL)
    rope_scaling: Literal["linear", "dynamic"] | None = option(None, "Kind of RoPE scaling.", Group.MODEL)
    rope_factor: Annotated[float, Field(gt=0)] | None = option(None, "Factor of RoPE scaling.", Group.MODEL)
    huggingface_hub_cache: str | None = option(None, "Folder of the Hub's cache.", Group.MODEL)
    weights_cache_override: str | None = option(None, "Folder to read weights from instead.", Group.MODEL)

    max_concurrent_requests: Positive | None = option(
        None, "Requests at a time before others get 429 (TGI: 128).", Group.LIMITS
    )
    max_input_tokens: Positive | None = option(None, "Longest prompt, in tokens.", Group.LIMITS)
    max_total_tokens: Positive | None = option(
        None, "Longest prompt plus answer, in tokens. With speculation TGI's default is often 4096.", Group.LIMITS
    )
    max_batch_prefill_tokens: Positive | None = option(None, "Prompt tokens of one prefill pass.", Group.LIMITS)
    max_batch_total_tokens: Positive | None = option(None, "Tokens of all requests in a batch.", Group.LIMITS)
    max_batch_size: Positive | None = option(None, "Requests in a batch.", Group.LIMITS)
    max_waiting_tokens: Count | None = option(
        None, "Decode steps before waiting requests join (TGI: 20).", Group.LIMITS
    )
    waiting_served_ratio: Annotated[float, Field(gt=0)] | None = option(
        None, "Ratio of waiting to running requests that pauses decoding (TGI: 0.3).", Group.LIMITS
    )
    max_best_of: Positive | None = option(None, "Largest `best_of` (TGI: 2).", Group.LIMITS)
    max_stop_sequences: Count | None = option(None, "Stop strings of a request (TGI: 4).", Group.LIMITS)
    max_top_n_tokens: Count | None = option(None, "Largest `top_n_tokens` (TGI: 5).", Group.LIMITS)
    max_client_batch_size: Positive | None = option(None, "Prompts of one /v1/completions call (TGI: 4).", Group.LIMITS)
    payload_limit: Positive | None = option(None, "Largest request body, in bytes (TGI: 2000000).", Group.LIMITS)
    enable_prefill_logprobs: bool = option(False, "Allow log probabilities of the prompt.", Group.LIMITS)
    disable_grammar_support: bool = option(False, "Refuse grammars, and so tools and JSON.", Group.LIMITS)
    validation_workers: Positive | None = option(None, "Tokenizer threads (TGI: 2).", Group.LIMITS)

    num_shard: Positive | None = option(None, "GPUs to split the model over (TGI: all it sees).", Group.HARDWARE)
    cpu: bool = option(
        False,
        "Run on a CPU: sets ATTENTION=paged, PREFIX_CACHING=0 and --cuda-graphs 0; with Docker, takes the image for "
        "CPUs.",
        Group.HARDWARE,
        is_flag=False,
    )
    devices: tuple[Count, ...] | None = option(
        None, "Numbers of the GPUs to use, as nvidia-smi lists them.", Group.HARDWARE, is_flag=False
    )
    cuda_memory_fraction: Annotated[float, Field(gt=0, le=1)] | None = option(
        None, "Part of the GPU's memory that TGI may use (TGI: 1).", Group.HARDWARE
    )
    cuda_graphs: tuple[Count, ...] | None = option(
        None, "Batch sizes to capture CUDA graphs for; 0 turns them off (TGI: 1,2,4,8,16,32).", Group.HARDWARE
    )
    disable_custom_kernels: bool = option(False, "Use no CUDA kernels of TGI's own; for CPU.", Group.HARDWARE)

    hostname: str = option("127.0.0.1", "IP address to listen on; 0.0.0.0 is all of them.", Group.SERVER)
    port: Port | None = option(None, "Port (a free one from 8080 on).", Group.SERVER)
    prometheus_port: Port | None = option(
        None, "Port that the router binds for its metrics (a free one from 9000 on).", Group.SERVER
    )
    master_port: Port | None = option(None, "Port that the shards meet at (a free one from 29500 on).", Group.SERVER)
    shard_uds_path: str | None = option(None, "Start of the shards' socket paths (in a new folder).", Group.SERVER)
    api_key: SecretStr | None = option(None, "Key that requests have to carry.", Group.SERVER, is_flag=False)
    cors_allow_origin: tuple[str, ...] = option((), "Origins that browsers may call from.", Group.SERVER)
    otlp_endpoint: str | None = option(None, "Where traces go.", Group.SERVER)
    otlp_service_name: str | None = option(None, "Name of the service in traces.", Group.SERVER)
    usage_stats: Literal["on", "no-stack", "off"] = option(
        "off", "Usage statistics that TGI sends to Hugging Face; its own default is on.", Group.SERVER
    )
    graceful_termination_timeout: Positive = option(
        90, "Seconds that TGI gives running requests when it stops.", Group.SERVER
    )

    runtime: Literal["auto", "binary", "docker"] = option(
        "auto", "Installed launcher, or Docker image; auto takes the launcher if there is one.", Group.RUNTIME,
        is_flag=False,
    )  # fmt: skip
    launcher_path: str | None = option(
        None,
        "Path of text-generation-launcher, or of another engine's program (looked up on PATH).",
        Group.RUNTIME,
        is_flag=False,
    )
    docker_image: str = option(
        DEFAULT_IMAGE, "Image; pin a tag. Others than TGI have their own.", Group.RUNTIME, is_flag=False
    )
    docker_gpus: bool = option(True, "Give the container GPUs.", Group.RUNTIME, is_flag=False)
    shm_size: str = option(
        "1g", "Shared memory of the container, for its processes; others than TGI may have more.", Group.RUNTIME,
        is_flag=False,
    )  # fmt: skip
    docker_cache: str | None = option(
        None, "Folder for downloads, mounted at /data (that of the Hugging Face libraries).", Group.RUNTIME,
        is_flag=False,
    )  # fmt: skip
    hf_token: SecretStr | None = option(
        None, "Token of the Hub (environment variable HF_TOKEN).", Group.RUNTIME, is_flag=False
    )
    env: dict[str, str] = option(
        {}, "More environment variables for the server.", Group.RUNTIME, is_flag=False, is_shown=False
    )
    log_level: Literal["info", "debug"] = option("info", "How much TGI logs.", Group.RUNTIME, is_flag=False)
    startup_timeout: Annotated[float, Field(gt=0)] = option(
        1800.0, "Seconds until /health has to answer, download included.", Group.RUNTIME, is_flag=False
    )
    stop_timeout: Annotated[float, Field(gt=0)] | None = option(
        None,
        "Seconds to drain in before everything is killed (twice graceful_termination_timeout, plus 10).",
        Group.RUNTIME,
        is_flag=False,
    )

    @property
    def drain_seconds(self) -> float:
        """How long a stop may take before everything is killed.

        TGI gives first the router and then the shards `graceful_termination_timeout` seconds.
        """
        return self.stop_timeout if self.stop_timeout is not None else 2.0 * self.graceful_termination_timeout + 10.0

    @property
    def model_info(self) -> ModelInfo:
        """What is known of the model without the network: its speculation heads, if it has any."""
        cache = self.huggingface_hub_cache or (str(Path(self.docker_cache) / "hub") if self.docker_cache else None)
        return find_model_info(self.model_id, revision=self.revision, cache=cache)

    @property
    def num_speculative_tokens(self) -> int:
        """Tokens that TGI will draft per step, as far as is known: `speculate`, else the model's number of heads."""
        return self.speculate if self.speculate is not None else (self.model_info.num_heads or 0)

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name in data.keys() - cls.model_fields.keys():
                if name in _OLD_NAMES:
                    msg = f"There is no option {name}: use {_OLD_NAMES[name]}."
                    raise ValueError(msg)
            if wants_cpu(data):
                return with_cpu_settings(data, DEFAULT_IMAGE)
        return data

    @field_validator("model_id")
    @classmethod
    def _check_model_id(cls, value: str) -> str:
        if not value.strip() or value.startswith("-"):
            msg = f"model_id must be a model id of the Hub or a folder, got {value!r}."
            raise ValueError(msg)
        path = expanded(value)
        if path.is_dir():
            return absolute(value)
        is_path = value.startswith(("/", "~", "./", "../")) or value.count("/") > 1
        # A model of the Hub may be named like a file that happens to be here.
        if path.is_file() and (is_path or path.suffix.lower() in _WEIGHT_FILES):
            msg = (
                f"{value} is a file, and TGI takes a folder with config.json, tokenizer and *.safetensors, or a model "
                "id of the Hub."
            )
            if path.suffix.lower() == ".gguf":
                msg += " It does not read GGUF files: give the model that this one was made from."
            raise ValueError(msg)
        if is_path:
            msg = f"There is no folder {value}."
            raise ValueError(msg)
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value):
            msg = f"{value!r} is neither a folder nor a model id of the form owner/name."
            raise ValueError(msg)
        return value

    @field_validator(
        "tokenizer_config_path", "huggingface_hub_cache", "weights_cache_override", "shard_uds_path", "docker_cache",
        "launcher_path", "lora_adapters",
    )  # fmt: skip
    @classmethod
    def _check_path(cls, value: str | None, info: ValidationInfo) -> str | None:
        # TGI runs in a folder of its own.
        if value is None:
            return None
        if not value.strip():
            msg = f"{info.field_name} must not be empty: leave it out."
            raise ValueError(msg)
        make = {"launcher_path": absolute_program, "lora_adapters": absolute_adapters}.get(
            str(info.field_name), absolute
        )
        return make(value)

    @field_validator("hostname")
    @classmethod
    def _check_hostname(cls, value: str) -> str:
        # TGI takes `localhost`, and whatever else is no IP address, for 0.0.0.0: open to the whole network.
        return checked_hostname(value)

    @field_validator("api_key", "hf_token")
    @classmethod
    def _check_secret(cls, value: SecretStr | None) -> SecretStr | None:
        return checked_key(value)

    @field_validator("shm_size")
    @classmethod
    def _check_size(cls, value: str) -> str:
        return checked_size(value)

    @field_validator("devices")
    @classmethod
    def _check_devices(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return checked_devices(value) if value is not None else None

    @field_validator("env")
    @classmethod
    def _check_env(cls, value: dict[str, str]) -> dict[str, str]:
        for name in checked_env(value):
            field = {"HF_API_TOKEN": "hf_token", "HUGGING_FACE_HUB_TOKEN": "hf_token"}.get(name, name.lower())
            if field in FLAGS or field in ("api_key", "hf_token", "log_level"):
                msg = f"{name} is an option of its own: set {field} instead."
                raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        longest, total = self.max_input_tokens, self.max_total_tokens
        prefill, batch = self.max_batch_prefill_tokens, self.max_batch_total_tokens
        if longest and total and longest >= total:
            msg = f"max_input_tokens ({longest}) must be less than max_total_tokens ({total})."
            raise ValueError(msg)
        if total and batch and total > batch:
            msg = f"max_total_tokens ({total}) must be at most max_batch_total_tokens ({batch})."
            raise ValueError(msg)
        if prefill and batch and prefill > batch:
            msg = f"max_batch_prefill_tokens ({prefill}) must be at most max_batch_total_tokens ({batch})."
            raise ValueError(msg)
        chunking_is_off = self.num_speculative_tokens > 0
        if chunking_is_off and longest and prefill and longest > prefill:
            msg = (
                f"With speculation, max_input_tokens ({longest}) must be at most max_batch_prefill_tokens ({prefill}): "
                "TGI then reads a prompt in one pass."
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _check_hardware(self) -> Self:
        if self.cpu and (conflict := cpu_conflict(self)):
            raise ValueError(conflict)
        if self.quantize == "exl2" and (self.num_shard or 1) > 1:
            msg = "TGI cannot split a model with exl2 weights over several GPUs: num_shard must be 1."
            raise ValueError(msg)
        if self.dtype and self.quantize and not self.quantize.startswith("bitsandbytes"):
            msg = f"TGI takes no quantize={self.quantize!r} beside a numeric type: leave dtype out."
            raise ValueError(msg)
        if self.devices is not None and self.num_shard and self.num_shard > len(self.devices):
            msg = f"devices must be {self.num_shard} GPUs for num_shard={self.num_shard}, got {len(self.devices)}."
            raise ValueError(msg)
        ports = [port for port in (self.port, self.prometheus_port, self.master_port) if port]
        if len(set(ports)) < len(ports):
            msg = "port must differ from prometheus_port, and both from master_port."
            raise ValueError(msg)
        if self.shard_uds_path and len(os.fsencode(self.shard_uds_path)) > 100:
            msg = "shard_uds_path is too long for a socket: at most 100 bytes."
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _check_speculate(self) -> Self:
        info = self.model_info
        if info.problem:
            msg = f"TGI cannot load {self.model_id}: {info.problem}."
            raise ValueError(msg)
        if self.speculate and info.num_heads and self.speculate > info.num_heads:
            msg = (
                f"speculate={self.speculate}, but {self.model_id} has {info.num_heads} {info.speculator} heads: "
                f"at most {info.num_heads}, or leave speculate out to use them all."
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _check_docker(self) -> Self:
        if self.runtime == "docker":
            for name in ("huggingface_hub_cache", "weights_cache_override", "shard_uds_path", "launcher_path"):
                if getattr(self, name) is not None:
                    hint = "use docker_cache" if "cache" in name else "leave it out"
                    msg = f"{name} is a path of this machine, which a container does not see: {hint}."
                    raise ValueError(msg)
        return self


# Fields that are options of `text-generation-launcher`, in the order in which a command has them.
FLAGS: tuple[str, ...] = tuple(
    name
    for name, field in TGIConfig.model_fields.items()
    if (field.json_schema_extra or {}).get("flag")  # type: ignore[union-attr]
)
