"""What draft forwards brought beside what was free, as it was seen once they had run.

A head tells how sure it is of its tokens only when it has run, and only tokens of which it is sure enough are checked.
So its forwards bring more than its mean chance of being right promises: how much is counted, not modelled.
"""

from __future__ import annotations

# Tokens beyond the target's own that free drafts promise a row, from which on another count is kept: the more these
# bring, the less is left to others.
_BEGINS = (0.1, 0.5)
# Runs on trust before what they bring is judged, and how many of the latest ones count.
_TRUSTED = 6
_MEMORY = 64.0


class ForwardWorth:
    """Mean tokens that runs of draft forwards brought, and mean forwards of a run, by what was free beside them."""

    def __init__(self) -> None:
        self._seen = [(0.0, 0.0, 0.0)] * (len(_BEGINS) + 1)

    @property
    def is_known(self) -> bool:
        """Whether so many have run that it can be judged what they bring."""
        return sum(count for count, _, _ in self._seen) >= _TRUSTED

    def expected(self, free: float) -> tuple[float, float] | None:
        """What the next run is expected to bring a row, and its forwards; None where there was none to judge by.

        Args:
            free: Tokens beyond the target's own that free drafts promise a row.
        """
        place = self._place(free)
        # What is not known beside so much is taken to be as beside less, or else more.
        for count, tokens, forwards in (*self._seen[place::-1], *self._seen[place + 1 :]):
            if count and self.is_known:
                return tokens / count, forwards / count
        return None

    def observe(self, free: float, tokens: float, num_forwards: int) -> None:
        """Count a run.

        Args:
            free: See `expected`.
            tokens: What it brought a row: tokens that stood beyond those of free drafts, less what checking more took,
                in the tokens that the time would bring otherwise.
            num_forwards: Its forwards.
        """
        place = self._place(free)
        count, before, forwards = self._seen[place]
        fade = min(1.0, _MEMORY / (count + 1.0))
        self._seen[place] = ((count + 1.0) * fade, (before + tokens) * fade, (forwards + num_forwards) * fade)

    @staticmethod
    def _place(free: float) -> int:
        return sum(free >= begin for begin in _BEGINS)
