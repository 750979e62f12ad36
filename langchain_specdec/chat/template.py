"""The chat template of a model: messages and tools to a prompt."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

from typing_extensions import Self

from langchain_specdec.chat.arrangements import Message, arrangements, keeps_results_with_calls, marked, marks_in
from langchain_specdec.chat.content_blocks import with_notes
from langchain_specdec.chat.images import Images, map_texts, numbers_of, with_marks, with_parts
from langchain_specdec.chat.prompt import Prompt
from langchain_specdec.chat.reasoning import ReasoningControl, with_thoughts
from langchain_specdec.chat.special_tokens import ProtectedEncoder, Sealed
from langchain_specdec.chat.tool_calls import ToolCallParser, parser_class
from langchain_specdec.chat.tool_prompt import with_generic_tools
from langchain_specdec.errors import InvalidParameterError, UnsupportedModelError
from langchain_specdec.models.private_tokenizer import PrivateTokenizer

# Arguments of `apply_chat_template` that are no variables of the template.
_RESERVED = frozenset(
    {
        *("conversation", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message"),
        *("tokenize", "return_dict", "return_tensors", "return_assistant_tokens_mask", "tokenizer_kwargs"),
        *("padding", "truncation", "max_length"),
    }
)
_LONGEST_REASON = 300
_PROBE = "specdec_probe"
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": _PROBE,
        "description": "Probe.",
        "parameters": {"type": "object", "properties": {"x": {"type": "string", "description": "X."}}},
    },
}
# A turn in which a text stands before the call that it came with, and the next question.
_TEXT_APART: list[Message] = [
    {"role": "user", "content": "x"},
    {"role": "assistant", "content": "x"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "id": "probe1234", "function": {"name": _PROBE, "arguments": {"x": "x"}}},
        ],
    },
    {"role": "tool", "name": _PROBE, "content": "x", "tool_call_id": "probe1234"},
    {"role": "assistant", "content": "x"},
    {"role": "user", "content": "x"},
]


class ChatTemplate:
    """Renders messages by a model's own template, with their texts as data.

    A template that refuses the messages as they are (roles that do not alternate, a system message that is not the
    first), or leaves one out, gets them with neighbours of one role joined and system messages in front; where it
    knows no system messages, their text goes before the first user message; where a question or an answer has to stand
    between two others, or before the first, an empty one does. Several calls of one message become one message a call,
    each followed by its own result, and calls and results plain text, where nothing else is shown whole. Thoughts of
    earlier answers are given to it in the fields that it reads, and left out where it refuses them. Images stand where
    it writes its placeholder for each; those that tools found become notes where it writes none.

    Args:
        tokenizer: The model's tokenizer, or the private copy that its backend works with.
        model_name: For messages of errors.
        template: A Jinja template in place of the tokenizer's own, or the name of one of several that it has. Of
            several, transformers takes `tool_use` where there are tools, and `default` otherwise.
        options: Further variables of the template, such as `enable_thinking`.
        placeholder: What it writes where an image stands; "" where its model reads none.

    Raises:
        UnsupportedModelError: There is no template.
        InvalidParameterError: There are several and none is chosen, or an option is no variable of a template, or the
            tokenizer is not loaded.
    """

    def __init__(
        self,
        tokenizer: Any,
        model_name: str,
        template: str | None = None,
        options: Mapping[str, Any] | None = None,
        placeholder: str = "",
    ) -> None:
        self._private = PrivateTokenizer.of(tokenizer)
        self._tokenizer = tokenizer = self._private.copied
        own = getattr(tokenizer, "chat_template", None)
        if template is None and not own:
            msg = (
                f"{model_name} has no chat template, so it was not trained on chats. Take the model's chat or instruct "
                f"version, give a template (chat_template=...), or use SpeculativeLLM, which takes plain prompts."
            )
            raise UnsupportedModelError(msg)
        names = sorted(own) if isinstance(own, dict) else []
        if template is not None and template not in names and "{" not in template:
            listed = ", ".join(map(repr, names)) or "it has none with names"
            msg = f"chat_template must be a Jinja template, or the name of one of {model_name}'s ({listed}), "
            msg += f"got {template!r}."
            raise InvalidParameterError(msg)
        if reserved := sorted(_RESERVED & set(options or ())):
            msg = (
                f"chat_template_kwargs are variables of the template, and {', '.join(map(repr, reserved))} is none. "
                f"Tools and continue_final_message are options of a call, and chat_template is a field of the model."
            )
            raise InvalidParameterError(msg)
        self._model_name = model_name
        self._options = dict(options or {})
        self._placeholder = placeholder
        # The same with other variables for thinking.
        self._variants: dict[str, ChatTemplate] = {}
        # The template in use without tools, and with tools; empty where there is none.
        self._sources = tuple(_source(tokenizer, template, has_tools=has_tools) for has_tools in (False, True))
        if not any(self._sources):
            msg = (
                f"{model_name} has several chat templates, and none for all messages. Choose one: chat_template=, one "
                f"of {', '.join(map(repr, names))}."
            )
            raise InvalidParameterError(msg)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Nothing in it changes, and copies of a chain need not copy tokenizers.
        return self

    @property
    def identity(self) -> str:
        """Tells templates and their options apart."""
        return hashlib.sha256(repr((self._sources, sorted(self._options.items()))).encode()).hexdigest()[:16]

    @property
    def shows_tools(self) -> bool:
        """Whether the template tells the model about tools. Found by trying, not by its text."""
        return self._show_tools[True]

    @cached_property
    def _show_tools(self) -> tuple[bool, bool]:
        """The same of the template in use without tools, which may have to render calls too, and of that with them."""
        probe = [{"role": "user", "content": "x"}]
        plain, with_tools = (_PROBE in self._try(probe, [_PROBE_TOOL], source)[0] for source in self._sources)
        return plain, with_tools

    @cached_property
    def _take_texts_apart(self) -> tuple[bool, bool]:
        """Whether the two take such a turn, whole. One taken only while it is open would change when it is answered."""
        tools: tuple[list[Any], ...] = [], [_PROBE_TOOL]
        plain, with_tools = (not self._try(_TEXT_APART, *of)[1] for of in zip(tools, self._sources, strict=True))
        return plain, with_tools

    @cached_property
    def parser(self) -> type[ToolCallParser]:
        """Reads the calls that the template teaches the model to write."""
        described = getattr(self._tokenizer, "response_template", None)
        return parser_class(self._sources[True], shows_tools=self.shows_tools, response_template=described)

    @cached_property
    def reasoning(self) -> ReasoningControl:
        """What the template knows of thinking. Found by trying."""
        source = self._sources[False] or self._sources[True]

        def render(variables: Mapping[str, Any]) -> str:
            return self._with(variables)._try([{"role": "user", "content": "x"}], [], source)[0]

        return ReasoningControl.of(source, render)

    def check_reasoning(self, reasoning: bool | str | None) -> None:
        """Raise what `with_reasoning` would."""
        if reasoning is not None:
            self.reasoning.variables(reasoning, self._model_name)

    def with_reasoning(self, reasoning: bool | str | None) -> ChatTemplate:
        """The same where the model thinks, or does not, as `ChatSpeculative.reasoning` has it.

        Raises:
            InvalidParameterError: The template knows no such thing.
        """
        variables = self.reasoning.variables(reasoning, self._model_name)
        if not variables:
            return self
        key = repr(sorted(variables.items()))
        if key not in self._variants:
            self._variants[key] = self._with(variables)
        return self._variants[key]

    def _with(self, variables: Mapping[str, Any]) -> ChatTemplate:
        """The same with further variables."""
        self.encoder  # noqa: B018 - shared
        variant = copy.copy(self)
        variant._options, variant._variants = {**self._options, **variables}, {}
        return variant

    @cached_property
    def encoder(self) -> ProtectedEncoder:
        """Encodes what is rendered."""
        return ProtectedEncoder(self._private, "\n".join(self._sources))

    @cached_property
    def mark_texts(self) -> dict[int, str]:
        """Special tokens that mark tool calls, by id, with their texts, which an answer has to show."""
        return {index: text for index, text in self._private.special_texts.items() if self.parser.is_mark(text)}

    @cached_property
    def thought_texts(self) -> dict[int, str]:
        """The same for thoughts."""
        family = self.reasoning.family
        marks = family.marks if family is not None else ()
        return {index: text for index, text in self._private.special_texts.items() if any(text in m for m in marks)}

    @property
    def call_tokens(self) -> list[int]:
        """The tokens that begin a call; none where the family's mark is no token of its own."""
        # Where answers begin with a mark too, it says nothing of calls.
        return [] if self.parser.answer_begin else self._private.ids_of_added(self.parser.mark)

    def token_ids(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        begin: str = "",
        limit: int | None = None,
        *,
        goes_on: bool = False,
    ) -> list[int]:
        """The prompt's tokens, up to where the assistant's answer begins, or goes on.

        Args:
            messages: Dictionaries with `role`, `content`, and `tool_calls`, `tool_call_id`, `name` where they apply.
            tools: Tools as OpenAI describes them.
            begin: What the answer begins with; its special tokens are special.
            limit: Most tokens that are of use.
            goes_on: Whether the last message is the beginning of the answer, instead of a turn before it. Where the
                template trims messages, white space at its end goes.

        Raises:
            InvalidParameterError: The template cannot render them.
            PromptTooLongError: There are far more than `limit` tokens.
        """
        return self.prompt(messages, tools, goes_on=goes_on).token_ids(begin, limit)

    def text(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        begin: str = "",
        *,
        goes_on: bool = False,
    ) -> str:
        """The prompt for a server that takes text, see `Prompt.text`."""
        return self.prompt(messages, tools, goes_on=goes_on).text(begin)

    def begin_of_answer(self, messages: Sequence[Message]) -> str:
        """What an answer without a thought begins with: the end of one that the prompt opens, and the family's mark."""
        family = self.reasoning.family
        is_open = family is not None and family.is_open(self.text(messages))
        return (family.closing + family.following if family and is_open else "") + self.parser.answer_begin

    def prompt(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        goes_on: bool = False,
        images: Images | None = None,
    ) -> Prompt:
        """The prompt, up to where the assistant's answer begins, or goes on, with its images. See `token_ids`."""
        if not messages:
            msg = "There are no messages. Give at least one."
            raise InvalidParameterError(msg)
        try:
            return Prompt(*self._rendered(messages, tools, images or Images(), goes_on=goes_on), self.encoder)
        except RecursionError as error:
            msg = "A message or a tool is nested too deeply to be written into a prompt. Give it with fewer levels."
            raise InvalidParameterError(msg) from error

    def _rendered(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], images: Images, *, goes_on: bool
    ) -> tuple[str, Sealed]:
        # What tools found is noted where a template has no place for it.
        found = images.found
        noted = [{**row, "content": with_notes(row["content"], images, found)} for row in messages]
        given = [messages, noted] if found else [messages]
        shown = tools
        if not self._show_tools[bool(tools)]:
            given, shown = [with_generic_tools(rows, tools) for rows in given], ()
        source = self._sources[bool(shown)]
        sealed = self.encoder.seal(given, shown)
        shown = sealed.seal(list(shown))
        reason = ""
        for rows in chain.from_iterable(zip(*map(_ways, given), strict=True)):
            rendered, refusal = self._arranged([self._sealed(row, sealed) for row in rows], shown, source, goes_on)
            if not refusal:
                return rendered, sealed
            reason = reason or refusal
        # It may repeat what it refuses.
        reason = sealed.unseal(" ".join(reason.split())[:_LONGEST_REASON]).rstrip(".")
        msg = f"The chat template of {self._model_name} cannot render these messages: {reason}."
        raise InvalidParameterError(msg)

    def _arranged(
        self, messages: Sequence[Message], tools: Sequence[Any], source: str, goes_on: bool
    ) -> tuple[str, str]:
        """What a template makes of the arrangement that it shows most of, and why it can show none whole."""
        best, fewest, reason = "", math.inf, ""
        how = {
            "has_texts_apart": self._take_texts_apart[bool(tools)],
            "has_results_with_calls": keeps_results_with_calls(source),
        }
        for arranged in arrangements(messages, **how):
            missing, num_wanted = self._missing(arranged, tools, source, goes_on)
            if not missing and num_wanted < fewest:
                rendered, refusal = self._try(arranged, tools, source, goes_on=goes_on)
                reason = reason or refusal
                if not refusal:
                    best, fewest = rendered, num_wanted
            reason = reason or missing
            if fewest == 0:
                break
        return (best, "") if fewest < math.inf else ("", reason)

    def _missing(
        self, messages: Sequence[Message], tools: Sequence[Any], source: str, goes_on: bool
    ) -> tuple[str, int]:
        """What a template leaves out that has to be shown, as the reason to refuse it, and how much else. By trying."""
        tried = marked(messages)
        rendered, refusal = self._try(tried.messages, [*tools, _PROBE_TOOL] if tools else [], source, goes_on=goes_on)
        if refusal:
            # It tells more of the messages themselves, and may not refuse those.
            return "", 1
        shown = marks_in(rendered)
        left_out = (what for mark, what in tried.needed.items() if mark not in shown)
        reason = next((f"it leaves out the {what}" for what in left_out), "")
        lacks_tools = bool(tools) and _PROBE not in rendered
        return reason, lacks_tools + sum(mark not in shown for mark in tried.wanted)

    def _sealed(self, message: Message, sealed: Sealed) -> Message:
        is_own = message["role"] == "assistant"
        own = self.encoder.model_specials if is_own else None
        data: Message = sealed.seal({key: value for key, value in message.items() if key != "content"})
        if is_own and "reasoning_content" in message:
            data["reasoning_content"] = sealed.seal(message["reasoning_content"], own)
        # What stands before an image is completed by it no more than what ends a message.
        return {**data, "content": map_texts(message["content"], lambda text: sealed.seal(text, own))}

    def _try(
        self, messages: Sequence[Message], tools: Sequence[Any], source: str, *, goes_on: bool = False
    ) -> tuple[str, str]:
        """What a template makes of messages and tools, and why it makes nothing of them; one of the two is empty."""
        try:
            rows = [with_parts(message) for message in messages]
            rendered: str = self._tokenizer.apply_chat_template(
                [with_thoughts(row, source) if "reasoning_content" in row else row for row in rows],
                tools=list(tools) or None,
                chat_template=source or None,
                add_generation_prompt=not goes_on,
                continue_final_message=goes_on,
                tokenize=False,
                **self._options,
            )
        except Exception as error:  # a template is a program, and may raise anything
            is_deep = isinstance(error, RecursionError)
            return "", "they are nested too deeply" if is_deep else str(error).strip() or type(error).__name__
        if numbers := numbers_of(messages):
            marked_images = with_marks(rendered, self._placeholder, numbers)
            return ("", "it has no place for images") if marked_images is None else (marked_images, "")
        return rendered, ""


def _ways(messages: Sequence[Message]) -> list[Sequence[Message]]:
    """Messages as they are, without thoughts, which a template may refuse, and with calls and results as plain ones."""
    unthought = [{key: value for key, value in row.items() if key != "reasoning_content"} for row in messages]
    ways: list[Sequence[Message]] = [messages, with_generic_tools(unthought, ())]
    if unthought != list(messages):
        ways.insert(1, unthought)
    return ways


def _source(tokenizer: Any, template: str | None, *, has_tools: bool) -> str:
    """The template that transformers would take; empty where it knows none to take."""
    choose = getattr(tokenizer, "get_chat_template", None)
    if choose is None:
        return template or str(tokenizer.chat_template)
    try:
        return str(choose(template, tools=[_PROBE_TOOL] if has_tools else None))
    except ValueError:
        return ""
