"""A text of the target as the tokens that a draft model reads."""

from __future__ import annotations

from langchain_specdec.models.common_vocabulary import CommonVocabulary


class DraftText:
    """A text that grows, in tokens of the draft model: it grows alike, and nothing of it changes.

    Args:
        token_ids: The text in tokens of the target; it may grow at its end.
        common: What the two tokenizers have in common; None where they are one.
    """

    def __init__(self, token_ids: list[int], common: CommonVocabulary | None) -> None:
        self._token_ids = token_ids
        self._common = common
        self._ids: list[int] = []
        # How many of these the first tokens of the target are, from none of them on.
        self._ends = [0]

    @property
    def ids(self) -> list[int]:
        """The tokens so far; whoever reads them leaves them as they are."""
        if self._common is None:
            return self._token_ids
        if not self._ids and self._token_ids:
            self._ids = self._common.begin(self._token_ids)
            self._ends = [len(self._ids)]
        for token in self._token_ids[len(self._ends) - 1 :]:
            self._ids += self._common.spell([token])
            self._ends.append(len(self._ids))
        return self._ids

    def end_of(self, stop: int) -> int:
        """How many tokens of the draft model the first `stop` of the target are."""
        return stop if self._common is None or not self.ids else self._ends[stop]
