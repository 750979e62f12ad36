"""How many tokens are drafted: the rule against brute force, the costs and the acceptance it goes by."""

from __future__ import annotations

import itertools
import math
import operator
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_specdec.drafters.acceptance import AcceptanceRates
from langchain_specdec.drafters.base import NOTHING, Draft, Proposal
from langchain_specdec.engine.draft_length import best_forwards, best_lengths, least_reach, lengths_worth
from langchain_specdec.engine.step_cost import StepCost

# --- The rule ---------------------------------------------------------------------------------------------------------

chances = st.lists(st.floats(0.0, 1.0), max_size=4)


def tokens_per_second(rates: Sequence[Sequence[float]], lengths: Sequence[int], cost: StepCost) -> float:
    """What a step with these lengths is expected to give, as defined."""
    tokens = sum(1 + sum(math.prod(row[: i + 1]) for i in range(n)) for row, n in zip(rates, lengths, strict=True))
    return tokens / cost.verify_seconds(len(rates), 1 + max(lengths))


@settings(max_examples=300)
@given(
    rates=st.lists(chances, min_size=1, max_size=3),
    widths=st.tuples(st.floats(1.0, 5.0), st.floats(0.0, 3.0), st.floats(0.0, 8.0)),
)
def test_chooses_the_best_of_all_lengths(rates: list[list[float]], widths: tuple[float, float, float]) -> None:
    first, second, third = itertools.accumulate(widths)
    cost = StepCost({(1, 1): first, (1, 3): second, (2, 4): third})
    choice = best_lengths(chains(rates), cost)
    assert all(0 <= n <= len(row) for n, row in zip(choice.lengths, rates, strict=True))
    # Also lengths that differ from row to row: none of them is better.
    best = max(
        tokens_per_second(rates, each, cost) for each in itertools.product(*(range(len(row) + 1) for row in rates))
    )
    assert tokens_per_second(rates, choice.lengths, cost) == pytest.approx(best, rel=1e-9)
    # What it says it expects is what it chose by.
    assert sum(choice.tokens) / choice.seconds == pytest.approx(best, rel=1e-9)
    # At what time is worth then, the same tokens are worth checking once they are there.
    kept = lengths_worth(chains(rates), cost, 0, best)
    assert tokens_per_second(rates, kept.lengths, cost) == pytest.approx(best, rel=1e-9)


def chains(rates: Sequence[Sequence[float]]) -> list[list[float]]:
    """The reaches of chains with these chances."""
    return [list(itertools.accumulate(row, operator.mul)) for row in rates]


def lengths(rates: Sequence[Sequence[float]], cost: StepCost) -> list[int]:
    """What is chosen for chains."""
    return list(best_lengths(chains(rates), cost).lengths)


def test_where_width_is_free_everything_is_drafted() -> None:
    assert lengths([[0.5] * 10, [0.1] * 3], StepCost.flat()) == [10, 3]


def test_where_width_is_dear_nothing_is_drafted() -> None:
    cost = StepCost({(1, 1): 1.0, (1, 2): 2.0, (1, 11): 11.0})
    assert lengths([[0.9] * 10], cost) == [0]


def test_of_equally_good_lengths_the_shortest_is_taken() -> None:
    # A token that is never right adds nothing even where it costs nothing.
    assert lengths([[1.0, 1.0, 0.0, 1.0]], StepCost.flat()) == [2]


def test_rows_without_a_proposal() -> None:
    assert lengths([[], []], StepCost.flat()) == [0, 0]
    assert lengths([[], [0.9, 0.9]], StepCost.flat()) == [0, 2]


def test_many_rows_make_width_dearer() -> None:
    # 1 to 3 tokens cost the same, 30 cost ten times that: alone a row drafts, ten rows together do not.
    cost = StepCost({(1, 1): 1.0, (1, 3): 1.0, (10, 3): 10.0})
    assert lengths([[0.5, 0.5]], cost) == [2]
    assert lengths([[0.5, 0.5]] * 10, cost) == [0] * 10


def computed(*reaches: float) -> Proposal:
    return Proposal(reaches=reaches, steps_per_token=1)


def known(*reaches: float) -> Proposal:
    """A chain that takes no forward."""
    return Proposal(Draft.chain(range(len(reaches)), [("lookup", 1)] * len(reaches)), reaches)


@settings(max_examples=200)
@given(
    rates=st.lists(chances, min_size=1, max_size=3),
    widths=st.tuples(st.floats(1.0, 5.0), st.floats(0.0, 3.0)),
    draft=st.floats(0.0, 2.0),
    max_nodes=st.sampled_from([0, 8]),
)
def test_forwards_alone_are_as_many_as_give_most(
    rates: list[list[float]], widths: tuple[float, float], draft: float, max_nodes: int
) -> None:
    first, second = itertools.accumulate(widths)
    cost = StepCost({(1, 1): first, (3, 5): second}, draft)
    choice = best_forwards([NOTHING] * len(rates), [computed(*row) for row in chains(rates)], cost, max_nodes)
    if choice is None:
        assert not any(rates)
        return

    def rate(count: int) -> float:
        each = [min(count, len(row)) for row in rates]
        seconds = cost.verify_seconds(len(rates), 1 + max(each))
        return seconds * tokens_per_second(rates, each, cost) / (seconds + cost.draft_seconds(count))

    best = max(rate(count) for count in range(1, 1 + max(map(len, rates))))
    # Some of what was computed may be better left unchecked.
    assert sum(choice.tokens) / choice.seconds >= best * (1 - 1e-9)
    assert choice.lengths == tuple(min(choice.num_forwards, len(row)) for row in rates)


@pytest.mark.parametrize("max_nodes", [0, 16])
def test_forwards_beside_what_is_free(max_nodes: int) -> None:
    cost = StepCost.flat(draft=0.1)
    # Nothing of it is counted twice.
    alone, both = (best_forwards([f], [computed(0.8, 0.6)], cost, max_nodes) for f in (NOTHING, known(0.5, 0.3)))
    assert alone is not None
    assert both is not None
    assert alone.tokens == both.tokens == pytest.approx((2.4,))
    # What reaches further than the computed levels counts where it stands beside them.
    deep = best_forwards([known(0.5, 0.3, 0.2)], [computed(0.8, 0.6)], cost, max_nodes)
    assert deep is not None
    assert deep.tokens == pytest.approx((2.6,) if max_nodes else (2.4,))
    # A forward for one row is free for the others.
    cost = StepCost.flat(draft=1.0)
    rows = best_forwards([NOTHING] * 3, [computed(0.5)] * 3, cost, max_nodes)
    assert rows is not None
    assert rows.tokens == (1.5,) * 3
    assert rows.seconds == 2.0


def test_what_is_computed_is_checked_only_where_it_turned_out_likely() -> None:
    cost = StepCost({(1, 1): 1.0, (1, 11): 2.0}, draft=0.5)
    choice = lengths_worth([[0.9, 0.5, 0.05]], cost, 1.5, tokens_per_second=1.2)
    assert choice.lengths == (2,)
    # The time of the forwards is part of the step, whatever came of them.
    assert choice.seconds == pytest.approx(1.2 + 1.5)
    assert lengths_worth([[0.05], []], cost, 1.5, tokens_per_second=2.0).lengths == (0, 0)


def test_a_draft_that_agrees_in_nine_of_ten_tokens_and_costs_a_twentieth_is_worth_three_times_plain() -> None:
    # Where width is free, E(g) / (1 + 0.05 g) is above 4 from g = 7 on; what is chosen must bring it, drawn by lot.
    cost = StepCost({(1, 1): 1.0, (1, 64): 1.0}, draft=0.05)
    rng, rates, tokens, seconds = random.Random(0), AcceptanceRates(), 0, 0.0
    for _ in range(3000):
        reaches = rates.chain([("model", i) for i in range(10)])
        choice = best_forwards([NOTHING], [computed(*reaches)], cost, 0)
        assert choice is not None
        length = choice.num_forwards
        outcomes = [rng.random() < 0.9 for _ in range(length)]
        num_right = next((i for i, is_right in enumerate(outcomes) if not is_right), length)
        rates.observe([(("model", i), outcomes[i]) for i in range(min(num_right + 1, length))])
        tokens += 1 + num_right
        seconds += cost.verify_seconds(1, 1 + length) + cost.draft_seconds(length)
    assert tokens / seconds > 4.0


def test_how_far_it_is_worth_looking() -> None:
    flat = least_reach(StepCost.flat(), 1, 32)
    assert flat < 0.01
    # A node that adds a tenth of a plain step must bring a tenth of a token; half of that is asked for.
    assert least_reach(StepCost({(1, 1): 1.0, (1, 11): 2.0}), 1, 32) == pytest.approx(0.05)
    assert least_reach(None, 1, 32) == flat


# --- Costs ------------------------------------------------------------------------------------------------------------


def test_measured_costs_are_taken_as_they_are() -> None:
    cost = StepCost({(1, 1): 1.0, (1, 3): 1.5, (1, 11): 4.0}, draft=0.25)
    assert [cost.verify_seconds(1, w) for w in (1, 3, 11)] == [1.0, 1.5, 4.0]
    assert [cost.draft_seconds(n) for n in (0, 1, 4)] == [0.0, 0.25, 1.0]


def test_costs_between_and_beyond_are_linear_in_the_number_of_tokens() -> None:
    cost = StepCost({(1, 1): 1.0, (1, 3): 1.5, (1, 11): 5.5})
    assert cost.verify_seconds(1, 2) == pytest.approx(1.25)
    assert cost.verify_seconds(1, 7) == pytest.approx(3.5)
    assert cost.verify_seconds(1, 21) == pytest.approx(10.0)
    # Two rows of 2 tokens are 4 tokens.
    assert cost.verify_seconds(2, 2) == pytest.approx(2.0)


def test_a_single_measurement_stands_for_every_width() -> None:
    cost = StepCost({(1, 1): 2.0})
    assert cost.verify_seconds(3, 9) == 2.0


def test_costs_never_fall_below_the_smallest_beyond_what_was_measured() -> None:
    # Noise can make a wide step look cheaper; that must not be drawn out into costs of zero or less.
    cost = StepCost({(1, 1): 1.0, (1, 11): 0.5})
    assert cost.verify_seconds(8, 100) >= 1.0


@settings(max_examples=100)
@given(
    seconds=st.lists(st.floats(0.0, 10.0), min_size=3, max_size=3),
    observations=st.lists(st.tuples(st.integers(1, 8), st.integers(1, 11), st.floats(0.0, 100.0)), max_size=20),
    rows=st.integers(1, 16),
    width=st.integers(1, 64),
)
def test_costs_are_positive_and_finite_whatever_was_measured(
    seconds: list[float], observations: list[tuple[int, int, float]], rows: int, width: int
) -> None:
    cost = StepCost(dict(zip([(1, 1), (1, 4), (1, 11)], seconds, strict=True)))
    for observation in observations:
        cost.observe(*observation)
    assert 0 < cost.verify_seconds(rows, width) < math.inf


def test_flat_costs_are_flat() -> None:
    cost = StepCost.flat()
    assert {cost.verify_seconds(rows, width) for rows in (1, 4) for width in (1, 5, 11)} == {1.0}
    assert cost.draft_seconds(10) == 0.0


def test_observations_follow_a_machine_that_became_slower() -> None:
    cost = StepCost({(1, 1): 1.0, (1, 11): 3.0}, draft=0.1)
    for _ in range(200):
        cost.observe(1, 1, 2.0)
        cost.observe(1, 11, 6.0)
    assert cost.verify_seconds(1, 1) == pytest.approx(2.0, rel=0.05)
    assert cost.verify_seconds(1, 11) == pytest.approx(6.0, rel=0.05)
    # What was not observed became slower too: it is the same machine.
    assert cost.verify_seconds(1, 6) == pytest.approx(4.0, rel=0.1)


def test_observations_follow_a_width_that_costs_more_than_measured() -> None:
    cost = StepCost({(1, 1): 1.0, (1, 11): 3.0})
    for _ in range(300):
        cost.observe(1, 1, 1.0)
        cost.observe(1, 11, 9.0)
    assert cost.verify_seconds(1, 11) / cost.verify_seconds(1, 1) == pytest.approx(9.0, rel=0.1)


def test_what_was_observed_of_as_many_rows_tells_more_than_the_number_of_tokens() -> None:
    cost = StepCost({(1, 1): 1.0, (1, 4): 1.0, (1, 16): 4.0})
    assert cost.verify_seconds(4, 1) == pytest.approx(1.0)
    for _ in range(200):
        cost.observe(4, 1, 2.0)
        cost.observe(1, 1, 1.0)
    assert cost.verify_seconds(4, 1) == pytest.approx(2.0, rel=0.1)
    # Wider steps of four rows cost more too, by the shape known from the number of tokens: 16 cost 4 times what 4 do.
    assert cost.verify_seconds(4, 4) / cost.verify_seconds(4, 1) == pytest.approx(4.0, rel=0.3)


@pytest.mark.parametrize("key", [(1, 11), (1, 5), (4, 2)])
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_an_observation_moves_its_own_width_the_right_way(key: tuple[int, int], factor: float) -> None:
    # Against the others, and whether or not that width had been measured before.
    cost = StepCost({(1, 1): 1.0, (1, 11): 3.0})
    before = cost.verify_seconds(*key) / cost.verify_seconds(1, 1)
    cost.observe(*key, cost.verify_seconds(*key) * factor)
    after = cost.verify_seconds(*key) / cost.verify_seconds(1, 1)
    assert after / before == pytest.approx(factor**0.05)


@pytest.mark.parametrize("measured", [0.1, 1.2])
def test_costs_that_were_measured_wrong_are_soon_right_at_every_width(measured: float) -> None:
    # A token more costs 0.4 of a plain step.
    cost = StepCost({(1, width): 1.0 + measured * (width - 1) for width in (1, 2, 3, 5, 8)})
    for step in range(60):
        width = 2 if step % 4 == 0 else 1
        cost.observe(1, width, 1.0 + 0.4 * (width - 1))
    for width in (2, 3, 5):
        assert cost.verify_seconds(1, width) / cost.verify_seconds(1, 1) == pytest.approx(0.6 + 0.4 * width, rel=0.25)


def test_noise_where_width_is_free_does_not_make_it_dear() -> None:
    cost, rng = StepCost({(1, 1): 1.0, (1, 2): 1.001, (1, 32): 1.3}), random.Random(0)
    for _ in range(500):
        cost.observe(1, rng.choice((1, 2)), rng.uniform(0.9, 1.1))
    assert cost.verify_seconds(1, 32) / cost.verify_seconds(1, 1) < 1.6


@pytest.mark.parametrize("noise", [0.02, 0.05, 0.1])
@pytest.mark.parametrize("seed", range(4))
def test_widths_that_never_run_stay_as_dear_as_they_are_however_long_others_do(noise: float, seed: int) -> None:
    right = {1: 1.0, 2: 1.2, 3: 1.45, 5: 2.1, 8: 3.5, 16: 7.0}
    cost, rng = StepCost({(1, width): seconds for width, seconds in right.items()}), random.Random(seed)
    busy = 0.0
    for _ in range(10_000):
        width = rng.choice((1, 1, 1, 1, 1, 2, 2, 3))
        # The machine is busier at some times than at others, and now and then something else runs.
        busy = 0.9 * busy + rng.gauss(0, noise)
        cost.observe(1, width, right[width] * math.exp(busy) * (3 if rng.random() < 0.01 else 1))
    for width, seconds in right.items():
        found = cost.verify_seconds(1, width) / cost.verify_seconds(1, 1)
        assert found == pytest.approx(seconds, rel=0.2 if noise < 0.1 else 0.5)


def test_a_machine_that_is_busy_for_a_while_leaves_the_shape_as_it_was() -> None:
    # Only one width runs meanwhile, and the others cannot be seen to have become slower too.
    cost = StepCost({(1, 1): 1.0, (1, 11): 3.0})
    for seconds in (6.0, 3.0):
        for _ in range(100):
            cost.observe(1, 11, seconds)
        assert cost.verify_seconds(1, 11) / cost.verify_seconds(1, 1) == pytest.approx(3.0, rel=0.25)
    assert cost.verify_seconds(1, 11) / cost.verify_seconds(1, 1) == pytest.approx(3.0, rel=0.02)


def test_one_slow_step_changes_little() -> None:
    cost = StepCost({(1, 1): 1.0, (1, 11): 3.0})
    cost.observe(1, 11, 1000.0)  # Something else ran.
    assert cost.verify_seconds(1, 11) / cost.verify_seconds(1, 1) < 3.0 * 1.1
    assert cost.verify_seconds(1, 1) < 1.2


def test_draft_costs_follow_observations() -> None:
    cost = StepCost({(1, 1): 1.0}, draft=1.0)
    for _ in range(100):
        cost.observe_draft(4, 8.0)
    assert cost.draft_seconds(1) == pytest.approx(2.0, rel=0.01)
    cost.observe_draft(0, 5.0)  # No forward, no observation.
    assert cost.draft_seconds(1) == pytest.approx(2.0, rel=0.01)
    # To begin again takes longer, since there is more to read; that says nothing of the forwards that follow.
    for _ in range(50):
        cost.observe_draft(2, 7.0, is_resumed=True)
    assert cost.draft_seconds(1) == pytest.approx(2.0, rel=0.01)
    assert cost.draft_seconds(1, is_resumed=True) == pytest.approx(5.0, rel=0.01)
    assert cost.draft_seconds(0, is_resumed=True) == 0.0


# --- Acceptance -------------------------------------------------------------------------------------------------------


def test_first_guesses_grow_with_the_length_of_a_lookup_match() -> None:
    rates = AcceptanceRates()
    guesses = [rates.rate(("lookup", n)) for n in range(1, 30)]
    assert guesses == sorted(guesses)
    assert all(0 < guess < 1 for guess in guesses)
    assert 0 < rates.rate(("model", 0)) < 1


@pytest.mark.parametrize("truth", [0.0, 0.2, 0.8, 1.0])
def test_rates_approach_what_is_observed(truth: float) -> None:
    rates = AcceptanceRates()
    for i in range(500):
        rates.observe([(("model", 0), i % 5 < truth * 5)])
    assert rates.rate(("model", 0)) == pytest.approx(truth, abs=0.03)


def test_kinds_are_estimated_apart() -> None:
    rates = AcceptanceRates()
    untouched = rates.rate(("lookup", 1))
    rates.observe([(("lookup", 5), True)] * 50 + [(("lookup", 2), False)] * 50)
    assert rates.rate(("lookup", 5)) > 0.95
    assert rates.rate(("lookup", 2)) < 0.1
    assert rates.rate(("lookup", 1)) == untouched


def test_a_request_starts_from_what_others_saw_and_then_follows_its_own_text() -> None:
    kind, shared = ("model", 0), AcceptanceRates()
    first = AcceptanceRates(shared)
    first.observe([(kind, True)] * 100)
    assert shared.rate(kind) > 0.95
    second = AcceptanceRates(shared)
    assert second.rate(kind) == pytest.approx(shared.rate(kind))
    second.observe([(kind, False)] * 20)
    assert second.rate(kind) < 0.25
    assert first.rate(kind) > 0.9  # It has its own text.
    assert 0.7 < shared.rate(kind) < 0.95


def test_old_observations_fade() -> None:
    # A request turns round faster than all of them together.
    kind, shared = ("model", 0), AcceptanceRates()
    rates = AcceptanceRates(shared)
    rates.observe([(kind, True)] * 2000)
    rates.observe([(kind, False)] * 60)
    assert rates.rate(kind) < 0.3
    assert shared.rate(kind) > 0.8


def test_a_request_whose_guesses_fail_trusts_those_of_other_kinds_less() -> None:
    shared = AcceptanceRates()
    request, other = AcceptanceRates(shared), AcceptanceRates(shared)
    before = request.rate(("lookup", 5))
    request.observe([(("lookup", 3), False)] * 20)
    assert request.rate(("lookup", 5)) < 0.7 * before
    assert other.rate(("lookup", 5)) == before
    # Being right makes them no better than they are elsewhere.
    other.observe([(("lookup", 3), True)] * 20)
    assert other.rate(("lookup", 5)) == before


@settings(max_examples=50)
@given(outcomes=st.lists(st.tuples(st.sampled_from([("lookup", 1), ("lookup", 40), ("model", 3)]), st.booleans())))
def test_rates_stay_chances(outcomes: list[tuple[tuple[str, int], bool]]) -> None:
    rates = AcceptanceRates(AcceptanceRates())
    rates.observe(iter(outcomes))
    for kind in (("lookup", 1), ("lookup", 40), ("model", 3), ("never seen", 0)):
        assert 0 < rates.rate(kind) < 1
