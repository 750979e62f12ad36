"""What a server tells of itself: its model and limits, the tokens of a text, its health, its drafts."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from langchain_specdec.backends.remote.facts import Facts
from langchain_specdec.backends.remote.failures import Failure, Failures
from langchain_specdec.backends.remote.loop_thread import LoopThread
from langchain_specdec.backends.remote.short_request import ShortRequest
from langchain_specdec.backends.tgi.client import TGIClient
from tgi_launcher.endpoints import ServerInfo, problems
from tgi_launcher.metrics import parse_metrics

_INFO_BYTES = 2**20
_METRICS_BYTES = 4 * 2**20
# Nobody's answer waits for these two for longer.
_HEALTH_SECONDS = 5.0
_METRICS_SECONDS = 5.0
# Of an answer to /tokenize, for each byte of the text: a token has four fields, and each byte may be a token.
_TOKEN_BYTES = 256


class _ServerToken(BaseModel):
    """A token as `/tokenize` gives it."""

    model_config = ConfigDict(frozen=True)

    id: int = Field(ge=0, strict=True)
    start: int = Field(default=0, strict=True)
    stop: int = Field(default=0, strict=True)


_server_tokens = TypeAdapter(list[_ServerToken])


class ServerFacts(Facts[ServerInfo]):
    """Asks a server for what is not part of a completion.

    Args:
        client: Sends the requests.
        failures: Makes the errors.
        loop: Where that happens.
        read_timeout: Most seconds until the last byte of an answer.
    """

    def __init__(self, client: TGIClient, failures: Failures, loop: LoopThread, read_timeout: float) -> None:
        super().__init__(failures)
        self._client = client
        self._loop = loop
        self._timeout = read_timeout

    async def _fetch_info(self) -> ServerInfo:
        answer = await self._client.fetch(ShortRequest("/info", self._timeout, _INFO_BYTES), self._failures)
        try:
            return ServerInfo.model_validate_json(answer)
        except ValidationError as error:
            failure = self._unreadable("/info", error)
        raise failure

    async def is_healthy(self) -> bool:
        """Whether the server and its model answer."""
        try:
            await self._client.fetch(
                ShortRequest("/health", min(self._timeout, _HEALTH_SECONDS), 2**16), self._failures
            )
        except Exception:
            return False
        return True

    async def skipped_tokens(self) -> float:
        """How many tokens needed no pass of their own, by `/metrics`: more than 0 is a server that speculates.

        A server that does not tell counts as one that does not speculate.
        """
        request = ShortRequest("/metrics", min(self._timeout, _METRICS_SECONDS), _METRICS_BYTES)
        try:
            text = (await self._client.fetch(request, self._failures)).decode("utf-8", "replace")
            return (await self._loop.run_blocking(lambda: parse_metrics(text, time=0.0))).skipped_sum
        except Exception:
            return 0.0

    async def holds_grammars(self) -> bool:
        """Whether it is `specdec serve`, whose texts keep to their grammars also where it speculates."""
        try:
            return (await self.ask_info()).router == "specdec"
        except Exception:
            return False

    async def prompt_ids(self, text: str) -> list[int]:
        """The tokens that the server makes of a prompt, with those that it puts in front.

        Raises:
            Failure: There is no answer in time, or none that can be TGI's.
        """
        return [token.id for token in await self._ask_tokens(text)]

    async def token_ids(self, text: str) -> list[int]:
        """The tokens of a text alone.

        Raises:
            Failure: There is no answer in time, or none that can be TGI's.
        """
        return _without_added(await self._ask_tokens(text))

    async def _ask_tokens(self, text: str) -> list[_ServerToken]:
        # Servers of other kinds have a /tokenize too, which refuses what TGI takes.
        await self.ask_info()
        max_bytes = _INFO_BYTES + _TOKEN_BYTES * len(text.encode())
        request = ShortRequest("/tokenize", self._timeout, max_bytes, {"inputs": text})
        answer = await self._client.fetch(request, self._failures)
        try:
            return _server_tokens.validate_json(answer)
        except ValidationError as error:
            failure = self._unreadable("/tokenize", error)
        raise failure

    def _unreadable(self, path: str, error: ValidationError) -> Failure:
        return self._failures.unreadable(path, f"is not TGI's: {problems(error)}")


def _without_added(tokens: Sequence[_ServerToken]) -> list[int]:
    """The tokens of a text, without those around it that stand for none of its characters, such as BOS."""
    covering = [index for index, token in enumerate(tokens) if token.start < token.stop]
    # A server may tell of no places at all.
    shown = tokens[covering[0] : covering[-1] + 1] if covering else tokens
    return [token.id for token in shown]
