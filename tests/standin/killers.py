"""Requests that TGI's router lets pass and that end the process of the model: its RuntimeErrors do.

See interceptor.py and utils/logits_process.py of TGI 3.3, and interegular's parser, which calls itself for each group.
"""

from __future__ import annotations

import re

DEAD = "Server error: error trying to connect: No such file or directory (os error 2)"
"""What the router says of every request from then on."""
_FAILED = "Server error: "
_MAX_GROUPS = 80


def deadly(top_k: int | None, regex: str | None, vocab_size: int) -> str | None:
    """What the process says when it ends over these parameters of a request; None where it does not."""
    if (top_k or 0) > vocab_size:
        return f"{_FAILED}index {vocab_size} is out of bounds for dimension 1 with size {vocab_size}"
    depth = deepest = 0
    for part in re.findall(r"\\.|\[(?:\\.|[^\]\\])*\]|[()]", regex or ""):
        depth += (part == "(") - (part == ")")
        deepest = max(deepest, depth)
    return f"{_FAILED}maximum recursion depth exceeded" if deepest > _MAX_GROUPS else None
