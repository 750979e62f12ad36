"""Texts go on while a long prompt is read: how long a chunk is, by a clock that the test sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.engine import prefill_pace
from langchain_specdec.engine.engine import Engine
from langchain_specdec.engine.prefill_pace import PrefillPace
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.sampling.params import SamplingParams
from tests.support.tiny_models import References, read, tiny_model, token_ids

MakeEngine = Callable[..., Engine]
STEP_SECONDS = 0.005
TOKEN_SECONDS = 0.001


def paced(**seconds: float) -> PrefillPace:
    pace = PrefillPace(512, is_adaptive=True)
    pace.observe_prefill(100, 100 * seconds.get("token", TOKEN_SECONDS))
    pace.observe_step(seconds.get("step", STEP_SECONDS))
    return pace


def test_a_chunk_takes_the_time_of_a_few_steps_while_texts_go_on() -> None:
    assert paced().chunk(7, 1) == 20
    assert paced(step=0.05).chunk(7, 1) == 200
    assert paced(step=1.0).chunk(7, 1) == 512
    # Fewer tokens would not be faster.
    assert paced(token=0.1).chunk(7, 1) == 8


def test_a_chunk_is_whole_where_nobody_waits_for_it() -> None:
    assert paced().chunk(0, 1) == PrefillPace(512, is_adaptive=True).chunk(0, 8) == 512
    assert PrefillPace(512, is_adaptive=False).chunk(7, 1) == 512


def test_a_chunk_that_nobody_waits_for_takes_a_second_at_most() -> None:
    # Whoever comes meanwhile waits for it.
    assert paced(token=0.004).chunk(0, 1) == 250
    # Fewer tokens would read slower.
    assert paced(token=0.1).chunk(0, 1) == 128
    pace = PrefillPace(512, is_adaptive=False)
    pace.observe_prefill(512, 512 * 0.1)
    assert pace.chunk(0, 1) == 512


def test_a_chunk_is_longer_while_more_wait_for_their_prompt_than_for_their_next_token() -> None:
    assert [paced().chunk(1, 7), paced().chunk(4, 4), paced().chunk(2, 3)] == [140, 20, 30]


def test_the_first_chunk_is_short_where_nothing_is_known() -> None:
    assert PrefillPace(512, is_adaptive=True).chunk(1, 1) == 32
    assert PrefillPace(8, is_adaptive=True).chunk(1, 1) == 8


def test_one_forward_that_took_long_changes_little() -> None:
    pace = paced()
    pace.observe_step(10.0)
    pace.observe_prefill(20, 20.0)
    assert pace.chunk(7, 1) == 20
    for _ in range(10):
        pace.observe_step(STEP_SECONDS)
        pace.observe_prefill(20, 20 * TOKEN_SECONDS)
    assert pace.chunk(7, 1) in (19, 20, 21)


@pytest.mark.parametrize("seconds_per_key", [0.0, 5e-7])
def test_seven_texts_go_on_while_a_long_prompt_is_read(
    engines: MakeEngine, monkeypatch: pytest.MonkeyPatch, seconds_per_key: float
) -> None:
    model = tiny_model(max_position_embeddings=4096)
    engine = engines(model, num_slots=8, max_length=4000)
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(prefill_pace, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    log: list[tuple[str, float]] = []
    runner = engine.runner
    prefill, verify = runner.prefill, runner.verify

    def slow_prefill(batch: RowBatch) -> None:
        prefill(batch)
        # A token takes the longer the more stands before it.
        clock.now += (TOKEN_SECONDS + seconds_per_key * max(batch.starts)) * len(batch.slots) * batch.width
        log.append(("prefill", clock.now))

    def slow_verify(batch: RowBatch) -> Any:
        verification = verify(batch)
        clock.now += STEP_SECONDS
        log.append((f"{len(batch.slots)} rows", clock.now))
        return verification

    monkeypatch.setattr(runner, "prefill", slow_prefill)
    monkeypatch.setattr(runner, "verify", slow_verify)
    # Turn by turn, here.
    monkeypatch.setattr(engine, "_start_thread", lambda: None)
    params = SamplingParams(max_new_tokens=300, ignore_eos=True)
    short = [[i, 1, 2, 3] for i in range(7)]
    streams = engine.submit_all([CompletionRequest(prompt, params) for prompt in short])
    for _ in range(20):
        engine._run_once()
    log.clear()
    long: Sequence[int] = [i % 250 for i in range(3000)]
    (last,) = engine.submit_all([CompletionRequest(long, SamplingParams(max_new_tokens=5, ignore_eos=True))])
    begun = clock.now
    while engine.num_running:
        engine._run_once()
    steps = [at for kind, at in log if kind.endswith("rows")]
    gaps = [after - before for before, after in zip([begun, *steps], steps, strict=False)]
    # A chunk of four steps' time, and the step itself.
    assert max(gaps) <= 5.5 * STEP_SECONDS
    assert sum(kind == "prefill" for kind, _ in log) > 100
    references = References(model)
    for prompt, stream in zip(short[:2], streams, strict=False):
        assert token_ids(read(stream)[0])[:40] == references(prompt, SamplingParams(max_new_tokens=40, ignore_eos=True))
    assert len(read(last)[0]) == 5


def test_a_prompt_alone_is_read_in_whole_chunks(engines: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engines(tiny_model(), max_length=500, prefill_chunk=128)
    widths: list[int] = []
    prefill = engine.runner.prefill

    def counted(batch: RowBatch) -> None:
        widths.append(batch.width)
        prefill(batch)

    monkeypatch.setattr(engine.runner, "prefill", counted)
    read(engine.submit([1] * 400, SamplingParams(max_new_tokens=2)))
    read(engine.submit([2] * 400, SamplingParams(max_new_tokens=2)))
    assert widths == [128, 128, 128, 15] * 2
