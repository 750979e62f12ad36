"""Servers for tests: a model without weights whose every answer is known, and a client of any server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import httpx
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from langchain_specdec.backends.base import Backend
from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.events import FinishEvent, Token, TokenEvent
from langchain_specdec.completions.stats import SpeculationStats
from langchain_specdec.completions.stream import CompletionStream
from langchain_specdec.engine.request import make_stopper
from langchain_specdec.models.private_tokenizer import PrivateTokenizer
from langchain_specdec.server.run import Server
from langchain_specdec.server.settings import ServerSettings
from tests.standin.models import FakeModel
from tests.support.backends import Answer, ScriptedBackend, told


def byte_valued_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is the token of its value; 256, `</s>`, ends a text. As `FakeModel` of the stand-in has it."""
    vocabulary = {character: byte for byte, character in bytes_to_unicode().items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


class CannedBackend(Backend):
    """Gives the stand-in's `FakeModel`'s answer to every prompt, as if an engine wrote it.

    Args:
        width: Tokens of a step but for the first.
    """

    model_name = "fake"
    takes_token_ids = True
    max_length = 2048
    num_slots = 64
    adapter_names = ()

    def __init__(self, width: int = 1) -> None:
        self._tokenizer = PrivateTokenizer(byte_valued_tokenizer())
        self._width = width

    @property
    def identity(self) -> dict[str, Any]:
        return {"model": "fake", "eos_token_ids": [FakeModel.EOS]}

    @property
    def private_tokenizer(self) -> PrivateTokenizer:
        return self._tokenizer

    def prompt_ids(self, text: str | Sequence[int]) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)

    def token_ids(self, text: str) -> list[int]:
        return list(text.encode())

    def start(self, requests: Sequence[CompletionRequest]) -> list[CompletionStream]:
        return [self._start(request) for request in requests]

    def _start(self, request: CompletionRequest) -> CompletionStream:
        how = request.params, (), request.shown_specials, request.make_end_check
        stopper = make_stopper(self._tokenizer, [FakeModel.EOS], *how)
        wanted = request.params.logprobs
        tokens = []
        for token in (*FakeModel.ANSWER.encode(), FakeModel.EOS):
            text = stopper.add(token)
            logprob = None if wanted is None else -0.5
            tokens.append(Token(token, text, False, logprob, {token: -0.5} if wanted else {}))
            if stopper.finish_reason is not None:
                break
        assert stopper.finish_reason is not None
        starts = [0, *range(1, len(tokens), self._width)]
        steps = [tuple(tokens[start : start + self._width if start else 1]) for start in starts]
        counts = len(self.prompt_ids(request.prompt)), len(tokens)
        seed = 7 if request.params.seed is None else request.params.seed
        stats = SpeculationStats(num_steps=len(steps), emitted_tokens=len(tokens))
        return told(*map(TokenEvent, steps), FinishEvent(stopper.finish_reason, *counts, seed, stats))

    def close(self) -> None:
        pass


@contextmanager
def serving(backend: Backend, **settings: Any) -> Iterator[httpx.Client]:
    """A client of a server, in a thread of this process on a free port, of some backend."""
    chosen = ServerSettings(**{"port": 0, **settings})
    with Server(chosen).start(cast("LocalBackend", backend)) as server, httpx.Client(base_url=server.url) as client:
        yield client


class ServedScript(ScriptedBackend):
    """A model that answers what it was told to, for servers.

    Args:
        answers: Its answers; the last is repeated.
        options: As `ScriptedBackend` takes them.
    """

    num_slots = 8
    adapter_names = ()

    def __init__(self, *answers: Answer, **options: Any) -> None:
        super().__init__(*answers, **options)
        self._private = PrivateTokenizer(self.tokenizer)

    @property
    def private_tokenizer(self) -> PrivateTokenizer:
        return self._private

    def prompt_ids(self, text: str | Sequence[int]) -> list[int]:
        return self._private.encode(text) if isinstance(text, str) else list(text)
