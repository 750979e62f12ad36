"""What a native decoder's threads work in: as much as is said, and no room for keys and values."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from langchain_specdec.models import make_runner as make_runner_module
from langchain_specdec.models.loader import load_model
from langchain_specdec.models.make_runner import make_runner, token_budget
from langchain_specdec.models.memory import give_back_freed
from langchain_specdec.runner.cpu.decoder_trial import native_library
from langchain_specdec.runner.cpu.native_decoder import NativeDecoder
from langchain_specdec.runner.cpu.native_runner import NativeRunner
from langchain_specdec.runner.cpu.work_memory import work_bytes
from langchain_specdec.runner.lazy_memory import is_memory_lazy
from tests.support.random_decoders import Row, Shape, random_decoder, run_rows
from tests.support.tiny_models import byte_tokenizer, tiny_model

_STATM = Path("/proc/self/statm")
pytestmark = pytest.mark.skipif(native_library() is None or not _STATM.exists(), reason="there is no native decoder")
WIDE = Shape(windows=(None,) * 8, hidden=256, mlp=4096, heads=4, kv_heads=4, head_dim=64, vocab=16000)
HEAD = Shape(windows=(None,), hidden=2048, embedding=4096, mlp=2048, heads=8, kv_heads=4, head_dim=64, vocab=4000)


def resident() -> int:
    give_back_freed()
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("shape", [WIDE, Shape(windows=(None,) * 8, hidden=32, mlp=20_000, vocab=4000), HEAD])
def test_as_much_as_is_said_is_written(shape: Shape) -> None:
    library, weights = native_library(), random_decoder(shape)
    assert library is not None
    tokens = [i % 70 for i in range(128)]
    given = np.zeros((1, 128, shape.hidden), np.float32) if shape.embedding else None

    def work(decoder: NativeDecoder) -> None:
        run_rows(decoder, [Row(0, 0, tokens)], vocab=shape.vocab, given=given)
        if shape.embedding:
            decoder.condense(np.zeros((128, 2 * shape.hidden), np.float32))

    # What forwards need once.
    trial = NativeDecoder(library, weights, 1, 256)
    work(trial)
    trial.close()
    del trial
    before = resident()
    decoder = NativeDecoder(library, weights, 1, 256)
    work(decoder)
    slots = decoder.cache.bytes_per_token * 128
    taken = resident() - before - slots
    decoder.close()
    assert 0.85 < taken / work_bytes(weights, 1) < 1.2
    more = [work_bytes(weights, threads + 1) - work_bytes(weights, threads) for threads in (1, 2)]
    assert more[0] == more[1] > 0.8 * work_bytes(weights, 1)


@pytest.mark.transformers
@pytest.mark.skipif(not is_memory_lazy(), reason="all slots are allocated at once")
def test_it_is_no_room_for_keys_and_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model(max_position_embeddings=1 << 20, head_dim=16).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    loaded = load_model(tmp_path)

    def made(free: int, max_length: int | None, threads: int) -> NativeRunner:
        monkeypatch.setattr(make_runner_module, "free_memory", lambda device: free)
        runner = make_runner(loaded, num_slots=2, max_length=max_length, max_width=4, num_threads=threads)
        assert isinstance(runner, NativeRunner)
        return runner

    work = made(2**40, 64, 1).work_bytes
    assert work > 2**19
    for threads in (1, 4):
        # Half of what is left holds 5000 positions.
        free = threads * work + 2 * 5000 * 512
        assert made(free, None, threads).max_length == 5000
        assert token_budget(made(free, 64, threads)) == 5000
        # A draft model works too, and its slots hold the same tokens.
        assert token_budget(made(free, 64, threads), made(free + threads * work, 64, threads)) == 2500
    # Where threads might work in all of it, half is left for text: short prompts take less.
    assert made(4 * 5000 * 512, None, 16).max_length == 5000
    assert token_budget(made(4 * 5000 * 512, 64, 16)) == 5000
