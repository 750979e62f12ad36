"""A server on this machine that lives as long as the backend that uses it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import SecretStr, ValidationError

from langchain_specdec.backends.remote.options import checked_key, checked_options
from langchain_specdec.backends.remote.prompt_tokenizer import LocalTokenizer
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.parameter_names import refuse_unknown

BackendT = TypeVar("BackendT")
_ANY_PORT = "http://127.0.0.1"


@dataclass(frozen=True)
class Launch(Generic[BackendT]):
    """Starts servers of one kind, each with a backend over it.

    Attributes:
        backend: Class of the backends. It takes the server as `server`, and ends it.
        config: Class of what a server is to be.
        server: Class of the servers, of `tgi_launcher`.
        title: What the servers are called in messages.
        check: Looks at the options of a backend before a server is started, which takes minutes.
    """

    backend: Callable[..., BackendT]
    config: Any
    server: Callable[..., Any]
    title: str
    check: Callable[[Mapping[str, Any]], object]

    def start(self, options: Mapping[str, Any], **fields: Any) -> BackendT:
        """Start a server and connect to it; closing the backend ends the server.

        Args:
            options: Parameters of the backend, whose `api_key` the server is to ask for; fields of the config; and
                parameters of the server, such as `on_progress` and `restart`.
            fields: Fields of the config that are told apart from all of these.

        Raises:
            InvalidParameterError: A parameter is unknown or out of its range. Raised before anything is started.
            tgi_launcher.TGIError: The server did not start.
        """
        ours = set(inspect.signature(self.backend).parameters) - {"base_url", "server"}
        serving = set(inspect.signature(self.server).parameters) - {"config"}
        refuse_unknown(options, {*ours, *self.config.model_fields, *serving})
        # Of all of these, None is the default.
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        mine = {name: value for name, value in given.items() if name in ours}
        api_key, tokenizer = mine.pop("api_key", None), mine.pop("tokenizer", None)
        checked_options(mine.get("read_timeout"), mine.get("max_retries"), mine.get("max_concurrency"))
        key = checked_key(api_key, _ANY_PORT)
        self.check(mine)
        loaded = LocalTokenizer.load(tokenizer)
        theirs: dict[str, Any] = {name: value for name, value in given.items() if name not in ours | serving}
        config = self._config(api_key=None if key is None else SecretStr(key), **fields, **theirs)
        try:
            server = self.server(config, **{name: value for name, value in given.items() if name in serving})
        except ValueError as error:
            raise InvalidParameterError(str(error)) from error
        server.start()
        try:
            tokenizer = None if loaded is None else loaded.private
            return self.backend(server.base_url, api_key=key, tokenizer=tokenizer, server=server, **mine)
        except BaseException:
            server.stop()
            raise

    def _config(self, **fields: Any) -> Any:
        try:
            return self.config(**fields)
        except ValidationError as error:
            # Values are left out: they may be secret.
            problems = map(_told, error.errors(include_input=False, include_context=False, include_url=False))
            msg = f"The {self.title} cannot be started so: {'; '.join(problems)}."
        raise InvalidParameterError(msg)


def _told(problem: Any) -> str:
    """What pydantic says of a field, or a check of ours of one or of several."""
    text = problem["msg"].removeprefix("Value error, ").rstrip(".")
    name = ".".join(map(str, problem["loc"]))
    return text if not name or name in text else f"{name}: {text}"
