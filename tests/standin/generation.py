"""Requests and answers as TGI's router shapes them: validation with its messages, frames, details, stop rules.

Written after router/src/validation.rs, infer/mod.rs and server/text_generation_server/utils/tokens.py of TGI 3.3,
apart from this project's own code for the same things, which it serves to test.
"""

from __future__ import annotations

import random
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from tests.standin.grammars import BrokenRegex, UnknownGrammar, compile_grammar, deserialization_problem
from tests.standin.models import GeneratedToken, Model, Sampling


class Refusal(Exception):  # noqa: N818
    """An error answer: `{"error": message, "error_type": kind}` with an HTTP status."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind, self.message = status, kind, message

    @property
    def body(self) -> dict[str, str]:
        return {"error": self.message, "error_type": self.kind}


class NotDeserializable(Exception):  # noqa: N818
    """A body of the wrong types; the web framework answers in plain text."""


@dataclass(frozen=True)
class Limits:
    """The limits that TGI is started with."""

    max_concurrent_requests: int = 128
    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_top_n_tokens: int = 5
    max_input_tokens: int = 1023
    max_total_tokens: int = 1024
    max_client_batch_size: int = 4


_TYPES: dict[str, tuple[type, ...]] = {
    "temperature": (int, float),
    "top_p": (int, float),
    "typical_p": (int, float),
    "repetition_penalty": (int, float),
    "frequency_penalty": (int, float),
    "top_k": (int,),
    "seed": (int,),
    "best_of": (int,),
    "max_new_tokens": (int,),
    "truncate": (int,),
    "top_n_tokens": (int,),
    "do_sample": (bool,),
    "details": (bool,),
    "decoder_input_details": (bool,),
    "return_full_text": (bool,),
    "watermark": (bool,),
    "stop": (list,),
    "grammar": (dict,),
    "adapter_id": (str,),
}
_ROUNDED = {"top_p", "typical_p"}
_UNSIGNED = {"seed", "best_of", "max_new_tokens", "truncate", "top_n_tokens"}


@dataclass(frozen=True)
class ValidRequest:
    """A request that TGI would run."""

    inputs: str
    prompt: list[int]
    sampling: Sampling
    stop: tuple[str, ...]
    is_sampled: bool
    wants_details: bool
    is_full_text: bool


def deserialize(body: Any) -> tuple[str, dict[str, Any]]:
    """Inputs and parameters; unknown keys are ignored, wrong types refused."""
    if not isinstance(body, dict) or not isinstance(body.get("inputs"), str):
        msg = "Failed to deserialize the JSON body into the target type: missing field `inputs`"
        raise NotDeserializable(msg)
    given = body.get("parameters")
    parameters = {} if given is None else given
    if not isinstance(parameters, dict):
        msg = "Failed to deserialize the JSON body into the target type: parameters: invalid type"
        raise NotDeserializable(msg)
    for name, value in parameters.items():
        types = _TYPES.get(name)
        if value is None or types is None:
            continue
        is_wrong = not isinstance(value, types) or (isinstance(value, bool) and bool not in types)
        if is_wrong or (name in _UNSIGNED and value < 0):
            msg = f"Failed to deserialize the JSON body into the target type: parameters.{name}: invalid value"
            raise NotDeserializable(msg)
    check_grammar_shape(parameters.get("grammar"), "parameters.grammar")
    # Without parameters TGI samples; with them it does so only where they ask for it.
    return body["inputs"], {"do_sample": given is None, **{k: v for k, v in parameters.items() if v is not None}}


def check_grammar_shape(grammar: Any, where: str) -> None:
    """Refuse a grammar of the wrong types."""
    if grammar is not None and (problem := deserialization_problem(grammar)):
        msg = f"Failed to deserialize the JSON body into the target type: {where}: {problem}"
        raise NotDeserializable(msg)


def _rounded(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


def _invalid(message: str) -> Refusal:
    return Refusal(422, "validation", f"Input validation error: {message}")


def validate(
    model: Model,
    limits: Limits,
    inputs: str,
    parameters: dict[str, Any],
    *,
    is_stream: bool,
    is_full_text: bool = False,
    add_special_tokens: bool = True,
    takes_grammars: bool = True,
) -> ValidRequest:
    """The checks of TGI's router, in its order and words."""
    # It computes in 32 bits, where numbers close to 0 and 1 are 0 and 1.
    parameters = {name: _rounded(value) if name in _ROUNDED else value for name, value in parameters.items()}
    best_of = parameters.get("best_of", 1)
    if best_of > limits.max_best_of or best_of < 1:
        raise _invalid(f"`best_of` must be > 0 and <= {limits.max_best_of}. Given: {best_of}")
    if best_of > 1 and is_stream:
        raise _invalid("`best_of` != 1 is not supported when streaming tokens")
    if parameters.get("decoder_input_details") and is_stream:
        raise _invalid("`decoder_input_details` == true is not supported when streaming tokens")
    asked = [name for name in ("temperature", "top_k", "top_p", "typical_p") if name in parameters]
    if best_of > 1 and not (parameters["do_sample"] or asked):
        raise _invalid("you must use sampling when `best_of` is > 1")
    temperature = parameters.get("temperature", 1.0)
    if temperature <= 0:
        raise _invalid("`temperature` must be strictly positive")
    if parameters.get("repetition_penalty", 1.0) <= 0:
        raise _invalid("`repetition_penalty` must be strictly positive")
    if not -2.0 <= parameters.get("frequency_penalty", 0.0) <= 2.0:
        raise _invalid("`frequency_penalty` must be >= -2.0 and <= 2.0")
    for name in ("top_p", "typical_p"):
        if name in parameters and not 0.0 < parameters[name] < 1.0:
            raise _invalid(f"`{name}` must be > 0.0 and < 1.0")
    if parameters.get("top_k", 1) <= 0:
        raise _invalid("`top_k` must be strictly positive")
    if parameters.get("max_new_tokens") == 0:
        raise _invalid("`max_new_tokens` must be strictly positive")
    stop = parameters.get("stop", [])
    if len(stop) > limits.max_stop_sequences:
        raise _invalid(f"`stop` supports up to {limits.max_stop_sequences} stop sequences. Given: {len(stop)}")
    if best_of > 1 and "seed" in parameters:
        raise _invalid("`seed` must not be set when `best_of` > 1")
    top_n = parameters.get("top_n_tokens", 0)
    if top_n > limits.max_top_n_tokens:
        raise _invalid(f"`top_n_tokens` must be >= 0 and <= {limits.max_top_n_tokens}. Given: {top_n}")
    if not inputs:
        raise _invalid("`inputs` cannot be empty")
    truncate = parameters.get("truncate")
    if truncate is not None and not 0 < truncate <= limits.max_input_tokens:
        msg = f"`truncate` must be strictly positive and less than {limits.max_input_tokens}. Given: {truncate}"
        raise _invalid(msg)
    prompt = model.encode(inputs, add_special_tokens=add_special_tokens)
    prompt = prompt[-truncate:] if truncate else prompt
    room = limits.max_total_tokens - len(prompt)
    max_new_tokens = parameters.get("max_new_tokens", max(room, 1))
    # Longer outputs are made in pieces of 1024, so only the first piece has to fit; the text just ends early.
    if min(max_new_tokens, 1024) > room:
        msg = (
            f"`inputs` tokens + `max_new_tokens` must be <= {limits.max_total_tokens}. "
            f"Given: {len(prompt)} `inputs` tokens and {max_new_tokens} `max_new_tokens`"
        )
        raise _invalid(msg)
    if len(prompt) > limits.max_input_tokens:
        raise _invalid(f"`inputs` must have less than {limits.max_input_tokens} tokens. Given: {len(prompt)}")
    grammar = None
    if "grammar" in parameters:
        if not takes_grammars or not model.takes_grammars:
            raise _invalid("grammar is not supported")
        try:
            grammar = compile_grammar(parameters["grammar"], model.make_grammar)
        except UnknownGrammar as error:
            raise _invalid(str(error)) from error
        except BrokenRegex as error:
            raise Refusal(424, "generation", f"Request failed during generation: Server error: {error}") from error
    top_p = parameters.get("top_p")
    is_sampled = parameters["do_sample"] or temperature != 1.0 or "top_k" in parameters or top_p is not None
    sampling = Sampling(
        max_new_tokens=min(max_new_tokens, room),
        temperature=temperature if is_sampled else None,
        top_k=parameters.get("top_k"),
        top_p=top_p,
        repetition_penalty=parameters.get("repetition_penalty", 1.0),
        frequency_penalty=parameters.get("frequency_penalty", 0.0),
        seed=parameters.get("seed", random.getrandbits(64)),
        top_n_tokens=top_n,
        grammar=grammar,
    )
    details = parameters.get("details", False) or parameters.get("decoder_input_details", False)
    full_text = parameters.get("return_full_text", is_full_text)
    return ValidRequest(inputs, prompt, sampling, tuple(stop), is_sampled, details, full_text)


@dataclass
class Frame:
    """One token of an answer; the last has a finish reason and the whole text."""

    index: int
    token: dict[str, Any]
    top_tokens: list[dict[str, Any]] | None
    finish_reason: str | None = None
    generated_text: str | None = None
    pass_tokens: int = 0  # how many tokens the forward pass delivered, on the first of them

    def as_json(self, request: ValidRequest) -> dict[str, Any]:
        """The frame of `/generate_stream`."""
        details = None
        if self.finish_reason is not None and request.wants_details:
            details = {
                "finish_reason": self.finish_reason,
                "generated_tokens": self.index,
                "seed": request.sampling.seed if request.is_sampled else None,
                "input_length": len(request.prompt),
            }
        frame = {"index": self.index, "token": self.token}
        if self.top_tokens:
            frame["top_tokens"] = self.top_tokens
        return {**frame, "generated_text": self.generated_text, "details": details}


@dataclass
class _Text:
    """TGI's incremental decoding: a token's text once it is whole, the empty text until then."""

    model: Model
    ids: list[int]
    prefix_offset: int = 0
    read_offset: int = 0
    prompt_length: int = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_length = self.read_offset = len(self.ids)
        self.prefix_offset = max(len(self.ids) - 5, 0)

    def _decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return self.model.decode(ids, skip_special_tokens=skip_special_tokens)

    def add(self, token: int) -> str:
        self.ids.append(token)
        before = self._decode(self.ids[self.prefix_offset : self.read_offset])
        after = self._decode(self.ids[self.prefix_offset :])
        if len(after) <= len(before) or after.endswith("\ufffd"):
            return ""
        self.prefix_offset, self.read_offset = self.read_offset, len(self.ids)
        return after[len(before) :]

    @property
    def generated(self) -> str:
        context = max(self.prompt_length - 1, 0)
        before = self._decode(self.ids[context : self.prompt_length], skip_special_tokens=True)
        after = self._decode(self.ids[context:], skip_special_tokens=True)
        return after[len(before) :]


async def _breaking(
    model: Model, prompt: Sequence[int], sampling: Sampling, held: int
) -> AsyncIterator[list[GeneratedToken]]:
    """The steps of an answer whose grammar is looked at for so many tokens only."""
    so_far = list(prompt)
    if held:
        async with aclosing(model.steps(prompt, sampling)) as steps:  # type: ignore[type-var]
            async for step in steps:
                step = step[: held + len(prompt) - len(so_far)]
                so_far += [token.id for token in step]
                yield step
                if len(so_far) - len(prompt) >= held or so_far[-1] in model.eos_token_ids:
                    break
    if so_far[-1] in model.eos_token_ids and held:
        return
    rest = replace(sampling, grammar=None, max_new_tokens=sampling.max_new_tokens - (len(so_far) - len(prompt)))
    async for step in model.steps(so_far, rest):
        yield step


async def generate(model: Model, request: ValidRequest, held: int | None = None) -> AsyncIterator[Frame]:
    """The frames of an answer, token by token, with TGI's stop rules.

    A stop string counts only where it stands at the end of the text after a token, and stays in the text.

    Args:
        model: Where the tokens come from.
        request: What to answer.
        held: Tokens after which the grammar is not looked at; None for never.
    """
    text = _Text(model, list(request.prompt))
    output = ""
    index = 0
    steps = model.steps(request.prompt, request.sampling)
    if held is not None:
        steps = _breaking(model, request.prompt, request.sampling, held)
    async for step in steps:
        delivered: list[Frame] = []
        for token in step:
            index += 1
            piece = text.add(token.id)
            output += piece
            reason = None
            if index >= request.sampling.max_new_tokens:
                reason = "length"
            if reason is None and token.id in model.eos_token_ids:
                reason = "eos_token"
            if reason is None and any(output.endswith(stop) for stop in request.stop):
                reason = "stop_sequence"
            top = _top_json(model, token) if request.sampling.top_n_tokens else None
            frame = Frame(index, _token_json(model, token, piece), top, reason)
            if reason is not None:
                frame.generated_text = (request.inputs if request.is_full_text else "") + text.generated
            delivered.append(frame)
            if reason is not None:
                break
        delivered[0].pass_tokens = len(delivered)
        for frame in delivered:
            yield frame
        if delivered[-1].finish_reason is not None:
            return


def _token_json(model: Model, token: GeneratedToken, text: str) -> dict[str, Any]:
    return {"id": token.id, "text": text, "logprob": token.logprob, "special": token.id in model.special_ids}


def _top_json(model: Model, token: GeneratedToken) -> list[dict[str, Any]]:
    tops = sorted(token.top.items(), key=lambda item: -item[1])
    texts = [model.decode([top], skip_special_tokens=False) for top, _ in tops]
    return [
        {"id": top, "text": text, "logprob": logprob, "special": top in model.special_ids}
        for (top, logprob), text in zip(tops, texts, strict=True)
    ]
