"""A GPU that is not there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fake_cuda import FakeCuda, obstacle


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    """The device "cuda" without a GPU."""
    if reason := obstacle():
        pytest.skip(reason)
    with FakeCuda.running() as cuda:
        yield cuda
