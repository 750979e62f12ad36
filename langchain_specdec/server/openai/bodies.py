"""Bodies of requests as OpenAI's clients send them. What would change the text and is not known here is refused."""

from __future__ import annotations

import json
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, ValidationError

from langchain_specdec.chat.structured_output import form_of_response
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.options import options_of
from langchain_specdec.sampling.params import BIAS, MAX_STOP_LENGTH, MAX_STOPS, SamplingParams
from langchain_specdec.server.openai.messages import Message, ResponseFormat, Tool, ToolChoice

_SAMPLING = (
    *("seed", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    "ignore_eos",
)
# Parameters of the engine by the fields that are called otherwise.
_PARAMETERS = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens", "top_logprobs": "logprobs"}
_STOP = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_LENGTH}
# The longest id of a token.
_MAX_DIGITS = 10


def _of_type(kind: type) -> BeforeValidator:
    """To `Literal`, 0 and False are the same, and 1 and True."""

    def checked(value: Any) -> Any:
        return value if value is None or isinstance(value, bool) is (kind is bool) else object()

    return BeforeValidator(checked)


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()


OnlyFalse = Annotated[Literal[False], _of_type(bool)]
OnlyTrue = Annotated[Literal[True], _of_type(bool)]
Only0 = Annotated[Literal[0], _of_type(int)]
Only1 = Annotated[Literal[1], _of_type(int)]


class StreamOptions(BaseModel):
    """What a stream has beside the text."""

    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool | None = None


class StructuredOutputs(BaseModel):
    """The form of a text, in vLLM's words. Its grammars of other languages are not known here."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    json_object: OnlyTrue | None = None

    def grammar(self) -> Grammar:
        """The grammar that is asked for.

        Raises:
            InvalidParameterError: None is, or several are, or it is none.
        """
        given = [name for name in type(self).model_fields if getattr(self, name) not in (None, [])]
        if len(given) != 1:
            msg = "structured_outputs takes one of json, regex, choice and json_object."
            raise FieldError("structured_outputs", msg)
        if self.regex is not None:
            return Grammar(regex=self.regex)
        if self.choice:
            return Grammar(regex="|".join(map(_literal, self.choice)))
        schema: Any = self.json_ or {"type": "object"}
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError):
                msg = "structured_outputs.json is a text that is no JSON."
                raise FieldError("structured_outputs.json", msg) from None
        return Grammar(schema=schema)


# To JSON, 5.0 is a whole number.
Whole = Annotated[int, BeforeValidator(lambda value: int(value) if _is_whole(value) else value)]
TokenId = Annotated[str, Field(json_schema_extra={"pattern": f"^[0-9]{{1,{_MAX_DIGITS}}}$"})]
Bias = Annotated[float, Field(json_schema_extra=BIAS.bounds)]


class Body(BaseModel):
    """What chats and completions have in common.

    OpenAI's defaults hold: what names no temperature is sampled at 1.
    """

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Only1 | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: Whole | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[TokenId, Bias] | None = None
    response_format: ResponseFormat | None = None
    # Of other servers.
    top_k: Whole | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    # These change no text.
    user: Any = None
    metadata: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    prediction: Any = None

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """What the body may be, for OpenAPI, with the bounds that the engine's parameters are declared with."""
        schema: dict[str, Any] = handler.resolve_ref_schema(handler(core))
        options = options_of(SamplingParams)
        for name, field in schema["properties"].items():
            option = options.get(_PARAMETERS.get(name, name))
            numbers = [kind for kind in field.get("anyOf", ()) if kind.get("type") in ("integer", "number")]
            if option is None or not (numbers or option.kind is bool):
                continue
            field["description"] = option.help
            for kind in numbers:
                kind |= option.bounds
        schema["properties"]["logit_bias"]["anyOf"][0]["additionalProperties"] = False
        schema["properties"]["stop"]["anyOf"][:2] = _STOP, {"type": "array", "items": _STOP, "maxItems": MAX_STOPS}
        return schema

    def sampling(self) -> dict[str, Any]:
        """Parameters under this package's names, those that are given."""
        named = {name: getattr(self, name) for name in _SAMPLING}
        named |= {"temperature": 1.0 if self.temperature is None else self.temperature, "stop": self.stop}
        if self.logit_bias is not None:
            named["logit_bias"] = {_token_id(token): float(bias) for token, bias in self.logit_bias.items()}
        return {name: value for name, value in named.items() if value is not None}

    @property
    def has_usage(self) -> bool:
        """Whether a stream ends with counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatBody(Body):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(json_schema_extra={"minItems": 1})]
    max_tokens: Whole | None = None
    max_completion_tokens: Whole | None = None
    logprobs: bool | None = None
    top_logprobs: Whole | None = None
    tools: list[Tool] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[Literal["enable_thinking"], bool] | None = None
    continue_final_message: bool | None = None
    modalities: list[Literal["text"]] | None = None
    store: OnlyFalse | None = None
    # What huggingface_hub tells TGI of tools, whose templates are the model's own here.
    tool_prompt: None = None

    @property
    def limit(self) -> int | None:
        """Most tokens of the answer; None is as many as there is room for.

        Raises:
            InvalidParameterError: It is given twice, and differently.
        """
        given = {value for value in (self.max_tokens, self.max_completion_tokens) if value is not None}
        if len(given) > 1:
            msg = "max_tokens and max_completion_tokens are one parameter: give only one of them."
            raise InvalidParameterError(msg)
        return next(iter(given), None)

    def options(self) -> dict[str, Any]:
        """What a call of the chat model is given."""
        named = self.sampling()
        if self.top_logprobs is not None and not self.logprobs:
            msg = "top_logprobs needs logprobs=true."
            raise InvalidParameterError(msg)
        if self.logprobs:
            named["logprobs"] = self.top_logprobs or 0
        tools = [tool.model_dump(exclude_unset=True) for tool in self.tools or ()]
        choice = self.tool_choice
        named |= {
            "reasoning": self._reasoning(),
            "tools": tools or None,
            "tool_choice": choice.model_dump() if isinstance(choice, ToolChoice) else choice,
        }
        named |= {
            "parallel_tool_calls": self.parallel_tool_calls,
            "continue_final_message": self.continue_final_message,
        }
        named |= form_of(self.response_format)
        return {name: value for name, value in named.items() if value is not None}

    def _reasoning(self) -> bool | str | None:
        switch = (self.chat_template_kwargs or {}).get("enable_thinking")
        if switch is not None and self.reasoning_effort is not None:
            msg = "reasoning_effort and chat_template_kwargs.enable_thinking are one parameter: give only one of them."
            raise InvalidParameterError(msg)
        if self.reasoning_effort == "none":
            return False
        return switch if self.reasoning_effort is None else self.reasoning_effort


class CompletionBody(Body):
    """The body of `/v1/completions`."""

    prompt: Annotated[str | list[str] | list[int] | list[list[int]], Field(json_schema_extra={"minItems": 1})]
    # OpenAI's default.
    max_tokens: Whole | None = None
    logprobs: Whole | None = None
    echo: OnlyFalse | None = None
    suffix: Literal[""] | None = None
    best_of: Only1 | None = None
    # vLLM's.
    logprob_token_ids: list[int] | None = None
    return_token_ids: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    # Each token in an event of its own; else those of a step come together.
    stream_interval: Only1 | None = None
    skip_special_tokens: bool | None = None
    # Fast tokenizers put none.
    spaces_between_special_tokens: bool | None = None
    # Of these there is but one value here, which vLLM's clients may name.
    include_stop_str_in_output: OnlyFalse | None = None
    min_tokens: Only0 | None = None
    # This package's own client's.
    specdec: dict[str, Any] | None = None

    def form(self) -> dict[str, Any]:
        """The grammar of the text, as a parameter; none where it is free.

        Raises:
            InvalidParameterError: It is none, or is given twice.
        """
        if self.structured_outputs is not None:
            if self.response_format is not None:
                msg = "structured_outputs and response_format are one parameter: give only one of them."
                raise InvalidParameterError(msg)
            return {"grammar": self.structured_outputs.grammar()}
        form = form_of(self.response_format)
        if "response_format" in form:
            parsed_form = form_of_response(form["response_format"])
            return {} if parsed_form is None else {"grammar": parsed_form.grammar}
        return form

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or as tokens."""
        prompt: Any = self.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            return [prompt]
        return list(prompt)


class TokenizeBody(BaseModel):
    """VLLM's body of `/tokenize`, of a text."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = None
    prompt: str
    add_special_tokens: bool = True


def parsed(kind: type[BaseModel], body: Any) -> Any:
    """The body as one of that kind.

    Raises:
        InvalidParameterError: It is none; the message names the first field that is wrong.
    """
    if not isinstance(body, dict):
        msg = "The body must be a JSON object."
        raise InvalidParameterError(msg)
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        kinds = "list[", "dict["
        where = ".".join(str(part) for part in problem["loc"] if part != "str" and not str(part).startswith(kinds))
        said = problem["msg"]
        if problem["type"] == "extra_forbidden":
            said = "this server does not know the parameter, and does not ignore what could change the text"
            if nearest := get_close_matches(where, kind.model_fields, 1, 0.7):
                said += f". Did you mean {nearest[0]!r}?"
        elif where == "n" or where == "best_of":
            said = "this server makes one answer for each request: leave it out, or give 1"
        raise FieldError(where, f"{where}: {said}{'' if said.endswith('?') else '.'}") from None


class FieldError(InvalidParameterError):
    """A field of a body is wrong.

    Attributes:
        field: Its name.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def form_of(response_format: dict[str, Any] | None) -> dict[str, Any]:
    """The options by which an answer gets its form: OpenAI's, or TGI's, which `huggingface_hub` sends.

    Raises:
        InvalidParameterError: It is neither.
    """
    if response_format is None:
        return {}
    if "value" not in response_format:
        return {"response_format": response_format}
    kind, value = response_format.get("type"), response_format["value"]
    if kind == "regex":
        return {"grammar": Grammar(regex=value)}
    if kind not in ("json", "json_object", "json_schema"):
        msg = f"response_format.type must be json, json_object, json_schema or regex beside a value, got {kind!r}."
        raise FieldError("response_format.type", msg)
    if kind == "json_schema" and isinstance(value, dict):
        value = value.get("schema")
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": value}}}


def _literal(text: str) -> str:
    """A regular expression of a fixed text that Rust reads, too."""
    return "".join(f"\\x{{{ord(one):x}}}" if not one.isalnum() else one for one in text)


def _token_id(token: str) -> int:
    if not (token.isascii() and token.isdecimal()) or len(token) > _MAX_DIGITS:
        msg = f"logit_bias maps ids of tokens to numbers, and {token[:20]!r} is no id."
        raise FieldError("logit_bias", msg)
    return int(token)
