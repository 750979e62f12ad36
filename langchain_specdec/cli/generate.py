"""`specdec generate`: complete a prompt."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langchain_specdec.cli.loading import DrafterName, DtypeName, load_backend, spinner
from langchain_specdec.cli.reporting import reported
from langchain_specdec.cli.terminal_text import json_line, printable
from langchain_specdec.errors import InvalidParameterError

if TYPE_CHECKING:
    from langchain_specdec.backends.local import LocalBackend
    from langchain_specdec.completions.completion import Completion, CompletionRequest

__all__ = ["generate"]

_MODEL, _SAMPLING, _OUTPUT = "Model", "Sampling", "Output"


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="What to complete; standard input where it is left out or '-'.")
    ] = None,
    model: Annotated[str, typer.Option(help="Model id, folder, or 'embedded'.", rich_help_panel=_MODEL)] = "embedded",
    draft_model: Annotated[
        str | None, typer.Option(help="Smaller model with the same tokenizer.", rich_help_panel=_MODEL)
    ] = None,
    drafter: Annotated[
        DrafterName, typer.Option(help="Where drafts come from.", rich_help_panel=_MODEL)
    ] = DrafterName.AUTO,
    max_draft_tokens: Annotated[int, typer.Option(help="Most tokens to draft at a time.", rich_help_panel=_MODEL)] = 10,
    dtype: Annotated[DtypeName, typer.Option(help="Numeric type.", rich_help_panel=_MODEL)] = DtypeName.AUTO,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps; the best there is by default.", rich_help_panel=_MODEL)
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw",
            help="As a user's message in the model's chat format, or as it is.",
            show_default="chat where the model has a format",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to generate.", rich_help_panel=_SAMPLING)] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", rich_help_panel=_SAMPLING)] = 0.0,
    top_k: Annotated[
        int | None, typer.Option(help="Sample among the k best tokens only.", rich_help_panel=_SAMPLING)
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Among the best tokens that together reach this.", rich_help_panel=_SAMPLING),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(help="Among tokens this times as probable as the best.", rich_help_panel=_SAMPLING),
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1: against tokens of prompt and output.", rich_help_panel=_SAMPLING)
    ] = 1.0,
    presence_penalty: Annotated[
        float, typer.Option(help="Against tokens of the output.", rich_help_panel=_SAMPLING)
    ] = 0.0,
    frequency_penalty: Annotated[
        float, typer.Option(help="The same, for every time they occur.", rich_help_panel=_SAMPLING)
    ] = 0.0,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the sampling noise.", show_default="drawn", rich_help_panel=_SAMPLING),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="String that ends the text; may be repeated.", rich_help_panel=_SAMPLING),
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on after an end-of-sequence token.", rich_help_panel=_SAMPLING)
    ] = False,
    logprobs: Annotated[
        int | None,
        typer.Option(help="Report so many of the most probable tokens (with --json).", rich_help_panel=_OUTPUT),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the text.", rich_help_panel=_OUTPUT)
    ] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Print a line about speed on stderr.", rich_help_panel=_OUTPUT)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and the libraries' messages.", rich_help_panel=_OUTPUT)
    ] = False,
) -> None:
    """Complete a prompt, which is an argument or comes on standard input."""
    with reported(debug=debug):
        if logprobs is not None and not as_json:
            msg = "--logprobs needs --json: log probabilities have no place in the plain text."
            raise InvalidParameterError(msg)
        text = _read_prompt(prompt)
        with spinner("Starting PyTorch"):
            from langchain_specdec.completions.completion import CompletionRequest
            from langchain_specdec.sampling.params import SamplingParams
        # Checked before a model is loaded for nothing.
        params = SamplingParams(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            seed=seed,
            stop=stop or (),
            ignore_eos=ignore_eos,
            logprobs=logprobs,
        )
        backend = load_backend(
            model,
            draft_model=draft_model,
            drafter=drafter,
            max_draft_tokens=max_draft_tokens,
            dtype=dtype.value,
            device=device,
            num_slots=1,
            debug=debug,
        )
        # Closed before the interpreter ends, which does not wait for the engine's thread.
        with closing(backend):
            request = CompletionRequest(_in_chat_format(text, backend, chat), params)
            completion = _complete(backend, request, is_streaming=not as_json)
        if as_json:
            print(json_line(_as_object(completion, backend)))
        if stats:
            print(_stats_line(completion), file=sys.stderr)


def _read_prompt(prompt: str | None) -> str:
    if prompt not in (None, "-"):
        text = prompt
    elif prompt is None and sys.stdin.isatty():
        msg = "There is no prompt. Give it as an argument, or on standard input: specdec generate < prompt.txt"
        raise InvalidParameterError(msg)
    else:
        try:
            text = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            msg = f"Standard input is not UTF-8 text: {error}"
            raise InvalidParameterError(msg) from error
    if not text:
        msg = "The prompt is empty. Give at least one character of text."
        raise InvalidParameterError(msg)
    return text


def _in_chat_format(text: str, backend: LocalBackend, is_chat: bool | None) -> str | list[int]:
    has_format = backend.tokenizer.chat_template is not None
    if is_chat and not has_format:
        msg = (
            f"{backend.model_name} has no chat format. Leave --chat out, or take the model's chat or instruct version."
        )
        raise InvalidParameterError(msg)
    if not has_format or is_chat is False:
        return text
    from langchain_specdec.chat.template import ChatTemplate

    # As tokens, because a special token in the user's text must not become one of the format's.
    template = ChatTemplate(backend.tokenizer, backend.model_name)
    return template.token_ids([{"role": "user", "content": text.removesuffix("\n")}])


def _complete(backend: LocalBackend, request: CompletionRequest, *, is_streaming: bool) -> Completion:
    """Run the completion; print its text as it comes where asked for."""
    from langchain_specdec.completions.completion import Completion
    from langchain_specdec.completions.events import FinishEvent, Token

    tokens: list[Token] = []
    stream = backend.stream(request)
    try:
        for event in stream:
            if isinstance(event, FinishEvent):
                return Completion(tuple(tokens), event)
            tokens += event.tokens
            if is_streaming:
                print(printable(event.text, sys.stdout), end="", flush=True)
    finally:
        stream.close()
        if is_streaming:
            print(flush=True)
    msg = "the stream ended without a FinishEvent"
    raise RuntimeError(msg)


def _as_object(completion: Completion, backend: LocalBackend) -> dict[str, Any]:
    return {"model": backend.model_name, "text": completion.text, **completion.info()}


def _stats_line(completion: Completion) -> str:
    return ", ".join(_stats(completion))


def _stats(completion: Completion) -> Iterator[str]:
    finish, speculation = completion.finish, completion.finish.speculation
    yield f"{finish.prompt_tokens} prompt tokens"
    yield f"{finish.completion_tokens} new tokens in {speculation.decode_seconds:.2f} s"
    yield f"{speculation.tokens_per_second:.1f} tokens/s"
    yield f"{speculation.tokens_per_step:.2f} tokens per step"
    yield f"{speculation.accepted_tokens} of {speculation.drafted_tokens} drafted tokens accepted"
    yield f"ended by {finish.finish_reason}"
    yield f"seed {finish.seed}"
