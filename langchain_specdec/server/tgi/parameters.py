"""The body of `/generate`: deserialized and checked as TGI's router does, in its order and words.

Sources: router/src/lib.rs and router/src/validation.rs of TGI 3.3.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.sampling.params import SamplingParams
from langchain_specdec.server.bodies import BodyError
from langchain_specdec.server.tgi.errors import invalid
from langchain_specdec.server.tgi.fields import GRAMMARS, Limits, fields_of

_PIECE = 1024
CANNOT_DESERIALIZE = "Failed to deserialize the JSON body into the target type"
"""What the web framework says of a field of a wrong type, before the field."""
# Types are the same under all limits.
_FIELDS = {field.name: field for field in fields_of(Limits())}


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
        raise BodyError(422, f"{CANNOT_DESERIALIZE}: missing field `inputs`")
    given = body.get("parameters")
    parameters = {} if given is None else given
    if not isinstance(parameters, dict):
        raise BodyError(422, f"{CANNOT_DESERIALIZE}: parameters: invalid type")
    for name, value in parameters.items():
        if value is not None and name in _FIELDS and not _FIELDS[name].is_of_type(value):
            raise BodyError(422, f"{CANNOT_DESERIALIZE}: parameters.{name}: invalid value")
    if (grammar := parameters.get("grammar")) is not None and (problem := _shape_problem(grammar)):
        raise BodyError(422, f"{CANNOT_DESERIALIZE}: parameters.grammar: {problem}")
    # Without parameters TGI samples; with them it does so only where they ask for it.
    return body["inputs"], {"do_sample": given is None, **{k: v for k, v in parameters.items() if v is not None}}


def _shape_problem(grammar: Mapping[str, Any]) -> str | None:
    if "type" not in grammar:
        return "missing field `type`"
    kind, value = grammar["type"], grammar.get("value")
    if kind not in GRAMMARS:
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
    for field in fields_of(limits, is_stream=is_stream):
        value = parameters.get(field.name)
        if value is None or not field.rule or field.allows(value):
            continue
        given = f". Given: {len(value) if isinstance(value, list) else value}" if field.is_told else ""
        raise invalid(f"`{field.name}` {field.rule}{given}")
    if "" in parameters.get("stop", ()):
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
