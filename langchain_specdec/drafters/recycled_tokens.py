"""Each token's recent successors: the target's own top candidates, kept from its verifications.

Every verification tells not only which token comes next but which others were likely. They are likely again when the
same tokens stand there again ("token recycling", Luo et al. 2024, https://arxiv.org/abs/2408.08696). No training and
no forward is needed for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from langchain_specdec.drafters.token_runs import mask_of

_TOKEN, _PAIR = mask_of(1), mask_of(2)


class RecycledTokens:
    """The candidates seen last after each pair of tokens and after each token.

    Args:
        max_pairs: Most pairs that are kept; those that were seen longest ago go first. Single tokens are bounded by
            the vocabulary.
    """

    def __init__(self, max_pairs: int = 1 << 16) -> None:
        self._max_pairs = max_pairs
        # By runs of one token and of two.
        self._by_token: dict[int, tuple[int, ...]] = {}
        self._by_pair: OrderedDict[int, tuple[int, ...]] = OrderedDict()

    def __len__(self) -> int:
        """Pairs that are kept."""
        return len(self._by_pair)

    def update(self, run: int, candidates: Sequence[int]) -> None:
        """Note the target's candidates after a run of tokens, best first."""
        # A collection of garbage need not go through tuples of numbers, as it would through lists.
        candidates = tuple(candidates)
        self._by_token[run & _TOKEN] = candidates
        pair = run & _PAIR
        if pair <= _TOKEN:
            return  # nothing stands before it
        self._by_pair[pair] = candidates
        self._by_pair.move_to_end(pair)
        if len(self._by_pair) > self._max_pairs:
            self._by_pair.popitem(last=False)

    def find(self, run: int) -> tuple[str, tuple[int, ...]] | None:
        """The candidates for what follows a run, best first, and by what they were found: "pair" or "token"."""
        known = self._by_pair.get(run & _PAIR)
        if known is not None:
            return "pair", known
        known = self._by_token.get(run & _TOKEN)
        return None if known is None else ("token", known)
