"""Whole turns of the engine stay on the GPU, and a step takes one copy there and one back, whatever samples and drafts.

What costs more for now is held to what it costs, so that it cannot grow unseen.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.runner import attention
from langchain_specdec.runner.cpu.packed_layers import can_pack
from langchain_specdec.runner.cuda.captured_runner import CapturedRunner
from langchain_specdec.sampling.params import SamplingParams
from tests.support.fake_cuda import FakeCuda
from tests.support.fake_cuda_engine import PREFILL_CHUNK, FakeCudaEngine, Turn

KINDS = {
    "greedy": SamplingParams(ignore_eos=True),
    "sampled": SamplingParams(temperature=0.8, seed=2**64 - 1, ignore_eos=True),
    "cut": SamplingParams(temperature=0.8, top_k=5, top_p=0.9, min_p=0.1, seed=3, ignore_eos=True),
    "penalised": SamplingParams(
        temperature=0.8, repetition_penalty=1.3, frequency_penalty=0.3, logit_bias={3: 2.0}, seed=3, ignore_eos=True
    ),
    "logprobs": SamplingParams(logprobs=3, ignore_eos=True),
    "grammar": SamplingParams(grammar=Grammar(regex="[a-z]*")),
}
# More requests than slots: the second one leaves first, and the third one, whose prompt takes two chunks, joins.
PROMPTS = [([5, 6, 7, 8, 5, 6, 7], 18), ([66, 67, 68], 13), (list(range(PREFILL_CHUNK + 4)), 6)]

# Waits for the device and copies to it of a step of two rows: at most so many.
STEPS = {
    ("greedy", "none"): (1, 1),
    ("greedy", "lookup"): (1, 1),
    ("greedy", "auto"): (1, 1),
    ("sampled", "auto"): (1, 1),
    ("cut", "auto"): (1, 1),
    # A loop of the draft model has inputs and a result of its own.
    ("greedy", "draft model"): (2, 2),
    # Where the texts went on without the draft model, they are read up to their ends first, together.
    ("sampled", "combined"): (2, 3),
    # For each of five levels of the tree inputs and a result; with noise, where its nodes stand in their texts too.
    ("greedy", "head"): (6, 6),
    ("sampled", "head"): (6, 11),
    ("penalised", "head"): (6, 13),
    # What each row emitted is copied to where its tokens are counted.
    ("penalised", "auto"): (1, 3),
    ("penalised", "draft model"): (2, 4),
    # Three waits for each token, of which there are six at most.
    ("logprobs", "auto"): (19, 1),
    # The masks of all nodes; and those of each token that is drafted, which waits for the one before it.
    ("grammar", "auto"): (1, 2),
    ("grammar", "draft model"): (4, 5),
}
# Steps that are tried as captured graphs too: what is captured knows nothing of penalties, logprobs and grammars.
CAPTURED = [
    ("greedy", "auto"),
    ("cut", "auto"),
    ("greedy", "draft model"),
    ("sampled", "combined"),
    ("grammar", "draft model"),
    ("sampled", "head"),
]
CASES = [*((*step, False) for step in STEPS), *((*step, True) for step in CAPTURED)]


def run(engine: FakeCudaEngine, kind: str) -> list[Turn]:
    params = KINDS[kind]
    return engine.run([(prompt, replace(params, max_new_tokens=count)) for prompt, count in PROMPTS])


def check(cuda: FakeCuda, kind: str, drafting: str, *, is_captured: bool) -> FakeCudaEngine:
    engine = FakeCudaEngine(cuda, drafting, is_captured=is_captured)
    turns = run(engine, kind)
    if is_captured:
        # Once more, now that there are graphs.
        turns += run(engine, kind)
    waits, copies = STEPS[kind, drafting]
    steady = [turn.record for turn in turns if turn.is_steady]
    assert len(steady) > 1
    for record in steady:
        assert len(record.waits) <= waits, "\n".join(record.waits)
        assert len(record.copies) <= copies, "\n".join(record.copies)
        # The first forward's rows, which the host does not wait for.
        assert record.copies[0].endswith(", pinned"), record.copies[0]
    for turn in turns:
        assert not turn.record.doubles, "\n".join(turn.record.doubles)
    return engine


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "drafting", "is_captured"), CASES)
def test_turns_stay_on_the_device(kind: str, drafting: str, is_captured: bool, cuda: FakeCuda) -> None:
    engine = check(cuda, kind, drafting, is_captured=is_captured)
    target, draft = engine.runners
    # The slots' gaps were closed, and the draft model was asked.
    assert (engine.num_gaps > 0) == (drafting in ("auto", "combined", "head"))
    assert (draft.num_forwards > 0) == (drafting in ("draft model", "combined", "head"))
    if is_captured:
        for runner in (target, draft)[: 1 if drafting == "head" else 2]:
            assert isinstance(runner, CapturedRunner)
            assert runner.store.rejected == {}
            assert bool(runner.store.num_made) == bool(runner.num_forwards)


def test_kernels_for_a_cpu_leave_the_device_alone(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*tensors: object) -> None:
        raise AssertionError("this kernel reads the memory of the host")

    monkeypatch.setattr(attention, "decode_attention", refuse)
    engine = FakeCudaEngine(cuda, "lookup", dtype=torch.float32)
    run(engine, "greedy")
    assert not can_pack(engine.runners[0].model)
