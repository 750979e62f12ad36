"""What every drafter offers, and what it hands over: a tree of proposed tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from langchain_specdec.grammar.token_masks import TokenMask
from langchain_specdec.sampling.choice import TokenHistory
from langchain_specdec.sampling.params import SamplingParams

__all__ = [
    "EMPTY_DRAFT",
    "FORCED",
    "Draft",
    "DraftConstraint",
    "DraftKind",
    "DraftLimits",
    "Drafter",
    "DraftingRequest",
    "NoDrafter",
    "Proposal",
    "Rates",
]

DraftKind = tuple[str, int]
"""What kind of guess a draft token is: its source and a number that tells good guesses of it from bad ones."""

FORCED: DraftKind = ("forced", 0)
"""A token that is no guess, because a grammar allows no other."""


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

    def take(self, order: Sequence[int]) -> Draft:
        """The same tree with its nodes in another order; parents must still stand before children."""
        places = {node: place for place, node in enumerate(order)}
        places[-1] = -1
        return Draft(
            tuple(self.tokens[i] for i in order),
            tuple(places[self.parents[i]] for i in order),
            tuple(self.kinds[i] for i in order),
        )


EMPTY_DRAFT = Draft((), (), ())


class Rates(Protocol):
    """How good guesses of a kind are."""

    def rate(self, kind: DraftKind) -> float:
        """Chance that a token of this kind is right, given that its parent is and its earlier siblings are not."""


class DraftConstraint(Protocol):
    """What a grammar says of tokens that may follow the text. A path is draft tokens after the text."""

    def forced_after(self, path: Sequence[int]) -> list[int]:
        """The tokens that must follow a path, in order; empty where there is a choice."""

    def allowed_after(self, path: Sequence[int], tokens: Sequence[int]) -> list[bool]:
        """Which of these tokens may follow a path."""

    def mask_after(self, path: Sequence[int]) -> TokenMask | None:
        """The tokens that may follow a path; None where the path may not."""


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
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""

    @property
    def rates(self) -> Rates:
        """How good guesses of each kind were in this request."""

    @property
    def params(self) -> SamplingParams:
        """Sampling parameters."""

    @property
    def seed(self) -> int:
        """Seed of the noise."""

    @property
    def constraint(self) -> DraftConstraint | None:
        """The grammar that the text follows; drafts should follow it too. None: it is free."""


@dataclass(frozen=True)
class DraftLimits:
    """How far a draft may go.

    Attributes:
        max_depth: Most tokens that follow each other; 0 or less: nothing is wanted.
        max_nodes: Most tokens of a tree; 0: a single chain.
        min_reach: Least chance of being reached with which a token may pay. Less likely ones need not be sought.
    """

    max_depth: int
    max_nodes: int = 0
    min_reach: float = 0.0


@dataclass(frozen=True)
class Proposal:
    """What a drafter could propose before it has spent anything.

    Attributes:
        draft: Tokens that are known already (a lookup's). Empty where they must be computed.
        kinds: Kinds of the tokens that the drafter could give, in order; as long as it could go.
        steps_per_token: Forwards of the draft model that each token costs: 0 for a lookup, 1 for a draft model.
        alternatives: What could be had instead. The engine takes the one that promises most per second.
        source: Tells whose it is where drafters stand beside each other.
    """

    draft: Draft = EMPTY_DRAFT
    kinds: tuple[DraftKind, ...] = field(default=())
    steps_per_token: int = 0
    alternatives: tuple[Proposal, ...] = ()
    source: int = 0


class Drafter(Protocol):
    """Proposes tokens. The engine calls it from its one thread: `prefill`*, (`consider`, `propose`, `observe`)*.

    The engine asks `consider` what could be had, decides how many tokens are worth it, and asks `propose` for them.
    """

    def prefill(self, requests: Sequence[DraftingRequest], starts: Sequence[int], stop: Sequence[int]) -> None:
        """Take in tokens `[start, stop)` of each request; called beside each chunk of the target's prefill."""

    def consider(self, request: DraftingRequest, limits: DraftLimits) -> Proposal:
        """Say what could be proposed next for the request, without a forward."""

    def propose(
        self,
        requests: Sequence[DraftingRequest],
        proposals: Sequence[Proposal],
        lengths: Sequence[int],
        history: TokenHistory | None,
    ) -> list[Draft]:
        """Give a draft of at most `lengths[i]` tokens for each request; `history` holds the counts for penalties."""

    def observe(
        self,
        requests: Sequence[DraftingRequest],
        nodes: Sequence[Sequence[int]],
        paths: Sequence[Sequence[int]],
        logits: Tensor,
    ) -> None:
        """Learn from a verification, before the requests' texts grow.

        Args:
            requests: One per row.
            nodes: For each row the tokens that were verified: the last one of the text and the draft.
            paths: For each row the indices of the nodes that stand, in order; the first is 0.
            logits: The target's after each node, `[rows, width, vocab]`.
        """

    def measure_step(self, request: DraftingRequest) -> float:
        """Seconds that one computed draft token takes, measured now in the request's slot; 0 where drafts are free."""

    def release(self, request: DraftingRequest) -> None:
        """Forget the request. Called once, also for a request that failed before its prefill."""

    def forget(self) -> None:
        """Forget what requests to come would draft from those before them."""


class NoDrafter:
    """Proposes nothing."""

    def prefill(self, requests: Sequence[DraftingRequest], starts: Sequence[int], stop: Sequence[int]) -> None:
        """Nothing to take in."""

    def consider(self, request: DraftingRequest, limits: DraftLimits) -> Proposal:
        """Nothing, ever."""
        return Proposal()

    def propose(
        self,
        requests: Sequence[DraftingRequest],
        proposals: Sequence[Proposal],
        lengths: Sequence[int],
        history: TokenHistory | None,
    ) -> list[Draft]:
        """Empty drafts."""
        return [EMPTY_DRAFT] * len(requests)

    def observe(
        self,
        requests: Sequence[DraftingRequest],
        nodes: Sequence[Sequence[int]],
        paths: Sequence[Sequence[int]],
        logits: Tensor,
    ) -> None:
        """Nothing to learn."""

    def measure_step(self, request: DraftingRequest) -> float:
        """Free."""
        return 0.0

    def forget(self) -> None:
        """Nothing: requests share nothing."""

    def release(self, request: DraftingRequest) -> None:
        """Nothing to forget."""
