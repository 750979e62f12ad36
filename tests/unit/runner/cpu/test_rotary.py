"""Rotary tables: the rows that a text has reached, to the bit those of one piece, and memory for no others."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from langchain_specdec.runner.cpu.decoder_trial import native_library
from langchain_specdec.runner.cpu.native_decoder import NativeDecoder
from langchain_specdec.runner.cpu.rotary import Rotary, RotaryTables
from tests.support.random_decoders import Row, Shape, random_decoder, run_rows

_STATM = Path("/proc/self/statm")


def rotary(half: int = 64, base: float = 1e6, scale: float = 1.0) -> Rotary:
    return Rotary((base ** (-np.arange(half) / half)).astype(np.float32), scale)


def resident() -> int:
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("half", [64, 6])
def test_rows_that_come_piece_by_piece_are_those_of_one_piece(half: int) -> None:
    each = [rotary(half, scale=1.19), rotary(half, 1e4)]
    tables = RotaryTables(each, 5000)
    address = tables.array.ctypes.data
    for stop in (0, 1, 2, 600, 601, 1024, 3333, 5000, 5007, 3):
        tables.reach(stop)
    assert tables.array.ctypes.data == address
    assert tables.array.shape == (2, 2, 5000, half)
    for table, own in zip(tables.array, each, strict=True):
        for rows, turns in zip(table, own.turns(torch.arange(5000)), strict=True):
            assert np.array_equal(rows, turns.numpy())


@pytest.mark.skipif(not _STATM.exists(), reason="memory is taken as it is written on Linux")
def test_rows_that_no_text_has_reached_take_no_memory() -> None:
    before = resident()
    tables = RotaryTables([rotary(), rotary(base=1e4)], 1 << 22)
    tables.reach(100)
    assert resident() - before < 16 << 20 < tables.array.nbytes


def test_rows_are_computed_here_whatever_device_a_program_has_set() -> None:
    tables, expected = RotaryTables([rotary()], 100), rotary().turns(torch.arange(100))[1]
    with torch.device("meta"):
        tables.reach(100)
    assert np.array_equal(tables.array[0, 1], expected.numpy())


def test_rows_that_there_was_no_memory_for_come_with_the_next_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    tables, turns = RotaryTables([rotary(), rotary(base=1e4)], 100), Rotary.turns
    asked: list[Rotary] = []

    def failing(self: Rotary, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(self)
        if len(asked) == 2:
            raise MemoryError
        return turns(self, positions)

    monkeypatch.setattr(Rotary, "turns", failing)
    with pytest.raises(MemoryError):
        tables.reach(100)
    tables.reach(100)
    assert np.array_equal(tables.array[1, 0], rotary(base=1e4).turns(torch.arange(100))[0].numpy())


@pytest.mark.skipif(native_library() is None, reason="there is no native decoder for this machine")
def test_a_closed_decoder_keeps_no_tables() -> None:
    library, weights = native_library(), random_decoder(Shape())
    assert library is not None
    decoder = NativeDecoder(library, weights, 1, 64)
    array = decoder._tables.array
    run_rows(decoder, [Row(0, 0, [1, 2, 3])], vocab=70)
    others = sys.getrefcount(array)
    decoder.close()
    decoder.close()
    assert sys.getrefcount(array) == others - 1
    assert decoder._tables.array.size == 0


def test_tables_without_layers_that_turn() -> None:
    tables = RotaryTables([], 100)
    tables.reach(100)
    assert tables.array.size == 0


def test_tables_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="have to have one shape"):
        RotaryTables([rotary(8), rotary(9)], 10)
    with pytest.raises(MemoryError, match=r"take 2305843009\.2 GB of addresses"):
        RotaryTables([rotary()], 1 << 52)


@pytest.mark.skipif(native_library() is None, reason="there is no native decoder for this machine")
def test_a_forward_turns_at_the_positions_of_its_tokens_wherever_a_text_stands() -> None:
    library, weights = native_library(), random_decoder(Shape(windows=(8, 8)))
    assert library is not None
    tokens = [(5 * i * i + i) % 70 for i in range(20)]
    found = []
    # With windows so short, the last tokens see none of the zeros in front of a text that begins in the middle.
    for start in (0, 505, 1530):
        decoder = NativeDecoder(library, weights, 1, 1600, 2)
        found.append(run_rows(decoder, [Row(0, start, tokens)], vocab=70).logits[0])
        reached = decoder._tables.array[0, 0].any(axis=1).sum()
        assert reached == {0: 512, 505: 1024, 1530: 1600}[start]
        decoder.close()
    # What counts is how far tokens are from each other.
    np.testing.assert_allclose(found[1][17:], found[0][17:], atol=1e-3)
    np.testing.assert_allclose(found[2][17:], found[0][17:], atol=1e-3)
