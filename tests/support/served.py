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
from langchain_specdec.models.private_tokenizer import PrivateTokenizer
from langchain_specdec.server.run import Server
from langchain_specdec.server.settings import ServerSettings
from tests.standin.inference import Shard
from tests.standin.models import FakeModel
from tests.support.backends import Answer, ScriptedBackend


def byte_valued_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is the token of its value; 256, `</s>`, ends a text. As `FakeModel` of the stand-in has it."""
    vocabulary = {character: byte for byte, character in bytes_to_unicode().items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


class CannedBackend(Shard):
    """Gives the stand-in's `FakeModel`'s answer to every prompt, as if an engine wrote it.

    Args:
        width: Tokens of a step but for the first.
    """

    def __init__(self, width: int = 1) -> None:
        super().__init__(FakeModel(width - 1, takes_grammars=True))
        self._tokenizer = PrivateTokenizer(byte_valued_tokenizer())

    @property
    def private_tokenizer(self) -> PrivateTokenizer:
        return self._tokenizer


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
