"""Thinking, as chat templates know it: the marks of a family's thoughts, and the variables that switch it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from langchain_specdec.errors import InvalidParameterError

_SWITCHES = ("enable_thinking", "thinking", "enable_reasoning")
_EFFORTS = ("reasoning_effort", "thinking_effort")
_COMMON_LEVELS = ("low", "medium", "high")
_LEVELS = ("none", "minimal", *_COMMON_LEVELS, "xhigh", "max")
_NO_THINKING = "none"
# Fields of a message that templates read earlier thoughts from.
_FIELDS = ("reasoning_content", "thinking", "reasoning")

Render = Callable[[Mapping[str, Any]], str]
"""What a template makes of a question with further variables; "" where it refuses them."""


@dataclass(frozen=True)
class ThoughtFamily:
    """How the models of a family write thoughts.

    Attributes:
        is_taught_by: Texts of which one stands in the templates of the family.
        begins: Marks that begin a thought; the first is what a prompt begins one with, but for white space.
        end: The mark that ends one.
        implied_ends: Texts that end one, too, and belong to what follows.
        space: White space between the first mark and the thought, and between the thought and its end.
        following: What stands between a thought and what follows it.
        strays: Marks around the answer, which are left out of it.
        header_begins: Marks that begin a header of the answer; none where it has none.
        header_end: The mark that ends one.
    """

    is_taught_by: tuple[str, ...]
    begins: tuple[str, ...]
    end: str
    space: str = ""
    following: str = ""
    strays: tuple[str, ...] = ()
    header_begins: tuple[str, ...] = ()
    header_end: str = ""
    implied_ends: tuple[str, ...] = ()

    @property
    def opening(self) -> str:
        """What begins a thought at the end of a prompt."""
        return self.begins[0] + self.space

    @property
    def closing(self) -> str:
        """What ends a thought that does not end by itself."""
        return self.space + self.end

    @property
    def marks(self) -> tuple[str, ...]:
        """All marks."""
        return (*self.begins, self.end, *self.strays)

    def is_open(self, prompt: str) -> bool:
        """Whether a prompt ends within a thought that it has begun."""
        return prompt.rstrip().endswith(tuple(begin.rstrip() for begin in self.begins))

    def is_in_header(self, prompt: str) -> bool:
        """Whether a prompt ends within the header of an answer."""
        begun = max((prompt.rfind(begin) for begin in self.header_begins), default=-1)
        return begun > prompt.rfind(self.header_end)

    def is_told(self, prompt: str) -> bool:
        """Whether a prompt tells the model to think, for it shows the marks."""
        return self.begins[0] in prompt and self.end in prompt

    def is_closed(self, prompt: str) -> bool:
        """Whether a prompt ends behind a thought: the model is to answer without one."""
        return prompt.rstrip().endswith(self.end)


def _tags(name: str, *taught_by: str, strays: tuple[str, ...] = ()) -> ThoughtFamily:
    begin, end = f"<{name}>", f"</{name}>"
    return ThoughtFamily(taught_by or (begin, end), (begin,), end, "\n", "\n\n", strays)


# The first that a template teaches is taken.
_FAMILIES = (
    # Harmony, of gpt-oss.
    ThoughtFamily(
        ("<|channel|>analysis", "<|channel|>"),
        ("<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>analysis<|message|>"),
        "<|end|>",
        following="<|start|>assistant",
        header_begins=("<|start|>assistant", *(f"<|channel|>{name}" for name in ("analysis", "commentary", "final"))),
        header_end="<|message|>",
        # The model goes on to the next message at times, without having ended this one.
        implied_ends=(
            *("<|start|>assistant", "<|channel|>final", "<|channel|>commentary"),
            *("<|channel|>analysis<|message|>", "<|channel|>analysis to="),
        ),
    ),
    # Gemma 4. Its template writes the first mark without the line break where it takes thoughts out.
    ThoughtFamily(("<|channel>",), ("<|channel>thought\n", "<|channel>thought"), "<channel|>"),
    # Magistral and Ministral.
    ThoughtFamily(("[THINK]",), ("[THINK]",), "[/THINK]"),
    _tags("seed:think"),
    # Granite 3.3, whose answers stand between marks, too.
    _tags("think", "<response>", strays=("<response>", "</response>")),
    # Qwen 3 and later, SmolLM3, DeepSeek and its distills, GLM, Nemotron and most others.
    _tags("think"),
)


def family_of(template: str) -> ThoughtFamily | None:
    """How the models of a chat template write thoughts, by its source; None where they write none."""
    return next((f for f in _FAMILIES if any(text in template for text in f.is_taught_by)), None)


def with_thoughts(message: Mapping[str, Any], template: str) -> dict[str, Any]:
    """A message of the assistant as a template takes it, with its thought in the fields that the template reads.

    Args:
        message: It may have a `reasoning_content`.
        template: The source of the template.
    """
    shown = {key: value for key, value in message.items() if key != _FIELDS[0]}
    if not (thought := message.get(_FIELDS[0])):
        return shown
    fields = [field for field in _FIELDS if re.search(rf"message(\.|\[['\"]){field}\b|['\"]{field}['\"]", template)]
    if "['type'] == 'thinking'" in template and fields in ([], ["thinking"]):
        # Mistral's have it among the content.
        text = [{"type": "text", "text": message["content"]}] if message["content"] else []
        return {**shown, "content": [{"type": "thinking", "thinking": thought}, *text]}
    return {**shown, **dict.fromkeys(fields, thought)}


@dataclass(frozen=True)
class ReasoningControl:
    """What a chat template knows of thinking.

    Attributes:
        family: How its models write thoughts; None where they write none.
        switch: Its variable that switches thinking on and off; "" where there is none.
        effort: Its variable that says how much to think; "" where there is none.
        levels: What that may be.
        default_level: What it is where nothing is said; "" where that is none of these.
        thinks: Whether its models think where nothing is said, as far as the template tells.
        is_told: Whether they do so because its own system message says so, in whose place another may stand.
    """

    family: ThoughtFamily | None = None
    switch: str = ""
    effort: str = ""
    levels: tuple[str, ...] = ()
    default_level: str = ""
    thinks: bool = False
    is_told: bool = False

    @classmethod
    def of(cls, template: str, render: Render) -> ReasoningControl:
        """Find out by the variables of a template, and by what they change of a prompt.

        Args:
            template: Its source.
            render: Renders a question.
        """
        family = family_of(template)
        if family is None:
            return cls()
        default = render({})
        switch, is_on = "", False
        for name in _SWITCHES:
            if re.search(rf"\b{name}\b", template):
                on, off = render({name: True}), render({name: False})
                if on and off and on != off:
                    switch, is_on = name, default == on
                    break
        effort, default_level = "", ""
        levels: tuple[str, ...] = ()
        for name in _EFFORTS:
            if re.search(rf"\b{name}\b", template):
                prompts = {level: render({name: level}) for level in _levels_in(template)}
                known = {level: prompt for level, prompt in prompts.items() if prompt}
                if len(set(known.values())) > 1:
                    effort, levels = name, tuple(known)
                    default_level = next((level for level, prompt in known.items() if prompt == default), "")
                    break
        is_told = False
        if not switch:
            is_on = family.is_open(default) or bool(effort and default_level != _NO_THINKING)
            is_told = not is_on and family.is_told(default) and not family.is_closed(default)
        return cls(family, switch, effort, levels, default_level, is_on or is_told, is_told)

    @property
    def can_switch(self) -> bool:
        """Whether a variable of the template switches thinking off."""
        return bool(self.switch) or _NO_THINKING in self.levels

    @property
    def can_think(self) -> bool:
        """Whether the template knows of thinking that is on, or can be."""
        return self.thinks or bool(self.switch or self.levels)

    def variables(self, reasoning: bool | str | None, model_name: str) -> dict[str, Any]:
        """The template's variables for what is asked for.

        Args:
            reasoning: None: nothing is said. True and False: whether to think. A text: how much.
            model_name: For messages of errors.

        Raises:
            InvalidParameterError: The template knows no such thing.
        """
        if reasoning is None:
            return {}
        if isinstance(reasoning, bool):
            return self._switched(reasoning, model_name)
        if reasoning not in self.levels:
            known = ", ".join(map(repr, self.levels)) if self.levels else "no efforts"
            also = f", {'' if self.levels else 'only '}reasoning=True and reasoning=False" if self.switch else ""
            msg = f"reasoning={reasoning!r} is beyond the chat template of {model_name}, which knows {known}{also}."
            raise InvalidParameterError(msg)
        has_switch = self.switch and reasoning != _NO_THINKING
        return {self.effort: reasoning} | ({self.switch: True} if has_switch else {})

    def _switched(self, is_on: bool, model_name: str) -> dict[str, Any]:
        if self.switch:
            return {self.switch: is_on}
        if is_on and self.thinks:
            return {}
        if is_on and self.levels and self.default_level == _NO_THINKING:
            return {self.effort: self.levels[-1]}
        if not is_on and _NO_THINKING in self.levels:
            return {self.effort: _NO_THINKING}
        if not is_on and self.family is None:
            return {}
        if self.family is None:
            reason = "knows nothing of thinking. Leave it out, or take a model that thinks"
        elif is_on:
            reason = "has no variable that switches thinking on. Leave it out: the model may think all the same"
        else:
            always = ": its model always thinks" if self.thinks else ""
            if self.is_told:
                always = ", but for a system message of your own, which stands in the place of the one that asks for it"
            reason = f"has no variable that switches thinking off{always}. Leave it out"
        msg = f"reasoning={is_on} cannot be honoured: the chat template of {model_name} {reason}."
        raise InvalidParameterError(msg)


def _levels_in(template: str) -> list[str]:
    """Efforts that a template may know: the common ones, and those that it names."""
    return [level for level in _LEVELS if level in _COMMON_LEVELS or re.search(rf"['\"]{level}['\"]", template)]
