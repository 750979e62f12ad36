"""Small GET requests to a server on this machine: /health, /info, /v1/models, /metrics."""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import time
from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr, ValidationError

from tgi_launcher.errors import NotRunningError

_HEALTH_SECONDS = 5.0
_MAX_BYTES = 4 * 2**20
_Limit = Annotated[int, Field(ge=1, strict=True)]


class ServedModel(BaseModel):
    """What a server tells of its model.

    Attributes:
        model_id: What the server calls it.
        max_total_tokens: Longest prompt plus answer, in tokens; None where the server does not say.
    """

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    model_id: Annotated[str, Field(min_length=1)]
    max_total_tokens: _Limit | None = None


class ServerInfo(ServedModel):
    """What TGI's `/info` tells. Releases of TGI differ, so most fields may be missing; others are kept as they are.

    With speculation, `max_total_tokens` may be much smaller than what the model could do: TGI then reads prompts in
    one pass. How many tokens it drafts, `/info` does not say.
    """

    max_concurrent_requests: _Limit
    model_sha: str | None = None
    max_best_of: _Limit | None = None
    # 0 is a server that takes none.
    max_stop_sequences: Annotated[int, Field(ge=0, strict=True)] | None = None
    # `max_input_length` was its name until TGI 2.1.
    max_input_tokens: _Limit | None = Field(None, validation_alias=AliasChoices("max_input_tokens", "max_input_length"))
    max_client_batch_size: _Limit | None = None
    router: str | None = None
    version: str | None = None


def problems(error: ValidationError) -> str:
    """What is wrong, by field and without the values: they may be anything, and long."""
    found = error.errors(include_input=False, include_context=False, include_url=False)
    shown = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}".removeprefix(": ") for problem in found[:3]]
    return "; ".join([*shown, *(["and more"] if len(found) > len(shown) else [])])


class _Listed(BaseModel):
    """An entry of `/v1/models`."""

    id: Annotated[str, Field(min_length=1)]
    max_model_len: _Limit | None = None


class _Listing(BaseModel):
    """What `/v1/models` tells."""

    data: Annotated[list[_Listed], Field(min_length=1)]


def is_healthy(base_url: str, *, timeout: float = _HEALTH_SECONDS) -> bool:
    """Whether `/health` answers 200, as servers do once the model is loaded."""
    try:
        with _answer(f"{base_url}/health", timeout):
            return True
    except NotRunningError:
        return False


def get_info(base_url: str, *, timeout: float) -> ServerInfo:
    """What `/info` says.

    Raises:
        NotRunningError: There is no answer, or none that can be read.
    """
    text = get_text(f"{base_url}/info", timeout=timeout)
    try:
        return ServerInfo.model_validate_json(text)
    except ValidationError as error:
        msg = f"{base_url}/info is not TGI's: {problems(error)}."
        raise NotRunningError(msg) from None


def get_model(base_url: str, *, timeout: float, key: SecretStr | None = None) -> ServedModel:
    """What `/v1/models` says of the first model, which is the one that the server was started with.

    Raises:
        NotRunningError: There is no answer, or none that can be read.
    """
    text = get_text(f"{base_url}/v1/models", timeout=timeout, key=key)
    try:
        model = _Listing.model_validate_json(text).data[0]
    except ValidationError as error:
        msg = f"{base_url}/v1/models is no list of models: {problems(error)}."
        raise NotRunningError(msg) from None
    return ServedModel(model_id=model.id, max_total_tokens=model.max_model_len)


def get_text(url: str, *, timeout: float, key: SecretStr | None = None) -> str:
    """The body of a GET that answers 200. No proxy is asked and no redirect followed: the server is on this machine.

    Args:
        url: Address, of http.
        timeout: Seconds until the last byte of the answer.
        key: What the server asks for.

    Raises:
        NotRunningError: There is no answer in time, or another one.
    """
    with _answer(url, timeout, key) as response:
        body = response.read(_MAX_BYTES + 1)
    if len(body) > _MAX_BYTES:
        msg = f"{url} answers more than {_MAX_BYTES} bytes."
        raise NotRunningError(msg)
    if response.length:  # what is left of the Content-Length
        msg = f"{url} does not answer: it broke off {response.length} bytes before the end."
        raise NotRunningError(msg)
    return body.decode("utf-8", "replace")


@contextlib.contextmanager
def _answer(url: str, timeout: float, key: SecretStr | None = None) -> Iterator[http.client.HTTPResponse]:
    deadline = time.monotonic() + timeout
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    try:
        connection.connect()
    except OSError as error:
        msg = f"{url} does not answer: {str(error) or type(error).__name__}."
        raise NotRunningError(msg) from error
    connected: socket.socket = connection.sock
    try:
        # The time-out of a socket is for each of its reads, and an answer may trickle.
        connection.sock = _DeadlineSocket(connected, deadline)
        headers = {} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"}
        connection.request("GET", parts.path, headers=headers)
        response = connection.getresponse()
        if response.status != 200:
            msg = f"{url} answers {response.status}."
            raise NotRunningError(msg)
        yield response
    except (OSError, http.client.HTTPException, ValueError) as error:
        # Of what is not HTTP at all, `http.client` has a ValueError too.
        msg = f"{url} does not answer: {str(error) or type(error).__name__}."
        raise NotRunningError(msg) from error
    finally:
        connected.close()


class _DeadlineSocket:
    """What `http.client` needs of a socket, with a deadline for everything."""

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self._socket = connected
        self._deadline = deadline

    def sendall(self, data: Any) -> None:
        self._limit()
        self._socket.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_DeadlineReader(self))

    def recv_into(self, buffer: Any) -> int:
        self._limit()
        return self._socket.recv_into(buffer)

    def close(self) -> None:
        """Nothing yet: `http.client` closes its socket before the answer is read, and counts on the reader's hold."""

    def _limit(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            msg = "its answer takes too long"
            raise TimeoutError(msg)
        self._socket.settimeout(left)


class _DeadlineReader(io.RawIOBase):
    def __init__(self, source: _DeadlineSocket) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._source.recv_into(buffer)
