"""EngineConfig: what a server of another engine than TGI is to be, validated before anything starts."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator, model_validator
from typing_extensions import Self

from tgi_launcher.engines.facts import EngineFacts, Machines, Method, Speculation
from tgi_launcher.engines.table import ENGINES
from tgi_launcher.field_options import (
    Count,
    Group,
    Port,
    Positive,
    check_is_not_embedded,
    checked_devices,
    checked_env,
    checked_hostname,
    checked_key,
    checked_size,
    is_address,
    option,
)
from tgi_launcher.paths import absolute, absolute_program, expanded

# `owner/name`, for llama.cpp with a quantization behind it.
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")
_HOST = re.compile(r"[0-9A-Za-z][\w.-]*")
# The same on all machines, where nobody says another.
_MASTER_PORT = 29501
# Fields that an engine has by a flag of its own, or not at all.
_FLAGGED = (
    *("revision", "dtype", "trust_remote_code", "max_total_tokens"),
    *("num_shard", "data_parallel_size", "pipeline_parallel_size"),
)
_OF_MACHINES = ("nnodes", "node_rank", "master_addr", "master_port")


class EngineConfig(BaseModel):
    """A server of vLLM, SGLang, llama.cpp or `specdec serve`, before it is started.

    What the engine lacks raises pydantic's `ValidationError`. Fields that are None are left to the engine. Secrets
    never show in `repr`, in logs or on a command line of this package.
    """

    # An input may hold a secret. The messages below show the values that are none.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    engine: Literal["vllm", "sglang", "llama-cpp", "specdec"] = option(
        ...,
        "What serves the model: tgi (the default), vllm, sglang, llama-cpp or specdec.",
        Group.MODEL,
        is_flag=False,
    )
    model_id: str = option(
        ..., "Model id of the Hugging Face Hub, a local folder, or a GGUF file.", Group.MODEL, is_flag=False
    )
    speculation_method: Method | None = option(
        None,
        "What drafts come from. Left out, the draft model if one is given, or else n-grams where a number of tokens "
        "is given.",
        Group.SPECULATION,
        is_flag=False,
    )
    draft_model: str | None = option(
        None, "Draft model, or EAGLE-3 or Medusa heads, given as the model is.", Group.SPECULATION, is_flag=False
    )
    speculate: Count | None = option(None, "Tokens to draft per step; 0 is none.", Group.SPECULATION)

    revision: str | None = option(None, "Revision of the model on the Hub.", Group.MODEL)
    dtype: str | None = option(None, "Type of the weights.", Group.MODEL)
    trust_remote_code: bool = option(False, "Run Python code that comes with the model.", Group.MODEL)
    max_total_tokens: Positive | None = option(None, "Longest prompt plus answer, in tokens.", Group.LIMITS)
    num_shard: Positive | None = option(None, "GPUs to split each layer over (tensor parallel).", Group.HARDWARE)
    pipeline_parallel_size: Positive | None = option(
        None, "Groups of GPUs to split the layers over, each of num_shard GPUs.", Group.HARDWARE
    )
    data_parallel_size: Positive | None = option(None, "Copies of the model, each on GPUs of its own.", Group.HARDWARE)
    nnodes: Positive | None = option(None, "Machines that serve the model together.", Group.HARDWARE)
    node_rank: Count | None = option(None, "Which of them this is; 0, the first, answers requests.", Group.HARDWARE)
    master_addr: str | None = option(None, "Address of the first machine, as the others reach it.", Group.HARDWARE)
    master_port: Port | None = option(
        None, f"Port of the first machine that all meet at ({_MASTER_PORT}).", Group.HARDWARE
    )
    devices: tuple[Count, ...] | None = option(
        None, "Numbers of the GPUs to use, as nvidia-smi lists them.", Group.HARDWARE
    )
    hostname: str = option("127.0.0.1", "IP address to listen on; 0.0.0.0 is all of them.", Group.SERVER)
    port: Port | None = option(None, "Port (a free one).", Group.SERVER)
    api_key: SecretStr | None = option(None, "Key that requests have to carry.", Group.SERVER)

    runtime: Literal["auto", "binary", "docker"] = option(
        "auto", "Installed program, or Docker image; auto takes the program if there is one.", Group.RUNTIME
    )
    docker_image: str | None = option(None, "Image; pin a tag. Each engine has its own.", Group.RUNTIME)
    docker_gpus: bool = option(True, "Give the container GPUs; without, the image for CPUs is taken.", Group.RUNTIME)
    shm_size: str | None = option(None, "Shared memory of the container (vllm: 16g; sglang: 32g).", Group.RUNTIME)
    docker_cache: str | None = option(
        None, "Folder for downloads, mounted at /data (that of the Hugging Face libraries).", Group.RUNTIME
    )
    launcher_path: str | None = option(None, "Path of the engine's program (looked up on PATH).", Group.RUNTIME)
    extra_args: tuple[str, ...] = option(
        (), "More arguments for the engine's own command line.", Group.RUNTIME, is_flag=False
    )
    hf_token: SecretStr | None = option(None, "Token of the Hub (environment variable HF_TOKEN).", Group.RUNTIME)
    env: dict[str, str] = option({}, "More environment variables.", Group.RUNTIME, is_shown=False)
    startup_timeout: Annotated[float, Field(gt=0)] = option(
        1800.0, "Seconds until /health has to answer, download included.", Group.RUNTIME
    )
    stop_timeout: Annotated[float, Field(gt=0)] | None = option(
        None, "Seconds to drain in before everything is killed (30; specdec: 100).", Group.RUNTIME
    )

    @property
    def facts(self) -> EngineFacts:
        """What is particular to the engine."""
        return ENGINES[self.engine]

    @property
    def drain_seconds(self) -> float:
        """How long a stop may take before everything is killed."""
        return self.stop_timeout if self.stop_timeout is not None else self.facts.drain_seconds

    @property
    def machines(self) -> Machines | None:
        """The machines of which this is one; None where it serves alone."""
        if self.nnodes is None or self.nnodes == 1 or self.master_addr is None:
            return None
        return Machines(self.nnodes, self.node_rank or 0, self.master_addr, self.master_port or _MASTER_PORT)

    @property
    def image(self) -> str:
        """The image that Docker runs; empty where there is none."""
        images = self.facts.images
        return self.docker_image or (images.gpu if self.docker_gpus else images.cpu)

    @property
    def drafts(self) -> Speculation | None:
        """How it is to speculate; None where nothing is asked for, so that the engine decides."""
        method = self.speculation_method
        if method is None and self.draft_model is not None:
            method = Method.DRAFT_MODEL
        if method is None and self.speculate:
            method = Method.NGRAM
        if method is None or self.speculate == 0:
            return None
        return Speculation(method, self.speculate or self.facts.default_tokens, self.draft_model)

    @property
    def num_speculative_tokens(self) -> int:
        """Tokens that it is asked to draft per step; 0 where none, or where the engine decides."""
        return self.drafts.num_tokens if self.drafts is not None else 0

    @field_validator("model_id", "draft_model")
    @classmethod
    def _check_model(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        if not value.strip() or value.startswith("-"):
            msg = f"{info.field_name} must be a model id of the Hub, a folder or a GGUF file, got {value!r}."
            raise ValueError(msg)
        path = expanded(value)
        is_file = path.suffix.lower() == ".gguf"
        if path.is_dir() or (is_file and path.is_file()):
            return absolute(value)
        if value.startswith(("/", "~", "./", "../")) or value.count("/") > 1 or is_file:
            msg = f"There is no {'file' if is_file else 'folder'} {value}."
            raise ValueError(msg)
        if info.data.get("engine") != "specdec":
            check_is_not_embedded(value)
        if not _HUB_ID.fullmatch(value):
            msg = f"{value!r} is neither a folder nor a file nor a model id of the form owner/name."
            raise ValueError(msg)
        return value

    @field_validator("hostname")
    @classmethod
    def _check_hostname(cls, value: str) -> str:
        return checked_hostname(value)

    @field_validator("launcher_path")
    @classmethod
    def _check_program(cls, value: str | None) -> str | None:
        return absolute_program(value) if value is not None else None

    @field_validator("api_key", "hf_token")
    @classmethod
    def _check_key(cls, value: SecretStr | None) -> SecretStr | None:
        return checked_key(value)

    @field_validator("shm_size")
    @classmethod
    def _check_size(cls, value: str | None) -> str | None:
        return checked_size(value) if value is not None else None

    @field_validator("docker_cache")
    @classmethod
    def _check_cache(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            msg = "docker_cache must not be empty: leave it out."
            raise ValueError(msg)
        return absolute(value) if value is not None else None

    @field_validator("master_addr")
    @classmethod
    def _check_address(cls, value: str | None) -> str | None:
        if value is not None and not _HOST.fullmatch(value) and not is_address(value):
            msg = f"master_addr must be a host name or an IP address, without a port, got {value!r}."
            raise ValueError(msg)
        return value

    @field_validator("devices")
    @classmethod
    def _check_devices(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return checked_devices(value) if value is not None else None

    @field_validator("env")
    @classmethod
    def _check_env(cls, value: dict[str, str]) -> dict[str, str]:
        return checked_env(value)

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        facts = self.facts
        given = {name for name, value in self if value is not None and value is not False}
        for name in (*_FLAGGED, *(_OF_MACHINES if facts.machines is None else ())):
            if name in given and name not in facts.flags:
                raise ValueError(self._refused(name))
        for name in ("model_id", "draft_model"):
            model = getattr(self, name)
            if "folder" in facts.lacks and model is not None and expanded(model).is_dir():
                msg = f"{name} must be {facts.lacks['folder']}, and {model} is a folder."
                raise ValueError(msg)
        if facts.key_file_option is not None and self.api_key and self.api_key.get_secret_value().startswith("-"):
            msg = f"{facts.title} would take an api_key that begins with a hyphen for an option: take another."
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _check_hardware(self) -> Self:
        sizes = {
            name: getattr(self, name) or 1 for name in ("num_shard", "pipeline_parallel_size", "data_parallel_size")
        }
        wanted, num_nodes = math.prod(sizes.values()), self.nnodes or 1
        if self.devices is not None and wanted > len(self.devices) * num_nodes:
            by = ", ".join(f"{name}={size}" for name, size in sizes.items() if size > 1)
            msg = f"devices must be {-(-wanted // num_nodes)} GPUs for {by}, got {len(self.devices)}."
            raise ValueError(msg)
        if self.nnodes is None:
            for name in _OF_MACHINES[1:]:
                if getattr(self, name) is not None:
                    msg = f"{name} is for several machines: give nnodes, how many they are, or leave it out."
                    raise ValueError(msg)
        elif self.node_rank is not None and self.node_rank >= num_nodes:
            msg = f"node_rank must be from 0 to {num_nodes - 1} for nnodes={num_nodes}, got {self.node_rank}."
            raise ValueError(msg)
        elif num_nodes > 1 and self.master_addr is None:
            msg = f"nnodes={num_nodes} needs master_addr, the address of the first machine: the same on each of them."
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _check_docker(self) -> Self:
        if self.runtime != "binary" and not self.docker_gpus and self.devices is not None:
            msg = "docker_gpus=False gives a container no GPUs: leave devices out."
            raise ValueError(msg)
        if self.runtime != "docker":
            return self
        if self.launcher_path is not None:
            msg = "launcher_path is a path of this machine, which a container does not see: leave it out."
            raise ValueError(msg)
        if self.machines is not None:
            msg = "A container has a network of its own, which other machines do not reach: leave nnodes out."
            raise ValueError(msg)
        if not self.image:
            kind = "" if self.docker_gpus or not self.facts.images.gpu else " for CPUs"
            why = self.facts.lacks.get("image", "give docker_image")
            msg = f"There is no official image of {self.facts.title}{kind}: {why}."
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _check_speculation(self) -> Self:
        drafts = self.drafts
        if drafts is None:
            if self.speculation_method is not None or self.draft_model is not None:
                msg = "speculate=0 is no speculation: leave speculation_method and draft_model out beside it."
                raise ValueError(msg)
            return self
        if refusal := self.facts.refusal(drafts.method):
            raise ValueError(refusal)
        if drafts.method.needs_model and drafts.model is None:
            msg = f"speculation_method={drafts.method.value!r} needs its model: give draft_model."
            raise ValueError(msg)
        if drafts.model is not None and not drafts.method.needs_model:
            msg = f"speculation_method={drafts.method.value!r} takes no draft_model: leave one of them out."
            raise ValueError(msg)
        return self

    def _refused(self, name: str) -> str:
        why = self.facts.lacks.get(name)
        return f"{self.facts.title} cannot be given {name}{f': {why}' if why else ': leave it out'}."
