"""EngineConfig: what a server of another engine than TGI is to be, validated before anything starts."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator, model_validator
from typing_extensions import Self

from tgi_launcher.engines.facts import EngineFacts, Method, Speculation
from tgi_launcher.engines.table import ENGINES
from tgi_launcher.field_options import Count, Group, Port, Positive, checked_env, checked_hostname, checked_key, option
from tgi_launcher.paths import absolute, absolute_program, expanded

# `owner/name`, for llama.cpp with a quantization behind it.
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")


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
        "What drafts come from: ngram, suffix, draft-model, eagle3 or medusa. Left out, the draft model if one is "
        "given, or else n-grams if speculate is set.",
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
    num_shard: Positive | None = option(None, "GPUs to split the model over.", Group.HARDWARE)
    devices: tuple[Count, ...] | None = option(
        None, "Numbers of the GPUs to use, as nvidia-smi lists them.", Group.HARDWARE
    )
    hostname: str = option("127.0.0.1", "IP address to listen on; 0.0.0.0 is all of them.", Group.SERVER)
    port: Port | None = option(None, "Port (a free one).", Group.SERVER)
    api_key: SecretStr | None = option(None, "Key that requests have to carry.", Group.SERVER)

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

    @field_validator("env")
    @classmethod
    def _check_env(cls, value: dict[str, str]) -> dict[str, str]:
        return checked_env(value)

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        facts = self.facts
        given = {name for name, value in self if value is not None and value is not False}
        for name in ("revision", "dtype", "trust_remote_code", "max_total_tokens", "num_shard"):
            if name in given and name not in facts.flags:
                raise ValueError(self._refused(name))
        if self.api_key is not None and facts.key_variable is None:
            raise ValueError(self._refused("api_key"))
        if self.devices is not None and self.num_shard and self.num_shard > len(self.devices):
            msg = f"devices must be {self.num_shard} GPUs for num_shard={self.num_shard}, got {len(self.devices)}."
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
