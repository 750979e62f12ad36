"""What followed which tokens in all answers of an engine, with frequencies, in bounded memory.

Agents and map-reduce chains write much the same again and again, across requests. The index maps each run of a few
tokens to the tokens that followed it in any answer. It forgets the runs that were neither written nor asked for the
longest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import chain

from langchain_specdec.drafters.token_runs import TOKEN_BITS, mask_of, run_of

# Most continuations kept for a run of tokens.
_MAX_CONTINUATIONS = 4


class AnswerIndex:
    """Counts which token followed each n-gram, for a few n.

    Args:
        sizes: The n, in any order.
        max_entries: Most n-grams that are kept, all sizes together. One takes about 0.2 kB.
    """

    def __init__(self, sizes: Sequence[int] = (2, 4), max_entries: int = 1 << 18) -> None:
        self._masks = tuple((n, mask_of(n), mask_of(n - 1)) for n in sorted(sizes, reverse=True))
        self._max_entries = max_entries
        # Flat tuples of numbers: of lists, or of pairs, every collection of garbage would have to go through all.
        self._entries: OrderedDict[int, tuple[int, ...]] = OrderedDict()

    def __len__(self) -> int:
        """N-grams that are kept."""
        return len(self._entries)

    def add(self, tokens: Sequence[int], start: int) -> None:
        """Count the tokens from index `start` on; the n-grams that they follow may reach back before it."""
        entries, longest = self._entries, self._masks[0][0]
        run = run_of(tokens[max(start - longest, 0) : start])
        for token in tokens[start:]:
            for _, mask, shorter in self._masks:
                key = run & mask
                if key <= shorter:
                    continue  # the text began later
                known = entries.get(key)
                if known is None:
                    entries[key] = (token, 1)
                else:
                    entries[key] = _counted(known, token)
                    entries.move_to_end(key)
            run = (run << TOKEN_BITS | token + 1) & self._masks[0][1]
        while len(entries) > self._max_entries:
            entries.popitem(last=False)

    def find(self, run: int) -> tuple[int, tuple[int, ...]] | None:
        """What followed the end of a run of tokens, by the longest n-gram that is known.

        Returns:
            n, and the tokens, each with its count after it: the most frequent first, of equals the most recent. None if
            no n-gram at the end is known.
        """
        for n, mask, shorter in self._masks:
            key = run & mask
            known = self._entries.get(key) if key > shorter else None
            if known is not None:
                self._entries.move_to_end(key)
                return n, known
        return None


def _counted(continuations: tuple[int, ...], token: int) -> tuple[int, ...]:
    """With the token counted and before those that it now equals; the last one makes room for a new one."""
    if continuations[0] == token:
        return (token, continuations[1] + 1, *continuations[2:])
    pairs = list(zip(continuations[::2], continuations[1::2], strict=True))
    place = next((i for i, (known, _) in enumerate(pairs) if known == token), None)
    count = 1 if place is None else pairs.pop(place)[1] + 1
    del pairs[_MAX_CONTINUATIONS - 1 :]
    place = next((i for i, (_, other) in enumerate(pairs) if other <= count), len(pairs))
    pairs.insert(place, (token, count))
    return tuple(chain.from_iterable(pairs))
