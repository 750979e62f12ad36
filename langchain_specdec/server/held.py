"""What a client's request holds until it is served or gone."""

from __future__ import annotations

from contextlib import ExitStack


class Held(ExitStack):
    """Room and running completions, let go of at the end.

    Args:
        namespace: Whose request it is.
    """

    def __init__(self, namespace: str = "") -> None:
        super().__init__()
        self.namespace = namespace
