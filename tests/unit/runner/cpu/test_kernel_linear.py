"""The kernel for linear layers of a few rows: right, the same bits whatever is beside a row, and never in the way."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from langchain_specdec.errors import SpecDecError
from langchain_specdec.runner.cpu import kernel_linear as panel_linear
from langchain_specdec.runner.cpu import kernels
from langchain_specdec.runner.cpu.kernel_linear import PanelWeight, can_use_panels
from langchain_specdec.runner.cpu.packed_layers import PackedLinear, can_pack

needs_kernel = pytest.mark.skipif(not can_use_panels(torch.float32), reason="there is no kernel for this machine")


@pytest.fixture
def unbuilt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A machine on which nothing was compiled yet; its cache folder."""
    monkeypatch.setattr(kernels, "cache_folder", lambda: tmp_path / "cache")
    panel_linear._kernel.cache_clear()
    yield tmp_path / "cache"
    panel_linear._kernel.cache_clear()


def exact_in_bfloat16(*shape: int) -> Tensor:
    return torch.randn(*shape).to(torch.bfloat16).float()


@needs_kernel
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 70),
    inputs=st.integers(1, 90),
    outputs=st.integers(1, 90),
    has_bias=st.booleans(),
    is_narrow=st.booleans(),
)
def test_products_are_those_of_float64(rows: int, inputs: int, outputs: int, has_bias: bool, is_narrow: bool) -> None:
    torch.manual_seed(rows)
    weight = exact_in_bfloat16(outputs, inputs) if is_narrow else torch.randn(outputs, inputs)
    bias = torch.randn(outputs) if has_bias else None
    x = torch.randn(rows, inputs)
    computed = PanelWeight(weight)(x, bias)
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    torch.testing.assert_close(computed.double(), expected, rtol=1e-5, atol=1e-4)


@needs_kernel
@pytest.mark.parametrize("make", [torch.randn, exact_in_bfloat16])
def test_a_row_does_not_depend_on_the_rows_beside_it_nor_on_threads(make: object) -> None:
    weight = PanelWeight(make(200, 64))  # type: ignore[operator]
    bias, x = torch.randn(200), torch.randn(100, 64)
    whole = weight(x, bias)
    for count in (1, 2, 3, 5, 6, 7, 8, 13, 24, 25, 60):
        assert torch.equal(weight(x[:count], bias), whole[:count]), count
        assert torch.equal(weight(x[17 : 17 + count], bias), whole[17 : 17 + count]), count
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(weight(x, bias), whole)
    finally:
        torch.set_num_threads(threads)


@needs_kernel
def test_numbers_that_bfloat16_holds_take_half_of_the_bytes_and_give_the_same_bits() -> None:
    weight = exact_in_bfloat16(48, 40)
    narrow = PanelWeight(weight)
    assert narrow.panels.dtype == torch.bfloat16
    nearly = weight.clone()
    nearly[-1, -1] += 1e-4
    wide = PanelWeight(nearly)
    assert wide.panels.dtype == torch.float32
    for rows in (1, 6, 12, 13, 40):
        x = torch.randn(rows, 40)
        assert torch.equal(narrow(x, None)[:, :-1], wide(x, None)[:, :-1])


@needs_kernel
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -0.0, 1e-40])
def test_unusual_numbers_pass_through(value: float) -> None:
    weight = torch.zeros(3, 4)
    weight[1, 2] = value
    computed = PanelWeight(weight)(torch.ones(1, 4), None)
    torch.testing.assert_close(computed, F.linear(torch.ones(1, 4), weight), equal_nan=True)


@needs_kernel
def test_inputs_may_be_views_and_have_any_shape() -> None:
    weight = torch.randn(10, 6)
    packed = PanelWeight(weight)
    x = torch.randn(6, 4, 3).transpose(0, 2)
    torch.testing.assert_close(packed(x, None), F.linear(x, weight))
    torch.testing.assert_close(packed(x[0, 0], None), F.linear(x[0, 0], weight))
    assert packed(x[:0], None).shape == (0, 4, 10)


@needs_kernel
def test_threads_may_use_it_at_once() -> None:
    weight, x = PanelWeight(exact_in_bfloat16(400, 64)), torch.randn(50, 64)
    expected = weight(x, None)
    results: list[bool] = []
    threads = [
        threading.Thread(target=lambda: results.append(all(torch.equal(weight(x, None), expected) for _ in range(20))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4


@pytest.mark.compiles
@needs_kernel
def test_it_is_compiled_once_and_kept(unbuilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_use_panels(torch.float32)
    kept = list(unbuilt.iterdir())
    assert [path.suffix for path in kept] == [".so"]
    panel_linear._kernel.cache_clear()
    monkeypatch.setattr(kernels, "_run", lambda command: pytest.fail("compiled again"))
    assert can_use_panels(torch.float32)


def cut_short(kept: Path) -> None:
    # As long as the file system was left with after the power went, say. It is in use, too.
    os.truncate(kept, 4096)


def of_zeros(kept: Path) -> None:
    kept.write_bytes(bytes(kept.stat().st_size))


def of_another_build(kept: Path) -> None:
    kept.write_bytes(kept.read_bytes() + b"changed")


def writable_by_others(kept: Path) -> None:
    kept.chmod(0o666)


def a_link(kept: Path) -> None:
    kept.rename(kept.with_suffix(".elsewhere"))
    kept.symlink_to(kept.with_suffix(".elsewhere"))


def of_another_user(kept: Path) -> None:
    if os.geteuid() == 0:  # only the administrator can give files away
        os.chown(kept, 12345, 12345)
    else:
        of_zeros(kept)


@pytest.mark.compiles
@needs_kernel
def test_what_is_kept_is_used_only_if_it_is_whole_and_this_users(
    unbuilt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert can_use_panels(torch.float32)
    (kept,) = unbuilt.iterdir()
    content, commands = kept.read_bytes(), []

    def compile_again(command: list[str]) -> None:
        commands.append(command)
        Path(command[-1]).write_bytes(content)

    monkeypatch.setattr(kernels, "_run", compile_again)
    for spoil in (cut_short, of_zeros, of_another_build, writable_by_others, a_link, of_another_user):
        spoil(kept)
        commands.clear()
        for _ in range(2):  # the second time, what was made anew is found
            panel_linear._kernel.cache_clear()
            assert can_use_panels(torch.float32)
            assert len(commands) == 2, f"a kept file that is {spoil.__name__} was used"
        assert kept.read_bytes() == content
        assert not kept.stat().st_mode & 0o022


@needs_kernel
@pytest.mark.skipif(os.name != "posix", reason="a file where a folder should be")
def test_a_cache_that_cannot_be_written_does_no_harm(unbuilt: Path) -> None:
    unbuilt.write_text("in the way")
    assert can_use_panels(torch.float32)


@needs_kernel
def test_without_a_home_folder_it_is_compiled_and_not_kept(
    unbuilt: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unknown() -> Path:
        raise SpecDecError("The home folder is unknown.")

    monkeypatch.setattr(kernels, "cache_folder", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert can_use_panels(torch.float32)
    assert list(tmp_path.iterdir()) == []


@needs_kernel
def test_a_full_disk_leaves_nothing_of_a_kernel(unbuilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert can_use_panels(torch.float32)
    assert list(unbuilt.iterdir()) == []


@needs_kernel
def test_without_a_folder_for_temporary_files_there_is_no_kernel(
    unbuilt: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    assert not can_use_panels(torch.float32)


@pytest.mark.compiles
@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_working_compiler_there_is_no_kernel(
    unbuilt: Path, monkeypatch: pytest.MonkeyPatch, compiler: str
) -> None:
    monkeypatch.setenv("CXX", compiler)
    assert not can_use_panels(torch.float32)
    if can_pack(nn.Linear(4, 4)):
        linear, x = nn.Linear(4, 4), torch.randn(2, 4)
        with torch.inference_mode():
            torch.testing.assert_close(PackedLinear(linear)(x), linear(x))


@needs_kernel
def test_a_kernel_that_computes_something_else_is_not_used(unbuilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = panel_linear._Kernel.linear
    monkeypatch.setattr(panel_linear._Kernel, "linear", lambda *args: right(*args) + 0.01)
    assert not can_use_panels(torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_left_to_others(dtype: torch.dtype) -> None:
    assert not can_use_panels(dtype)
