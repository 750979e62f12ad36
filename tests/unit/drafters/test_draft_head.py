"""A trained head drafts from the target's states: the text stays, and takes as many steps as the head earns."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from langchain_specdec.drafters.acceptance import AcceptanceRates
from langchain_specdec.drafters.base import DraftLimits
from langchain_specdec.drafters.combined import CombinedDrafter
from langchain_specdec.drafters.draft_head import DraftHeadDrafter
from langchain_specdec.drafters.head_slots import HeadSlot
from langchain_specdec.drafters.head_tree import HeadRow, HeadTree
from langchain_specdec.drafters.lookup_tree import LookupTreeDrafter
from langchain_specdec.engine.engine import Engine
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.errors import GenerationError
from langchain_specdec.models.heads.load_head import load_head
from langchain_specdec.models.make_runner import make_runner
from langchain_specdec.runner.cuda.captured_runner import CapturedRunner
from langchain_specdec.runner.module_head_runner import ModuleHeadRunner
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.sampling.params import SamplingParams
from tests.support.eagle3_folders import TinyHead
from tests.support.oracle_heads import SIZE, chained_head, chained_model, successors
from tests.support.recorded_graphs import RecordedCapture
from tests.support.tiny_models import (
    FakeRequest,
    References,
    loaded,
    perturbed,
    random_prompt,
    read,
    tiny_model,
    token_ids,
)

pytestmark = pytest.mark.transformers
TREE, CHAIN = 16, 0
GREEDY = SamplingParams(max_new_tokens=24, ignore_eos=True)
KINDS = {
    "greedy": GREEDY,
    "sampled": replace(GREEDY, temperature=0.8, seed=3),
    "cut": replace(GREEDY, temperature=0.9, top_p=0.8, top_k=30, seed=5),
    "penalised": replace(GREEDY, temperature=0.7, repetition_penalty=1.3, seed=6),
    "biased": replace(GREEDY, logit_bias={7: 3.0, 9: -4.0}),
}


@pytest.fixture
def make() -> Iterator[Callable[..., Engine]]:
    """Makes engines on a model and a head, and closes them."""
    engines: list[Engine] = []

    def build(
        model: Any, head: Any, *, nodes: int = TREE, lookups: bool = False, captured: bool = False, **options: Any
    ) -> Engine:
        target = loaded(model)
        runner: Any = make_runner(target, num_slots=4, max_length=256, max_width=1 + max(10, nodes))
        if captured:
            runner = CapturedRunner(runner, RecordedCapture(), "reduce-overhead")
        drafter: Any = DraftHeadDrafter(runner, ModuleHeadRunner(head, 4, 256, 1 + max(10, nodes)), "eagle3", 64)
        if lookups:
            drafter = CombinedDrafter([LookupTreeDrafter(5), drafter])
        options = {"step_cost": StepCost.flat(draft=0.05), "max_draft_tokens": 10, "max_tree_nodes": nodes, **options}
        engines.append(Engine(runner, drafter, target.tokenizer, (256,), **options))
        return engines[-1]

    yield build
    for engine in engines:
        engine.close()


def texts(engine: Engine, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> list[list[int]]:
    streams = [engine.submit(prompt, each) for prompt, each in zip(prompts, params, strict=True)]
    return [token_ids(read(stream)[0]) for stream in streams]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A target of six layers, and a head of random weights for it."""
    model = tiny_model(num_hidden_layers=6)
    folder = TinyHead().write(tmp_path_factory.mktemp("head") / "random")
    return model, load_head(folder, loaded(model))


@pytest.mark.parametrize("captured", [False, True], ids=["modules", "captured"])
@pytest.mark.parametrize("nodes", [TREE, CHAIN], ids=["tree", "chain"])
@pytest.mark.parametrize("which", ["random", "often right"])
def test_texts_are_those_of_plain_decoding(which: str, nodes: int, captured: bool, trained: Any, make: Any) -> None:
    if which == "random":
        model, head = trained
    else:
        following = successors()
        model, head = perturbed(chained_model(following), 0.15), chained_head(following, torch.arange(0, SIZE, 2))
    rng, references, accepted = random.Random(4), References(model), 0
    for lookups in (False, True):
        engine = make(model, head, nodes=nodes, lookups=lookups, captured=captured)
        for _ in range(2):  # the second time in slots that hold earlier texts
            prompts, params = [random_prompt(rng) for _ in KINDS], list(KINDS.values())
            streams = [engine.submit(prompt, each) for prompt, each in zip(prompts, params, strict=True)]
            for prompt, each, stream in zip(prompts, params, streams, strict=True):
                tokens, end = read(stream)
                assert token_ids(tokens) == references(prompt, each), (prompt, each)
                accepted += end.speculation.accepted_by_source.get("eagle3", 0)
    assert accepted > (0 if which == "random" else 100)


def count_steps(engine: Engine, prompt: Sequence[int], params: SamplingParams) -> tuple[list[int], Any]:
    tokens, end = read(engine.submit(prompt, params))
    return token_ids(tokens), end.speculation


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("depth", [1, 3, 7])
@pytest.mark.parametrize("nodes", [TREE, CHAIN], ids=["tree", "chain"])
def test_an_oracle_takes_as_few_steps_as_its_depth(nodes: int, depth: int, temperature: float, make: Any) -> None:
    following = successors()
    model, head = chained_model(following), chained_head(following)
    engine = make(model, head, nodes=nodes, max_draft_tokens=depth, step_cost=StepCost.flat())
    params = SamplingParams(max_new_tokens=1 + 6 * (depth + 1), ignore_eos=True, temperature=temperature, seed=1)
    text, stats = count_steps(engine, [5, 9, 3], params)
    assert text == References(model)([5, 9, 3], params)
    # The first step has no states yet of what the head needs, and learns what it costs.
    assert stats.num_steps == 1 + math.ceil((params.max_new_tokens - 1) / (depth + 1)), stats
    assert stats.accepted_by_source == {"eagle3": stats.accepted_tokens}


@pytest.mark.parametrize("nodes", [TREE, CHAIN], ids=["tree", "chain"])
def test_a_head_that_is_always_wrong_costs_next_to_nothing(nodes: int, make: Any) -> None:
    following = successors()
    wrong = (following + 1) % SIZE
    cost = StepCost({(1, 1): 1.0, (1, 4): 1.3, (1, 20): 3.0}, draft=0.2)
    params = replace(GREEDY, max_new_tokens=200)
    engine = make(chained_model(following), chained_head(wrong), step_cost=cost, nodes=nodes)
    text, stats = count_steps(engine, [8, 9, 3], params)
    assert stats.num_steps == params.max_new_tokens == len(text)
    # From the first token on, so what it takes to see that it is wrong is included.
    assert stats.predicted_seconds <= 1.02 * stats.num_steps


def test_each_node_of_a_tree_sees_its_own_path_alone(trained: Any) -> None:
    _, head = trained
    limits = DraftLimits(6, 24)
    for seed in range(20):
        rng = random.Random(seed)
        runner = ModuleHeadRunner(head, 2, 64, 12)
        states = torch.randn(4, head.hidden_size, generator=torch.Generator().manual_seed(seed))
        first = HeadRow(5, [rng.randrange(258) for _ in range(4)], [-1, 0, 1, 2], states)
        runner.extend(RowBatch([1], [0], [[7] * 5]), [states[:1].expand(5, -1)])
        tree, rows = HeadTree("eagle3", AcceptanceRates(), limits, first, runner.max_width), 0
        while tree.asked:
            row = tree.row()
            assert len(row.tokens) <= runner.max_width
            _, following = runner.run(RowBatch([1], [row.start], [row.tokens], [row.parents]), [row.states])
            count, rows = len(tree.asked), rows + 1
            # What follows is drawn, so that trees of all forms grow.
            chances = [sorted((rng.random() ** 2 for _ in range(4)), reverse=True) for _ in range(count)]
            tree.grow(
                [[(rng.randrange(258), c / 4) for c in each] for each in chances],
                following[0, len(row.tokens) - count :],
            )
            tree.go_on()
        assert rows > 3
        for node in [-1, *range(len(tree.tokens))]:
            if node not in tree.hidden:
                continue
            _, given = runner.run(RowBatch([1], [5], [first.tokens]), [first.states])
            state = given[0, -1]
            for place, passed in enumerate(tree.path_to(node)):
                _, given = runner.run(RowBatch([1], [9 + place], [[tree.tokens[passed]]]), [state[None]])
                state = given[0, -1]
            torch.testing.assert_close(tree.hidden[node], state, rtol=1e-4, atol=1e-4)


def test_a_text_that_goes_on_from_an_earlier_one_is_drafted_for(make: Any) -> None:
    following = successors()
    model, head = chained_model(following), chained_head(following)
    engine = make(model, head, max_draft_tokens=3, step_cost=StepCost.flat())
    params = replace(GREEDY, max_new_tokens=17)
    first, _ = count_steps(engine, [5, 9, 3], params)
    for prompt in [5, 9, 3, *first, 7], [5, 9, 3, *first[:4], 8, 1], [5, 9, 4]:
        text, stats = count_steps(engine, prompt, params)
        assert text == References(model)(prompt, params)
        # Where a text parted from an earlier one, one entry is of a token that is not in it.
        assert stats.num_steps <= 6, stats


def test_slots_follow_texts_that_grow_part_and_have_gaps() -> None:
    rng = random.Random(7)
    for _ in range(300):
        slot, text = HeadSlot(), [0]
        known: dict[int, float] = {}  # the state of each position that the slot knows of, or has run
        begin = 0
        for number in range(rng.randrange(1, 12)):
            if rng.random() < 0.3:
                kept = rng.randrange(len(text))
                text = [*text[:kept], *(rng.randrange(1, 9) for _ in range(rng.randrange(1, 6)))]
                start = rng.randrange(kept + 1)
                slot.adopt(FakeRequest(number, text), start)
            else:
                start = rng.choice([slot.end, slot.end, slot.end + rng.randrange(4), rng.randrange(slot.end + 1)])
            count = rng.randrange(1, 5)
            if start > slot.end or start <= begin:
                begin = start
                known = {}
            known = {place: state for place, state in known.items() if place < start}
            states = torch.arange(start, start + count).float()[:, None, None] + 100 * number
            if rng.random() < 0.5:
                slot.add(start, states)
            else:
                slot.add_late(start, count, partial(torch.clone, states))
            known |= {start + i: start + i + 100.0 * number for i in range(count)}
            assert (slot.offset, slot.end) == (begin, start + count)
            waiting = [float(state) for _, states in slot.waiting for state in states().flatten()]
            assert waiting == [known[place] for place in range(slot.end - slot.num_waiting, slot.end)]
            if taken := rng.randrange(slot.num_waiting + 1):
                first = slot.end - slot.num_waiting
                assert slot.take(taken).flatten().tolist() == [known[first + i] for i in range(taken)]


def test_long_texts_without_drafts_leave_few_states_waiting(make: Any) -> None:
    following = successors()
    # A forward of the head that costs as much as ten steps never pays.
    engine = make(chained_model(following), chained_head(following), step_cost=StepCost.flat(draft=10.0))
    streams = [engine.submit([5, 9, 3], replace(GREEDY, max_new_tokens=240))]
    assert len(read(streams[0])[0]) == 240
    (slot,) = engine.drafter._slots.values()
    assert slot.end == 242
    assert slot.num_waiting <= 256


def test_scores_that_are_not_sound_cost_nobody_a_text(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    following = successors()
    model, head = chained_model(following), chained_head(following)
    bad = 77
    with torch.no_grad():
        head.embed_tokens.weight[bad] = math.nan
    engine = make(model, head, step_cost=StepCost.flat())
    params = replace(GREEDY, max_new_tokens=16)
    before = int((following == bad).nonzero())
    prompts = [[5, before], [5, 9, 3], [bad, 4, 2]]
    for prompt, text in zip(prompts, texts(engine, prompts, [params] * 3), strict=True):
        assert text == References(model)(prompt, params)
    assert "The draft head computes NaN" in caplog.text
    text, stats = count_steps(engine, [6, 9, 3], params)  # slots are clean
    assert stats.num_steps <= 4


@pytest.mark.parametrize("where", ["condense", "extend", "run"])
def test_a_head_that_runs_out_of_memory_costs_nobody_a_text(
    where: str, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    following = successors()
    model, head = chained_model(following), chained_head(following)
    engine = make(model, head, max_draft_tokens=3, step_cost=StepCost.flat())
    (runner,) = engine.drafter.runners
    params, prompt, references = replace(GREEDY, max_new_tokens=17), [*range(12)], References(model)

    def fail(*args: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(runner, where, fail)
        text, stats = count_steps(engine, prompt, params)
        assert (text, stats.num_steps) == (references(prompt, params), len(text))
    # The slot holds nothing that was not computed, of which the next text would be drafted.
    prompt = [*prompt, *text, 7]
    text, stats = count_steps(engine, prompt, params)
    assert text == references(prompt, params)
    assert stats.num_steps <= 6


def test_a_text_that_failed_leaves_nothing_in_the_heads_slot(make: Any) -> None:
    following = successors()
    model, head = chained_model(following), chained_head(following)
    with torch.no_grad():
        model.model.embed_tokens.weight[77] = math.nan
    engine = make(model, head, step_cost=StepCost.flat())
    with pytest.raises(GenerationError, match="no usable scores"):
        read(engine.submit([5, 77, *range(20)], GREEDY))
    (runner,) = engine.drafter.runners
    assert runner.cache.layers[0].keys.isfinite().all()
    params = replace(GREEDY, max_new_tokens=17)
    # Short texts beside a long one are computed over as many places as that one has.
    prompts = [[5, 9, 3], [6, 9, 3], [8, 9, 3], [*range(40)]]
    for prompt, stream in [(prompt, engine.submit(prompt, params)) for prompt in prompts]:
        tokens, end = read(stream)
        assert token_ids(tokens) == References(model)(prompt, params)
        assert end.speculation.num_steps <= 4
