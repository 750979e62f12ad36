"""What the stand-in generates with: the embedded model on our own engine, or canned bytes without any model."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from langchain_specdec.completions.events import FinishEvent, Token
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.sampling.params import SamplingParams


class Model(Protocol):
    """A model, used from one event loop.

    Attributes:
        model_id: Its name.
        max_positions: Most tokens of a prompt and its completion.
        vocab_size: Number of its tokens.
        eos_token_ids: Tokens that end a text.
        takes_grammars: Whether a text can be given a form.
        tokenizer: Encodes and decodes as a `PrivateTokenizer` does.
    """

    model_id: str
    max_positions: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    takes_grammars: bool

    @property
    def tokenizer(self) -> Any: ...

    def check_grammar(self, grammar: Grammar) -> None:
        """ValueError for one that cannot be followed."""

    def steps(self, prompt: Sequence[int], params: SamplingParams) -> AsyncGenerator[Sequence[Token], None]:
        """Tokens, as many at a time as one forward pass yields, without texts. Ends after EOS or `max_new_tokens`."""

    def close(self) -> None: ...


class FakeModel:
    """One token per byte; every prompt gets the same answer. Needs no library, starts at once, is its own tokenizer.

    Args:
        speculate: Tokens that a pass yields beside the first.
        answer: The answer; None is `ANSWER`.
        takes_grammars: Whether it takes grammars, and answers as ever.
    """

    ANSWER = "Grüße aus dem Hafen! 🚢"
    EOS = 256

    special_texts: Mapping[int, str] = {EOS: "</s>"}
    backend = None

    def __init__(self, speculate: int = 0, *, answer: str | None = None, takes_grammars: bool = False) -> None:
        self.answer = self.ANSWER if answer is None else answer
        self.model_id = "fake"
        self.max_positions = 2048
        self.vocab_size = 257
        self.eos_token_ids = frozenset({self.EOS})
        self.takes_grammars = takes_grammars
        self._width = 1 + speculate

    @property
    def tokenizer(self) -> Any:
        return self

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(token for token in ids if token < self.EOS).decode(errors="replace")

    def check_grammar(self, grammar: Grammar) -> None:
        try:
            re.compile(grammar.regex or "")
        except re.error as error:
            raise ValueError(str(error)) from error

    async def steps(self, prompt: Sequence[int], params: SamplingParams) -> AsyncGenerator[Sequence[Token], None]:
        ids = [*self.answer.encode(), self.EOS][: params.max_new_tokens]
        tokens = [Token(token, "", None, -0.5, {token: -0.5}) for token in ids]
        # The first token comes from prefill, which never speculates.
        for start in (0, *range(1, len(ids), self._width)):
            await asyncio.sleep(0)
            yield tokens[start : start + self._width if start else 1]

    def close(self) -> None:
        pass


class EngineModel:
    """A Hugging Face model on the engine of langchain_specdec, drafting `speculate` tokens by prompt lookup.

    Args:
        model_id: `"embedded"`, or what `LocalBackend` takes.
        speculate: Tokens to draft at a time, 0 for none.
        backend: A backend to share instead of loading one; it is not closed.
        options: Passed to `LocalBackend`.
    """

    def __init__(self, model_id: str, speculate: int = 0, *, backend: Any = None, **options: Any) -> None:
        from langchain_specdec.backends.local import LocalBackend

        self._is_own = backend is None
        if backend is None:
            drafting = {"drafter": "prompt_lookup", "max_draft_tokens": speculate, "draft_length": speculate}
            # Uncompiled, as tests have it serve a few short texts.
            options = {"compile": "off", **(drafting if speculate else {"drafter": "none"}), **options}
            backend = LocalBackend(model_id, **options)
        self._engine = backend.engine
        self._backend = backend
        self.tokenizer = backend.private_tokenizer
        self.model_id = model_id
        self.max_positions = backend.engine.runner.max_length
        self.vocab_size = len(self.tokenizer.copied)
        self.eos_token_ids = frozenset(backend.identity["eos_token_ids"])
        self.takes_grammars = True

    def check_grammar(self, grammar: Grammar) -> None:
        params = SamplingParams(max_new_tokens=self.max_positions - 1, grammar=grammar)
        self._engine.submit([0], params).close()

    async def steps(self, prompt: Sequence[int], params: SamplingParams) -> AsyncGenerator[Sequence[Token], None]:
        # TGI ends no answer in time: it is cut by who reads this.
        if params.grammar is not None:
            params = replace(params, max_new_tokens=self.max_positions - len(prompt))
        stream = self._engine.submit(list(prompt), params)
        try:
            async for event in stream:
                if not isinstance(event, FinishEvent):
                    yield event.tokens
        finally:
            stream.close()

    def close(self) -> None:
        if self._is_own:
            self._backend.close()
