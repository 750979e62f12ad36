"""Regular expressions of fixed texts."""

from __future__ import annotations

import re
from collections.abc import Iterable


def one_of(texts: Iterable[str]) -> str:
    """A regular expression of any of these texts, the longest where several match; without texts it matches nothing."""
    # An empty alternation would match everywhere.
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)"
