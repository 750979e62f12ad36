"""Tokens that stand for answers: a model that chooses among them tells how probable each is by a single step."""

from __future__ import annotations

import contextlib
import itertools
import string
from collections.abc import Iterator, Sequence

from langchain_specdec.chat.arrangements import Message
from langchain_specdec.chat.template import ChatTemplate
from langchain_specdec.errors import InvalidParameterError

_PROBE: list[Message] = [{"role": "user", "content": "x"}]


class LabelTokens:
    """Labels that are one token each, and different ones, where the answers of a chat template begin.

    It may be used from any number of threads.

    Args:
        template: Writes the prompts.

    Attributes:
        begin: What an answer has to begin with: the end of a thought that the template opens, and its family's mark.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self.begin = template.begin_of_answer(_PROBE)
        self._prompt = template.token_ids(_PROBE, begin=self.begin)
        self._tokens: dict[str, int | None] = {}

    def choose(self, count: int, preferred: Sequence[str] = ()) -> dict[str, int]:
        """Labels with their tokens.

        Args:
            count: How many.
            preferred: Labels to take where each of them is a token of its own. Else they are `A`, `B`, and so on.

        Raises:
            InvalidParameterError: The tokenizer has fewer.
        """
        for labels in (preferred, _letters()):
            found: dict[str, int] = {}
            for label in labels:
                token = self._token(label)
                if token is not None and token not in found.values():
                    found[label] = token
                if len(found) == count:
                    return found
        msg = (
            f"A question has {count} answers, but this model's tokenizer has only {len(found)} labels (A, B, ..., ZZ) "
            f"of one token each. Ask with fewer answers, or in several questions."
        )
        raise InvalidParameterError(msg)

    def _token(self, label: str) -> int | None:
        if label not in self._tokens:
            self._tokens[label] = self._look_up(label)
        return self._tokens[label]

    def _look_up(self, label: str) -> int | None:
        """The token of a label, as the template writes it for an answer, or else right after the prompt."""
        with contextlib.suppress(InvalidParameterError):  # no template has to go on with an answer
            ids = self._template.token_ids([*_PROBE, {"role": "assistant", "content": label}], goes_on=True)
            if ids[:-1] == self._prompt:
                return ids[-1]
        ids = self._template.token_ids(_PROBE, begin=self.begin + label)
        return ids[-1] if ids[:-1] == self._prompt else None


def _letters() -> Iterator[str]:
    """`A` to `Z`, then `AA` to `ZZ`."""
    letters = string.ascii_uppercase
    return map("".join, itertools.chain(letters, itertools.product(letters, repeat=2)))
