"""Sampling: what parameters are allowed, what the noise is like, and that tokens follow the target's distribution."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from langchain_specdec.drafters.base import Drafter
from langchain_specdec.drafters.prompt_lookup import PromptLookupDrafter
from langchain_specdec.engine.engine import Engine
from langchain_specdec.errors import InvalidParameterError, SpecDecError
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.runner.step_inputs import RowBatch, RowInputs
from langchain_specdec.sampling.choice import SamplingTable, SparseBias, TableCache, TokenHistory, pick_tokens
from langchain_specdec.sampling.choice import process_logits as process
from langchain_specdec.sampling.noise import gumbel_noise
from langchain_specdec.sampling.params import SamplingParams
from tests.support.tiny_models import (
    FakeRequest,
    OracleDrafter,
    make_draft_drafter,
    perturbed,
    read,
    tiny_model,
    token_ids,
)

MAX_SEED = 2**64 - 1
# A right sampler fails a test of this level once in ten thousand times; the seeds are fixed, so always or never.
ALPHA = 1e-4


def seed_halves(seeds: Sequence[int], device: str = "cpu") -> Tensor:
    halves = [[s & 0xFFFFFFFF, s >> 32] for s in seeds]
    return torch.tensor([[h - 2**32 if h >= 2**31 else h for h in row] for row in halves], dtype=torch.int32).to(device)


# --- Parameters -------------------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
NOT_NUMBERS: list[Any] = ["1", [1], True, NAN, INF, -INF, 10**400, 1j]
NOT_WHOLE: list[Any] = [1.0, 0.5, "1", [1], True, False, NAN]

WRONG: list[tuple[str, list[Any], str]] = [
    ("max_new_tokens", [*NOT_WHOLE, 0, -1, 2**31 + 1], "a whole number from 1"),
    ("temperature", [*NOT_NUMBERS, -0.1, 100.1], r"a number from 0 \(greedy\) to 100"),
    ("top_k", [*NOT_WHOLE, -1], "a whole number from 1, or None"),
    ("top_p", [*NOT_NUMBERS, 0, 0.0, -0.1, 1.1], "a number above 0 and at most 1, or None"),
    ("min_p", [*NOT_NUMBERS, -0.1, 1.1], "a number from 0 to 1, or None"),
    ("repetition_penalty", [*NOT_NUMBERS, 0, -1.0, 101], r"a number above 0 \(1 is off\), or None"),
    ("presence_penalty", [*NOT_NUMBERS, -2.1, 2.1], r"a number from -2 to 2 \(0 is off\)"),
    ("frequency_penalty", [*NOT_NUMBERS, -2.1, 2.1], r"a number from -2 to 2 \(0 is off\)"),
    ("logit_bias", [[1], "1", 1, {(1, 2)}, True], "token ids to numbers"),
    ("logit_bias", [{-1: 0.0}, {"1": 0.0}, {1.0: 0.0}, {True: 0.0}, {None: 0.0}], "a whole number from 0"),
    ("logit_bias", [{1: v} for v in [*NOT_NUMBERS, None, 100.1, -100.1]], "a number from -100 to 100"),
    ("seed", [*NOT_WHOLE, -1, 2**64], r"a whole number from 0 to 2\*\*64 - 1, or None"),
    ("stop", ["", ["a", ""], [1], 1, b"a", {"a"}, True], "a string or a list of non-empty strings"),
    ("ignore_eos", [0, 1, "yes"], "True or False"),
    ("logprobs", [*NOT_WHOLE, -1, 21], "a whole number from 0 to 20, or None"),
]


@pytest.mark.parametrize(
    ("name", "value", "allowed"), [(name, value, allowed) for name, values, allowed in WRONG for value in values]
)
def test_wrong_values_are_refused_by_name_and_with_what_is_allowed(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(InvalidParameterError, match=f"(?s)^{name}.*must (be|map) .*{allowed}.*got ") as caught:
        SamplingParams(**{name: value})
    # Also for code that knows nothing of this package.
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, SpecDecError)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_new_tokens", [1, 2**31]),
        ("temperature", [0, 0.0, 1, 1e-9, 100]),
        ("top_k", [None, 0, 1, 10**9]),
        ("top_p", [None, 1, 1.0, 1e-9]),
        ("min_p", [None, 0, 0.0, 1, 1.0]),
        ("repetition_penalty", [None, 1e-3, 1, 100.0]),
        ("presence_penalty", [-2, 0, 2.0]),
        ("frequency_penalty", [-2, 0, 2.0]),
        ("logit_bias", [None, {}, {0: -100, 5: 100.0}]),
        ("seed", [None, 0, MAX_SEED]),
        ("stop", [(), [], ["a"], ("a", "b"), "abc"]),
        ("ignore_eos", [True, False]),
        ("logprobs", [None, 0, 20]),
    ],
)
def test_the_ends_of_every_range_are_allowed(name: str, values: list[Any]) -> None:
    for value in values:
        SamplingParams(**{name: value})


def test_none_is_the_default_of_every_parameter() -> None:
    nothing: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(SamplingParams))
    assert SamplingParams(**nothing) == SamplingParams()


def test_an_unknown_parameter_is_refused() -> None:
    with pytest.raises(TypeError, match="top_q"):
        SamplingParams(top_q=0.5)  # type: ignore[call-arg]


def test_parameters_cannot_change_behind_the_back() -> None:
    bias, stop = {1: 2.0}, ["a"]
    params = SamplingParams(logit_bias=bias, stop=stop)
    bias[1], stop[0] = 500.0, ""
    assert params.logit_bias == {1: 2.0}
    assert params.stop == ("a",)
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.temperature = 1.0  # type: ignore[misc]


def test_stop_strings_beside_a_grammar_are_refused() -> None:
    for stop in ("a", ["x", "y"]):
        with pytest.raises(InvalidParameterError, match="stop and a form of the answer"):
            SamplingParams(stop=stop, grammar=Grammar(regex="a+"))
    assert SamplingParams(stop=[], grammar=Grammar(regex="a+")).stop == ()


def test_a_single_stop_string_is_not_split_into_letters() -> None:
    assert SamplingParams(stop="END").stop == ("END",)


# --- Noise ------------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(
    seeds=st.lists(st.integers(0, MAX_SEED), min_size=1, max_size=4),
    starts=st.lists(st.integers(0, 2**20), min_size=4, max_size=4),
    width=st.integers(1, 6),
    vocab=st.integers(1, 300),
)
def test_noise_is_a_function_of_its_indices_alone(
    device: str, seeds: list[int], starts: list[int], width: int, vocab: int
) -> None:
    positions = torch.tensor(starts[: len(seeds)], device=device)[:, None] + torch.arange(width, device=device)
    noise = gumbel_noise(seed_halves(seeds, device), positions, vocab)
    assert noise.shape == (len(seeds), width, vocab)
    assert noise.dtype == torch.float32
    assert torch.isfinite(noise).all()
    assert torch.equal(noise, gumbel_noise(seed_halves(seeds, device), positions, vocab))
    for row, seed in enumerate(seeds):
        for column in range(width):
            # One position by itself, and with a larger vocabulary around.
            alone = gumbel_noise(seed_halves([seed], device), positions[row : row + 1, column : column + 1], vocab + 9)
            assert torch.equal(alone[0, 0, :vocab], noise[row, column])
    # Reversed rows and columns give reversed noise.
    flipped = gumbel_noise(seed_halves(seeds, device).flip(0), positions.flip(0, 1), vocab)
    assert torch.equal(flipped.flip(0, 1), noise)


def test_noise_is_the_same_on_every_device(device: str) -> None:
    seeds, positions = [0, 7, MAX_SEED], torch.arange(8).expand(3, 8)
    here = gumbel_noise(seed_halves(seeds), positions, 1000)
    there = gumbel_noise(seed_halves(seeds, device), positions.to(device), 1000).cpu()
    # The bits are equal; logarithms may differ in the last digits.
    assert torch.allclose(here, there, rtol=1e-5, atol=1e-6)


def test_noise_is_finite_for_any_seed() -> None:
    rng = random.Random(0)
    seeds = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63, MAX_SEED, *(rng.randrange(2**64) for _ in range(200))]
    positions = torch.tensor([0, 1, 2**31 - 1]).expand(len(seeds), 3)
    assert torch.isfinite(gumbel_noise(seed_halves(seeds), positions, 5000)).all()


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**32, 2**63 + 11, MAX_SEED])
def test_noise_is_gumbel_distributed(device: str, seed: int) -> None:
    noise = gumbel_noise(seed_halves([seed], device), torch.arange(200, device=device)[None], 1000).cpu()[0]
    values = noise.double().flatten().numpy()
    count = values.size
    # Mean: Euler's constant; variance: pi^2 / 6, whose estimate has a relative deviation of sqrt((5.4 - 1) / n).
    assert abs(values.mean() - np.euler_gamma) < 4 * math.sqrt(math.pi**2 / 6 / count)
    assert abs(values.var() / (math.pi**2 / 6) - 1) < 4 * math.sqrt(4.4 / count)
    assert stats.kstest(values, "gumbel_r").pvalue > ALPHA
    # Along each index by itself: over the tokens of a position, and over the positions of a token.
    for part in (noise[0], noise[199], noise[:, 0], noise[:, 999]):
        assert stats.kstest(part.double().numpy(), "gumbel_r").pvalue > ALPHA


def test_noise_has_the_tail_that_decides_flat_distributions(device: str) -> None:
    # The largest of n draws is Gumbel distributed around log n; coarse random numbers would cut it off.
    count = 4000
    noise = gumbel_noise(seed_halves([5], device), torch.arange(count, device=device)[None], 2000)
    largest = noise.amax(-1)[0].double().cpu().numpy() - math.log(2000)
    assert stats.kstest(largest, "gumbel_r").pvalue > ALPHA


@pytest.mark.parametrize(
    ("seeds", "shift"),
    [((0, 1), 0), ((7, 7), 1), ((7, 8), 1), ((8, 7), 1), ((3, 3 + 2**32), 0), ((0, 2**63), 0), ((5, 5 << 32), 0)],
)
def test_noise_of_neighbouring_seeds_and_positions_is_independent(seeds: tuple[int, int], shift: int) -> None:
    # Seeds 7 and 8 one position apart would meet if the hash only added them up.
    positions = torch.arange(100)[None] + torch.tensor([[0], [shift]])
    first, second = gumbel_noise(seed_halves(seeds), positions, 500).double().flatten(1).numpy()
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / math.sqrt(first.size)


def test_noise_of_neighbouring_tokens_and_positions_is_independent() -> None:
    noise = gumbel_noise(seed_halves([99]), torch.arange(400)[None], 500)[0].double()
    limit = 4 / math.sqrt(noise.numel())
    for lag in (1, 2, 3, 16, 64, 256):
        assert abs(np.corrcoef(noise[:, lag:].flatten(), noise[:, :-lag].flatten())[0, 1]) < limit
        assert abs(np.corrcoef(noise[lag:].flatten(), noise[:-lag].flatten())[0, 1]) < limit


# --- Distribution -----------------------------------------------------------------------------------------------------


def assert_follows(counts: Sequence[int], probabilities: Sequence[float]) -> None:
    """Chi-square test of counts against probabilities; cells that are too rare for it are put together."""
    total = sum(counts)
    assert all(count == 0 for count, p in zip(counts, probabilities, strict=True) if p == 0)
    cells = sorted((p * total, count) for p, count in zip(probabilities, counts, strict=True) if p > 0)
    expected, observed = [0.0], [0]
    for number, count in cells:
        if expected[-1] >= 5:
            expected.append(0.0)
            observed.append(0)
        expected[-1] += number
        observed[-1] += count
    if expected[-1] < 5 and len(expected) > 1:
        last, seen = expected.pop(), observed.pop()
        expected[-1] += last
        observed[-1] += seen
    scale = total / sum(expected)  # Only rounding.
    assert stats.chisquare(observed, [e * scale for e in expected]).pvalue > ALPHA


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.5, 5.0])
def test_picks_over_seeds_follow_the_softmax(device: str, temperature: float) -> None:
    vocab, count = 20, 20000
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(1)).mul(2).to(device)
    params = SamplingParams(temperature=temperature)
    table = SamplingTable([params] * count, list(range(count)), [0] * count, vocab, torch.device(device))
    positions = torch.full((count, 1), 17, device=device)
    picks = pick_tokens(logits.expand(count, 1, vocab), table, positions)
    probabilities = (logits.double() / temperature).softmax(-1).tolist()
    assert_follows(torch.bincount(picks.flatten(), minlength=vocab).tolist(), probabilities)


@pytest.mark.parametrize("seed", [0, 3, MAX_SEED])
def test_picks_over_the_positions_of_one_seed_follow_the_softmax(device: str, seed: int) -> None:
    vocab, count = 10, 20000
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(2)).to(device)
    table = SamplingTable([SamplingParams(temperature=1.0)], [seed], [0], vocab, torch.device(device))
    picks = pick_tokens(logits.expand(1, count, vocab), table, torch.arange(count, device=device)[None])[0]
    probabilities = logits.double().softmax(-1)
    assert_follows(torch.bincount(picks, minlength=vocab).tolist(), probabilities.tolist())
    # Neighbours in the text are independent: pairs follow the product.
    pairs = torch.bincount(picks[:-1:2] * vocab + picks[1::2], minlength=vocab**2)
    assert_follows(pairs.tolist(), torch.outer(probabilities, probabilities).flatten().tolist())


@pytest.mark.transformers
@pytest.mark.parametrize("params", [{"top_k": 4}, {"top_p": 0.7}, {"min_p": 0.2}, {"top_k": 6, "top_p": 0.8}])
def test_truncated_picks_follow_the_rest_of_the_distribution(params: dict[str, Any]) -> None:
    vocab, count = 12, 10000
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(3)).mul(1.5)
    given_params = SamplingParams(temperature=0.8, **params)
    table = SamplingTable([given_params] * count, list(range(count)), [0] * count, vocab, torch.device("cpu"))
    picks = pick_tokens(logits.expand(count, 1, vocab), table, torch.full((count, 1), 3))
    kept = huggingface_warped(logits[None] / 0.8, params)[0]
    assert 1 < int(torch.isfinite(kept).sum()) < vocab
    assert_follows(torch.bincount(picks.flatten(), minlength=vocab).tolist(), kept.double().softmax(-1).tolist())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["none", "prompt_lookup", "itself", "near", "oracle"])
def test_texts_of_the_engine_follow_the_models_distribution(
    device: str, engines: Callable[..., Engine], name: str
) -> None:
    # A vocabulary of 6 and texts of 3 tokens: 216 outcomes, whose probabilities the model itself gives. Every text is
    # written speculatively, with another seed.
    vocab, count, temperature, prompt = 6, 3000, 1.3, (1, 2, 3)
    model = tiny_model(4, device, vocab_size=vocab, bos_token_id=None, eos_token_id=None).double()
    drafters: dict[str, Callable[[], Drafter]] = {
        "none": Drafter,
        "prompt_lookup": lambda: PromptLookupDrafter(2),
        "itself": lambda: make_draft_drafter(model, num_slots=64, max_length=16),
        "near": lambda: make_draft_drafter(perturbed(model, 0.1), num_slots=64, max_length=16),
        # Always proposes the same likely text, so acceptance itself depends on chance.
        "oracle": lambda: OracleDrafter({prompt: greedy(model, prompt, 3)}, 1.0),
    }
    engine = engines(model, drafters[name](), num_slots=64, max_length=16, eos=(), draft_length=2)
    streams = [
        engine.submit(prompt, SamplingParams(max_new_tokens=3, temperature=temperature, seed=seed))
        for seed in range(count)
    ]
    counts: Counter[tuple[int, ...]] = Counter()
    num_drafted = num_accepted = 0
    for stream in streams:
        tokens, finish = read(stream)
        counts[tuple(token_ids(tokens))] += 1
        num_drafted += finish.speculation.drafted_tokens
        num_accepted += finish.speculation.accepted_tokens
    if name != "none":
        assert num_drafted > count / 2
        assert num_accepted > 0
        assert (num_accepted == num_drafted) == (name == "itself")
    outcomes = [(a, b, c) for a in range(vocab) for b in range(vocab) for c in range(vocab)]
    ids = torch.tensor([[*prompt, a, b] for a, b, _ in outcomes], device=device)
    with torch.inference_mode():
        logprobs = (model(input_ids=ids, use_cache=False).logits[:, 2:] / temperature).log_softmax(-1)
    chosen = torch.tensor(outcomes, device=device)[..., None]
    probabilities = logprobs.gather(2, chosen).sum((1, 2)).exp()
    assert_follows([counts[outcome] for outcome in outcomes], probabilities.tolist())


def greedy(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    ids = torch.tensor([prompt], device=model.device)
    with torch.inference_mode():
        for _ in range(count):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    return list(ids[0, len(prompt) :].tolist())


@pytest.mark.slow
def test_one_long_text_of_the_engine_follows_the_distribution(device: str, engines: Callable[..., Engine]) -> None:
    # All tokens have one embedding here, so every position has the same distribution and one seed gives many draws.
    vocab, count, temperature = 6, 1500, 1.0
    model = tiny_model(
        4, device, vocab_size=vocab, bos_token_id=None, eos_token_id=None, max_position_embeddings=2048
    ).double()
    with torch.no_grad():
        model.model.embed_tokens.weight[:] = model.model.embed_tokens.weight[0]
        logits = model(input_ids=torch.tensor([[1]], device=device)).logits[0, 0]
        model.lm_head.weight.mul_(1.0 / logits.std())  # Neither flat nor peaked.
        probabilities = (logits / logits.std() / temperature).softmax(-1)
    engine = engines(model, make_draft_drafter(model, max_length=1600), max_length=1600, eos=(), draft_length=5)
    params = SamplingParams(max_new_tokens=count, temperature=temperature, seed=8)
    tokens, finish = read(engine.submit((1,), params))
    assert finish.speculation.num_steps == count / 6
    counts = Counter(token_ids(tokens))
    assert_follows([counts[token] for token in range(vocab)], probabilities.tolist())


def test_temperature_zero_is_the_argmax_in_a_batch_with_sampled_rows() -> None:
    logits = torch.randn(3, 4, 50, generator=torch.Generator().manual_seed(0))
    params = [SamplingParams(), SamplingParams(temperature=2.0, seed=1), SamplingParams(top_k=2, top_p=0.1, min_p=0.9)]
    table = SamplingTable(params, [0, 1, 0], [0, 1, 2], 50, torch.device("cpu"))
    picks = pick_tokens(logits, table, torch.arange(4).expand(3, 4))
    assert torch.equal(picks[0], logits[0].argmax(-1))
    assert torch.equal(picks[2], logits[2].argmax(-1))
    assert not torch.equal(picks[1], logits[1].argmax(-1))


def test_a_tiny_temperature_is_greedy() -> None:
    # Down to numbers that float32 does not hold; nothing divides by zero.
    logits = torch.randn(1, 100, 50, generator=torch.Generator().manual_seed(0))
    for temperature in (1e-300, 1e-30, 1e-9):
        table = SamplingTable([SamplingParams(temperature=temperature, top_p=0.9)], [5], [0], 50, torch.device("cpu"))
        picks = pick_tokens(logits, table, torch.arange(100)[None])
        assert torch.equal(picks, logits.argmax(-1))


# --- Truncation and penalties, against transformers' own --------------------------------------------------------------


def huggingface_warped(scores: Tensor, params: dict[str, Any]) -> Tensor:
    """Scores as transformers' generate truncates them, in its order."""
    none: Any = torch.zeros(scores.shape[0], 0, dtype=torch.long)
    if params.get("top_k"):
        scores = TopKLogitsWarper(params["top_k"])(none, scores)
    if params.get("top_p", 1.0) < 1.0:
        scores = TopPLogitsWarper(params["top_p"])(none, scores)
    if params.get("min_p"):
        scores = MinPLogitsWarper(params["min_p"])(none, scores)
    return scores


@pytest.mark.transformers
@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**31),
    rows=st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "top_k": st.integers(1, 60),
                "top_p": st.floats(0.01, 1.0),
                "min_p": st.floats(0.0, 1.0),
                "temperature": st.sampled_from([0.2, 0.7, 1.0, 1.5, 10.0]),
            },
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_truncation_keeps_what_transformers_keeps(seed: int, rows: list[dict[str, Any]]) -> None:
    # Rows with different parameters in one batch: each must come out as it would alone.
    vocab, width = 40, 3
    logits = torch.randn(len(rows), width, vocab, generator=torch.Generator().manual_seed(seed)).mul(3)
    params = [SamplingParams(**{"temperature": 1.0, **row}) for row in rows]
    table = SamplingTable(params, [0] * len(rows), [0] * len(rows), vocab, torch.device("cpu"))
    scores = process(logits, table)
    for row, p in enumerate(params):
        scaled = TemperatureLogitsWarper(float(p.temperature))(torch.zeros(width, 0), logits[row])
        expected = huggingface_warped(scaled, rows[row])
        assert torch.equal(torch.isfinite(scores[row]), torch.isfinite(expected)), p
        # What is kept keeps its score; the division by the temperature comes with the noise.
        kept = torch.isfinite(scores[row])
        assert torch.equal(scores[row][kept], logits[row][kept])


def test_truncation_never_removes_the_best_token() -> None:
    logits = torch.randn(200, 1, 30, generator=torch.Generator().manual_seed(0))
    for params in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"top_k": 1, "top_p": 1e-9, "min_p": 1.0}):
        table = SamplingTable(
            [SamplingParams(temperature=1.0, **params)] * 200, [3] * 200, [0] * 200, 30, logits.device
        )
        scores = process(logits, table)
        assert torch.isfinite(scores).sum() == 200
        assert torch.equal(scores.argmax(-1), logits.argmax(-1))


@pytest.mark.transformers
@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    penalty=st.sampled_from([0.5, 0.9, 1.1, 1.3, 2.0]),
    prompt=st.lists(st.integers(0, 29), min_size=1, max_size=20),
    output=st.lists(st.integers(0, 29), max_size=20),
)
def test_repetition_penalty_is_that_of_transformers(
    seed: int, penalty: float, prompt: list[int], output: list[int]
) -> None:
    logits = torch.randn(1, 1, 30, generator=torch.Generator().manual_seed(seed)).mul(3)
    table = SamplingTable([SamplingParams(repetition_penalty=penalty)], [0], [0], 30, logits.device)
    scores = process(logits, table, history_of(prompt, output), *nothing_speculated())
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([[*prompt, *output]]), logits[:, 0])
    assert torch.allclose(scores[:, 0], expected, rtol=1e-6)


def history_of(prompt: Sequence[int], output: Sequence[int], slot: int = 0, vocab: int = 30) -> TokenHistory:
    history = TokenHistory(slot + 1, vocab, torch.device("cpu"))
    history.start(slot, prompt)
    history.append(slot, output)
    return history


def nothing_speculated(width: int = 1) -> tuple[Tensor, Tensor]:
    return torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, width, 0, dtype=torch.bool)


def test_presence_and_frequency_penalties_count_the_output_only() -> None:
    # As OpenAI defines them: logit - count * frequency - (count > 0) * presence. The prompt does not count.
    logits = torch.zeros(1, 1, 30)
    params = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25)
    table = SamplingTable([params], [0], [0], 30, logits.device)
    scores = process(logits, table, history_of([1, 2, 2], [2, 3, 3, 3]), *nothing_speculated())[0, 0]
    assert scores[1] == 0
    assert scores[2] == -0.75
    assert scores[3] == -1.25
    assert scores[4] == 0


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    prompt=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    output=st.lists(st.integers(0, 9), max_size=6),
    drafts=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    data=st.data(),
)
def test_penalties_at_speculated_positions_equal_step_by_step_application(
    seed: int, prompt: list[int], output: list[int], drafts: list[int], data: st.DataObject
) -> None:
    # At a node of a draft tree, exactly the tokens that lead to it count, each of them once; siblings do not.
    parents = [-1] + [data.draw(st.integers(0, i)) for i in range(len(drafts))]
    batch = RowBatch([0], [0], [[0, *drafts]], [parents])
    ancestors = RowInputs.from_batch(batch, torch.device("cpu")).ancestors
    params = SamplingParams(
        temperature=1.0, repetition_penalty=1.4, presence_penalty=0.7, frequency_penalty=0.3, logit_bias={3: 2.0}
    )
    table = SamplingTable([params], [0], [0], 10, torch.device("cpu"))
    logits = torch.randn(1, 1 + len(drafts), 10, generator=torch.Generator().manual_seed(seed)).mul(3)
    at_once = process(logits, table, history_of(prompt, output, vocab=10), torch.tensor([drafts]), ancestors[:, :, 1:])
    for node in range(1 + len(drafts)):
        path: list[int] = []
        ancestor = node
        while ancestor > 0:
            path.insert(0, drafts[ancestor - 1])
            ancestor = parents[ancestor]
        history = history_of(prompt, [*output, *path], vocab=10)
        alone = process(logits[:, node : node + 1], table, history, *nothing_speculated())
        assert torch.allclose(at_once[:, node], alone[:, 0], rtol=1e-6, atol=1e-6)


def test_penalties_without_history_are_refused() -> None:
    table = SamplingTable([SamplingParams(repetition_penalty=2.0)], [0], [0], 5, torch.device("cpu"))
    with pytest.raises(ValueError, match="history"):
        process(torch.zeros(1, 1, 5), table)


def test_history_of_a_slot_starts_afresh() -> None:
    history = history_of([1, 2], [3, 3, 4], vocab=10)
    history.start(0, [5])
    assert history.in_prompt[0].nonzero().flatten().tolist() == [5]
    assert history.output_counts[0].sum() == 0


def test_logit_bias_is_added_to_its_row_only() -> None:
    logits = torch.zeros(2, 1, 5)
    params = [SamplingParams(logit_bias={1: 3.0, 4: -100.0}), SamplingParams()]
    table = SamplingTable(params, [0, 0], [0, 1], 5, logits.device)
    assert process(logits, table).tolist() == [[[0, 3, 0, 0, -100]], [[0, 0, 0, 0, 0]]]


def test_half_precision_logits_are_processed_in_float32() -> None:
    logits = torch.randn(1, 2, 50).bfloat16()
    table = SamplingTable([SamplingParams(temperature=0.7, top_p=0.9)], [0], [0], 50, logits.device)
    assert process(logits, table).dtype == torch.float32
    assert torch.equal(
        pick_tokens(logits, table, torch.arange(2)[None]), pick_tokens(logits.float(), table, torch.arange(2)[None])
    )


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: SamplingParams(stop=["a", "b\udcff"]), r"A stop string .*U\+DCFF at character 1"),
        (lambda: Grammar(regex="\ud800"), "regex"),
        (lambda: Grammar(schema={"enum": ["\ud800"]}), "JSON schema"),
        (lambda: Grammar(schema={"properties": {"\ud800": {}}}), "schema"),
    ],
)
def test_what_no_text_can_hold_is_refused(make, what):
    with pytest.raises(InvalidParameterError, match=what) as raised:
        make()
    assert "is not valid Unicode text: it holds half of a surrogate pair" in str(raised.value)


def test_stop_strings_have_limits() -> None:
    SamplingParams(stop=["a" * 512] * 256)
    with pytest.raises(InvalidParameterError, match="at most 256 strings of at most 512 characters, got 257 strings"):
        SamplingParams(stop=["a"] * 257)
    with pytest.raises(InvalidParameterError, match="got one of 513 characters"):
        SamplingParams(stop=["a", "a" * 513])


def test_a_bias_is_made_once_and_placed_at_once() -> None:
    bias = {token: token / 1000 for token in range(0, 2000, 2)}
    rows = [FakeRequest(1, [1]), FakeRequest(2, [1], params=SamplingParams(logit_bias=bias)), FakeRequest(3, [1])]
    rows[2].params = SamplingParams(logit_bias={0: -1.0, 5: 2})
    rows[2].bias = SparseBias.of(rows[2].params.logit_bias)
    calls: list[str] = []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls.append(str(func))
            return func(*args, **(kwargs or {}))

    cache = TableCache()
    with Counting():
        # A model with fewer tokens than the bias names, as a draft model may be.
        table = cache.table(rows, 1000, torch.device("cpu"))
    expected = torch.zeros(3, 1, 1000)
    expected[1, 0, ::2] = torch.arange(0, 1000, 2) / 1000
    expected[2, 0, 0], expected[2, 0, 5] = -1.0, 2.0
    assert table.bias is not None
    torch.testing.assert_close(table.bias, expected)
    assert cache.table(rows, 1000, torch.device("cpu")) is table
    # As many operations as for a bias of few tokens.
    num_calls = len(calls)
    rows[1] = FakeRequest(2, [1], params=SamplingParams(logit_bias={2: 1.0, 5: 2.0}))
    with Counting():
        TableCache().table(rows, 1000, torch.device("cpu"))
    assert len(calls) == 2 * num_calls
