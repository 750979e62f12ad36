"""One call of a chat model: what is asked for, and the prompt that a chat template makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, NamedTuple

from langchain_core.messages import BaseMessage

from langchain_specdec.backends.base import Backend
from langchain_specdec.chat.answer_reader import AnswerReader
from langchain_specdec.chat.arrangements import Message
from langchain_specdec.chat.calls_or_object import CallsFirst, CallsOrObjectForm, form_of_calls_or_object
from langchain_specdec.chat.image_prompts import images_for, read_into
from langchain_specdec.chat.images import Images
from langchain_specdec.chat.messages import continues_message, to_template_messages
from langchain_specdec.chat.prompt import Prompt
from langchain_specdec.chat.reasoning_options import REASONING_OPTIONS, check_reasoning_options
from langchain_specdec.chat.replies import ReplyReader
from langchain_specdec.chat.schemas import as_tool
from langchain_specdec.chat.structured_output import (
    ANY,
    OutputForm,
    forced_tools,
    form_of_calls,
    form_of_response,
    with_schema_prompt,
)
from langchain_specdec.chat.template import ChatTemplate
from langchain_specdec.chat.thinking import Thinking
from langchain_specdec.chat.tool_calls import writing_parser
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.stream import TimeLimit
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.sampling.params import SamplingParams

CALL_OPTIONS = frozenset(
    {
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        # A tool whose schema no grammar holds whole is refused, as forms of answers are.
        "_whole_schema",
        # An answer against its grammar is told with the error (`form_error`) and does not raise.
        "_keep_malformed",
        "timeout",
        "stream",
        "continue_final_message",
        *REASONING_OPTIONS,
    }
)
"""What a call may be given beside sampling parameters."""


class AskedCall(NamedTuple):
    """What is asked for, checked as far as it can be without the template.

    Attributes:
        rows: Messages, as templates take them.
        images: Their images.
        params: What to generate.
        options: What was given beside: `tool_choice`, `parallel_tool_calls`, `_keep_malformed`, `_whole_schema`,
            `continue_final_message`, and how to think.
        tools: All tools.
        forced: Those of which the answer has to be a call; None where it may be text.
        form: The form asked for by `response_format`.
        limit: Of the time of the call.
    """

    rows: list[dict[str, Any]]
    images: Images
    params: SamplingParams
    options: Mapping[str, Any]
    tools: list[dict[str, Any]]
    forced: Sequence[Mapping[str, Any]] | None
    form: OutputForm | None
    limit: TimeLimit

    @classmethod
    def of(
        cls,
        messages: Sequence[BaseMessage],
        params: SamplingParams,
        options: Mapping[str, Any],
        limit: TimeLimit,
        backend: Backend,
    ) -> AskedCall:
        """A call with these options, those of `CALL_OPTIONS`.

        Raises:
            InvalidParameterError: One of them, or a message, is none, or they contradict each other.
        """
        tools = [as_tool(tool) for tool in options["tools"] or ()]
        forced = forced_tools(tools, options["tool_choice"])
        images = images_for(backend, takes_messages=True)
        rows, form = to_template_messages(messages, images), form_of_response(options["response_format"])
        asked = cls(rows, images, params, options, tools, forced, form, limit)
        asked.check(backend)
        return asked

    @property
    def may_call(self) -> bool:
        """Whether the answer may be a call. The model is told about all tools in any case: prompts begin alike then."""
        return bool(self.tools) and self.options["tool_choice"] != "none"

    def sends_images(self, backend: Backend) -> bool:
        """Whether it has images, and goes to a server with them, which makes the prompt."""
        return bool(self.images) and backend.image_reader is None

    @property
    def takes_one_call(self) -> bool:
        """Whether the answer ends after its first call."""
        return self.options["parallel_tool_calls"] is False

    @property
    def takes_one_forced(self) -> bool:
        """Whether the answer is one call, where it has to be calls: so it is where a tool is named."""
        return self.takes_one_call or self.options["tool_choice"] not in ANY

    def check(self, backend: Backend) -> None:
        """Refuse what contradicts itself, or is known to be beyond the backend.

        Raises:
            InvalidParameterError: It is such a call.
        """
        check_parallel_tool_calls(self.options["parallel_tool_calls"])
        check_reasoning_options(self.options)
        if self.forced is not None and self.form is not None:
            msg = "response_format and a tool_choice that forces a call contradict each other. Give one of them."
            raise InvalidParameterError(msg)
        if self.form is not None and self.may_call and backend.takes_calls_or_object is False:
            raise _no_calls_or_object(backend)
        if self.params.grammar is not None and (self.forced is not None or self.form is not None):
            msg = "grammar is set already by response_format, or by a tool_choice that forces a call. Leave it out."
            raise InvalidParameterError(msg)


def check_parallel_tool_calls(option: object) -> None:
    """Refuse what is no value of `parallel_tool_calls`.

    Raises:
        InvalidParameterError: It is neither True nor False, nor None.
    """
    if option is not None and not isinstance(option, bool):
        msg = (
            f"parallel_tool_calls must be True or None (an answer may hold several calls) or False (it ends after its "
            f"first call), got {option!r}."
        )
        raise InvalidParameterError(msg)


class ReadyCall(NamedTuple):
    """One call, ready to run."""

    request: CompletionRequest
    reader: ReplyReader
    limit: TimeLimit


def render(
    asked: AskedCall, template: ChatTemplate, backend: Backend, template_of: Any, *, has_blocks: bool = False
) -> ReadyCall:
    """The prompt of a call, and how its answer is read.

    Args:
        asked: The call.
        template: Writes the prompt.
        backend: Where it will run.
        template_of: The tokenizer of the template, where the backend's model may be another by then; else None.
        has_blocks: Whether the content of the answer is a list of standard blocks.

    Raises:
        InvalidParameterError: The template cannot render it, or an image cannot be read.
    """
    rows, params, options, tools, form = asked.rows, asked.params, asked.options, asked.tools, asked.form
    # Where calls are written under a grammar, it may be in another format.
    reads = template.parser
    if asked.forced is not None:
        is_whole = bool(options["_whole_schema"])
        reads = writing_parser(reads, takes_parts=bool(backend.takes_calls_or_object), is_whole=is_whole)
        form = form_of_calls(
            asked.forced,
            reads,
            backend.check_grammar,
            needs_properties=backend.needs_properties,
            is_whole=is_whole,
            takes_one_call=asked.takes_one_forced or not backend.takes_calls_or_object,
        )
    elif form is not None:
        rows = with_schema_prompt(rows, form, has_tools=bool(tools))
        if asked.may_call:
            if not backend.takes_calls_or_object:
                raise _no_calls_or_object(backend)
            reads = writing_parser(reads, takes_parts=True)
            one = {"takes_one_call": asked.takes_one_call}
            form = form_of_calls_or_object(form, tools, reads, backend.check_grammar, **one)
    if form is not None:
        params = replace(params, grammar=form.grammar)
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
    # Some families write marks around a text that is no call, too.
    parser = reads(schemas) if asked.may_call or template.parser.answer_begin else None
    if parser is not None and asked.takes_one_call:
        parser.expect_one_call()
    goes_on = continues_message(options["continue_final_message"], rows, parser, has_form=form is not None)
    has_form = params.grammar is not None and not goes_on
    thinking = Thinking.of(options, template, backend, asked.rows, has_form=has_form)

    def write(rows: Sequence[Message]) -> Prompt:
        return thinking.template.prompt(rows, tools, goes_on=goes_on, images=asked.images)

    rendered, read = read_into(write, rows, asked.images, backend.image_reader)
    thoughts = thinking.thoughts(rendered.rendered, goes_on_from=rows[-1]["content"] if goes_on else None)
    form_begin = _form_begin(form, template) if has_form else None
    begin, thoughts = thinking.first(thoughts, rendered.rendered, form_begin, params.max_new_tokens, goes_on=goes_on)
    if goes_on and params.grammar is not None:
        thoughts = None  # what a grammar of one's own allows may hold marks
    if backend.takes_token_ids:
        prompt: str | list[int] = rendered.token_ids(begin, backend.max_length)
    else:
        prompt = rendered.text(begin)
    marks = template.mark_texts if parser else {}
    if thoughts is not None:
        # What is no mark, and no parser reads, is no text either.
        strays = tuple(text for index, text in template.thought_texts.items() if index not in marks)
        if template.parser.answer_begin:
            strays = ()
        thoughts = replace(thoughts, strays=(*thoughts.strays, *strays))
        marks = template.thought_texts | marks
    in_order = CallsFirst(parser) if parser and isinstance(form, CallsOrObjectForm) else parser
    how: dict[str, Any] = {
        "must_call": asked.forced is not None,
        "keeps_malformed": bool(options["_keep_malformed"]),
        "has_blocks": has_blocks,
        "thoughts": thoughts,
    }
    num_prompt = 0 if isinstance(prompt, str) else len(prompt)
    reader = ReplyReader(lambda: backend.model_name, in_order, form, params, prompt_tokens=num_prompt, **how)
    # Of a grammar's text, and of a text that is gone on with, no space may be left out.
    continues_prompt = bool(begin) or goes_on or params.grammar is not None
    # What looks like a call all the same, as in families without a token that begins one, is text.
    banned = template.call_tokens if tools and not asked.may_call else ()
    # A forced call ends by its grammar.
    has_end = in_order is not None and asked.takes_one_call and asked.forced is None
    end_check = make_end_check(AnswerReader(in_order, thoughts)) if has_end else None
    request = CompletionRequest(
        prompt,
        params,
        continues_prompt,
        shown_specials=marks,
        template_of=template_of,
        banned=banned,
        make_end_check=end_check,
        thoughts=thoughts,
        images=read.placed(prompt) if read is not None and not isinstance(prompt, str) else (),
    )
    return ReadyCall(request, reader, asked.limit)


def _no_calls_or_object(backend: Backend) -> InvalidParameterError:
    return InvalidParameterError(
        f"response_format beside tools cannot be honoured by {type(backend).__name__}, whose grammars know no choice "
        f"between a call and an object. Give an agent response_format=ToolStrategy(...), which makes a tool of it, or "
        f"forbid calls with tool_choice='none'."
    )


def _form_begin(form: OutputForm | None, template: ChatTemplate) -> str:
    """What stands before the text of a grammar."""
    if isinstance(form, CallsOrObjectForm):
        return form.begin  # its grammar has the rest
    return (form.begin if form is not None else "") or template.parser.answer_begin


def make_end_check(reader: AnswerReader) -> Callable[[], Callable[[str], bool]]:
    """Makes what tells whether a text has come to the end of its first call."""

    def make() -> Callable[[str], bool]:
        # The reader of the answer feeds its parser itself, in another thread.
        own = deepcopy(reader)

        def is_at_end(text: str) -> bool:
            own.feed(text)
            return own.is_done

        return is_at_end

    return make
