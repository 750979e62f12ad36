"""What a capture may not hold is found before it begins, and named; what only looks like it is let through."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from langchain_specdec.runner.cuda.waiting import RefuseWaiting, WaitingError

ops = torch.ops.aten


def grouped(x: Tensor) -> Tensor:
    """Two experts of one matrix each."""
    ends = torch.tensor([1, len(x)], dtype=torch.int32, device=x.device)
    return torch.nn.functional.grouped_mm(x, torch.stack([x, x]), offs=ends)


ON_DEVICE: dict[str, Callable[[Tensor], object]] = {
    "_local_scalar_dense": lambda x: x[0, 0].item(),
    "_local_scalar_dense ": lambda x: bool(x[0, 0] > 0),
    "nonzero": lambda x: x.nonzero(),
    "equal": lambda x: torch.equal(x, x),
    "allclose": lambda x: torch.allclose(x, x),
    "masked_select": lambda x: x.masked_select(x > 0),
    "_unique2": lambda x: x.unique(),
    "unique_dim": lambda x: x.unique(dim=0),
    "unique_consecutive": lambda x: x.unique_consecutive(),
    "bincount": lambda x: torch.bincount(x[0].long()),
    "histc": lambda x: torch.histc(x),
    "multinomial": lambda x: torch.multinomial(x, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(x[0].long(), 0),
    "index": lambda x: x[x > 0],
    "_grouped_mm": lambda x: grouped(x),
    "index_put_": lambda x: ops.index_put_(x, [x > 0], x[0, :1].clone().expand(16)),
}
HARMLESS: dict[str, Callable[[Tensor], object]] = {
    "a mask filled with one number": lambda x: x.__setitem__(x > 0, 1.0),
    "masked fill": lambda x: x.masked_fill(x > 0, 1.0),
    "chosen by a mask": lambda x: torch.where(x > 0, x, 0.0),
    "a gather": lambda x: x[torch.arange(2, device=x.device), 1],
    "so many repeats": lambda x: x.repeat_interleave(x[0].long(), 0, output_size=4),
    "another type": lambda x: x.long(),
    "a copy within": lambda x: x[0].copy_(x[1]),
    "a number": lambda x: x + 1.5,
    "a count between bounds": lambda x: torch.histc(x, 4, min=0, max=3),
    "groups that the device reads": lambda x: grouped(x.repeat(2, 2).bfloat16()),
    "an attention": lambda x: torch.nn.functional.scaled_dot_product_attention(x[None], x[None], x[None]),
}


@pytest.fixture(autouse=True, params=[False, True], ids=["", "inference mode"])
def _mode(request: pytest.FixtureRequest) -> Iterator[None]:
    """Steps run in inference mode, where operators that are made of others come as they are."""
    with torch.inference_mode(request.param):
        yield


@pytest.fixture
def x(_mode: None) -> Tensor:
    return torch.ones(4, 4)


@pytest.mark.parametrize("name", ON_DEVICE)
def test_what_waits_is_refused_by_name_and_place(name: str, x: Tensor) -> None:
    with pytest.raises(WaitingError) as refused, RefuseWaiting(x.device):
        ON_DEVICE[name](x)
    assert re.fullmatch(
        rf"it waits for the device: aten\.{name.strip()}\.\w+ at test_waiting\.py:\d+", str(refused.value)
    )


@pytest.mark.parametrize("name", HARMLESS)
def test_what_does_not_wait_runs(name: str, x: Tensor) -> None:
    expected = HARMLESS[name](x.clone())
    with RefuseWaiting(x.device):
        found = HARMLESS[name](x.clone())
    torch.testing.assert_close(found, expected)


def test_what_ran_before_and_after_is_free_to_wait(x: Tensor) -> None:
    with RefuseWaiting(x.device):
        pass
    assert x.sum().item() == 16.0


# --- Between host and device ------------------------------------------------------------------------------------------


@pytest.fixture(params=["meta", *(["cuda"] if torch.cuda.is_available() else [])])
def elsewhere(request: pytest.FixtureRequest) -> Tensor:
    """A tensor on a device that is not the host; on meta it holds no numbers at all."""
    return torch.ones(4, 4, device=request.param)


COPIES: dict[str, Callable[[Tensor], object]] = {
    "_to_copy": lambda x: torch.ones(2).to(x.device),
    "_to_copy ": lambda x: torch.tensor(1.0).to(x.device),
    "_to_copy  ": lambda x: x.cpu(),
    "copy_": lambda x: x.copy_(torch.ones(4, 4)),
    "copy_ ": lambda x: torch.ones(4, 4).copy_(x),
    "where": lambda x: torch.where(x > 0, x, torch.tensor(0.0)),
    "index": lambda x: ops.index(x, [torch.zeros(2, dtype=torch.long)]),
    "masked_fill_": lambda x: ops.masked_fill_(x, x > 0, x[0, 0]),
    "_grouped_mm": lambda x: grouped(x),
    "index_put_": lambda x: ops.index_put_(x, [x > 0], x[0, 0]),
    # As `x[places] = 1.0` comes on a GPU.
    "index_put_ ": lambda x: ops.index_put_(x, [torch.zeros(2, dtype=torch.long, device=x.device)], torch.tensor(1.0)),
    # What `torch.tensor(..., device="cuda")` ends with, once its numbers have been copied.
    "lift_fresh": lambda x: ops.lift_fresh(x),
}
TOLD: dict[str, Callable[[Tensor], object]] = {
    "an operand": lambda x: x * torch.tensor(2.0),
    "a filling": lambda x: x.fill_(torch.tensor(2.0)),
    "a mask filled with one": lambda x: ops.index_put_(x, [x > 0], torch.tensor(2.0)),
    "a host's number": lambda x: x * torch.tensor(2.0).item(),
    "made there": lambda x: torch.full((2,), 3.0, device=x.device),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_to_and_from_the_device_are_refused(name: str, elsewhere: Tensor) -> None:
    with pytest.raises(WaitingError) as refused, RefuseWaiting(elsewhere.device):
        COPIES[name](elsewhere)
    assert f"aten.{name.strip()}." in str(refused.value)


@pytest.mark.parametrize("name", TOLD)
def test_single_numbers_are_told_to_kernels(name: str, elsewhere: Tensor) -> None:
    with RefuseWaiting(elsewhere.device):
        found = TOLD[name](elsewhere)
    assert isinstance(found, Tensor)
    assert found.device == elsewhere.device


def test_work_of_the_host_alone_may_take_its_time(x: Tensor) -> None:
    with RefuseWaiting(torch.device("cuda", 0)):
        assert len(x.nonzero()) == 16
        assert x.to(torch.long).sum().item() == 16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", ["numbers", "a list of places"])
def test_cuda_copies_that_no_operator_shows_are_refused(name: str) -> None:
    x = torch.ones(4, 4, device="cuda")
    with pytest.raises(WaitingError), RefuseWaiting(x.device):
        _ = x + torch.tensor([1.0], device="cuda") if name == "numbers" else x[[0, 1]]
