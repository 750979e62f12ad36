"""The constructors of both LangChain models: by the name of a model, on a backend, or over a server."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, SkipValidation, create_model
from typing_extensions import Self

from langchain_specdec.backends.base import Backend
from langchain_specdec.backends.local_options import OPTIONS, LocalOptions
from langchain_specdec.backends.openai.launch_options import EngineLaunchOptions
from langchain_specdec.backends.tgi.launch_options import LaunchOptions
from langchain_specdec.completions.stream import checked_timeout
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.options import options_of, spelled_out
from langchain_specdec.parameter_names import ALIASES, LOADING_ALIASES, join_stops, named_parameters, refuse_unknown
from langchain_specdec.sampling.params import SamplingParams, check_adapter

if TYPE_CHECKING:
    from langchain_specdec.construction.keywords import ModelSource

PARAMETERS = frozenset(options_of(SamplingParams))
"""Names of the sampling parameters; each is a field, and can be given per call."""

LOADING = frozenset({"model", "tokenizer", *OPTIONS})
"""Names of what a model is loaded with."""
# What other packages call the address of a server.
_ADDRESSES = ("base_url", "endpoint_url", "inference_server_url")
_NOT_LOADED: Any = object()


class ModelConstructors(BaseModel):
    """The constructors of a LangChain model over a backend."""

    # An input may hold a key.
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True)

    backend: SkipValidation[Backend] = Field(exclude=True, repr=False)
    """Where completions come from."""

    # Not a validator: pydantic would wrap the errors.
    if TYPE_CHECKING:

        def __init__(self, **values: Any) -> None: ...
    else:

        @spelled_out(LocalOptions, rest="values")
        def __init__(
            self,
            *unnamed: Any,
            model: ModelSource | None = None,
            backend: Backend | None = None,
            tokenizer: Any = None,
            **values: Any,
        ) -> None:
            if unnamed:
                msg = f'A model is given by name, as {type(self).__name__}(model="embedded"), and so is all else.'
                raise InvalidParameterError(msg)
            given = {"model": model, "backend": backend, "tokenizer": tokenizer, **values}
            fields, loaded = self._with_backend(given)
            try:
                super().__init__(**fields)
                self._check_made()
            except BaseException:
                if loaded is not None:
                    loaded.close()
                raise

    @classmethod
    def _with_backend(cls, values: Mapping[str, Any]) -> tuple[dict[str, Any], Backend | None]:
        """The fields, and the backend among them where a model was loaded for it."""
        for name in _ADDRESSES:
            if values.get(name) is not None:
                msg = (
                    f"{name} is the address of a server: {cls.__name__}.from_tgi(base_url) uses one of TGI, and "
                    f"{cls.__name__}.from_server(base_url) one that speaks OpenAI's protocol, instead of model."
                )
                raise InvalidParameterError(msg)
        own = set(cls.model_fields)
        named = named_parameters(values, own | LOADING, {**ALIASES, **LOADING_ALIASES})
        if "backend" not in named:
            if "model" not in named:
                msg = (
                    f'No model is named. {cls.__name__}(model="embedded") takes the model that comes along; a model '
                    "id of the Hugging Face Hub, a local folder or a loaded model may stand in its place. "
                    f"{cls.__name__}.from_tgi(base_url) and {cls.__name__}.from_server(base_url) use a server."
                )
                raise InvalidParameterError(msg)
            return cls._with_model(named)
        loading = sorted(name for name in named if name in LOADING and name not in own)
        if "model" in named:
            msg = "model and backend were both given: a backend has its model already. Give only one of them."
            raise InvalidParameterError(msg)
        if loading:
            msg = (
                f"{', '.join(loading)}: options of a model that is loaded here, and a backend has its model already. "
                f"Give them to LocalBackend(...), or give model= in place of backend=."
            )
            raise InvalidParameterError(msg)
        return cls._checked(named), None

    @classmethod
    def _with_model(cls, named: Mapping[str, Any]) -> tuple[dict[str, Any], Backend]:
        """The fields and a new backend; all that can be refused without the model is refused before it is loaded."""
        # Beside several adapters, `adapter` names the one that calls take.
        loading = LOADING - {"adapter"} if "adapters" in named else LOADING
        options = {name: value for name, value in named.items() if name in loading}
        if isinstance(adapters := options.get("adapters"), Mapping):
            check_adapter(named.get("adapter"), list(adapters))
        fields = cls._check_early({name: value for name, value in named.items() if name not in loading})

        from langchain_specdec.backends.local import LocalBackend

        backend = LocalBackend(options.pop("model"), **options)
        return {**fields, "backend": backend}, backend

    @classmethod
    def _checked(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The fields under their own names. Refuses unknown ones, and values out of their range."""
        fields = named_parameters(values, cls.model_fields)
        if "stop" in fields:
            fields["stop"] = join_stops(fields["stop"]) or None
        given = {name: value for name, value in fields.items() if name in PARAMETERS}
        SamplingParams(**{**given, "stop": given.get("stop") or ()})
        checked_timeout(fields.get("timeout"))
        backend = fields.get("backend")
        if backend is not _NOT_LOADED and not isinstance(backend, Backend):
            msg = (
                f"backend must be a backend such as LocalBackend(...), got {type(backend).__name__}. "
                f"{cls.__name__}(model=...) loads a model by its id, and {cls.__name__}.from_server(...) uses a server."
            )
            raise InvalidParameterError(msg)
        if isinstance(backend, Backend) and (names := backend.adapter_names) is not None:
            check_adapter(given.get("adapter"), names)
        return fields

    def _check_made(self) -> None:
        """Raise what can be said of the model only once it is there; it is closed then, if it was loaded for this."""

    @classmethod
    def _check_engine(cls, engine: str) -> None:
        """Refuse an engine whose servers cannot do what is needed here."""

    @classmethod
    def _check_early(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The fields but the backend, checked before there is one."""
        named = cls._checked({"backend": _NOT_LOADED, **fields})
        del named["backend"]
        given: dict[str, Any] = {name: cls.model_fields[name] for name in named}
        definitions: Any = {name: (field.annotation, field) for name, field in given.items()}
        config = ConfigDict(arbitrary_types_allowed=True, hide_input_in_errors=True)
        create_model(cls.__name__, __config__=config, **definitions)(**named)
        return named

    @classmethod
    @spelled_out(LocalOptions, rest="kwargs")
    def from_model_id(cls, model_id: ModelSource, **kwargs: Any) -> Self:
        """Load a model into this process: the same as the class called with `model=`.

        Args:
            model_id: Model id of the Hugging Face Hub, local folder, GGUF file (on the Hub: `owner/name:file.gguf`),
                `"embedded"` (a 135M model that comes along), or a loaded model.
            kwargs: Sampling parameters and other fields of this class, and options of loading, which `LocalOptions`
                lists: `drafter`, `draft_model` (or `draft_model_id`), `num_slots`, `max_length`, `dtype`, `device`, ...

        Raises:
            InvalidParameterError: A parameter is unknown or out of its range. Raised before anything is loaded.
            UnsupportedModelError: The model, or the pair of models, cannot be run.
            ModelLoadError: The model or its tokenizer cannot be found or read.
        """
        return cls(model_id=model_id, **kwargs)

    @classmethod
    def from_tgi(
        cls,
        base_url: str,
        *,
        api_key: str | SecretStr | None = None,
        client: str | None = "auto",
        read_timeout: float | None = 120.0,
        max_retries: int | None = 2,
        max_concurrency: int | None = None,
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Use a Text Generation Inference server. Nothing is sent to it before the first call.

        A chat needs the tokenizer of the server's model, for its chat template. Without `tokenizer=` the first call
        asks the server which model that is, and reads the tokenizer from the model's folder, where the server is on
        this machine, or takes it from the Hugging Face Hub or its cache.

        Args:
            base_url: Root address of the server, such as `"http://127.0.0.1:8080"`.
            api_key: The server's key; a Hugging Face token is refused for hosts that are not Hugging Face's.
            client: `"text-generation"`, `"huggingface-hub"`, or `"auto"`: the first where it is installed.
            read_timeout: Most seconds to wait for the next token, the first included.
            max_retries: How often a request is sent again that failed before its first token.
            max_concurrency: Most requests at a time; None is the server's own limit.
            tokenizer: The model's Hugging Face tokenizer, or an id or folder to load it from.
            kwargs: Sampling parameters and other fields of this class.

        Raises:
            InvalidParameterError: A parameter is unknown or out of its range.
            MissingDependencyError: The client asked for is not installed.
        """
        from langchain_specdec.backends.tgi.backend import TGIBackend

        connection: dict[str, Any] = {
            "api_key": api_key, "client": client, "read_timeout": read_timeout, "max_retries": max_retries,
            "max_concurrency": max_concurrency, "tokenizer": tokenizer,
        }  # fmt: skip
        return cls._connected(TGIBackend, base_url, connection, kwargs)

    @classmethod
    def from_server(
        cls,
        base_url: str,
        *,
        api_key: str | SecretStr | None = None,
        model: str | None = None,
        read_timeout: float | None = 120.0,
        max_retries: int | None = 2,
        max_concurrency: int | None = None,
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Use a server that speaks OpenAI's protocol: vLLM, SGLang, llama.cpp, `specdec serve`, or another.

        Nothing is sent to it before the first call, which finds out what answers and speaks its dialect. Chats are
        rendered here and sent as completions, so they need the tokenizer of the server's model, for its chat template.
        Without `tokenizer=` it is read from the model's folder or GGUF file, where the server is on this machine, or
        comes from the Hugging Face Hub or its cache; chats of a server of no known kind, and those with images, are
        sent as messages then, of which the server makes the prompt.

        Args:
            base_url: Root address of the server, such as `"http://127.0.0.1:8000"`; a `/v1` at its end is left out.
            api_key: The server's key; a Hugging Face token is refused for hosts that are not Hugging Face's.
            model: Which of the server's models; None is the only one that it has.
            read_timeout: Most seconds to wait for the next token, the first included.
            max_retries: How often a request is sent again that failed before its first token.
            max_concurrency: Most requests at a time; None is without limit, but for the slots of llama.cpp.
            tokenizer: The model's Hugging Face tokenizer, or an id or folder to load it from.
            kwargs: Sampling parameters and other fields of this class.

        Raises:
            InvalidParameterError: A parameter is unknown or out of its range.
        """
        from langchain_specdec.backends.openai.backend import OpenAIBackend

        connection: dict[str, Any] = {
            "api_key": api_key, "model": model, "read_timeout": read_timeout, "max_retries": max_retries,
            "max_concurrency": max_concurrency, "tokenizer": tokenizer,
        }  # fmt: skip
        return cls._connected(OpenAIBackend, base_url, connection, kwargs)

    @classmethod
    @spelled_out(LaunchOptions, rest="kwargs")
    def launch_tgi(cls, model_id: str, *, speculate: int | None = 4, **kwargs: Any) -> Self:
        """Start a Text Generation Inference server on this machine and use it; `close` ends it.

        While TGI speculates, it breaks most grammars. Where answers have to be of a given form (structured output,
        forced tool calls, `grammar=`), take one of: `speculate=0`; a second server with `speculate=0` for them; or the
        engine in this process (`model=`), which holds grammars and speculates.

        Args:
            model_id: Model id of the Hugging Face Hub, or a local folder.
            speculate: Tokens to draft per step, by n-grams or by the heads of a Medusa or MLP-speculator model; 0 for
                none, as answers of a given form need it; None for TGI's own choice.
            kwargs: Sampling parameters and other fields of this class; all else goes to `TGIBackend` (`api_key`, which
                the server is to ask for, `read_timeout`, `max_retries`, ...), or else to `tgi_launcher.TGIConfig`
                (`port`, `max_total_tokens`, `quantize`, ...) and `tgi_launcher.TGIServer` (`on_progress`, `restart`,
                ...).

        Raises:
            InvalidParameterError: A parameter is unknown or out of its range. Raised before anything is started.
            MissingDependencyError: The client asked for is not installed.
            tgi_launcher.TGIError: The server did not start.
        """
        from langchain_specdec.backends.tgi.launch import launch_backend

        fields, options = cls._split(kwargs, ("api_key", "max_retries", "tokenizer"))
        refuse_unknown(options, cls._accepted(LaunchOptions.__annotations__))
        return cls._over(launch_backend(model_id, speculate=speculate, **options), fields)

    @classmethod
    @spelled_out(EngineLaunchOptions, rest="kwargs")
    def launch_server(cls, model_id: str, *, engine: str, **kwargs: Any) -> Self:
        """Start a server of an engine on this machine and use it; `close` ends it.

        Args:
            model_id: Model id of the Hugging Face Hub, a local folder, or a GGUF file for llama.cpp.
            engine: `"specdec"`, `"vllm"`, `"sglang"`, `"llama-cpp"` or `"tgi"`, which is `launch_tgi` then. It has to
                be installed, or Docker with its image.
            kwargs: Sampling parameters and other fields of this class; all else goes to `OpenAIBackend` (`api_key`,
                which the server is to ask for, `read_timeout`, ...), or else to `tgi_launcher.EngineConfig`
                (`speculate`, the tokens to draft per step, `draft_model`, `max_total_tokens`, ...) and
                `tgi_launcher.Server` (`on_progress`, `restart`, ...). Without `speculate` the engine decides, and only
                `"specdec"` speculates by itself.

        Raises:
            InvalidParameterError: A parameter is unknown or out of its range, or the engine lacks what it asks for.
                Raised before anything is started.
            tgi_launcher.TGIError: The server did not start.
        """
        if engine == "tgi":
            return cls.launch_tgi(model_id, **{"speculate": None, **kwargs})
        cls._check_engine(engine)
        from langchain_specdec.backends.openai.launch import launch_engine

        fields, options = cls._split(kwargs, ("api_key", "max_retries", "tokenizer", "model"))
        refuse_unknown(options, cls._accepted(EngineLaunchOptions.__annotations__))
        name: Any = engine
        return cls._over(launch_engine(model_id, engine=name, **options), fields)

    def close(self) -> None:
        """Close the backend, and end its server if it has one. What still runs raises an `EngineClosedError`."""
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @classmethod
    def _split(
        cls, kwargs: Mapping[str, Any], of_backend: Collection[str] = ()
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Fields of this class, checked before a backend is made, and all else, to which `of_backend` belongs."""
        own = (set(cls.model_fields) - {"backend", *of_backend}) | set(ALIASES)
        fields = cls._check_early({name: value for name, value in kwargs.items() if name in own})
        return fields, {name: value for name, value in kwargs.items() if name not in own}

    @classmethod
    def _accepted(cls, others: Collection[str]) -> set[str]:
        """All names that a constructor takes, for messages."""
        return (set(cls.model_fields) - {"backend"}) | {*ALIASES, *others}

    @classmethod
    def _connected(
        cls, kind: Callable[..., Backend], base_url: str, connection: Mapping[str, Any], kwargs: Mapping[str, Any]
    ) -> Self:
        """One over a connection to a server, with fields of this class."""
        fields, others = cls._split(kwargs)
        refuse_unknown(others, cls._accepted(connection))
        return cls._over(kind(base_url, **connection), fields)

    @classmethod
    def _over(cls, backend: Backend, fields: Mapping[str, Any]) -> Self:
        try:
            return cls(backend=backend, **fields)
        except BaseException:
            backend.close()
            raise
