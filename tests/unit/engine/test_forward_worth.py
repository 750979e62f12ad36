"""What draft forwards are expected to bring: what they brought, by what was free beside them."""

from __future__ import annotations

import pytest

from langchain_specdec.engine.forward_worth import ForwardWorth


def test_nothing_is_expected_before_some_have_run():
    worth = ForwardWorth()
    for _ in range(3):
        assert not worth.is_known
        assert worth.expected(0.0) is None
        worth.observe(0.0, 0.5, 1)
        worth.observe(0.0, 1.0, 3)
    assert worth.is_known
    # Nothing is known beside free drafts, which are taken to leave as much.
    assert worth.expected(0.0) == worth.expected(0.3) == (0.75, 2.0)


def test_what_is_free_is_told_apart():
    worth = ForwardWorth()
    for free, tokens in ((0.0, 1.0), (0.3, 0.5), (2.0, 0.25)):
        for _ in range(2):
            worth.observe(free, tokens, 1)
    assert [worth.expected(free) for free in (0.05, 0.1, 0.5)] == [(1.0, 1.0), (0.5, 1.0), (0.25, 1.0)]


def test_what_is_long_past_fades():
    worth = ForwardWorth()
    for tokens in (1.0, 0.0):
        for _ in range(200):
            worth.observe(0.0, tokens, 2)
    expected = worth.expected(0.0)
    assert expected is not None
    assert expected[0] == pytest.approx((64 / 65) ** 200, rel=0.05)
    assert expected[1] == pytest.approx(2.0)
