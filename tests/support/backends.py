"""Backends on tiny models for tests of the LangChain face, a backend without a model, and callbacks that count."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler

from langchain_specdec import ChatSpeculative, LocalBackend, SpeculativeLLM
from langchain_specdec.backends.base import Backend
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.events import Event, FinishEvent, FinishReason, Token, TokenEvent
from langchain_specdec.completions.stats import SpeculationStats
from langchain_specdec.completions.stream import CompletionStream
from langchain_specdec.engine.engine import Engine
from langchain_specdec.engine.request import make_stopper
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.models.private_tokenizer import PrivateTokenizer
from langchain_specdec.sampling.params import SamplingParams
from tests.support.chat_templates import CHATML, chat_tokenizer
from tests.support.tiny_models import byte_tokenizer, tiny_model, wait_until

PROMPTS = ["hello hello hello", "abcabcabc", "x", "The quick brown fox", "one two one two one", "?!", "aaaa", "Zebra"]


def make_backend(seed: int = 0, **options: Any) -> LocalBackend:
    """A tiny random model; steps cost the same at any width unless told otherwise."""
    defaults = {"num_slots": 4, "max_length": 256, "step_cost": StepCost.flat()}
    return LocalBackend(tiny_model(seed), byte_tokenizer(), **{**defaults, **options})


def make_chat_backend(template: str = CHATML, **options: Any) -> LocalBackend:
    """A tiny random model in double precision that knows the tokens of chats, with room for the talks of agents."""
    tokenizer = chat_tokenizer(template)
    model = tiny_model(2, dtype=torch.float64, vocab_size=len(tokenizer), max_position_embeddings=4096)
    defaults = {"num_slots": 4, "max_length": 3072, "dtype": torch.float64, "step_cost": StepCost.flat()}
    return LocalBackend(model, tokenizer, **{**defaults, **options})


def make_drafting_backend(seed: int = 0, **options: Any) -> LocalBackend:
    """The same with itself as draft model, four tokens at a time: every draft is accepted."""
    draft = {"draft_model": tiny_model(seed), "draft_tokenizer": byte_tokenizer(), "drafter": "draft_model"}
    return make_backend(seed, **{**draft, "max_draft_tokens": 4, "draft_length": 4, **options})


def make_llm(seed: int = 0, **fields: Any) -> SpeculativeLLM:
    return SpeculativeLLM(backend=make_backend(seed), **{"max_new_tokens": 16, **fields})


@contextmanager
def lasting(backend: LocalBackend) -> Iterator[LocalBackend]:
    """A backend for all tests of a module: its thread runs already, so that none of them is to blame for it."""
    backend.complete([CompletionRequest("x", SamplingParams(max_new_tokens=1))])
    yield backend
    backend.close()


def engine_of(llm: SpeculativeLLM) -> Engine:
    """The engine of a model that runs in this process."""
    assert isinstance(llm.backend, LocalBackend)
    return llm.backend.engine


def is_idle(backend: LocalBackend) -> bool:
    return wait_until(lambda: backend.engine.num_running == 0 and backend.engine.num_waiting == 0)


def engine_threads() -> list[threading.Thread]:
    gc.collect()
    return [thread for thread in threading.enumerate() if thread.name == "specdec-engine"]


class Counter(BaseCallbackHandler):
    """Everything that a run reports, in order."""

    run_inline = True

    def __init__(self) -> None:
        self.starts: list[str] = []
        self.tokens: list[str] = []
        self.chunks: list[Any] = []
        self.ends: list[Any] = []
        self.errors: list[BaseException] = []

    def on_llm_start(self, serialized: Any, prompts: list[str], **kwargs: Any) -> None:
        self.starts += prompts

    def on_llm_new_token(self, token: Any, *, chunk: Any = None, **kwargs: Any) -> None:
        self.tokens.append(token)
        self.chunks.append(chunk)

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.ends.append(response)

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.errors.append(error)


class AsyncCounter(AsyncCallbackHandler):
    """`Counter` for an event loop."""

    def __init__(self) -> None:
        self.seen = Counter()

    async def on_llm_start(self, *args: Any, **kwargs: Any) -> None:
        self.seen.on_llm_start(*args, **kwargs)

    async def on_llm_new_token(self, *args: Any, **kwargs: Any) -> None:
        self.seen.on_llm_new_token(*args, **kwargs)

    async def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
        self.seen.on_llm_end(*args, **kwargs)

    async def on_llm_error(self, *args: Any, **kwargs: Any) -> None:
        self.seen.on_llm_error(*args, **kwargs)


def told(*events: Event) -> CompletionStream:
    """A stream of events that have all come already."""
    stream = CompletionStream()
    for event in events:
        stream.put(event)
    return stream


class EchoBackend(Backend):
    """The least that a backend needs: answers with the words of the prompt."""

    model_name = "echo"

    def __init__(self) -> None:
        self.requests: list[CompletionRequest] = []
        self.is_closed = False

    @property
    def identity(self) -> dict[str, Any]:
        return {"model": "echo"}

    def start(self, requests: Sequence[CompletionRequest]) -> list[CompletionStream]:
        return [self._start(request) for request in requests]

    def _start(self, request: CompletionRequest) -> CompletionStream:
        self.requests.append(request)
        words = str(request.prompt).split(" ")[: request.params.max_new_tokens]
        finish = FinishEvent("length", len(words), len(words), 7, SpeculationStats())
        return told(*(TokenEvent((Token(len(word), word + " ", False),)) for word in words), finish)

    def token_ids(self, text: str) -> list[int]:
        return [len(word) for word in text.split(" ")]

    def close(self) -> None:
        self.is_closed = True


# The token that ends a scripted answer; it is no tokenizer's.
_END = -1

Answer = str | Callable[[str], str]


class ScriptedBackend(Backend):
    """A model that answers what it was told to, token by token, whatever it is asked.

    Args:
        answers: Its answers; the last is repeated. One that is a function is called with the prompt's text.
        template: Its chat template.
        width: Tokens of a decoding step.
    """

    model_name = "scripted"
    tokenizer: Any = None
    takes_token_ids = True
    takes_calls_or_object = True
    takes_thoughts = True
    max_length = 4096
    num_prefill_tokens = 0

    def __init__(self, *answers: Answer, template: str | None = CHATML, width: int = 1) -> None:
        self.answers = list(answers)
        self.tokenizer = chat_tokenizer(template)
        self.width = width
        self.finish_reason: FinishReason = "eos_token"
        self.grammar_error: str | None = None
        self.requests: list[CompletionRequest] = []
        self.streams: list[CompletionStream] = []
        self.is_closed = False

    @property
    def identity(self) -> dict[str, Any]:
        return {"model": "scripted"}

    @property
    def private_tokenizer(self) -> PrivateTokenizer:
        return PrivateTokenizer(self.tokenizer)

    @property
    def prompt(self) -> str:
        """The last prompt as text."""
        return self.prompts[-1]

    @property
    def prompts(self) -> list[str]:
        """All prompts as texts, in the order in which they came."""
        return [self._text_of(request) for request in self.requests]

    def _text_of(self, request: CompletionRequest) -> str:
        prompt = request.prompt
        return prompt if isinstance(prompt, str) else str(self.tokenizer.decode(prompt))

    def start(self, requests: Sequence[CompletionRequest]) -> list[CompletionStream]:
        return [self._start(request) for request in requests]

    def _start(self, request: CompletionRequest) -> CompletionStream:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if not isinstance(answer, str):
            answer = answer(self._text_of(request))
        ids = self.tokenizer(answer, add_special_tokens=False).input_ids
        # Text comes as from the engine. The end of an answer has no token of its own here.
        params = replace(request.params, ignore_eos=False)
        how = params, (), request.shown_specials, request.make_end_check, request.thoughts
        stopper = make_stopper(self.private_tokenizer, [_END], *how)
        tokens: list[Token] = []
        for index, token in enumerate(ids):
            tokens.append(Token(token, stopper.add(token), drafted=index % 2 == 1))
            if stopper.finish_reason is not None:
                break
        else:
            rest = stopper.add(_END)
            tokens[-1:] = [replace(token, text=token.text + rest) for token in tokens[-1:]]
        reason = "stop_sequence" if stopper.finish_reason == "stop_sequence" else self.finish_reason
        steps = [tuple(tokens[start : start + self.width]) for start in range(0, len(tokens), self.width)]
        counts = len(request.prompt), len(tokens)
        finish = FinishEvent(reason, *counts, 7, SpeculationStats(), cached_tokens=3, grammar_error=self.grammar_error)
        self.streams.append(told(*map(TokenEvent, steps), finish))
        return self.streams[-1]

    def token_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text).input_ids)

    def close(self) -> None:
        self.is_closed = True


def scripted(*answers: Answer, template: str | None = CHATML, width: int = 1, **fields: Any) -> ChatSpeculative:
    """A chat with a scripted model."""
    return ChatSpeculative(backend=ScriptedBackend(*answers, template=template, width=width), **fields)


def scripted_backend(model: Any) -> ScriptedBackend:
    """The backend of a chat that `scripted` made, also where tools are bound to it."""
    backend = getattr(model, "bound", model).backend
    assert isinstance(backend, ScriptedBackend)
    return backend
