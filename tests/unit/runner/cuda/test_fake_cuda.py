"""The stand-in for a GPU: what it refuses, and what it sees of waits, copies, types and launches."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from langchain_specdec.runner.kv_cache import SlotCache
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.runner.verify import accept
from langchain_specdec.sampling.top_tokens import best_token
from tests.support.fake_cuda import FIRST_LETTER, MIXED_DEVICES, FakeCapture, FakeCuda
from tests.support.fake_cuda_engine import FakeCudaEngine

WAITS: dict[str, Callable[[Any], object]] = {
    "tolist": lambda x: x.tolist(),
    "item": lambda x: x[0, 0].item(),
    "bool": lambda x: bool((x > 0).all()),
    "if": lambda x: 1 if x.sum() > 0 else 0,
    "float": lambda x: float(x.sum()),
    "int": lambda x: int(x.sum()),
    "index of a list": lambda x: [0] * 100 + [range(100)[x.sum().long()]],
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "to, without waiting": lambda x: x.to("cpu", non_blocking=True),
    "copy_": lambda x: torch.zeros(4, 5).copy_(x),
    "setting by a mask": lambda x: x.__setitem__(x > 0, x[:1, :1].clone()),
    "synchronize": lambda x: torch.cuda.synchronize(),
}
REFUSED: dict[str, Callable[[Any], object]] = {
    "nonzero": lambda x: x.nonzero(),
    "a mask as index": lambda x: x[x > 0],
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "numpy": lambda x: x.numpy(),
}
COPIES: dict[str, Callable[[Any], object]] = {
    "tensor": lambda x: torch.tensor([1, 2], device=x.device),
    "as_tensor": lambda x: torch.as_tensor([1.0], device=x.device),
    "new_tensor": lambda x: x.new_tensor([1.0]),
    "to": lambda x: torch.zeros(3).to(x.device),
    "to, pinned": lambda x: torch.from_numpy(np.zeros(3)).pin_memory().to(x.device, torch.float32, non_blocking=True),
    "cuda": lambda x: torch.zeros(3).cuda(),
    "copy_": lambda x: x.copy_(torch.zeros(4, 5)),
    "a list as index": lambda x: x[[0, 1]],
    "an index on the host": lambda x: x[torch.zeros(2, dtype=torch.int64)],
    "setting a number by an index": lambda x: x.__setitem__((0, torch.zeros(2, dtype=torch.int64, device="cuda")), 1.0),
}
NEITHER: dict[str, Callable[[Any], object]] = {
    "numbers": lambda x: torch.where(x * 2.0 + 1 > 0, x, 0.0).masked_fill(x > 0, 1.0),
    "setting": lambda x: x.__setitem__((0, slice(1, 3)), 1.0),
    "slices": lambda x: x[1:, None, ..., 2:3].expand(3, 2, 1),
    "factories": lambda x: torch.arange(3, device=x.device) + torch.zeros(3, device=x.device, dtype=torch.int64),
    "indices on the device": lambda x: x[torch.arange(2, device=x.device)],
    "on the host": lambda x: (torch.zeros(3).tolist(), torch.zeros(3)[[0, 1]]),
}


@pytest.fixture
def x(cuda: FakeCuda) -> torch.Tensor:
    return torch.zeros(4, 5, device="cuda")


@pytest.mark.parametrize("name", WAITS)
def test_waits_are_seen(name: str, x: torch.Tensor, cuda: FakeCuda) -> None:
    with cuda.watch() as record:
        WAITS[name](x)
    assert len(record.waits) == 1
    assert not record.copies


@pytest.mark.parametrize("name", REFUSED)
def test_what_only_a_gpu_could_tell_is_refused(name: str, x: torch.Tensor, cuda: FakeCuda) -> None:
    with pytest.raises(AssertionError, match="outside of the package"), cuda.watch():
        REFUSED[name](x)


@pytest.mark.parametrize("name", COPIES)
def test_copies_to_the_device_are_seen(name: str, x: torch.Tensor, cuda: FakeCuda) -> None:
    with cuda.watch() as record:
        COPIES[name](x)
    assert len(record.copies) == 1
    assert record.copies[0].endswith(", pinned") == ("pinned" in name)
    assert not record.waits


@pytest.mark.parametrize("name", NEITHER)
def test_what_stays_on_the_device_is_neither(name: str, x: torch.Tensor, cuda: FakeCuda) -> None:
    with cuda.watch() as record:
        NEITHER[name](x)
    assert not record.waits + record.copies + record.doubles


def test_devices_do_not_mix(x: torch.Tensor, cuda: FakeCuda) -> None:
    with pytest.raises(AssertionError, match=f"outside of the package: {MIXED_DEVICES}"), cuda.watch():
        x + torch.ones(5)
    nodes = torch.zeros(1, 2, dtype=torch.int64, device="cuda")
    with (
        pytest.raises(AssertionError, match=rf"^langchain_specdec/runner/verify\.py:\d+: {MIXED_DEVICES}"),
        cuda.watch(),
    ):
        accept(nodes, torch.zeros(1, 2, dtype=torch.int64), nodes[:, None] > 0, nodes[:, 0], nodes)


def test_a_wait_tells_the_line_of_the_package_that_asks(cuda: FakeCuda) -> None:
    cache = SlotCache(1, 2, 8)
    (layer,) = cache._slot_layers
    layer.lazy_initialization(torch.zeros(1, 2, 1, 4, device="cuda"))
    with cuda.watch() as record:
        cache.keep(0, 1, [0, 2])
    assert len(record.copies) == 2
    assert all(copy.startswith("langchain_specdec/runner/kv_cache.py:") for copy in record.copies)


def test_errors_that_the_engine_lives_with_are_raised(cuda: FakeCuda) -> None:
    logger = logging.getLogger("langchain_specdec.engine.draft_planner")
    with pytest.raises(AssertionError, match="ValueError: no"), cuda.watch():
        try:
            raise ValueError("no")
        except ValueError:
            logger.exception("The drafter failed to learn from a step")


def test_double_precision_is_seen_where_it_begins(x: torch.Tensor, cuda: FakeCuda) -> None:
    with cuda.watch() as record:
        double = x.double()
        double + double[:1]
    assert record.doubles == ["outside of the package: aten._to_copy"]


def test_launches_are_kernels(cuda: FakeCuda, x: torch.Tensor) -> None:
    weight = torch.zeros(3, 5, device="cuda")
    with cuda.watch() as record, torch.inference_mode():
        torch.nn.functional.linear(x.view(2, 2, 5), weight).transpose(0, 1)[0].add_(1.0)
        best_token(x)
        torch.zeros(3).add(1)
        query = torch.zeros(1, 2, 3, 4, device="cuda")
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert dict(record.launches) == {
        "aten.mm": 1, "aten.add_": 1, "aten.argmax": 1, "aten.zeros": 1, "aten.scaled_dot_product_attention": 1
    }  # fmt: skip


def test_a_graph_neither_waits_nor_copies(x: torch.Tensor, cuda: FakeCuda) -> None:
    capture = FakeCapture(cuda)
    for action in (lambda: (x.cpu(),), lambda: (torch.tensor([1], device="cuda"),)):
        with pytest.raises(AssertionError, match="not permitted when stream is capturing"), cuda.watch():
            capture.record(lambda: None, action)
    outputs, replay = capture.record(lambda: None, lambda: (x + 1,))
    replay()
    assert outputs[0].shape == x.shape
    assert not cuda.is_capturing


def test_the_host_reads_letters(x: torch.Tensor, cuda: FakeCuda) -> None:
    assert x.long()[:2, :3].tolist() == [[FIRST_LETTER, FIRST_LETTER + 1, FIRST_LETTER + 2]] * 2
    with cuda.watch():
        assert x.long().sum().item() == FIRST_LETTER
    assert (x > 0)[0].tolist() == [True] * 5
    assert x[:, 0].tolist() == [0.0] * 4


def test_verdicts_follow_trees_by_paths_with_gaps(cuda: FakeCuda) -> None:
    engine = FakeCudaEngine(cuda)
    batch = RowBatch([0, 1], [4, 3], [[1, 2, 3, 4, 5], [6, 7]], [[-1, 0, 0, 1, 2], [-1, 0]], None, 1)
    picks, stands = engine._row_verdict(batch, 0)
    assert stands == [1, 0, 1, 0, 1]
    assert [picks[0], picks[2]] == [3, 5]
    assert engine._row_verdict(batch, 1)[1] == [1, 1, 0, 0, 0]
    assert engine.num_gaps == 1
