"""Conversations of several turns: each later turn is asked after the answers that the model gave to those before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.training.prompt_files import GivenPrompt
from langchain_specdec.training.prompt_tokens import PromptFormat


@dataclass(frozen=True)
class Conversation:
    """A conversation, up to where the model answers.

    Attributes:
        tokens: All of it, as the model is given it.
        turns: What the person says in it, and will say; nothing where there are no later turns.
        answers: What the model has said.
    """

    tokens: Sequence[int]
    turns: Sequence[str]
    answers: tuple[str, ...] = ()

    @property
    def num_later(self) -> int:
        """Turns after the one that is to be answered."""
        return max(len(self.turns) - len(self.answers) - 1, 0)


class Conversations:
    """How conversations go on.

    Args:
        prompt_format: How they are written; with later turns only where it has a chat template.
        max_length: Most tokens of a conversation with its last answer.
        max_new_tokens: Most tokens of an answer.

    Attributes:
        left_out: Turns that could not be asked, by the reason.
    """

    def __init__(self, prompt_format: PromptFormat, max_length: int, max_new_tokens: int) -> None:
        self._format, self._max_length, self._max_new_tokens = prompt_format, max_length, max_new_tokens
        self.left_out: Counter[str] = Counter()

    @property
    def is_chat(self) -> bool:
        """Whether an answer is a message of its own."""
        return self._format.template is not None

    def next(self, conversation: Conversation, answer: str) -> Conversation | None:
        """The conversation after an answer, up to where the model answers again; None where it ends."""
        if not conversation.num_later:
            return None
        if not answer.strip():
            reason = "An answer before them is empty."
        else:
            try:
                if (gone_on := self._with(conversation, answer)) is not None:
                    return gone_on
                reason = "The model has no room for them, what was said before and an answer."
            except InvalidParameterError as error:
                reason = str(error)
        self.left_out[reason] += conversation.num_later
        return None

    def most_lengths(self, conversation: Conversation) -> list[int]:
        """The most tokens of a conversation with its answer at each turn, from this one on."""
        lengths = [len(conversation.tokens) + self._max_new_tokens]
        # Short answers show what the turns take without them.
        while conversation.num_later:
            try:
                gone_on = self._with(conversation, "x")
            except InvalidParameterError:
                break
            if gone_on is None:
                break
            conversation = gone_on
            longest = len(conversation.tokens) + (len(conversation.answers) + 1) * self._max_new_tokens
            lengths.append(min(longest, self._max_length))
        return lengths

    def _with(self, conversation: Conversation, answer: str) -> Conversation | None:
        """The conversation with an answer and the next turn; None where there is no room for it.

        Raises:
            InvalidParameterError: The chat template refuses it.
        """
        answers = (*conversation.answers, answer)
        messages = [{"role": "user", "content": conversation.turns[0]}]
        for said, turn in zip(answers, conversation.turns[1:], strict=False):
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": turn}]
        tokens = self._format.token_ids(GivenPrompt("", tuple(messages)), self._max_length - self._max_new_tokens)
        return None if tokens is None else replace(conversation, tokens=tokens, answers=answers)
