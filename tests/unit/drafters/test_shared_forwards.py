"""Which texts share a forward that takes in what slots lack of them."""

import pytest

from langchain_specdec.drafters.shared_forwards import next_chunks


@pytest.mark.parametrize(
    ("starts", "lacking", "chunks"),
    [
        ([7, 9, 3], [3, 0, 4], {0: 3, 2: 4}),
        # Padded to the widest, three do not fit: those that lack least come first.
        ([0, 0, 0], [6, 3, 5], {1: 3, 2: 5}),
        ([0, 5], [40, 40], {0: 16}),
        # The row that is far along has no place for the other one's padding.
        ([94, 10], [2, 8], {0: 2}),
        ([4, 4], [0, -1], {}),
    ],
)
def test_texts_share_a_forward_as_far_as_its_budget_and_their_slots_go(starts, lacking, chunks):
    assert next_chunks(starts, lacking, 16, 100) == chunks
