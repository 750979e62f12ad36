"""What speculation costs and saves, counted in forwards rather than timed."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from langchain_specdec import engine as engine_package
from langchain_specdec.completions.stats import SpeculationStats
from langchain_specdec.drafters.base import Draft, Drafter, DraftingRequest, DraftLimits, Proposal
from langchain_specdec.drafters.combined import CombinedDrafter
from langchain_specdec.drafters.prompt_lookup import PromptLookupDrafter
from langchain_specdec.engine.draft_choice import DraftChooser
from langchain_specdec.engine.engine import Engine
from langchain_specdec.engine.step import Stepper
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.runner.verify import Verdict
from langchain_specdec.sampling.params import SamplingParams
from tests.support.tiny_models import (
    OracleDrafter,
    References,
    make_draft_drafter,
    perturbed,
    read,
    scripted_model,
    tiny_model,
    token_ids,
)

PROMPT = (5, 6, 7, 8, 9)
FORTY = SamplingParams(max_new_tokens=40, ignore_eos=True)
MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="module")
def target(device: str) -> Any:
    return tiny_model(0, device).double()


@pytest.fixture(scope="module")
def references(target: Any) -> References:
    return References(target)


@pytest.mark.parametrize("temperature", [0, 0.7, 1.5])
def test_a_draft_equal_to_the_target_takes_8_steps_for_40_tokens(
    target: Any, engines: MakeEngine, temperature: float
) -> None:
    # Every step emits 4 drafted tokens and one of the target's own: 40 / 5. With shared noise also where it samples.
    drafter = make_draft_drafter(target)
    engine = engines(target, drafter, draft_length=4)
    params = SamplingParams(max_new_tokens=40, temperature=temperature, seed=3, ignore_eos=True)
    tokens, finish = read(engine.submit(PROMPT, params))
    assert engine.num_target_forwards == 8
    assert finish.speculation.num_steps == 8
    assert finish.speculation.drafted_tokens == finish.speculation.accepted_tokens == 32
    assert finish.speculation.emitted_tokens == len(tokens) == 40
    assert finish.speculation.acceptance_rate == 1.0
    assert finish.speculation.tokens_per_step == 5.0
    # One forward of the draft model per drafted token, no more.
    assert drafter.num_forwards == 32
    assert [token.drafted for token in tokens] == [True, True, True, True, False] * 8


def test_a_drafter_follows_every_verification(target: Any, engines: MakeEngine, references: References) -> None:
    class Follower(OracleDrafter):
        def __init__(self) -> None:
            super().__init__({PROMPT: references(PROMPT, FORTY)}, 0.7)
            self.texts: list[tuple[int, ...]] = []

        def follow(self, requests: Sequence[DraftingRequest], verdict: Verdict) -> None:
            self.texts += [tuple(request.token_ids) for request in requests]

    drafter = Follower()
    engine = engines(target, drafter, draft_length=3)
    tokens, finish = read(engine.submit(PROMPT, FORTY))
    assert token_ids(tokens) == references(PROMPT, FORTY)
    # Before the text grew each time.
    assert len(set(drafter.texts)) == len(drafter.texts) == finish.speculation.num_steps
    assert drafter.texts[0] == PROMPT


@pytest.mark.parametrize("draft_length", range(1, 11))
def test_steps_at_every_draft_length(target: Any, engines: MakeEngine, draft_length: int) -> None:
    drafter = make_draft_drafter(target)
    engine = engines(target, drafter, draft_length=draft_length)
    _, finish = read(engine.submit(PROMPT, FORTY))
    num_steps = -(-40 // (1 + draft_length))
    assert engine.num_target_forwards == finish.speculation.num_steps == num_steps
    assert drafter.num_forwards == finish.speculation.drafted_tokens == 40 - num_steps


def test_plain_decoding_takes_a_step_per_token(target: Any, engines: MakeEngine) -> None:
    engine = engines(target, Drafter())
    tokens, finish = read(engine.submit(PROMPT, FORTY))
    assert engine.num_target_forwards == finish.speculation.num_steps == 40
    assert finish.speculation.drafted_tokens == finish.speculation.accepted_tokens == 0
    assert finish.speculation.tokens_per_step == 1.0
    assert not any(token.drafted for token in tokens)


def test_a_fixed_length_of_zero_is_plain_decoding(target: Any, engines: MakeEngine) -> None:
    drafter = make_draft_drafter(target)
    engine = engines(target, drafter, draft_length=0)
    _, finish = read(engine.submit(PROMPT, FORTY))
    assert finish.speculation.num_steps == 40
    assert drafter.num_forwards == 0


def test_a_useless_draft_costs_no_extra_steps(target: Any, engines: MakeEngine, references: References) -> None:
    # Even where every draft is wrong, each step still emits the target's own token.
    engine = engines(target, OracleDrafter({PROMPT: references(PROMPT, FORTY)}, 0.0), draft_length=4)
    _, finish = read(engine.submit(PROMPT, FORTY))
    assert finish.speculation.num_steps == engine.num_target_forwards == 40
    assert finish.speculation.accepted_tokens == 0
    assert finish.speculation.drafted_tokens == 36 * 4 + 3 + 2 + 1


def test_prompt_lookup_on_a_text_that_repeats(device: str, engines: MakeEngine) -> None:
    # "abcdefgh" again and again: the first eight are new, then each step finds the last round and drafts it on.
    script = list(range(65, 73)) * 5
    engine = engines(scripted_model(script, device), PromptLookupDrafter(5), draft_length=10, max_length=41)
    tokens, finish = read(engine.submit((0,), SamplingParams(max_new_tokens=40)))
    assert token_ids(tokens) == script
    # 9 steps until the first letter has come back; then 11 tokens a step: 11 + 11 + 9.
    assert finish.speculation.num_steps == 9 + 3
    assert finish.speculation.drafted_tokens == finish.speculation.accepted_tokens == 10 + 10 + 8


def test_prompt_lookup_drafts_from_the_prompt(device: str, engines: MakeEngine) -> None:
    # What the model writes stands in the prompt, as when it copies from a document.
    copied = list(range(65, 85))
    prompt = (1, *copied, 2, 65)
    model = scripted_model([0] * (len(prompt) - 1) + copied[1:], device)
    engine = engines(model, PromptLookupDrafter(5), draft_length=10, max_length=50)
    tokens, finish = read(engine.submit(prompt, SamplingParams(max_new_tokens=19)))
    assert token_ids(tokens) == copied[1:]
    assert finish.speculation.num_steps == 2
    assert finish.speculation.accepted_tokens == 17


def test_auto_takes_the_lookup_where_it_matches_and_the_model_elsewhere(device: str, engines: MakeEngine) -> None:
    script = [*range(65, 75), *range(65, 75)]
    model = scripted_model(script, device)
    drafter = make_draft_drafter(model, max_length=21)
    engine = engines(model, CombinedDrafter([PromptLookupDrafter(5), drafter]), draft_length=4, max_length=21)
    tokens, finish = read(engine.submit((0,), SamplingParams(max_new_tokens=20)))
    assert token_ids(tokens) == script
    # The first 10 letters are new: two steps with drafts of the model. The third too, since the last letter is still
    # new; it ends at the fifth letter of the second round, and the lookup finds the rest.
    assert finish.speculation.num_steps == 4
    assert drafter.num_forwards == 12
    assert finish.speculation.drafted_tokens == 16


@pytest.mark.parametrize("num_requests", [1, 2, 4])
def test_a_batch_takes_the_steps_of_its_longest_text(
    target: Any, engines: MakeEngine, references: References, num_requests: int
) -> None:
    prompts = [(*PROMPT, i) for i in range(num_requests)]
    known: dict[tuple[int, ...], list[int]] = {prompt: references(prompt, FORTY) for prompt in prompts}
    engine = engines(target, OracleDrafter(known, 1.0), draft_length=4)
    # Held, so that the engine sees all of them at once.
    with engine._inbox.lock:
        streams = [engine.submit(prompt, FORTY) for prompt in prompts]
    for stream in streams:
        assert read(stream)[1].speculation.num_steps == 8
    assert engine.num_target_forwards == 8


def test_more_prompts_than_slots_take_turns(target: Any, engines: MakeEngine) -> None:
    engine = engines(target, make_draft_drafter(target), draft_length=4, num_slots=2)
    with engine._inbox.lock:
        streams = [engine.submit((*PROMPT, i), FORTY) for i in range(6)]
    for stream in streams:
        assert read(stream)[1].speculation.num_steps == 8
    assert engine.num_target_forwards == 3 * 8


def test_repeating_a_prompt_costs_no_acceptance(target: Any, engines: MakeEngine) -> None:
    # The draft model's slot still holds the whole prompt then, and must still run its last token at its own place.
    drafter = make_draft_drafter(target)
    engine = engines(target, drafter, draft_length=4, num_slots=1)
    for _ in range(3):
        _, finish = read(engine.submit(PROMPT, FORTY))
        assert finish.speculation.num_steps == 8
        assert finish.speculation.acceptance_rate == 1.0


# --- The measured-cost rule -------------------------------------------------------------------------------------------


def test_nothing_is_drafted_where_width_never_pays(target: Any, engines: MakeEngine, references: References) -> None:
    # Two tokens in a step that costs three: not even a draft that is always right pays.
    cost = StepCost({(1, 1): 1.0, (1, 2): 3.0, (1, 11): 30.0})
    for agreement in (0.0, 1.0):
        engine = engines(target, OracleDrafter({PROMPT: references(PROMPT, FORTY)}, agreement), step_cost=cost)
        _, finish = read(engine.submit(PROMPT, FORTY))
        assert finish.speculation.drafted_tokens == 0
        assert finish.speculation.num_steps == engine.num_target_forwards == 40


def test_drafting_stops_where_drafts_are_wrong(target: Any, engines: MakeEngine, references: References) -> None:
    # Drafts start, because they could pay; they are always wrong, and after a few steps nothing is drafted any more.
    params = SamplingParams(max_new_tokens=100, ignore_eos=True)
    cost = StepCost({(1, 1): 1.0, (1, 2): 1.3, (1, 11): 4.0})
    widths: list[int] = []
    engine = engines(target, OracleDrafter({PROMPT: references(PROMPT, params)}, 0.0), step_cost=cost)
    spy_on_widths(engine, widths)
    read(engine.submit(PROMPT, params))
    assert widths[0] > 1
    assert set(widths[12:]) == {1}
    # A second request starts from what the first has learned.
    del widths[:]
    read(engine.submit((*PROMPT, 1), params))
    assert set(widths) == {1}


def test_drafting_starts_again_when_the_text_turns_predictable(
    target: Any, engines: MakeEngine, references: References
) -> None:
    # A lookup costs nothing to check, so its guesses are watched while none is used.
    class Turning(OracleDrafter):
        def consider(self, request: DraftingRequest, limits: DraftLimits) -> Sequence[Proposal]:
            self._agreement = 0.0 if len(request.token_ids) < 60 else 1.0
            return super().consider(request, limits)

    params = SamplingParams(max_new_tokens=140, ignore_eos=True)
    cost = StepCost({(1, 1): 1.0, (1, 2): 1.3, (1, 11): 3.0})
    widths: list[int] = []
    engine = engines(target, Turning({PROMPT: references(PROMPT, params)}, 0.0), step_cost=cost)
    spy_on_widths(engine, widths)
    read(engine.submit(PROMPT, params))
    assert set(widths[12:50]) == {1}
    assert max(widths[-5:]) > 4


def test_a_draft_model_is_probed_when_the_text_turns_predictable(device: str, engines: MakeEngine) -> None:
    script = [65 + i % 20 for i in range(200)]
    model = scripted_model(script, device)
    wrong_at_first = scripted_model([(t + 1 if i < 60 else t) for i, t in enumerate(script)], device)
    cost = StepCost({(1, 1): 1.0, (1, 11): 1.5}, draft=0.1)
    engine = engines(model, make_draft_drafter(wrong_at_first, max_length=201), step_cost=cost, max_length=201)
    tokens, finish = read(engine.submit((0,), SamplingParams(max_new_tokens=200)))
    assert token_ids(tokens) == script
    assert finish.speculation.num_steps < 150


def test_a_good_draft_model_is_used_and_a_bad_one_given_up(target: Any, engines: MakeEngine) -> None:
    cost = StepCost({(1, 1): 1.0, (1, 11): 1.5}, draft=0.2)
    params = SamplingParams(max_new_tokens=100, ignore_eos=True)
    good = engines(target, make_draft_drafter(target), step_cost=cost)
    assert read(good.submit(PROMPT, params))[1].speculation.tokens_per_step > 3
    stranger = make_draft_drafter(tiny_model(1, str(target.device)).double())
    bad = engines(target, stranger, step_cost=cost)
    assert read(bad.submit(PROMPT, params))[1].speculation.drafted_tokens < 40
    assert stranger.num_forwards < 40


def test_measuring_step_costs_is_counted_apart_from_the_requests_steps(target: Any, engines: MakeEngine) -> None:
    engine = engines(target, make_draft_drafter(perturbed(target, 0.02)), step_cost=None)
    for _ in range(2):
        tokens, finish = read(engine.submit(PROMPT, FORTY))
        stats = finish.speculation
        assert stats.emitted_tokens == len(tokens) == stats.num_steps + stats.accepted_tokens
    # A drafter that never has anything to propose does not make the engine measure.
    plain = engines(target, Drafter(), step_cost=None)
    read(plain.submit(PROMPT, FORTY))
    assert plain.num_target_forwards == 40


@pytest.mark.parametrize("rows", [1, 8])
def test_probes_lose_a_small_share_of_the_time_however_many_rows_there_are(rows: int) -> None:
    chooser = DraftChooser(0, probes_width=True)
    cost = StepCost({(rows, 1): 1.0, (rows, 3): 3.0})
    proposal = Proposal(Draft.chain([1, 2, 3, 4], [("lookup", 1)] * 4), (0.5,) * 4)
    requests: list[Any] = [SimpleNamespace()] * rows
    lengths = [chooser.choose(requests, [[proposal]] * rows, range(rows), 0.4, cost).lengths for _ in range(1000)]
    assert all(sum(each) in (0, 2) for each in lengths)
    # Two tokens cost two plain steps more, and bring one token to one of the rows.
    lost = sum(map(any, lengths)) * (2.0 - 1.0 / rows)
    assert 0.003 * 1000 <= lost <= 0.005 * 1000


def spy_on_widths(engine: Engine, widths: list[int]) -> None:
    verify = engine.runner.verify

    def spy(batch: RowBatch) -> Any:
        widths.append(batch.width)
        return verify(batch)

    engine.runner.verify = spy  # type: ignore[method-assign]


# --- The figures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agreement", [0.0, 0.3, 0.7, 1.0])
def test_counts_fit_together(target: Any, engines: MakeEngine, references: References, agreement: float) -> None:
    engine = engines(target, OracleDrafter({PROMPT: references(PROMPT, FORTY)}, agreement), draft_length=4)
    tokens, finish = read(engine.submit(PROMPT, FORTY))
    stats = finish.speculation
    assert stats.emitted_tokens == len(tokens) == 40
    # Each step ends with one token of the target's own.
    assert stats.accepted_tokens == sum(bool(token.drafted) for token in tokens) == 40 - stats.num_steps
    assert stats.accepted_tokens <= stats.drafted_tokens <= 4 * stats.num_steps
    assert stats.acceptance_rate == stats.accepted_tokens / stats.drafted_tokens
    assert stats.tokens_per_step == 40 / stats.num_steps
    assert stats.decode_seconds > 0
    assert stats.tokens_per_second == 40 / stats.decode_seconds
    # By place in the draft; a chain has one token at each.
    assert sum(stats.drafted_per_position) == stats.drafted_tokens
    assert sum(stats.accepted_per_position) == stats.accepted_tokens
    assert sorted(stats.accepted_per_position, reverse=True) == stats.accepted_per_position
    pairs = zip(stats.accepted_per_position, stats.drafted_per_position, strict=True)
    assert all(accepted <= drafted <= stats.num_steps for accepted, drafted in pairs)


def test_draft_tokens_beyond_the_end_are_not_counted_as_accepted(device: str, engines: MakeEngine) -> None:
    script = list(range(65, 80))
    model = scripted_model(script, device)
    engine = engines(model, OracleDrafter({(0,): script}, 1.0), eos=(script[2],), draft_length=10, max_length=16)
    _, finish = read(engine.submit((0,), SamplingParams(max_new_tokens=15)))
    assert finish.speculation.drafted_tokens == 10
    assert finish.speculation.accepted_tokens == finish.speculation.emitted_tokens == 3


def test_stats_of_nothing_are_zero() -> None:
    stats = SpeculationStats()
    assert stats.acceptance_rate == stats.tokens_per_step == stats.tokens_per_second == 0.0
    assert stats.predicted_gain == stats.observed_gain == 0.0


def test_stats_of_several_requests_add_up() -> None:
    total = SpeculationStats(10, 5, 4, 9, 0.5, 1.0, 0.5, 1.5, 3) + SpeculationStats(
        10, 10, 2, 12, 1.5, 2.0, 1.0, 1.5, 4
    )
    assert total == SpeculationStats(20, 15, 6, 21, 2.0, 3.0, 1.5, 3.0, 7)
    # Rates of a sum are those of the summed counts, not means of rates.
    assert total.acceptance_rate == 0.75
    assert total.tokens_per_step == 3.5
    assert total.as_dict() == {
        "drafted_tokens": 20,
        "accepted_tokens": 15,
        "forced_tokens": 7,
        "num_steps": 6,
        "acceptance_rate": 0.75,
        "tokens_per_step": 3.5,
        "drafted_per_position": [],
        "accepted_per_position": [],
        "drafted_by_source": {},
        "accepted_by_source": {},
        "decode_seconds": 2.0,
        "predicted_gain": 2.0,
        "observed_gain": 1.5,
    }


def test_counts_by_position_add_up_also_where_drafts_differ_in_length() -> None:
    short, long = SpeculationStats(), SpeculationStats()
    short.add_positions(2, 1)
    long.add_positions(1, 0)
    long.add_positions(4, 4)
    assert (long.drafted_per_position, long.accepted_per_position) == ([2, 1, 1, 1], [1, 1, 1, 1])
    total = short + long
    assert (total.drafted_per_position, total.accepted_per_position) == ([3, 2, 1, 1], [2, 1, 1, 1])
    assert (short.drafted_per_position, long.drafted_per_position) == ([1, 1], [2, 1, 1, 1]), "neither was changed"
    assert total.as_dict()["accepted_per_position"] == [2, 1, 1, 1]
    assert SpeculationStats(is_reported=False).as_dict()["drafted_per_position"] is None


def test_counts_by_source_add_up_also_where_sources_differ() -> None:
    one, other = SpeculationStats(), SpeculationStats()
    one.add_sources(["lookup", "lookup", "recycled"], ["lookup"])
    other.add_sources(["draft_model"], ["draft_model"])
    other.add_sources(["lookup"], [])
    total = (one + other).as_dict()
    assert total["drafted_by_source"] == {"lookup": 3, "recycled": 1, "draft_model": 1}
    assert total["accepted_by_source"] == {"lookup": 1, "draft_model": 1}
    assert other.accepted_by_source == {"draft_model": 1}, "neither was changed"


# --- How a step reads -------------------------------------------------------------------------------------------------


def engine_sources() -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in Path(engine_package.__path__[0]).glob("*.py")}


def test_a_step_is_five_calls() -> None:
    (decode,) = ast.parse(textwrap.dedent(inspect.getsource(Stepper.decode))).body
    assert isinstance(decode, ast.FunctionDef)
    calls = [node for statement in decode.body for node in ast.walk(statement) if isinstance(node, ast.Call)]
    assert [ast.unparse(call.func) for call in calls] == [
        "self._planner.plan",
        "self._planner.propose",
        "self._verify",
        "self._planner.learn",
        "self._emitter.emit",
    ]


def test_only_planning_and_the_pace_of_prompts_know_clocks_costs_and_rates() -> None:
    knowing = re.compile(r"\bimport time\b|\.clock\(\)|\.verify_seconds\(|\.draft_seconds\(|\.rate\(|rates\.observe\(")
    assert {name for name, source in engine_sources().items() if knowing.search(source)} == {
        "draft_choice",
        "draft_length",
        "draft_planner",
        "drafting_rows",
        "prefill_pace",
        "step_cost",
    }


def test_only_the_emitter_passes_tokens_to_readers() -> None:
    assert [name for name, source in engine_sources().items() if "TokenEvent(" in source] == ["emission"]
