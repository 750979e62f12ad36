"""The model that a server serves, and how a request gets at it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.events import Event
from langchain_specdec.completions.stream import CompletionStream
from langchain_specdec.errors import EngineClosedError, InvalidParameterError
from langchain_specdec.server.admission import Admission
from langchain_specdec.server.held import Held
from langchain_specdec.server.metrics import ServerMetrics
from langchain_specdec.server.settings import ServerSettings

if TYPE_CHECKING:
    from langchain_specdec.backends.local import LocalBackend
    from langchain_specdec.chat_models import ChatSpeculative

# What clients say where they do not care: TGI's name for its model, and what huggingface_hub fills in.
_ANY_MODEL = frozenset({"tgi", "dummy"})


class Started(NamedTuple):
    """Completions that run for a client, and what is let go of when it is served or gone."""

    runs: list[AsyncIterator[Event]]
    held: Held


class ServedModel:
    """A model that is served. Everything is for the server's event loop.

    Args:
        backend: Runs it; it is not closed.
        settings: Limits.
        chat: Takes messages; None where the model has no chat template.

    Attributes:
        tokenizer: The model's.
        eos_token_ids: Tokens that end a text.
        is_broken: Whether the engine has ended, so that no request can be answered any more.
        since: When it began to be served, in seconds of Unix time.
    """

    def __init__(self, backend: LocalBackend, settings: ServerSettings, chat: ChatSpeculative | None = None) -> None:
        self.backend = backend
        self.settings = settings
        self.admission = Admission(backend.num_slots, settings.max_waiting)
        self.metrics = ServerMetrics(
            self.name,
            lambda: min(self.admission.num_inside, self.admission.num_slots),
            lambda: max(self.admission.num_inside - self.admission.num_slots, 0),
        )
        self.tokenizer = backend.private_tokenizer
        self.eos_token_ids = frozenset(backend.identity.get("eos_token_ids", ()))
        self.is_broken = False
        self.since = int(time.time())
        self.chat = chat

    @property
    def name(self) -> str:
        """What clients call the model."""
        return self.settings.served_model_name or self.backend.model_name

    @property
    def max_length(self) -> int:
        """Most tokens of a prompt and its completion together."""
        return self.backend.max_length

    async def prompt_ids(self, text: str, *, is_long: bool) -> list[int]:
        """The tokens of a prompt; those of a long one without blocking the event loop."""
        if is_long:
            return await asyncio.to_thread(self.backend.prompt_ids, text)
        return self.backend.prompt_ids(text)

    def adapter_of(self, model: str | None) -> str | None:
        """The adapter that a request means by the name of its model; None is the base alone.

        Raises:
            UnknownModelError: There is no such model.
        """
        if model in (None, "", self.name) or model in _ANY_MODEL:
            return None
        if model in self.backend.adapter_names:
            return model
        names = ", ".join(map(repr, [self.name, *self.backend.adapter_names]))
        msg = f"The model {model!r} is not served here. There is {names}."
        raise UnknownModelError(msg)

    async def start(self, requests: Sequence[CompletionRequest], held: Held, *, is_whole: bool = False) -> Started:
        """Start completions.

        Args:
            requests: What to complete.
            held: What the client's request holds already, and whose it is. The streams join it.
            is_whole: Whether nobody reads anything before the end.

        Raises:
            SpecDecError: One of them cannot be run. None has started then.
        """
        try:
            streams = await self.backend.astart([replace(r, namespace=held.namespace) for r in requests])
        except EngineClosedError:
            self.is_broken = True
            raise
        for stream in streams:
            held.callback(stream.close)
            stream.set_timeout(self.settings.request_timeout)
        return Started([self._events(stream.whole() if is_whole else stream) for stream in streams], held)

    async def _events(self, stream: CompletionStream) -> AsyncGenerator[Event, None]:
        try:
            async for event in self.metrics.counted(stream):
                yield event
        except EngineClosedError:
            self.is_broken = True
            raise

    async def token_names(self, token_ids: Sequence[int]) -> dict[int, bytes]:
        """The bytes that tokens spell; of special ones their names."""
        texts = await asyncio.to_thread(lambda: self._spellings)
        if texts is not None:
            return {token: texts[token] for token in token_ids}
        special = self.tokenizer.special_texts
        return {token: (special.get(token) or self.tokenizer.decode([token])).encode() for token in token_ids}

    @cached_property
    def _spellings(self) -> list[bytes] | None:
        """The bytes of all tokens; None where the tokenizer cannot be read."""
        # It takes PyTorch, which a server that is asked for no log probabilities by name can do without.
        from langchain_specdec.grammar.vocabulary import Vocabulary

        tokenizer = self.tokenizer.copied
        try:
            return Vocabulary(tokenizer, len(tokenizer), [tokenizer.eos_token_id or 0]).texts
        except InvalidParameterError:
            return None


class UnknownModelError(InvalidParameterError):
    """A request names a model that is not served."""


async def merged(runs: Sequence[AsyncIterator[Event]]) -> AsyncGenerator[tuple[int, Event], None]:
    """The events of several completions as they come, each with the place of its completion."""
    waiting = {asyncio.ensure_future(anext(run)): place for place, run in enumerate(runs)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda task: waiting[task]):
                place = waiting.pop(task)
                try:
                    event = task.result()
                except StopAsyncIteration:
                    continue
                waiting[asyncio.ensure_future(anext(runs[place]))] = place
                yield place, event
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
