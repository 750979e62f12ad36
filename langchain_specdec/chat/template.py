"""The chat template of a model: messages and tools to a prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import jinja2
from typing_extensions import Self

from langchain_specdec.chat.special_tokens import ProtectedEncoder, Sealed
from langchain_specdec.chat.tool_calls import ToolCallParser, parser_class
from langchain_specdec.chat.tool_prompt import with_generic_tools
from langchain_specdec.errors import InvalidParameterError, UnsupportedModelError
from langchain_specdec.models.private_tokenizer import PrivateTokenizer

Message = dict[str, Any]

# What a template does with input that it was not written for.
_TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)
_PROBE = "specdec_probe"
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": _PROBE,
        "description": "Probe.",
        "parameters": {"type": "object", "properties": {"x": {"type": "string", "description": "X."}}},
    },
}


class ChatTemplate:
    """Renders messages by a model's own template, with their texts as data.

    A template that refuses the messages as they are (roles that do not alternate, a system message that is not the
    first), or leaves one out, gets them with neighbours of one role joined and system messages in front; where it
    knows no system messages, their text goes before the first user message.

    Args:
        tokenizer: The model's tokenizer, or the private copy that its backend works with.
        model_name: For messages of errors.
        template: A Jinja template in place of the tokenizer's own.
        options: Further variables of the template, such as `enable_thinking`.

    Raises:
        UnsupportedModelError: There is no template.
    """

    def __init__(
        self, tokenizer: Any, model_name: str, template: str | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        self._private = PrivateTokenizer.of(tokenizer)
        self._tokenizer = tokenizer = self._private.original
        own = getattr(tokenizer, "chat_template", None)
        if template is None and not own:
            msg = (
                f"{model_name} has no chat template, so it was not trained on chats. Take the model's chat or instruct "
                f"version, give a template (chat_template=...), or use SpeculativeLLM, which takes plain prompts."
            )
            raise UnsupportedModelError(msg)
        self._model_name = model_name
        self._template = template
        self._options = dict(options or {})
        self._source = template or ("\n".join(own.values()) if isinstance(own, dict) else str(own))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Nothing in it changes, and copies of a chain need not copy tokenizers.
        return self

    @property
    def identity(self) -> str:
        """Tells templates and their options apart."""
        return hashlib.sha256(repr((self._source, sorted(self._options.items()))).encode()).hexdigest()[:16]

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the template tells the model about tools. Found by trying, not by its text."""
        try:
            return _PROBE in self._apply([{"role": "user", "content": "x"}], [_PROBE_TOOL], is_open=True)
        except _TEMPLATE_ERRORS:
            return False

    @cached_property
    def parser(self) -> type[ToolCallParser]:
        """Reads the calls that the template teaches the model to write."""
        return parser_class(self._source, shows_tools=self.shows_tools)

    @cached_property
    def encoder(self) -> ProtectedEncoder:
        """Encodes what is rendered."""
        return ProtectedEncoder(self._private, self._source)

    @cached_property
    def mark_texts(self) -> dict[int, str]:
        """Special tokens that mark tool calls, by id. Decoding leaves special tokens out, so their text is put back."""
        marks = {self.parser.mark, *self.parser.inner_marks}
        return {index: text for index, text in self._private.special_texts.items() if text in marks}

    def token_ids(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        begin: str = "",
        limit: int | None = None,
    ) -> list[int]:
        """The prompt's tokens, up to where the assistant's answer begins, or goes on.

        Args:
            messages: Dictionaries with `role`, `content`, and `tool_calls`, `tool_call_id`, `name` where they apply.
            tools: Tools as OpenAI describes them.
            begin: What the answer begins with; its special tokens are special.
            limit: Most tokens that are of use.

        Raises:
            InvalidParameterError: The template cannot render them.
            PromptTooLongError: There are far more than `limit` tokens.
        """
        rendered, sealed = self._render(messages, tools)
        return self.encoder.encode(rendered + begin, sealed, limit)

    def text(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), begin: str = "") -> str:
        """The prompt for a server that takes text; what looks like a special token is broken by a zero-width space."""
        rendered, sealed = self._render(messages, tools)
        return self.encoder.as_text(rendered + begin, sealed)

    def _render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> tuple[str, Sealed]:
        if not messages:
            msg = "There are no messages. Give at least one."
            raise InvalidParameterError(msg)
        if not self.shows_tools:
            messages, tools = with_generic_tools(messages, tools), ()
        sealed = self.encoder.seal(messages, tools)
        data = [self._sealed(message, sealed) for message in messages]
        shown = sealed.seal(list(tools))
        reason = ""
        for arranged in (data, _merged(data), _without_system(data)):
            try:
                rendered = self._apply(arranged, shown, is_open=True)
            except _TEMPLATE_ERRORS as error:
                reason = reason or str(error)
                continue
            if missing := _first_missing(arranged, rendered):
                reason = reason or f"it leaves out the {missing} message"
                continue
            return rendered, sealed
        msg = f"The chat template of {self._model_name} cannot render these messages: {reason.strip() or 'no reason'}."
        raise InvalidParameterError(msg)

    def _sealed(self, message: Message, sealed: Sealed) -> Message:
        data: Message = sealed.seal(message)
        if message["role"] == "assistant":
            data["content"] = sealed.seal(message["content"], self.encoder.model_specials)
        return data

    def _apply(self, messages: Sequence[Message], tools: Sequence[Any], *, is_open: bool) -> str:
        rendered: str = self._tokenizer.apply_chat_template(
            list(messages),
            tools=list(tools) or None,
            chat_template=self._template,
            add_generation_prompt=is_open,
            tokenize=False,
            **self._options,
        )
        return rendered


def _merged(messages: Sequence[Message]) -> list[Message]:
    """System messages in front as one, and neighbours of one role joined; calls and their results stay apart."""
    system = [message for message in messages if message["role"] == "system"]
    merged: list[Message] = []
    for message in [*system, *(message for message in messages if message["role"] != "system")]:
        last = merged[-1] if merged else None
        is_joinable = message["role"] != "tool" and not message.get("tool_calls")
        if last is not None and last["role"] == message["role"] and is_joinable and not last.get("tool_calls"):
            merged[-1] = {**last, "content": _joined(last["content"], message["content"])}
        else:
            merged.append(message)
    return merged


def _without_system(messages: Sequence[Message]) -> list[Message]:
    first, *others = merged = _merged(messages)
    if first["role"] != "system":
        return merged
    if others and others[0]["role"] == "user":
        return [{**others[0], "content": _joined(first["content"], others[0]["content"])}, *others[1:]]
    return [{"role": "user", "content": first["content"]}, *others]


def _joined(*texts: str) -> str:
    return "\n\n".join(text for text in texts if text)


def _first_missing(messages: Sequence[Message], rendered: str) -> str | None:
    """The role of a message that a template left out; templates may trim texts."""
    for message in messages:
        if message["role"] in ("system", "user") and message["content"].strip() not in rendered:
            return str(message["role"])
    return None
