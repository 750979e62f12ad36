"""Thinking in one call: whether the model thinks, how long, and what comes between its thought and its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain_specdec.backends.base import Backend
from langchain_specdec.chat.reasoning import ThoughtFamily
from langchain_specdec.chat.template import ChatTemplate
from langchain_specdec.completions.thoughts import Thoughts
from langchain_specdec.errors import InvalidParameterError


@dataclass(frozen=True)
class Thinking:
    """How a model thinks in one call.

    Attributes:
        template: Writes the prompt.
        family: How the model writes thoughts; None where it writes none.
        is_on: Whether it thinks, as far as is known without the prompt.
        max_tokens: Most tokens of its thoughts before the answer; None is without limit.
        has_stops: Whether stop strings are looked for in thoughts, too.
    """

    template: ChatTemplate
    family: ThoughtFamily | None
    is_on: bool
    max_tokens: int | None
    has_stops: bool

    @classmethod
    def of(
        cls,
        options: Mapping[str, Any],
        template: ChatTemplate,
        backend: Backend,
        messages: Sequence[dict[str, Any]],
        *,
        has_form: bool,
    ) -> Thinking:
        """What is asked for.

        Args:
            options: Those of `REASONING_OPTIONS`.
            template: The model's.
            backend: Where it runs.
            messages: Those of the call, without what is said of the form.
            has_form: Whether a grammar holds the answer.

        Raises:
            InvalidParameterError: The template knows no such thing, or the backend cannot do it.
        """
        reasoning, most = options["reasoning"], options["max_reasoning_tokens"]
        control = template.reasoning
        chosen = template.with_reasoning(reasoning)
        _check_limit(most, template)
        is_on = control.thinks if reasoning is None else reasoning not in (False, "none")
        if has_form and control.is_told and control.family is not None and reasoning is None:
            # A system message of one's own stands in the place of the one that asks for thoughts. It may ask itself.
            own = [str(message["content"]) for message in messages if message["role"] == "system"]
            told = (control.family.is_told(text) for text in (template.prompt(messages).rendered, *own))
            is_on = backend.takes_thoughts and any(told)
        if not backend.takes_thoughts:
            if is_on is False and control.can_switch:
                most = None  # there is nothing to limit
            if most is not None or (has_form and is_on and reasoning is not None):
                what = "max_reasoning_tokens" if most is not None else "A thought before an answer of a given form"
                advice = ", or have the model not think (reasoning=False)" if control.can_switch else ""
                msg = (
                    f"{what} cannot be honoured by {type(backend).__name__}, whose grammars hold a text from its "
                    f"beginning. Use a LocalBackend{advice}."
                )
                raise InvalidParameterError(msg)
            if has_form and is_on:
                chosen = _without(template, backend)
            is_on = False
        return cls(chosen, control.family, is_on, most, bool(options["stop_in_reasoning"]))

    def thoughts(self, prompt: str, *, goes_on_from: str | None) -> Thoughts | None:
        """How thoughts stand in the reply; None where the model writes none.

        Args:
            prompt: The prompt.
            goes_on_from: The text that the answer goes on with; None where it is a new turn.
        """
        family = self.family
        if family is None:
            return None
        is_open = family.is_open(prompt)
        if goes_on_from is not None:
            is_open = max(goes_on_from.rfind(begin) for begin in family.begins) > goes_on_from.rfind(family.end)
        return Thoughts(
            family.begins,
            family.end,
            family.strays,
            is_open,
            has_stops=self.has_stops,
            header_begins=family.header_begins,
            header_end=family.header_end,
            is_in_header=family.is_in_header(prompt),
            implied_ends=family.implied_ends,
            is_begun=goes_on_from is not None and not is_open,
        )

    def first(
        self, thoughts: Thoughts | None, prompt: str, begin: str | None, max_new_tokens: int, *, goes_on: bool
    ) -> tuple[str, Thoughts | None]:
        """The same where the model is to think first, and what has to stand at the end of the prompt for that.

        Args:
            thoughts: Those of a reply that is free.
            prompt: The prompt.
            begin: What stands before the text of a grammar; None where the answer is free.
            max_new_tokens: Most tokens of the reply.
            goes_on: Whether the reply goes on with a text, before which no thought can be begun.

        Returns:
            What goes to the end of the prompt, and how thoughts stand in the reply; None where it has none.
        """
        family = self.family
        if family is None or thoughts is None:
            return begin or "", None
        limited = replace(
            thoughts,
            max_tokens=self.max_tokens,
            closing=family.closing,
            following=family.following + (begin or ""),
        )
        if begin is None:
            # Behind a word of the answer, no thought is looked for.
            has_limit = self.max_tokens is not None and (thoughts.is_open or not goes_on)
            return "", limited if has_limit else thoughts
        if family.is_closed(prompt) or not (self.is_on or thoughts.is_open):
            return begin, None
        if self.max_tokens is None:
            limited = replace(limited, max_tokens=max_new_tokens // 2)
        return "" if thoughts.is_open else family.opening, replace(limited, is_open=True, is_single=True)


def check_thinking(reasoning: bool | str | None, max_tokens: int | None, template: ChatTemplate) -> None:
    """Refuse what a template does not know.

    Args:
        reasoning: Whether to think, or how much.
        max_tokens: Most tokens of thoughts.
        template: The model's.

    Raises:
        InvalidParameterError: It knows no such thing.
    """
    template.check_reasoning(reasoning)
    _check_limit(max_tokens, template)


def _check_limit(max_tokens: int | None, template: ChatTemplate) -> None:
    if max_tokens is not None and template.reasoning.family is None:
        msg = (
            "max_reasoning_tokens limits thoughts, and the chat template knows none. Leave it out; max_new_tokens "
            "limits the answer."
        )
        raise InvalidParameterError(msg)


def _without(template: ChatTemplate, backend: Backend) -> ChatTemplate:
    """The template where its model does not think."""
    try:
        return template.with_reasoning(False)
    except InvalidParameterError as error:
        msg = (
            f"The model thinks before each answer, and {type(backend).__name__} cannot hold the form of an answer "
            f"that comes after a thought. Use a LocalBackend, or a model whose template can switch thinking off."
        )
        raise InvalidParameterError(msg) from error
