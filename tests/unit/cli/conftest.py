"""A model as a command finds it: in a folder."""

from __future__ import annotations

import pytest

from tests.support.tiny_models import byte_tokenizer, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "plain"
    tiny_model().save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return str(path)
