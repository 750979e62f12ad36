"""Completions by a server that speaks OpenAI's protocol: vLLM, SGLang, llama.cpp, `specdec serve`, and others.

Where the tokenizer can be known, everything is a completion, chats too. A chat is rendered here, by the chat template
of the model's own tokenizer, and sent as a prompt, as tokens where the server takes them; the answer is the model's raw
text, in which thoughts and calls are read here. The server's own `/v1/chat/completions` is not used: each kind of
server renders, parses thoughts and parses calls in its own way, by flags of its start, and hides what special tokens it
read. So all that a chat can do (formats of calls, thoughts, forced calls and forms, answers that are gone on with) is
the same over every backend, and `reasoning` needs no parser on the server.

Two kinds of chats are sent as messages all the same (`ServerChat`), and what only a prompt of one's own can do is
refused for them: those of servers of no known kind, which do not say whose tokenizer it is, where none was given
(`Dialect.writes_prompts`); and those with images, which no prompt can carry.

Where the tokenizer is known and the server tells the tokens of its answer, the text is decoded here from them, as that
of the engine in this process is: stop strings, special tokens and characters in several tokens are then exact.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic import SecretStr

from langchain_specdec.backends.openai.answer_text import AnswerText
from langchain_specdec.backends.openai.chat_reader import ChatReader
from langchain_specdec.backends.openai.chunks import Chunk, Told
from langchain_specdec.backends.openai.client import OpenAIClient
from langchain_specdec.backends.openai.dialect import CHAT_PATH, Asked, Reader
from langchain_specdec.backends.openai.failures import OpenAIFailures
from langchain_specdec.backends.openai.server_facts import OpenAIServerFacts, ServerInfo
from langchain_specdec.backends.openai.tokenizers import ServedTokenizer
from langchain_specdec.backends.remote.backend import Connection, Events, RemoteBackend, check_text
from langchain_specdec.backends.remote.failures import Lost
from langchain_specdec.backends.remote.grammar_check import GrammarCheck
from langchain_specdec.backends.remote.loop_thread import LoopThread, time_limit
from langchain_specdec.backends.remote.options import (
    MAX_RETRIES,
    READ_TIMEOUT,
    checked_key,
    checked_options,
    checked_url,
)
from langchain_specdec.backends.remote.owned_server import OwnedServer, OwnedServerWatch
from langchain_specdec.backends.remote.prompt_tokenizer import LocalTokenizer
from langchain_specdec.backends.remote.retries import Retries
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.events import FinishEvent, FinishReason, TokenEvent
from langchain_specdec.completions.room import prompt_too_long
from langchain_specdec.completions.server_chat import content_of, has_calls
from langchain_specdec.completions.stats import SpeculationStats
from langchain_specdec.errors import InvalidParameterError, SpecDecError

_DRAIN_SECONDS = 5.0
_BROKEN = "Ask again, ask for a simpler one, or use LocalBackend, which holds grammars and speculates."


class OpenAIBackend(RemoteBackend[ServerInfo]):
    """A connection to a server that speaks OpenAI's protocol. What answers is found out, and asked in its own words.

    Nothing is sent when it is made, so a server may come up later. All completions run in one thread with an event
    loop, whether they are asked for from threads or from event loops.

    Args:
        base_url: Root address of the server, such as `"http://127.0.0.1:8000"`; a `/v1` at its end is left out.
        api_key: The server's key. No other token is ever sent. A Hugging Face token (`hf_...`) is refused for hosts
            that are not Hugging Face's.
        model: Which of the server's models; None is the only one that it has.
        read_timeout: Most seconds to wait for the next token, the first included.
        max_retries: How often a request is sent again where the server is overloaded, not ready or not reachable, or
            breaks the connection, after 0.5 seconds and then twice as long each time; never after the first token of
            the answer.
        max_concurrency: Most requests at a time. None is as many as llama.cpp has slots, and without limit on other
            servers, which queue what they cannot run.
        tokenizer: The model's Hugging Face tokenizer, or an id or folder to load it from. It counts tokens here rather
            than by asking the server, and has the template that chats need. None is that of the model that the
            server names, loaded when a chat needs it, where the server is of a known kind; its code is never run.
        server: A server that ends with this backend. Where it is started again after a crash, requests that have no
            token yet wait for it, `read_timeout` at most, and errors tell why it ended.

    Raises:
        InvalidParameterError: A parameter is out of its range.
        ModelLoadError: The tokenizer cannot be found or read.
    """

    server_name = "openai"
    takes_messages = True

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | SecretStr | None = None,
        model: str | None = None,
        read_timeout: float | None = READ_TIMEOUT,
        max_retries: int | None = MAX_RETRIES,
        max_concurrency: int | None = None,
        tokenizer: Any = None,
        server: OwnedServer | None = None,
    ) -> None:
        url = checked_url(base_url.rstrip("/").removesuffix("/v1") if isinstance(base_url, str) else base_url)
        key = checked_key(api_key, url)
        timeout, max_attempts, max_concurrency = checked_options(read_timeout, max_retries, max_concurrency)
        check_model(model)
        tokenizers = ServedTokenizer(LocalTokenizer.load(tokenizer), url)
        failures = OpenAIFailures(url, key, timeout)
        self._client = OpenAIClient(url, key, failures)
        loop = LoopThread(self._client.aclose)
        facts = OpenAIServerFacts(self._client, failures, timeout, model)
        # Not a method of this object, which would never be freed then.
        watch = None if server is None else OwnedServerWatch(server, facts.is_healthy, timeout)
        new_retries = partial(Retries, max_attempts, timeout, watch)
        self._server = server
        grammars = GrammarCheck(url, key, "server", _BROKEN)
        super().__init__(
            Connection(url, timeout, max_concurrency, loop, failures, facts, tokenizers, grammars, new_retries)
        )

    @property
    def takes_token_ids(self) -> bool:  # type: ignore[override]
        """Whether a prompt may be tokens, as far as it is known what answers."""
        info = self._facts.info
        return info is not None and info.dialect.takes_token_ids

    @property
    def takes_calls_or_object(self) -> bool | None:  # type: ignore[override]
        """Whether a grammar may be a `CallGrammar`; None until it is known what answers, and where messages decide."""
        return None if self._facts.info is None or self.writes_prompts else self._is_own

    @property
    def writes_prompts(self) -> bool:  # type: ignore[override]
        """Whether chats are sent as messages, as far as it is known what answers."""
        info = self._facts.info
        return info is not None and info.dialect.writes_prompts and self._tokenizer is None

    @property
    def takes_thoughts(self) -> bool:  # type: ignore[override]
        """Whether a thought may be limited, and come before the text of a grammar, as far as it is known."""
        return self._is_own

    @property
    def takes_logprob_token_ids(self) -> bool | None:  # type: ignore[override]
        """Whether a request may name tokens whose log probabilities it is told; None until it is known."""
        return None if self._facts.info is None else self._facts.info.dialect.takes_logprob_token_ids

    @property
    def adapter_names(self) -> Sequence[str] | None:
        """The adapters that calls can choose among; None until the server has told."""
        info = self._facts.info
        return info.adapters if info is not None and info.dialect.takes_adapters else None

    @property
    def _is_own(self) -> bool:
        info = self._facts.info
        return info is not None and info.dialect.is_own

    @property
    def identity(self) -> Mapping[str, Any]:
        """The server and its model. Before the server was asked, the model is unknown, and caches do not apply."""
        info = self._facts.info
        return {**super().identity, "server": info.dialect.name if info else None}

    @property
    def why_no_images(self) -> str:
        """Why there is no `image_reader`, as the end of a sentence."""
        return "they are read by its server, and only in chats"

    def more_room(self, num_tokens: int) -> str | None:
        """How to start the server with room for so many tokens of a prompt and its completion."""
        info = self._facts.info
        return info.dialect.more_room.format(num_tokens=num_tokens) if info else None

    def close(self) -> None:
        """Break what runs, with an `EngineClosedError`, and stop the server if it is this backend's own."""
        super().close()
        if self._server is not None:
            self._server.stop()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._url!r})"

    # -- in the caller's thread

    def _check(self, request: CompletionRequest) -> None:
        if isinstance(request.prompt, str):
            check_text(request.prompt)
        if not request.prompt and request.chat is None:
            msg = "The prompt is empty: servers take no empty prompts. Give at least one character of text."
            raise InvalidParameterError(msg)
        if request.params.grammar is not None:
            self.check_grammar(request.params.grammar)
        if self._facts.fresh is not None:
            _check_honoured(request, self._facts.fresh)

    # -- in the loop's thread

    def _concurrency(self, info: ServerInfo) -> int | None:
        return info.num_slots

    async def _attempt(self, request: CompletionRequest, seed: int, info: ServerInfo) -> Events:
        _check_honoured(request, info)
        tokenizer = self._tokenizer_for(request, info)
        dialect, params, thoughts = info.dialect, request.params, request.thoughts
        prompt = request.prompt
        if isinstance(prompt, str) and tokenizer is not None:
            prompt = tokenizer.without_bos(prompt)
        chat = request.chat
        seed = seed if params.seed is not None else dialect.seed(seed)
        decodes_here = tokenizer is not None and dialect.tells_token_ids and chat is None
        private = tokenizer.private if tokenizer is not None and decodes_here else None
        # A server would look for them in thoughts, too. Here the text is cut in any case.
        is_blind = thoughts is not None and not thoughts.has_stops and not dialect.is_own
        sent = replace(params, stop=()) if is_blind else params
        asked = Asked(request, params.adapter or info.model_id, prompt, sent, seed, request.banned, decodes_here)
        self._check_room(request, info, None if isinstance(prompt, str) else len(prompt))
        path, body = dialect.path, dialect.body(asked) if chat is None else dialect.chat_body(asked, chat)
        text = AnswerText(request, private, info.eos_token_ids)
        told, reader = Told(), dialect.reader(params)
        if chat is not None:
            path, reader = CHAT_PATH, ChatReader(reader)
        started = now = None
        async with aclosing(self._client.stream(path, body)) as events:
            while not (text.is_cut or told.is_whole):
                try:
                    chunk = self._chunk(reader, await self._next(events))
                except Lost:
                    if dialect.tells_counts or told.finish_reason is None:
                        raise
                    break
                told.add(chunk)
                if now is None:
                    self._check_room(request, info, told.prompt_tokens)
                if chunk.tokens:
                    now = time.perf_counter()
                    started = now if started is None else started
                if tokens := text.add(chunk):
                    yield TokenEvent(tokens)
            # This package's engine ends a text where it ends here, but for what it is not told: the request's own
            # check, and that a chat may stop within thoughts.
            is_untold = request.make_end_check is not None or (chat is not None and thoughts and thoughts.has_stops)
            is_own_end = text.finish_reason == "stop_sequence" and is_untold
            ends_alike = dialect.is_own and not is_own_end
            if text.is_cut and (told.finish_reason is not None or ends_alike):
                # The server has ended too, and still tells the counts.
                with suppress(Exception):
                    async with time_limit(_DRAIN_SECONDS):
                        while not told.is_whole:
                            told.add(self._chunk(reader, await anext(events)))
            if not text.is_cut:
                if told.finish_reason is None:
                    raise self._failures.lost()
                if tokens := text.end(told.finish_reason):
                    yield TokenEvent(tokens)
        yield await self._finished(request, text, told, seed, (now or 0.0) - (started or 0.0), tokenizer)

    def _chunk(self, reader: Reader, event: Mapping[str, Any]) -> Chunk:
        try:
            chunk = reader.read(event)
            # JSON can hold half of a surrogate pair, which is no text.
            return chunk if chunk.text.isascii() else replace(chunk, text=_valid(chunk.text))
        except SpecDecError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            why = f"sent a piece of an answer that is not in its form ({type(error).__name__}: {error})"
        raise self._failures.foreign(why)

    def _check_room(self, request: CompletionRequest, info: ServerInfo, num_prompt: int | None) -> None:
        """Refuse what has no room: llama.cpp would end the text early, without a word."""
        limit, new = info.max_total_tokens, request.params.max_new_tokens
        if limit is not None and num_prompt is not None and num_prompt + new > limit:
            more_room = info.dialect.more_room.format(num_tokens=num_prompt + new)
            raise prompt_too_long(num_prompt, new, limit, "the context of the server", more_room)

    async def _finished(
        self,
        request: CompletionRequest,
        text: AnswerText,
        told: Told,
        seed: int,
        seconds: float,
        tokenizer: LocalTokenizer | None,
    ) -> FinishEvent:
        """The end of an answer."""
        reason = text.finish_reason
        assert reason is not None  # noqa: S101 - it has ended
        num_tokens = text.num_tokens
        # Of a text that is all stop string, no piece may have come.
        is_counted = text.is_counted and num_tokens > 0
        if not is_counted and told.completion_tokens is not None and (told.is_whole or told.finish_reason is not None):
            num_tokens = told.completion_tokens
        prompt_tokens = told.prompt_tokens
        if prompt_tokens is None:
            prompt = request.prompt
            if not isinstance(prompt, str):
                prompt_tokens = len(prompt)
            elif tokenizer is not None and request.chat is None:
                private, asked = tokenizer, prompt
                prompt_tokens = len(await self._loop.run_blocking(lambda: private.prompt_ids(asked)))
        stats = told.stats or SpeculationStats(emitted_tokens=num_tokens, is_reported=False)
        stats.decode_seconds = seconds
        broken = await self._form_error(request, text.text, reason)
        return FinishEvent(
            reason,
            prompt_tokens or 0,
            num_tokens,
            seed,
            stats,
            cached_tokens=told.cached_tokens,
            grammar_error=broken,
            reasoning_tokens=told.reasoning_tokens if request.chat is not None else None,
        )

    async def _form_error(self, request: CompletionRequest, text: str, reason: FinishReason) -> str | None:
        """Why an answer is not of the form asked for; None where it is, or none was."""
        if request.chat is not None:
            # A call is none of that form, and arguments are checked by their tool.
            return None if has_calls(text) else await self._grammar_error(request, content_of(text).strip(), reason)
        # This package's engine holds grammars, and lets thoughts come before their text.
        is_held = self._is_own and request.thoughts is not None
        return None if is_held else await self._grammar_error(request, text, reason)


def check_model(model: object) -> None:
    """Refuse what is no name of a model.

    Raises:
        InvalidParameterError: It is neither a name nor None.
    """
    if model is not None and (not isinstance(model, str) or not model):
        msg = f"model must be the name of one of the server's models, or None, got {model!r}."
        raise InvalidParameterError(msg)


def _valid(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _check_honoured(request: CompletionRequest, info: ServerInfo) -> None:
    """Refuse what the kind of server cannot do.

    Raises:
        InvalidParameterError: It cannot be honoured.
    """
    dialect = info.dialect
    dialect.check(request.params)
    adapter = request.params.adapter
    if adapter is not None and adapter not in info.adapters:
        has = ", ".join(map(repr, info.adapters)) or "none"
        msg = f"adapter must be the name of one of the server's adapters, got {adapter!r}. It has {has}."
        raise InvalidParameterError(msg)
    if not isinstance(request.prompt, str) and not dialect.takes_token_ids:
        msg = f"A prompt of tokens cannot be sent to {dialect.name}. Give text."
        raise InvalidParameterError(msg)
    if request.logprob_token_ids and not dialect.takes_logprob_token_ids:
        msg = (
            f"The probabilities of tokens that a request names, which decisions are made of, are not told by "
            f"{dialect.name}. Use vLLM, `specdec serve` or a LocalBackend."
        )
        raise InvalidParameterError(msg)
    if request.shown_specials and not dialect.tells_token_ids:
        msg = (
            f"This model marks its calls or thoughts by special tokens, and {dialect.name} does not tell them. Use it "
            f"without tools, or use vLLM, SGLang, llama.cpp or a LocalBackend."
        )
        raise InvalidParameterError(msg)
