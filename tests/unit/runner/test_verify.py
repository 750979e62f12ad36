"""The acceptance rule, against a walk in plain Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from langchain_specdec.runner.step_inputs import RowBatch, RowInputs
from langchain_specdec.runner.verify import accept


class Row(NamedTuple):
    """One row's draft tree: node 0 is the last token of the text."""

    nodes: list[int]
    parents: list[int]
    picks: list[int]


def walk(row: Row) -> list[int]:
    """From node 0 to the child that is the target's pick, and on, until there is none."""
    path = [0]
    while True:
        here = path[-1]
        children = [n for n in range(1, len(row.nodes)) if row.parents[n] == here and row.nodes[n] == row.picks[here]]
        assert len(children) <= 1
        if not children:
            return path
        path.append(children[0])


@st.composite
def trees(draw: st.DrawFn) -> Row:
    # Few different tokens, so that picks often hit. Siblings differ, as drafters promise.
    parents, nodes = [-1], [draw(st.integers(0, 3))]
    for node in range(1, draw(st.integers(1, 9))):
        parent = draw(st.integers(0, node - 1))
        free = set(range(4)) - {nodes[n] for n in range(1, node) if parents[n] == parent}
        if free:
            parents.append(parent)
            nodes.append(draw(st.sampled_from(sorted(free))))
        else:
            break
    picks = draw(st.lists(st.integers(0, 3), min_size=len(nodes), max_size=len(nodes)))
    return Row(nodes, parents, picks)


@st.composite
def chains(draw: st.DrawFn) -> Row:
    nodes = draw(st.lists(st.integers(0, 2), min_size=1, max_size=11))
    # Often the target's picks follow the draft for a while.
    num_right = draw(st.integers(0, len(nodes)))
    rest = draw(st.lists(st.integers(0, 2), min_size=len(nodes), max_size=len(nodes)))
    picks = [nodes[i + 1] if i + 1 < min(num_right, len(nodes)) else rest[i] for i in range(len(nodes))]
    return Row(nodes, list(range(-1, len(nodes) - 1)), picks)


def accepted(rows: Sequence[Row], device: str, *, padding: int) -> Tensor:
    width = max(len(row.nodes) for row in rows)
    parents = [row.parents for row in rows]
    batch = RowBatch(range(len(rows)), [0] * len(rows), [row.nodes for row in rows], parents)
    inputs = RowInputs.from_batch(batch, torch.device(device))

    def padded(values: list[list[int]]) -> Tensor:
        return torch.tensor([v + [padding] * (width - len(v)) for v in values], device=device)

    num_nodes = torch.tensor([len(row.nodes) for row in rows], device=device)
    nodes, picks = padded([row.nodes for row in rows]), padded([row.picks for row in rows])
    return accept(nodes, inputs.parents, inputs.ancestors, num_nodes, picks)


@settings(max_examples=200)
@given(rows=st.lists(trees() | chains(), min_size=1, max_size=4), padding=st.integers(0, 3))
def test_accepts_what_a_walk_along_the_picks_accepts(device: str, rows: list[Row], padding: int) -> None:
    stands = accepted(rows, device, padding=padding)
    for row, row_stands in zip(rows, stands.tolist(), strict=True):
        # Padding holds a real token, which may well look right; it never stands.
        assert [n for n, is_standing in enumerate(row_stands) if is_standing] == walk(row)


@settings(max_examples=100)
@given(rows=st.lists(chains(), min_size=1, max_size=4))
def test_of_a_chain_the_beginning_up_to_the_first_mismatch_stands(device: str, rows: list[Row]) -> None:
    for row, stands in zip(rows, accepted(rows, device, padding=0).tolist(), strict=True):
        drafts = row.nodes[1:]
        count = next((i for i, (d, p) in enumerate(zip(drafts, row.picks, strict=False)) if d != p), len(drafts))
        assert stands == [True] * (1 + count) + [False] * (len(stands) - 1 - count)


@pytest.mark.parametrize("num_right", range(6))
def test_a_run_of_right_tokens(device: str, num_right: int) -> None:
    nodes = [9, 1, 2, 3, 4, 5]
    picks = [*nodes[1 : 1 + num_right], *[0] * (6 - num_right)]
    stands = accepted([Row(nodes, list(range(-1, 5)), picks)], device, padding=0)
    assert stands.tolist() == [[True] * (1 + num_right) + [False] * (5 - num_right)]


def test_a_right_token_after_a_wrong_one_does_not_stand(device: str) -> None:
    # The target's picks after node 1 mean nothing: node 1 is not in the text.
    row = Row([9, 1, 2, 3], [-1, 0, 1, 2], [7, 2, 3, 4])
    assert accepted([row], device, padding=0).tolist() == [[True, False, False, False]]


def test_a_row_without_a_draft(device: str) -> None:
    rows = [Row([5], [-1], [0]), Row([5, 0], [-1, 0], [0, 1])]
    assert accepted(rows, device, padding=0).tolist() == [[True, False], [True, True]]
