"""One tree of several sources: what is in it, in which order, and what is learned from each source."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_specdec.drafters.acceptance import FORCED, AcceptanceRates, DraftKind, source_of
from langchain_specdec.drafters.base import EMPTY_DRAFT, Draft, DraftLimits
from langchain_specdec.drafters.merged import merge
from langchain_specdec.drafters.outcomes import num_right, outcomes

Path = tuple[int, ...]

KINDS: list[DraftKind] = [("lookup", 1), ("lookup", 5), ("shared-2", 2), ("token", 0), ("model", 0), ("eagle3", 3)]
RATES = AcceptanceRates()
RATES.observe([(("eagle3", 3), False)] * 20)
ALL = DraftLimits(0, 1000)


@st.composite
def trees(draw: st.DrawFn, max_size: int = 8) -> Draft:
    """A source's draft: a tree without doubled siblings, parents before children."""
    tokens: list[int] = []
    parents: list[int] = []
    taken: set[tuple[int, int]] = set()
    for _ in range(draw(st.integers(0, max_size))):
        parent, token = draw(st.integers(-1, len(tokens) - 1)), draw(st.integers(0, 2))
        if (parent, token) not in taken:
            taken.add((parent, token))
            tokens.append(token)
            parents.append(parent)
    kinds = [draw(st.sampled_from(KINDS)) for _ in tokens]
    return Draft(tuple(tokens), tuple(parents), tuple(kinds))


def paths(draft: Draft) -> list[Path]:
    """Each node as the tokens from the text to it."""
    found: list[Path] = []
    for token, parent in zip(draft.tokens, draft.parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return found


@settings(max_examples=200)
@given(drafts=st.lists(trees(), max_size=3), max_nodes=st.integers(1, 12))
def test_the_tree_has_the_paths_of_all_sources_once_and_the_likeliest_first(
    drafts: list[Draft], max_nodes: int
) -> None:
    whole, chances = merge(drafts, RATES, ALL)
    assert all(-1 <= parent < node for node, parent in enumerate(whole.parents))
    # No path twice, so no siblings alike; and none that no source has.
    assert len(set(paths(whole))) == len(whole)
    assert set(paths(whole)) == {path for draft in drafts for path in paths(draft)}
    assert list(chances) == sorted(chances, reverse=True)
    assert all(0 < chance <= 1 for chance in chances)
    # A smaller tree is its beginning, and no other tree of that size is likelier: none of a single source's either.
    small, small_chances = merge(drafts, RATES, DraftLimits(0, max_nodes))
    assert small == whole.cut(max_nodes)
    known = dict(zip(paths(whole), chances, strict=True))
    for draft in drafts:
        own = sorted((known[path] for path in paths(draft)), reverse=True)
        assert sum(own[:max_nodes]) <= sum(small_chances) * (1 + 1e-9)
    # What all siblings leave is a chance too.
    for parent in {(), *known}:
        below = [chance for path, chance in known.items() if path[:-1] == parent]
        assert sum(below) <= known.get(parent, 1.0) * (1 + 1e-9)


@given(draft=trees())
def test_a_source_alone_is_taken_as_it_is(draft: Draft) -> None:
    tree, chances = merge([draft, EMPTY_DRAFT], RATES, ALL)
    rest, reach = {-1: 1.0}, []
    for node, (parent, kind) in enumerate(zip(draft.parents, draft.kinds, strict=True)):
        reach.append(rest[parent] * RATES.rate(kind))
        rest[parent] -= reach[-1]
        rest[node] = reach[-1]
    assert dict(zip(paths(tree), tree.kinds, strict=True)) == dict(zip(paths(draft), draft.kinds, strict=True))
    assert sorted(chances) == pytest.approx(sorted(reach))


@given(chains=st.lists(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(KINDS)), max_size=5), max_size=3))
def test_where_a_tree_is_not_wanted_the_most_promising_chain_is_taken(
    chains: list[list[tuple[int, DraftKind]]],
) -> None:
    drafts = [Draft.chain([token for token, _ in chain], [kind for _, kind in chain]) for chain in chains]
    chain, chances = merge(drafts, RATES, DraftLimits(0, 0))
    assert chain in [EMPTY_DRAFT, *drafts]
    assert chances == RATES.chain(chain.kinds)
    assert sum(chances) == max([sum(RATES.chain(draft.kinds)) for draft in drafts], default=0)


def test_a_token_of_several_sources_is_one_node_of_the_likeliest_kind() -> None:
    rates = AcceptanceRates()
    lookup, model = Draft.chain([1, 2], [("lookup", 5), ("lookup", 6)]), Draft.chain([1, 3], [("model", 0)] * 2)
    tree, chances = merge([model, lookup], rates, ALL)
    assert tree == Draft((1, 2, 3), (-1, 0, 0), (("lookup", 5), ("lookup", 6), ("model", 0)))
    first, second, other = rates.rate(("lookup", 5)), rates.rate(("lookup", 6)), rates.rate(("model", 0))
    assert chances == pytest.approx((first, first * second, first * (1 - second) * other))


def test_what_a_grammar_forces_is_no_guess_and_has_no_siblings() -> None:
    forced, free = Draft.chain([7, 8], [FORCED, FORCED]), Draft.chain([7, 9], [("lookup", 16)] * 2)
    tree, chances = merge([free, forced], AcceptanceRates(), ALL)
    assert tree == forced
    assert chances == (1.0, 1.0)


def test_unlikely_nodes_are_left_out() -> None:
    rates = AcceptanceRates()
    chains = [Draft.chain([1, 2], [("model", 0), ("token", 5)]), Draft.chain([3], [("token", 0)])]
    tree, chances = merge(chains, rates, DraftLimits(0, 10, min_reach=0.05))
    assert tree.tokens == (1,)
    assert min(chances) >= 0.05


# --- What is learned --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected", "stood"),
    [
        # Nothing is known of what follows a wrong token, nor of levels that the text has not come to.
        ([5], [False, False, False], 0),
        ([5, 1], [False, False, False], 0),
        ([2], [False, True, True], 1),
        ([1, 9], [True, False, True, False], 1),
        ([1, 4, 3], [True, True, True, True], 2),
    ],
)
def test_guesses_are_judged_by_the_text_whatever_was_checked(
    text: Sequence[int], expected: list[bool], stood: int
) -> None:
    levels: tuple[DraftKind, ...] = (("level", 0), ("level", 1))
    draft = Draft((1, 2, 4), (-1, -1, 0), (("head", 0), ("head", 1), ("head", 2)), levels)
    assert [is_right for _, is_right in outcomes(draft, text)] == expected
    assert num_right(draft, text) == stood
    kinds = [kind for kind, _ in outcomes(draft, text)]
    assert kinds[-1] == levels[sum(kind in levels for kind in kinds) - 1]


def test_every_kind_has_a_plain_name_for_its_source() -> None:
    kinds: list[DraftKind] = [*KINDS, ("shared-4-other", 1), ("pair", 2), FORCED]
    names = ["lookup", "lookup", "answers", "recycled", "draft_model", "eagle3", "answers", "recycled", "grammar"]
    assert [source_of(kind) for kind in kinds] == names
