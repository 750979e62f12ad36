"""What the stand-in generates with: the embedded model on our own engine, or canned bytes without any model."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class GeneratedToken:
    """A token, its log probability, and those of the best ones (id -> log probability)."""

    id: int
    logprob: float
    top: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sampling:
    """What the model is asked for, in TGI's terms. `temperature` None is greedy."""

    max_new_tokens: int
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    seed: int = 0
    top_n_tokens: int = 0
    grammar: Any = None  # what the model's `make_grammar` made


class Model(Protocol):
    """A model with its tokenizer, used from one event loop."""

    model_id: str
    max_positions: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    special_ids: frozenset[int]
    takes_grammars: bool

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...

    def render(self, messages: list[dict[str, Any]]) -> str: ...

    def make_grammar(self, *, schema: dict[str, Any] | None = None, regex: str | None = None) -> Any:
        """What `steps` takes as a grammar; ValueError if that cannot be made."""

    def steps(self, prompt: Sequence[int], sampling: Sampling) -> AsyncIterator[list[GeneratedToken]]:
        """Tokens, as many at a time as one forward pass yields. Ends after EOS or `max_new_tokens`."""

    def close(self) -> None: ...


class FakeModel:
    """One token per byte; every prompt gets the same answer. Needs no library and starts at once.

    Args:
        speculate: Tokens that a pass yields beside the first.
        answer: The answer; None is `ANSWER`.
        takes_grammars: Whether it takes grammars, and answers as ever.
    """

    ANSWER = "Grüße aus dem Hafen! 🚢"
    EOS = 256

    def __init__(self, speculate: int = 0, *, answer: str | None = None, takes_grammars: bool = False) -> None:
        self.answer = self.ANSWER if answer is None else answer
        self.model_id = "fake"
        self.max_positions = 2048
        self.vocab_size = 257
        self.eos_token_ids = frozenset({self.EOS})
        self.special_ids = frozenset({self.EOS})
        self.takes_grammars = takes_grammars
        self._width = 1 + speculate

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        text = bytes(token for token in ids if token < self.EOS).decode(errors="replace")
        return text if skip_special_tokens or self.EOS not in ids else text + "</s>"

    def render(self, messages: list[dict[str, Any]]) -> str:
        return "".join(f"{message['role']}: {message['content']}\n" for message in messages)

    def make_grammar(self, *, schema: dict[str, Any] | None = None, regex: str | None = None) -> Any:
        return schema or regex

    async def steps(self, prompt: Sequence[int], sampling: Sampling) -> AsyncIterator[list[GeneratedToken]]:
        ids = [*self.answer.encode(), self.EOS][: sampling.max_new_tokens]
        tokens = [GeneratedToken(token, -0.5, {token: -0.5}) for token in ids]
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
        self._tokenizer = copy.deepcopy(backend.tokenizer)
        self.model_id = model_id
        self.max_positions = backend.engine.runner.max_length
        self.vocab_size = len(self._tokenizer)
        self.eos_token_ids = frozenset(backend.identity["eos_token_ids"])
        self.special_ids = frozenset(self._tokenizer.all_special_ids)
        self.takes_grammars = True

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False).input_ids)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return str(
            self._tokenizer.decode(
                list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
            )
        )

    def render(self, messages: list[dict[str, Any]]) -> str:
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def make_grammar(self, *, schema: dict[str, Any] | None = None, regex: str | None = None) -> Any:
        from langchain_specdec.grammar.grammar import Grammar
        from langchain_specdec.sampling.params import SamplingParams

        grammar = Grammar(schema=schema) if regex is None else Grammar(regex=regex)
        # Submitted here, to refuse what cannot be followed before anything is answered.
        self._engine.submit([0], SamplingParams(max_new_tokens=self.max_positions - 1, grammar=grammar)).close()
        return grammar

    async def steps(self, prompt: Sequence[int], sampling: Sampling) -> AsyncIterator[list[GeneratedToken]]:
        from langchain_specdec.completions.events import FinishEvent
        from langchain_specdec.sampling.params import SamplingParams

        # TGI ends no answer in time: it is cut by who reads this.
        room = self.max_positions - len(prompt)
        params = SamplingParams(
            max_new_tokens=sampling.max_new_tokens if sampling.grammar is None else room,
            temperature=sampling.temperature or 0.0,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            repetition_penalty=sampling.repetition_penalty,
            frequency_penalty=sampling.frequency_penalty,
            seed=sampling.seed,
            logprobs=sampling.top_n_tokens,
            grammar=sampling.grammar,
        )
        stream = self._engine.submit(list(prompt), params)
        try:
            async for event in stream:
                if not isinstance(event, FinishEvent):
                    yield [GeneratedToken(t.id, t.logprob or 0.0, dict(t.top_logprobs or {})) for t in event.tokens]
        finally:
            stream.close()

    def close(self) -> None:
        if self._is_own:
            self._backend.close()
