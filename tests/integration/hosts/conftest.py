"""The model that all programs here load, and what it writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from langchain_specdec import ChatSpeculative
from tests.support.hosts.models import save_endless_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, which writes on until its limit."""
    return save_endless_model(tmp_path_factory.mktemp("hosts") / "tiny")


@pytest.fixture(scope="module")
def plain(tiny_folder: Path) -> Iterator[Callable[[str, int], str]]:
    """What the model answers without any draft, in this process."""
    with ChatSpeculative.from_model_id(tiny_folder, drafter="none", num_slots=1) as model:
        # Its engine's thread begins here, so that no test is to blame for it.
        model.invoke("a", max_tokens=1)
        yield lambda text, tokens: str(model.invoke(text, max_tokens=tokens).text)
