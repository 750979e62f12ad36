"""What every drafter offers, and what it hands over: a tree of proposed tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from langchain_specdec.drafters.acceptance import AcceptanceRates, DraftKind
from langchain_specdec.grammar.constraint import Constraint
from langchain_specdec.runner.head_runner import HeadRunner
from langchain_specdec.runner.runner import Runner
from langchain_specdec.runner.verify import Verdict
from langchain_specdec.sampling.choice import SampledRow, TokenHistory


@dataclass(frozen=True)
class Draft:
    """Proposed tokens as a tree, parents before children. A chain is the simple tree.

    Attributes:
        tokens: Token ids.
        parents: For each token the index of the token it follows; -1 is the last token of the text.
        kinds: For each token its kind; acceptance is estimated per kind.
        levels: Kinds by depth, by which is planned how deep a computed draft is worth it: what is right or wrong there
            is the guess that some token of that depth stands, given that one of the depth before does. Empty where the
            kinds of the tokens say it all, as those of a chain do.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    kinds: tuple[DraftKind, ...]
    levels: tuple[DraftKind, ...] = ()

    @classmethod
    def chain(cls, tokens: Sequence[int], kinds: Sequence[DraftKind]) -> Draft:
        """A draft in which each token follows the one before it."""
        return cls(tuple(tokens), tuple(range(-1, len(tokens) - 1)), tuple(kinds))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def depths(self) -> list[int]:
        """For each token how many follow each other up to it, itself included."""
        depths = [0] * (len(self.parents) + 1)  # the last is that of -1, the text
        for node, parent in enumerate(self.parents):
            depths[node] = depths[parent] + 1
        return depths[:-1]

    @property
    def depth(self) -> int:
        """Most tokens that follow each other."""
        return max(self.depths, default=0)

    def cut(self, length: int) -> Draft:
        """The first `length` tokens; a tree stays a tree because parents stand before children.

        It has no levels any more: they are about all tokens of a depth.
        """
        if length >= len(self.tokens):
            return self
        return Draft(self.tokens[:length], self.parents[:length], self.kinds[:length])


EMPTY_DRAFT = Draft((), (), ())


class DraftingRequest(SampledRow, Protocol):
    """What a drafter may know of a request."""

    @property
    def token_ids(self) -> list[int]:
        """Prompt and output so far; the drafter only reads it."""

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""

    @property
    def namespace(self) -> str:
        """Whose it is: nothing is drafted from requests of others."""

    @property
    def rates(self) -> AcceptanceRates:
        """How good guesses of each kind were in this request."""

    @property
    def history(self) -> TokenHistory | None:
        """The counts of tokens that its penalties need; None where it has no penalty."""

    @property
    def constraint(self) -> Constraint | None:
        """The grammar that the text follows; drafts should follow it too. None: it is free."""


@dataclass(frozen=True)
class DraftLimits:
    """How far a draft may go.

    Attributes:
        max_depth: Most tokens that follow each other; 0 or less: nothing is wanted.
        max_nodes: Most tokens of a tree; 0: a single chain.
        min_reach: Least chance of being reached with which a token may pay. Less likely ones need not be sought.
        min_gain: Tokens that another draft forward has to bring all texts together, as expected, to pay.
    """

    max_depth: int
    max_nodes: int = 0
    min_reach: float = 0.0
    min_gain: float = 0.0


@dataclass(frozen=True)
class Proposal:
    """What a drafter could propose, before it has spent anything.

    Attributes:
        draft: Tokens that are known already (a lookup's). Empty where they must be computed.
        reaches: For each token that could be had the chance that the target reaches it, in descending order. Of what
            must be computed, for each level: the chance that the target reaches some token of it, and of a tree that
            grows by what it sees at most so much.
        steps_per_token: Forwards of the draft model that each level costs: 0 for a lookup, 1 for what is computed.
        grows: Whether what is computed is a tree that grows by what it sees.
        limits: By what it was considered; what computes a tree keeps within it.
        source: Tells whose it is where drafters stand beside each other.
    """

    draft: Draft = EMPTY_DRAFT
    reaches: tuple[float, ...] = ()
    steps_per_token: int = 0
    grows: bool = False
    limits: DraftLimits | None = None
    source: int = 0


NOTHING = Proposal()


class Drafter:
    """Proposes tokens. This one proposes nothing: it is the drafter "none", and a drafter overrides what it does.

    The engine calls it from its one thread: `prefill`*, (`consider`, `propose`, `follow`, `observe`)*, `release`. It
    asks `consider` what could be had, decides how many tokens are worth it, and asks `propose` for them. Only `follow`
    is called in every step; `observe` is left out where learning would take more time than it saves.

    Attributes:
        num_candidates: How many of the target's best tokens after each token `observe` wants to see.
        num_layers: Layers that a forward for one computed draft token runs; 0 where drafts are free.
    """

    num_candidates = 0
    num_layers = 0

    @property
    def num_forwards(self) -> int:
        """Draft forwards so far; none where drafts take no forward."""
        return 0

    @property
    def runners(self) -> Sequence[Runner | HeadRunner]:
        """What runs its forwards; none where drafts take no forward."""
        return ()

    def prepare(self, rows: int, lengths: range, *, is_sampled: bool) -> None:
        """Make all graphs that drafting for certain texts uses, before the first draft.

        Args:
            rows: Most texts at a time.
            lengths: How many tokens they may have.
            is_sampled: Whether noise will pick tokens.
        """

    def prefill(self, requests: Sequence[DraftingRequest], starts: Sequence[int], stops: Sequence[int]) -> None:
        """Take in tokens `[start, stop)` of each request; called beside each chunk of the target's prefill."""

    def consider(self, request: DraftingRequest, limits: DraftLimits) -> Sequence[Proposal]:
        """What could be proposed next for the request, without a forward: alternatives, the preferred one first."""
        return ()

    def propose(
        self, requests: Sequence[DraftingRequest], proposals: Sequence[Proposal], lengths: Sequence[int]
    ) -> list[Draft]:
        """A draft for each request, from the proposal that was taken.

        Args:
            requests: Whose texts go on.
            proposals: What was offered for each.
            lengths: Most tokens of each draft; of one that is computed the forwards that are planned, a level of its
                tree each. Where it is seen what they bring, fewer may run, or more.
        """
        return [proposal.draft.cut(length) for proposal, length in zip(proposals, lengths, strict=True)]

    def follow(self, requests: Sequence[DraftingRequest], verdict: Verdict) -> None:
        """Take in what a verification computed; called after each one, before the requests' texts grow."""

    def observe(self, requests: Sequence[DraftingRequest], verdict: Verdict) -> None:
        """Learn from the verdict on a step's drafts, before the requests' texts grow."""

    def measure_step(self, request: DraftingRequest) -> float:
        """Seconds that one computed draft token takes, measured now in the request's slot; 0 where drafts are free."""
        return 0.0

    def release(self, request: DraftingRequest) -> None:
        """Forget the request. Called once, also for a request that failed before its prefill."""

    def let_go(self, slot: int, start: int) -> None:
        """Give back the memory of what is held of a slot's text from a position on; nobody needs it any more."""

    def forget(self) -> None:
        """Forget what requests to come would draft from those before them."""
