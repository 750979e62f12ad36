"""How many requests are in the house: those that run, and a limited number that waits."""

from __future__ import annotations

from typing_extensions import Self

from langchain_specdec.errors import OverloadedError

RETRY_AFTER = "1"
"""Seconds after which a client that was refused may ask again, as the header has it."""


class Permit:
    """Room for some requests, until `release`."""

    def __init__(self, admission: Admission, count: int) -> None:
        self._admission: Admission | None = admission
        self._count = count

    def release(self) -> None:
        """Give the room back. Doing so twice does nothing."""
        if self._admission is not None:
            self._admission.num_inside -= self._count
            self._admission = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


class Admission:
    """Counts requests, in one event loop.

    Args:
        num_slots: Requests that run at a time.
        max_waiting: Requests that may wait beside them.

    Attributes:
        num_inside: Requests that run or wait.
    """

    def __init__(self, num_slots: int, max_waiting: int) -> None:
        self.num_slots = num_slots
        self._limit = num_slots + max_waiting
        self.num_inside = 0

    @property
    def limit(self) -> int:
        """Most requests at a time."""
        return self._limit

    def take(self, count: int = 1) -> Permit:
        """Room for so many requests.

        Raises:
            OverloadedError: There is not enough.
        """
        if self.num_inside + count > self._limit:
            msg = (
                f"The server has {self.num_inside} requests, and takes {self._limit} at a time ({self.num_slots} run, "
                f"the others wait). Try again later."
            )
            raise OverloadedError(msg)
        self.num_inside += count
        return Permit(self, count)
