"""GGUF files of the Hub: which are downloaded, and what is said where they cannot be."""

from pathlib import Path
from typing import Any

import pytest

from langchain_specdec.errors import ModelLoadError
from langchain_specdec.models.gguf import source
from langchain_specdec.models.gguf.source import local_gguf


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is downloaded; nothing was before."""
    files: list[Any] = []

    def download(repository: str, file: str, **options: Any) -> str:
        files.append((repository, file, options))
        return f"/cache/{file}"

    monkeypatch.setattr(source, "hf_hub_download", download)
    monkeypatch.setattr(source, "downloaded_file", lambda *_: None)
    return files


def test_a_file_of_this_machine_is_not_downloaded(asked: list[Any], tmp_path: Path) -> None:
    (tmp_path / "x.gguf").touch()
    assert local_gguf(str(tmp_path / "x.gguf")) == tmp_path / "x.gguf"
    assert asked == []


def test_all_parts_of_a_model_are_downloaded(asked: list[Any]) -> None:
    options = {"revision": "v1", "token": "hf_x"}
    assert local_gguf("o/n:q/x.gguf", **options) == Path("/cache/q/x.gguf")
    assert asked == [("o/n", "q/x.gguf", options)]
    del asked[:]
    assert local_gguf("o/n:q/x-00002-of-00003.gguf") == Path("/cache/q/x-00001-of-00003.gguf")
    assert [file for _, file, _ in asked] == [f"q/x-0000{part}-of-00003.gguf" for part in (1, 2, 3)]


def test_a_download_that_fails_is_told_in_one_line_or_taken_from_before(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(source, "hf_hub_download", fail)
    with pytest.raises(
        ModelLoadError, match=r"^Cannot download o/n:x\.gguf: No space left on device\. [^\n]*$"
    ) as caught:
        local_gguf("o/n:x.gguf", token="hf_secret")
    assert caught.value.__cause__ is None
    monkeypatch.setattr(source, "downloaded_file", lambda *_: Path("/before/x.gguf"))
    assert local_gguf("o/n:x.gguf") == Path("/before/x.gguf")
    assert asked == []
