"""Small GET requests to a server on this machine: /health, /info, /metrics."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from tgi_launcher.errors import NotRunningError

_HEALTH_SECONDS = 5.0
_MAX_BYTES = 16 * 2**20
# Proxies that the environment names are not asked: the server is on this machine.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerInfo(BaseModel):
    """What `/info` tells. Releases of TGI differ, so most fields may be missing; others are kept as they are.

    With speculation, `max_total_tokens` may be much smaller than what the model could do: TGI then reads prompts in
    one pass. How many tokens it drafts, `/info` does not say.
    """

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    model_id: str
    max_concurrent_requests: int
    model_sha: str | None = None
    max_best_of: int | None = None
    max_stop_sequences: int | None = None
    # `max_input_length` was its name until TGI 2.1.
    max_input_tokens: int | None = Field(None, validation_alias=AliasChoices("max_input_tokens", "max_input_length"))
    max_total_tokens: int | None = None
    max_client_batch_size: int | None = None
    router: str | None = None
    version: str | None = None


def is_healthy(base_url: str, *, timeout: float = _HEALTH_SECONDS) -> bool:
    """Whether `/health` answers 200. TGI opens its port only when the model is loaded and warm."""
    try:
        get_text(f"{base_url}/health", timeout=timeout)
    except NotRunningError:
        return False
    return True


def get_info(base_url: str, *, timeout: float) -> ServerInfo:
    """What `/info` says.

    Raises:
        NotRunningError: There is no answer, or none that can be read.
    """
    text = get_text(f"{base_url}/info", timeout=timeout)
    try:
        return ServerInfo.model_validate_json(text)
    except ValidationError as error:
        msg = f"{base_url}/info is not TGI's: {text[:200]!r}"
        raise NotRunningError(msg) from error


def get_text(url: str, *, timeout: float) -> str:
    """The body of a GET that answers 200.

    Raises:
        NotRunningError: There is no answer within `timeout` seconds, or another one.
    """
    try:
        with _opener.open(url, timeout=timeout) as response:
            body: bytes = response.read(_MAX_BYTES)
    except urllib.error.HTTPError as error:
        with error:
            msg = f"{url} answers {error.code}."
            raise NotRunningError(msg) from error
    except (OSError, http.client.HTTPException) as error:
        msg = f"{url} does not answer: {error}."
        raise NotRunningError(msg) from error
    return body.decode("utf-8", "replace")
