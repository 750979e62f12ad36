"""The native decoder's runner: what it says of drafts is what PyTorch would, without asking it."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from langchain_specdec.errors import EngineClosedError
from langchain_specdec.models.gguf.config import GGUFConfig
from langchain_specdec.runner.cpu.decoder_trial import native_library
from langchain_specdec.runner.cpu.decoder_weights import DecoderWeights, Format
from langchain_specdec.runner.cpu.native_runner import NativeRunner
from langchain_specdec.runner.cpu.worker_threads import use_one_worker
from langchain_specdec.runner.step_inputs import RowBatch, RowInputs
from langchain_specdec.runner.verify import UNSOUND, pick_and_accept
from langchain_specdec.sampling.choice import pick_noisy
from langchain_specdec.sampling.noise import Noise, gumbel_noise, seed_halves
from tests.support.random_decoders import Shape, random_decoder
from tests.support.reference_decoder import reference_logits

pytestmark = pytest.mark.skipif(native_library() is None, reason="there is no native decoder on this machine")
PROMPT = [3, 60, 11, 7, 7, 29, 5]
TREE = [9, 4, 12, 33, 8]
PARENTS = [-1, 0, 0, 2, 3]


def make(weights: DecoderWeights | None = None, *, threads: int = 2, length: int = 64) -> NativeRunner:
    weights = weights or random_decoder(Shape())
    model: Any = type("Model", (), {"config": GGUFConfig(vocab_size=weights.vocab), "dtype": torch.float32})()
    library = native_library()
    assert library is not None
    return NativeRunner(model, weights, library, 3, length, 9, threads)


def ragged(noise: Noise | None, *, candidates: int = 0, keeps_logits: bool = True) -> RowBatch:
    """A row of one token, a chain and a tree."""
    return RowBatch(
        [2, 0, 1],
        [0, 0, len(PROMPT)],
        [[5], PROMPT[:3], TREE],
        [[-1], [-1, 0, 1], PARENTS],
        noise,
        candidates,
        keeps_logits,
    )


def verdict_of(runner: NativeRunner, batch: RowBatch) -> Any:
    return runner.verify(batch).verdict


def expected(weights: DecoderWeights, tokens: list[int]) -> torch.Tensor:
    return torch.as_tensor(np.asarray(reference_logits(weights, tokens)))[-1].float()


def path_to(node: int) -> list[int]:
    return [] if node < 0 else [*path_to(PARENTS[node]), TREE[node]]


def test_each_row_has_the_logits_of_its_own_text() -> None:
    weights = random_decoder(Shape(windows=(None, 4), formats=(Format.BF16, Format.F32, Format.F16)))
    runner = make(weights)
    runner.prefill(RowBatch([1], [0], [PROMPT]))
    logits = runner.verify(ragged(None)).logits
    assert logits.shape == (3, 5, weights.vocab)
    assert torch.allclose(logits[0, 0], expected(weights, [5]), atol=1e-4)
    assert torch.allclose(logits[1, 2], expected(weights, PROMPT[:3]), atol=1e-4)
    for node in range(len(TREE)):
        assert torch.allclose(logits[2, node], expected(weights, [*PROMPT, *path_to(node)]), atol=1e-4), node
    assert runner.num_forwards == 1


@pytest.mark.parametrize("temperatures", [[0.0, 0.0, 0.0], [0.0, 1.3, 0.7]])
def test_the_verdict_is_that_of_pytorch_on_the_same_logits(temperatures: list[float]) -> None:
    runner = make()
    runner.prefill(RowBatch([1], [0], [PROMPT]))
    noise = Noise([1, 2**40 + 5, 2**63 + 1], temperatures)
    batch = ragged(noise, candidates=4)
    verification = runner.verify(batch)
    verdict: Any = verification.verdict
    logits = verification.logits.tensor
    inputs = RowInputs.from_batch(batch, logits.device)
    wanted = pick_and_accept(logits, inputs, is_sampled=False, num_candidates=4)
    picks = pick_noisy(logits, inputs.temperature, inputs.seeds, inputs.next_positions, runner.make_noise)
    for row, tokens in enumerate(batch.tokens):
        count = len(tokens)
        assert verdict[0, row, :count].tolist() == picks[row, :count].tolist()
        assert verdict[2:, row, :count].tolist() == wanted[2:, row, :count].tolist()
        stands = [True]
        for node in range(1, count):
            parent = (batch.parents or ())[row][node]
            stands.append(stands[parent] and tokens[node] == int(picks[row, parent]))
        assert verdict[1, row].tolist() == [*stands, *[False] * (5 - count)]
    assert (verdict[0, 0, 1:] == 0).all()  # padding has no picks of the step before


def test_a_draft_stands_as_far_as_it_is_what_the_decoder_picks() -> None:
    runner, greedy = make(), Noise([0], [0.0])
    runner.prefill(RowBatch([0], [0], [PROMPT[:-1]]))
    (text,) = runner.chain(RowBatch([0], [len(PROMPT) - 1], [PROMPT[-1:]], None, greedy), 4, runner.vocab_size)
    wrong = (text[1] + 1) % runner.vocab_size
    # A wrong one, then the right ones after the same parent.
    nodes, parents = [PROMPT[-1], wrong, text[0], text[1], wrong], [-1, 0, 0, 2, 3]
    if wrong == text[0]:
        pytest.skip("siblings differ")
    batch = RowBatch([0], [len(PROMPT) - 1], [nodes], [parents], greedy)
    verdict = verdict_of(runner, batch)
    assert verdict[1, 0].tolist() == [1, 0, 1, 1, int(wrong == text[2])]
    runner.cache.keep(0, len(PROMPT) - 1, [0, 2, 3])
    follow = RowBatch([0], [len(PROMPT) + 2], [[text[2]]], None, greedy)
    assert verdict_of(runner, follow)[0, 0, 0] == text[3]


def test_a_chain_is_what_steps_would_write() -> None:
    runner, noise = make(), Noise([7, 8], [0.9, 0.0])
    batch = RowBatch([0, 2], [0, 0], [[1, 2], [3]], None, noise)
    chains = runner.chain(batch, 3, runner.vocab_size)
    for row, tokens in enumerate(batch.tokens):
        text = list(tokens)
        for _ in range(3):
            one = Noise([noise.seeds[row]], [noise.temperatures[row]])
            text.append(int(verdict_of(make(), RowBatch([0], [0], [text], None, one))[0, 0, len(text) - 1]))
        assert chains[row] == text[len(tokens) :]
    # Some of the vocabulary only: the others are never picked.
    few = max(min(min(chain) for chain in chains), 2)
    assert all(token < few for chain in runner.chain(batch, 3, few) for token in chain)
    picked = runner.chain(batch, 3, runner.vocab_size, lambda logits, *_: logits.argmax(-1))
    assert picked[1] == chains[1]


def test_scores_that_are_not_sound_pick_nothing() -> None:
    weights = random_decoder(Shape())
    broken = replace(weights, final_norm=np.full_like(weights.final_norm, np.nan))
    runner, noise = make(broken), Noise([0, 1], [0.0, 0.8])
    batch = RowBatch([0, 1], [0, 0], [[1, 2], [3, 4]], None, noise)
    assert (verdict_of(runner, batch)[0] == UNSOUND).all()
    assert runner.chain(batch, 2, runner.vocab_size) == [[], []]
    assert runner.chain(batch, 2, runner.vocab_size - 1) == [[], []]


def test_noise_is_that_of_all_runners_but_for_rounding() -> None:
    runner = make()
    seeds = torch.tensor(seed_halves([3, 2**50]), dtype=torch.int32)
    positions = torch.tensor([[0, 1, 500], [7, 8, 9]])
    ours, theirs = runner.make_noise(seeds, positions, 1000), gumbel_noise(seeds, positions, 1000)
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


class _Operators(TorchDispatchMode):
    """Counts PyTorch's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("temperatures", [[0.0, 0.0, 0.0], [0.0, 1.0, 0.5]])
def test_a_step_of_logits_and_noise_asks_nothing_of_pytorch(temperatures: list[float]) -> None:
    runner = make()
    runner.prefill(RowBatch([1], [0], [PROMPT]))
    with _Operators() as operators:
        runner.verify(ragged(Noise([1, 2, 3], temperatures), candidates=8, keeps_logits=False))
        runner.chain(RowBatch([0], [0], [[1]], None, Noise([4], [0.5])), 2, runner.vocab_size)
        runner.cache.keep(1, len(PROMPT), [0, 2, 3])
        runner.prefill(RowBatch([2], [0], [PROMPT]))
    assert operators.names == []


def test_slots_hold_what_was_written_and_no_more() -> None:
    runner = make(length=5000)
    assert runner.cache.num_bytes == 0
    runner.prefill(RowBatch([1], [0], [PROMPT * 20]))
    held = runner.cache.num_bytes
    assert held > 0
    runner.verify(RowBatch([1], [3], [[1, 2]]))
    assert runner.cache.num_bytes == held
    runner.cache.wipe(1, 40)
    assert runner.cache.num_bytes == held * 40 // (20 * len(PROMPT))
    runner.cache.wipe(1)
    assert runner.cache.num_bytes == 0
    assert not runner.cache.memory.any()


def test_a_wiped_slot_does_not_spoil_the_next_text() -> None:
    weights = random_decoder(Shape())
    runner = make(weights)
    runner.cache.note(0, runner.cache.max_length)
    runner.cache.memory[:].view(np.float32)[:] = np.nan
    for slot in range(3):
        runner.cache.note(slot, runner.cache.max_length)
        runner.cache.wipe(slot)
    logits = runner.verify(RowBatch([0], [0], [PROMPT])).logits
    assert torch.allclose(logits[0, -1], expected(weights, PROMPT), atol=1e-4)


@pytest.mark.parametrize("start", [0, 1, 15, 16, 17, 31, 33])
@pytest.mark.parametrize("length", [1, 5, 16, 17, 40])
def test_wiping_leaves_what_is_before(start: int, length: int) -> None:
    """A slot goes on from the beginning that its next text shares with the last one, however short both are."""
    runner, other = make(length=96), make(length=96)
    text = [(7 * i + 3) % 70 for i in range(start + length)]
    runner.prefill(RowBatch([1], [0], [text]))
    other.prefill(RowBatch([1], [0], [text[:start] or [0]]))
    runner.cache.wipe(1, start)
    if not start:
        other.cache.wipe(1)
    assert np.array_equal(runner.cache.memory, other.cache.memory)


@pytest.mark.parametrize(
    ("slot", "start", "tokens"),
    [(1, 7, [3, 70]), (1, 7, [-1]), (1, 7, [2**40]), (1, 79, [3, 4]), (1, -1, [3]), (-1, 7, [3]), (1, 2**62, [3])],
)
def test_what_is_outside_is_refused_and_nothing_is_touched(slot: int, start: int, tokens: list[int]) -> None:
    weights = random_decoder(Shape())
    runner = make(weights)
    runner.prefill(RowBatch([1], [0], [PROMPT]))
    held = runner.cache.memory.copy()
    with pytest.raises(ValueError, match="outside the vocabulary, or does not fit into its slots"):
        runner.verify(RowBatch([0, slot], [0, start], [[5], tokens]))
    assert np.array_equal(runner.cache.memory, held)
    logits = runner.verify(RowBatch([1], [len(PROMPT)], [[9]])).logits
    assert torch.allclose(logits[0, -1], expected(weights, [*PROMPT, 9]), atol=1e-4)


def test_a_tree_is_never_taken_for_a_chain() -> None:
    runner = make(length=300)
    with pytest.raises(ValueError, match="does not fit"):
        runner.verify(RowBatch([1], [0], [[5] * 200], [[-1] + [0] * 199]))


def test_runners_share_weights() -> None:
    weights = random_decoder(Shape())
    runners = [make(weights), make(weights)]
    prompts = [PROMPT, list(reversed(PROMPT))]
    for runner, prompt in zip(runners, prompts, strict=True):
        runner.prefill(RowBatch([0], [0], [prompt[:-1]]))
    runners[0].release()
    logits = runners[1].verify(RowBatch([0], [len(PROMPT) - 1], [prompts[1][-1:]])).logits[0, 0]
    assert torch.allclose(logits, expected(weights, prompts[1]), atol=1e-4)


def test_nothing_runs_on_a_released_runner() -> None:
    runner = make()
    runner.release()
    runner.release()
    with pytest.raises(EngineClosedError, match="was closed"):
        runner.prefill(RowBatch([0], [0], [[1]]))
    with pytest.raises(RuntimeError, match="let go"):
        _ = runner.cache.memory


@pytest.mark.process
def test_a_forked_child_is_told_and_ends() -> None:
    runner = make()
    runner.prefill(RowBatch([0], [0], [PROMPT]))
    child = os.fork()
    if not child:
        try:
            runner.prefill(RowBatch([0], [0], [PROMPT]))
        except EngineClosedError:
            runner.release()
            del runner
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    runner.prefill(RowBatch([0], [0], [PROMPT]))


def test_one_thread_alone_gives_up_its_workers() -> None:
    before, found = torch.get_num_threads(), []

    def run() -> None:
        use_one_worker()
        found.append(torch.get_num_threads())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [1]
    assert torch.get_num_threads() == before
