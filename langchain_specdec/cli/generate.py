"""`specdec generate`: complete a prompt."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from langchain_specdec.cli.loading import load_backend, spinner
from langchain_specdec.cli.options import CHAT, FLAGS, OUTPUT, SYSTEM, Given, takes_options
from langchain_specdec.cli.progress import followed
from langchain_specdec.cli.standard_input import is_terminal, read_text
from langchain_specdec.cli.terminal_text import json_line, printable
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.options import Option

if TYPE_CHECKING:
    from langchain_specdec.backends.local import LocalBackend
    from langchain_specdec.completions.completion import Completion, CompletionRequest


@takes_options(FLAGS.keys() - {"stop_in_reasoning"})
def generate(
    given: Given,
    *,
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="What to complete. Text on standard input goes before it; '-', or nothing, is standard input alone."
        ),
    ] = None,
    system: Annotated[str | None, SYSTEM] = None,
    chat: Annotated[bool | None, CHAT] = None,
    as_json: Annotated[bool, Option(False, "Print one JSON object instead of the text.", bool), OUTPUT],
    stats: Annotated[bool, Option(False, "Print a line about speed on stderr.", bool), OUTPUT],
) -> None:
    """Complete a prompt: an argument, or standard input, or both with a blank line between, standard input first."""
    if given.params.logprobs is not None and not as_json:
        msg = "--logprobs needs --json: log probabilities have no place in the plain text."
        raise InvalidParameterError(msg)
    _check_thinking(given, chat)
    text = _read_prompt(prompt)
    backend = load_backend(given.model, debug=given.debug, **given.options)
    # Closed before the interpreter ends, which does not wait for the engine's thread.
    with closing(backend):
        request = _request(text, system, backend, chat, given)
        completion = _complete(backend, request, is_streaming=not as_json)
    if as_json:
        print(json_line({"model": backend.model_name, "text": completion.text, **completion.info()}))
    if stats:
        print(", ".join(_stats(completion)), file=sys.stderr)


def _read_prompt(prompt: str | None) -> str:
    """The prompt; before it what is piped in, with a blank line between."""
    if prompt is None and (sys.stdin is None or is_terminal()):
        msg = "There is no prompt. Give it as an argument, or on standard input: specdec generate < prompt.txt"
        raise InvalidParameterError(msg)
    question = "" if prompt in (None, "-") else prompt
    # A terminal has nothing to read unless it is asked for.
    document = "" if question and is_terminal() else read_text()
    # The document first, so that it is read once for several questions.
    text = "\n\n".join(part for part in (document, question) if part)
    if not text:
        msg = "The prompt is empty. Give at least one character of text."
        raise InvalidParameterError(msg)
    return text


def takes_chat(backend: LocalBackend, system: str | None, is_chat: bool | None) -> bool:
    """Whether prompts are to be messages in the model's chat format.

    Args:
        backend: The model.
        system: The system message that is asked for.
        is_chat: `--chat`, `--raw`, or None: messages where the model has a format.

    Raises:
        InvalidParameterError: The model has no format, or a raw prompt no place for a system message.
    """
    has_format = backend.private_tokenizer.copied.chat_template is not None
    if system is not None and is_chat is False:
        msg = "--system has no place in a raw prompt: leave out --raw, or put it into the prompt."
        raise InvalidParameterError(msg)
    if (is_chat or system is not None) and not has_format:
        flag = "--chat" if is_chat else "--system"
        msg = (
            f"{backend.model_name} has no chat format. Leave {flag} out, or take the model's chat or instruct version."
        )
        raise InvalidParameterError(msg)
    return has_format and is_chat is not False


def _check_thinking(given: Given, is_chat: bool | None) -> None:
    """Refuse options of thinking where there is none."""
    is_off = given.thinking["reasoning"] is False and given.thinking["max_reasoning_tokens"] is None
    if all(value is None for value in given.thinking.values()):
        return
    if is_chat is False:
        msg = "--reasoning and --max-reasoning-tokens have no place in a raw prompt: leave out --raw, or them."
        raise InvalidParameterError(msg)
    if given.params.grammar is not None and not is_off:
        msg = (
            "--reasoning and --max-reasoning-tokens do not go with --schema and --regex here: the text has that form "
            "from its beginning. Leave them out, or use specdec chat, where the model thinks first."
        )
        raise InvalidParameterError(msg)


def _request(
    text: str, system: str | None, backend: LocalBackend, is_chat: bool | None, given: Given
) -> CompletionRequest:
    """The prompt as a message in the model's chat format, or as it is."""
    from langchain_specdec.completions.completion import CompletionRequest

    params = given.params
    if not takes_chat(backend, system, is_chat):
        if any(value is not None for value in given.thinking.values()):
            msg = f"--reasoning and --max-reasoning-tokens need a chat format, and {backend.model_name} has none."
            raise InvalidParameterError(msg)
        return CompletionRequest(text, params, continues_prompt=True)
    from langchain_specdec.chat.template import ChatTemplate
    from langchain_specdec.chat.thinking import Thinking

    # As tokens, because a special token in the user's text must not become one of the format's.
    template = ChatTemplate(backend.private_tokenizer, backend.model_name)
    system_message = [] if system is None else [{"role": "system", "content": system}]
    messages = [*system_message, {"role": "user", "content": text}]
    if params.grammar is not None:
        # An answer of a given form begins at once, behind a thought that the template begins.
        with suppress(InvalidParameterError):
            template = template.with_reasoning(False)
        prompt = template.token_ids(messages, begin=template.begin_of_answer(messages))
        # Of a grammar's text, no space may be left out.
        return CompletionRequest(prompt, params, continues_prompt=True)
    # A thought is part of the text here, so stop strings are looked for in it, too.
    thinking = Thinking.of({**given.thinking, "stop_in_reasoning": True}, template, backend, messages, has_form=False)
    rendered = thinking.template.prompt(messages)
    thoughts = thinking.thoughts(rendered.rendered, goes_on_from=None)
    begin, thoughts = thinking.first(thoughts, rendered.rendered, None, params.max_new_tokens, goes_on=False)
    return CompletionRequest(rendered.token_ids(begin), params, continues_prompt=False, thoughts=thoughts)


def _complete(backend: LocalBackend, request: CompletionRequest, *, is_streaming: bool) -> Completion:
    """Run the completion; print its text as it comes where asked for."""
    from langchain_specdec.completions.completion import Completion
    from langchain_specdec.completions.events import FinishEvent, Token

    tokens: list[Token] = []
    prompt, params = request.prompt, request.params
    stream = backend.stream(request)
    work = ExitStack()
    try:
        display = work.enter_context(spinner("Completing the prompt"))
        read = _reading(backend, len(backend.token_ids(prompt) if isinstance(prompt, str) else prompt))
        writing = "Writing, tokens"
        work.enter_context(
            followed(display, lambda: (writing, len(tokens), params.max_new_tokens) if tokens else read())
        )
        for event in stream:
            if isinstance(event, FinishEvent):
                return Completion(tuple(tokens), event)
            tokens += event.tokens
            if is_streaming:
                work.close()  # a spinner and the text share a terminal
                print(printable(event.text, sys.stdout), end="", flush=True)
    finally:
        work.close()
        stream.close()
        if is_streaming:
            print(flush=True)
    msg = "the stream ended without a FinishEvent"
    raise RuntimeError(msg)


def _reading(backend: LocalBackend, total: int) -> Callable[[], tuple[str, int, int]]:
    """How much of a prompt of so many tokens was read since now."""
    before = backend.num_prefill_tokens
    return lambda: ("Reading the prompt, tokens", min(backend.num_prefill_tokens - before, total), total)


def _stats(completion: Completion) -> Iterator[str]:
    finish, speculation = completion.finish, completion.finish.speculation
    yield f"{finish.prompt_tokens} prompt tokens"
    yield f"{finish.completion_tokens} new tokens in {speculation.decode_seconds:.2f} s"
    yield f"{speculation.tokens_per_second:.1f} tokens/s"
    yield f"{speculation.tokens_per_step:.2f} tokens per step"
    sources = ", ".join(f"{source} {accepted} of {drafted}" for source, drafted, accepted in speculation.by_source)
    yield (
        f"{speculation.accepted_tokens} of {speculation.drafted_tokens} drafted tokens accepted"
        f"{f' ({sources})' if sources else ''}"
    )
    yield f"ended by {finish.finish_reason}"
    yield f"seed {finish.seed}"
