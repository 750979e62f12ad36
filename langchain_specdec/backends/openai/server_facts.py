"""What answers at an address: which kind of server, its model and its limits."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from langchain_specdec.backends.openai.client import OpenAIClient
from langchain_specdec.backends.openai.dialect import Dialect
from langchain_specdec.backends.openai.failures import OpenAIFailures
from langchain_specdec.backends.openai.llama_cpp import LlamaCppDialect
from langchain_specdec.backends.openai.plain import PlainDialect
from langchain_specdec.backends.openai.sglang import SGLangDialect
from langchain_specdec.backends.openai.specdec import SpecdecDialect
from langchain_specdec.backends.openai.vllm import VLLMDialect
from langchain_specdec.backends.remote.facts import Facts
from langchain_specdec.backends.remote.failures import Failure
from langchain_specdec.backends.remote.short_request import ShortRequest
from langchain_specdec.errors import InvalidParameterError
from tgi_launcher.endpoints import problems

ModelT = TypeVar("ModelT", bound=BaseModel)
_BYTES = 4 * 2**20
# Nobody's answer waits for it for longer.
_HEALTH_SECONDS = 5.0
# A token's id and a comma, for each byte of a text.
_TOKEN_BYTES = 32
_SHOWN_MODELS = 10


class _Model(BaseModel):
    """A model of `/v1/models`, as far as it matters here."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(min_length=1)
    owned_by: str | None = None
    # vLLM and SGLang: what was loaded, where it is served under another name; and of an adapter its base.
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = Field(default=None, ge=1)
    # This package's own server.
    eos_token_ids: tuple[int, ...] = ()


class _Models(BaseModel):
    data: list[_Model]


class _Slot(BaseModel):
    n_ctx: int = Field(ge=1)


class _Props(BaseModel):
    """llama.cpp's `/props`."""

    default_generation_settings: _Slot
    total_slots: int | None = Field(default=None, ge=1)
    model_path: str | None = None
    build_info: str | None = None


class _SGLangInfo(BaseModel):
    """SGLang's `/server_info`."""

    version: str | None = None
    context_length: int | None = Field(default=None, ge=1)
    enable_deterministic_inference: bool = False


class _Tokens(BaseModel):
    tokens: list[int]


_IDS = TypeAdapter(dict[str, Any])


@dataclass(frozen=True)
class ServerInfo:
    """What is known of a server.

    Attributes:
        dialect: Its kind.
        model_id: Name of the model there.
        source: Where the model's tokenizer is: an id of the Hub, a folder or a GGUF file.
        max_total_tokens: Most tokens of a prompt and its completion together, where the server tells.
        version: Its version, where it tells.
        model_sha: Never told.
        max_input_tokens: None has a limit of its own for prompts.
        num_slots: Requests that run at a time, where more only wait for a connection's thread.
        adapters: Names of its adapters, which requests can choose among.
        eos_token_ids: Tokens that end a text, where the server tells.
    """

    dialect: Dialect
    model_id: str
    source: str
    max_total_tokens: int | None = None
    version: str | None = None
    model_sha: str | None = None
    max_input_tokens: int | None = None
    num_slots: int | None = None
    adapters: tuple[str, ...] = ()
    eos_token_ids: tuple[int, ...] = ()


class OpenAIServerFacts(Facts[ServerInfo]):
    """Asks a server for what is not part of a completion.

    Args:
        client: Sends the requests.
        failures: Makes the errors.
        read_timeout: Most seconds until the last byte of an answer.
        model: Which of the server's models; None is the only one that it has.
    """

    def __init__(self, client: OpenAIClient, failures: OpenAIFailures, read_timeout: float, model: str | None) -> None:
        super().__init__(failures)
        self._client = client
        self._unreadable = failures.unreadable
        self._timeout = read_timeout
        self._model = model

    async def is_healthy(self) -> bool:
        """Whether the server answers that it is well."""
        try:
            await self._client.fetch(ShortRequest("/health", min(self._timeout, _HEALTH_SECONDS), _BYTES))
        except Exception:
            return False
        return True

    async def _fetch_info(self) -> ServerInfo:
        models = (await self._get("/v1/models", _Models)).data
        model = self._chosen(models)
        adapters = tuple(other.id for other in models if other.parent is not None)
        source, limit = model.root or model.id, model.max_model_len
        kind = model.owned_by
        if kind == "vllm":
            return ServerInfo(VLLMDialect(), model.id, source, limit, await self._version(), adapters=adapters)
        if kind == "specdec":
            ends = model.eos_token_ids
            return ServerInfo(SpecdecDialect(), model.id, source, limit, adapters=adapters, eos_token_ids=ends)
        if kind == "sglang":
            told = await self._sglang_info()
            dialect = SGLangDialect(is_deterministic=told.enable_deterministic_inference)
            return ServerInfo(dialect, model.id, source, limit or told.context_length, told.version)
        if kind == "llamacpp":
            props = await self._get("/props", _Props)
            limit = props.default_generation_settings.n_ctx
            about = props.model_path or source, limit, props.build_info
            return ServerInfo(LlamaCppDialect(limit), model.id, *about, num_slots=props.total_slots)
        return ServerInfo(PlainDialect(), model.id, source, limit)

    def _chosen(self, models: list[_Model]) -> _Model:
        """The model that is meant.

        Raises:
            InvalidParameterError: The server does not have it, or has several and none was named.
        """
        named = [model for model in models if model.id == self._model]
        bases = [model for model in models if model.parent is None]
        if self._model is None and len(bases) == 1:
            return bases[0]
        if named:
            return named[0]
        shown = ", ".join(repr(model.id) for model in models[:_SHOWN_MODELS])
        more = f" and {len(models) - _SHOWN_MODELS} more" if len(models) > _SHOWN_MODELS else ""
        if self._model is not None:
            msg = f"The server has no model {self._model!r}. It has {shown or 'none'}{more}."
        elif models:
            msg = f"The server has several models: {shown}{more}. Name one of them: model=."
        else:
            msg = "The server has no model yet. Have it load one, and try again."
        raise InvalidParameterError(msg)

    async def _version(self) -> str | None:
        """VLLM's version; None where a proxy in front of it does not pass the question on."""
        with contextlib.suppress(Failure):
            answer = await self._fetch("/version")
            with contextlib.suppress(ValueError):
                return str(_IDS.validate_json(answer).get("version"))
        return None

    async def _sglang_info(self) -> _SGLangInfo:
        try:
            return await self._get("/server_info", _SGLangInfo)
        except Failure as failure:
            if failure.is_transient:
                raise
        # Its name until 0.5.
        return await self._get("/get_server_info", _SGLangInfo)

    async def token_ids(self, text: str) -> list[int]:
        """The tokens of a text alone, by the server.

        Raises:
            Failure: There is no answer in time, or the server has no such question.
        """
        info = await self.ask_info()
        body: Mapping[str, Any]
        if isinstance(info.dialect, LlamaCppDialect):
            body = {"content": text, "add_special": False}
        elif isinstance(info.dialect, (VLLMDialect, SGLangDialect, SpecdecDialect)):
            body = {"model": info.model_id, "prompt": text, "add_special_tokens": False}
        else:
            msg = (
                f"Tokens cannot be counted by {info.dialect.name} itself. Give the model's tokenizer, its id, or a "
                f"folder with it: tokenizer=."
            )
            raise InvalidParameterError(msg)
        limit = _BYTES + _TOKEN_BYTES * len(text.encode())
        answer = await self._client.fetch(ShortRequest("/tokenize", self._timeout, limit, body))
        return self._read("/tokenize", answer, _Tokens).tokens

    async def _fetch(self, path: str) -> bytes:
        return await self._client.fetch(ShortRequest(path, self._timeout, _BYTES))

    async def _get(self, path: str, kind: type[ModelT]) -> ModelT:
        return self._read(path, await self._fetch(path), kind)

    def _read(self, path: str, answer: bytes, kind: type[ModelT]) -> ModelT:
        try:
            return kind.model_validate_json(answer)
        except ValidationError as error:
            failure = self._unreadable(path, f"is of another form: {problems(error)}")
        raise failure
