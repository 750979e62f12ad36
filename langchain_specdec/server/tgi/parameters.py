"""The body of `/generate`: deserialized and checked as TGI's router does, in its order and words.

Sources: router/src/lib.rs and router/src/validation.rs of TGI 3.3.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.sampling.params import SamplingParams
from langchain_specdec.server.bodies import BodyError
from langchain_specdec.server.tgi.errors import invalid

_NUMBER: tuple[type, ...] = (int, float)
_TYPES: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("temperature", "top_p", "typical_p", "repetition_penalty", "frequency_penalty"), _NUMBER),
    **dict.fromkeys(("top_k", "seed", "best_of", "max_new_tokens", "truncate", "top_n_tokens"), (int,)),
    **dict.fromkeys(("do_sample", "details", "decoder_input_details", "return_full_text", "watermark"), (bool,)),
    "stop": (list,),
    "grammar": (dict,),
    "adapter_id": (str,),
    # This server's own; TGI ignores it, as all that it does not know.
    "speculation_details": (bool,),
}
_UNSIGNED = frozenset({"seed", "best_of", "max_new_tokens", "truncate", "top_n_tokens"})
_GRAMMARS = ("json", "json_object", "regex", "json_schema")
_PIECE = 1024
_CANNOT = "Failed to deserialize the JSON body into the target type"


@dataclass(frozen=True)
class Limits:
    """Limits of the router, as `/info` tells them; TGI's own where nobody says."""

    max_concurrent_requests: int = 128
    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_input_tokens: int = 1023
    max_total_tokens: int = 1024
    max_client_batch_size: int = 4
    max_top_n_tokens: int = 5


@dataclass(frozen=True)
class Generation:
    """A request that can be run.

    Attributes:
        inputs: The prompt's text.
        prompt: Its tokens.
        params: What to generate; stop strings apart.
        stop: Strings that end the text, and stay in it.
        is_sampled: Whether the seed is told.
        has_details: Whether tokens and counts are asked for.
        has_speculation: Whether the details tell what speculation did.
        is_full_text: Whether the prompt goes before the text.
    """

    inputs: str
    prompt: Sequence[int]
    params: SamplingParams
    stop: tuple[str, ...]
    is_sampled: bool
    has_details: bool
    has_speculation: bool
    is_full_text: bool


def deserialize(body: Any) -> tuple[str, dict[str, Any]]:
    """Inputs and parameters. Unknown keys are ignored, as TGI does.

    Raises:
        BodyError: A field is of the wrong type.
    """
    if not isinstance(body, dict) or not isinstance(body.get("inputs"), str):
        raise BodyError(422, f"{_CANNOT}: missing field `inputs`")
    given = body.get("parameters")
    parameters = {} if given is None else given
    if not isinstance(parameters, dict):
        raise BodyError(422, f"{_CANNOT}: parameters: invalid type")
    for name, value in parameters.items():
        types = _TYPES.get(name)
        if types is None or value is None:
            continue
        is_right = isinstance(value, types) and (bool in types or not isinstance(value, bool))
        is_right = is_right and not (name in _UNSIGNED and value < 0)
        if name == "stop":
            is_right = is_right and all(isinstance(stop, str) for stop in value)
        if not is_right:
            raise BodyError(422, f"{_CANNOT}: parameters.{name}: invalid value")
    if (grammar := parameters.get("grammar")) is not None and (problem := _shape_problem(grammar)):
        raise BodyError(422, f"{_CANNOT}: parameters.grammar: {problem}")
    # Without parameters TGI samples; with them it does so only where they ask for it.
    return body["inputs"], {"do_sample": given is None, **{k: v for k, v in parameters.items() if v is not None}}


def _shape_problem(grammar: Mapping[str, Any]) -> str | None:
    if "type" not in grammar:
        return "missing field `type`"
    kind, value = grammar["type"], grammar.get("value")
    if kind not in _GRAMMARS:
        return f"unknown variant `{kind}`, expected one of `json`, `regex`, `json_schema`"
    if "value" not in grammar:
        return "missing field `value`"
    if kind == "regex" and not isinstance(value, str):
        return "invalid type: expected a string"
    if kind == "json_schema":
        if not isinstance(value, dict):
            return "invalid type: expected struct JsonSchemaConfig"
        if "schema" not in value:
            return "missing field `schema`"
        if not isinstance(value.get("name"), str | None):
            return "invalid type: expected a string"
    return None


def check_parameters(parameters: Mapping[str, Any], limits: Limits, *, is_stream: bool) -> None:
    """What can be refused without the prompt's tokens.

    Raises:
        Refusal: A value is not allowed.
    """
    # The router computes in 32 bits, where numbers close to 0 and 1 are 0 and 1.
    given: dict[str, Any] = {
        name: in_32_bits(value) if name in ("top_p", "typical_p") else value for name, value in parameters.items()
    }
    best_of, stop, top_n = given.get("best_of", 1), given.get("stop", []), given.get("top_n_tokens", 0)
    if not 1 <= best_of <= limits.max_best_of:
        raise invalid(f"`best_of` must be > 0 and <= {limits.max_best_of}. Given: {best_of}")
    if given.get("decoder_input_details") and is_stream:
        raise invalid("`decoder_input_details` == true is not supported when streaming tokens")
    if given.get("temperature", 1.0) <= 0:
        raise invalid("`temperature` must be strictly positive")
    if given.get("repetition_penalty", 1.0) <= 0:
        raise invalid("`repetition_penalty` must be strictly positive")
    if not -2.0 <= given.get("frequency_penalty", 0.0) <= 2.0:
        raise invalid("`frequency_penalty` must be >= -2.0 and <= 2.0")
    for name in ("top_p", "typical_p"):
        if name in given and not 0.0 < given[name] < 1.0:
            raise invalid(f"`{name}` must be > 0.0 and < 1.0")
    if given.get("top_k", 1) <= 0:
        raise invalid("`top_k` must be strictly positive")
    if given.get("max_new_tokens") == 0:
        raise invalid("`max_new_tokens` must be strictly positive")
    if len(stop) > limits.max_stop_sequences:
        raise invalid(f"`stop` supports up to {limits.max_stop_sequences} stop sequences. Given: {len(stop)}")
    if top_n > limits.max_top_n_tokens:
        raise invalid(f"`top_n_tokens` must be >= 0 and <= {limits.max_top_n_tokens}. Given: {top_n}")
    # What TGI has and this engine has not.
    if "typical_p" in given:
        raise invalid("`typical_p` is not supported by this server")
    if given.get("watermark"):
        raise invalid("`watermark` is not supported by this server")
    if "" in stop:
        raise invalid("`stop` must not hold an empty string")


def check_inputs(inputs: str, parameters: Mapping[str, Any], limits: Limits) -> None:
    """What can be refused of the prompt before it is encoded.

    Raises:
        Refusal: It is empty, or `truncate` is no length.
    """
    if not inputs:
        raise invalid("`inputs` cannot be empty")
    truncate = parameters.get("truncate")
    if truncate is not None and not 0 < truncate <= limits.max_input_tokens:
        raise invalid(
            f"`truncate` must be strictly positive and less than {limits.max_input_tokens}. Given: {truncate}"
        )


def make_generation(
    inputs: str,
    prompt: Sequence[int],
    parameters: Mapping[str, Any],
    limits: Limits,
    *,
    is_stream: bool,
    is_full_text: bool = False,
    adapters: Sequence[str] = (),
) -> Generation:
    """The request that has these tokens for its prompt.

    Args:
        inputs: The prompt's text.
        prompt: Its tokens.
        parameters: As `deserialize` gives them, checked by `check_parameters`.
        limits: The router's.
        is_stream: Whether tokens are sent one by one.
        is_full_text: Whether the prompt goes before the text where nobody says.
        adapters: Names of those that can be chosen.

    Raises:
        Refusal: It does not fit, or its grammar is none.
    """
    if truncate := parameters.get("truncate"):
        prompt = prompt[-truncate:]
    room = limits.max_total_tokens - len(prompt)
    asked = parameters.get("max_new_tokens")
    max_new_tokens = max(room, 1) if asked is None else asked
    # TGI makes longer texts in pieces of 1024, and only the first has to fit; the text ends early then.
    if min(max_new_tokens, _PIECE) > room:
        msg = f"`inputs` tokens + `max_new_tokens` must be <= {limits.max_total_tokens}. "
        raise invalid(f"{msg}Given: {len(prompt)} `inputs` tokens and {max_new_tokens} `max_new_tokens`")
    if len(prompt) > limits.max_input_tokens:
        raise invalid(f"`inputs` must have less than {limits.max_input_tokens} tokens. Given: {len(prompt)}")
    adapter = parameters.get("adapter_id")
    if adapter is not None and adapter not in adapters:
        raise invalid(f"adapter_id {adapter!r} is not one of this server's")
    temperature, top_p = parameters.get("temperature", 1.0), parameters.get("top_p")
    is_sampled = parameters["do_sample"] or temperature != 1.0 or "top_k" in parameters or top_p is not None
    details = bool(parameters.get("details") or parameters.get("decoder_input_details"))
    top_n = parameters.get("top_n_tokens", 0)
    try:
        params = SamplingParams(
            max_new_tokens=min(max_new_tokens, room),
            temperature=temperature if is_sampled else 0.0,
            top_k=parameters.get("top_k"),
            top_p=top_p,
            repetition_penalty=parameters.get("repetition_penalty"),
            frequency_penalty=parameters.get("frequency_penalty", 0.0),
            seed=parameters.get("seed"),
            logprobs=top_n if details or is_stream else None,
            grammar=_grammar(parameters.get("grammar")),
            adapter=adapter,
        )
    except InvalidParameterError as error:
        raise invalid(str(error)) from error
    return Generation(
        inputs,
        prompt,
        params,
        tuple(parameters.get("stop", ())),
        is_sampled,
        details,
        bool(parameters.get("speculation_details")),
        bool(parameters.get("return_full_text", is_full_text)),
    )


def _grammar(grammar: Mapping[str, Any] | None) -> Grammar | None:
    if grammar is None:
        return None
    kind, value = grammar["type"], grammar["value"]
    if kind == "regex":
        return Grammar(regex=value)
    schema = value["schema"] if kind == "json_schema" else value
    if isinstance(schema, str) and kind != "json_schema":
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise invalid(f"grammar is not valid: {error}") from error
    if not isinstance(schema, dict):
        raise invalid("grammar is not supported")
    if "properties" not in schema:
        raise invalid("grammar is not valid: Grammar must have a 'properties' field")
    return Grammar(schema=schema)


def in_32_bits(value: float) -> float:
    """The number of 32 bits that is closest."""
    try:
        return float(struct.unpack("f", struct.pack("f", float(value)))[0])
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
