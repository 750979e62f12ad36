"""What every drafter offers, and what it hands over: a tree of proposed tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from langchain_specdec.sampling import SamplingParams, TokenHistory

__all__ = ["EMPTY_DRAFT", "Draft", "DraftKind", "Drafter", "DraftingRequest"]

DraftKind = tuple[str, int]
"""What kind of guess a draft token is: its source and a number that tells good guesses of it from bad ones."""


@dataclass(frozen=True)
class Draft:
    """Proposed tokens as a tree, parents before children. A chain is the simple tree.

    Attributes:
        tokens: Token ids.
        parents: For each token the index of the token it follows; -1 is the last token of the text.
        kinds: For each token its kind; acceptance is estimated per kind.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    kinds: tuple[DraftKind, ...]

    @classmethod
    def chain(cls, tokens: Sequence[int], kinds: Sequence[DraftKind]) -> Draft:
        """A draft in which each token follows the one before it."""
        return cls(tuple(tokens), tuple(range(-1, len(tokens) - 1)), tuple(kinds))

    def __len__(self) -> int:
        return len(self.tokens)

    def cut(self, length: int) -> Draft:
        """The first `length` tokens; a tree stays a tree because parents stand before children."""
        if length >= len(self.tokens):
            return self
        return Draft(self.tokens[:length], self.parents[:length], self.kinds[:length])


EMPTY_DRAFT = Draft((), (), ())


class DraftingRequest(Protocol):
    """What a drafter may know of a request."""

    @property
    def request_id(self) -> int:
        """Unique within the engine."""

    @property
    def slot(self) -> int:
        """The cache slot that the request holds."""

    @property
    def token_ids(self) -> list[int]:
        """Prompt and output so far; the drafter only reads it."""

    @property
    def params(self) -> SamplingParams:
        """Sampling parameters."""

    @property
    def seed(self) -> int:
        """Seed of the noise."""


@dataclass(frozen=True)
class Proposal:
    """What a drafter could propose before it has spent anything.

    Attributes:
        draft: Tokens that are known already (a lookup's). Empty where they must be computed.
        kinds: Kinds of the tokens that the drafter could give, in order; as long as it could go.
        steps_per_token: Forwards of the draft model that each token costs: 0 for a lookup, 1 for a draft model.
    """

    draft: Draft = EMPTY_DRAFT
    kinds: tuple[DraftKind, ...] = field(default=())
    steps_per_token: int = 0


class Drafter(Protocol):
    """Proposes tokens. The engine calls it from its one thread, in the order `prefill`*, (`consider`, `propose`)*.

    The engine asks `consider` what could be had, decides how many tokens are worth it, and asks `propose` for them.
    """

    def prefill(self, requests: Sequence[DraftingRequest], starts: Sequence[int], stop: Sequence[int]) -> None:
        """Take in tokens `[start, stop)` of each request; called beside each chunk of the target's prefill."""

    def consider(self, request: DraftingRequest, max_tokens: int) -> Proposal:
        """Say what could be proposed next for the request; at most `max_tokens`, and without a forward."""

    def propose(
        self,
        requests: Sequence[DraftingRequest],
        proposals: Sequence[Proposal],
        lengths: Sequence[int],
        history: TokenHistory | None,
    ) -> list[Draft]:
        """Give a draft of at most `lengths[i]` tokens for each request; `history` holds the counts for penalties."""

    def measure_step(self, request: DraftingRequest) -> float:
        """Seconds that one computed draft token takes, measured now in the request's slot; 0 where drafts are free."""

    def release(self, request: DraftingRequest) -> None:
        """Forget the request. Called once, also for a request that failed before its prefill."""
