"""Loading writes nothing to the terminal, and leaves what a program has set for the libraries as it was."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers
from transformers.utils import logging as transformers_logging

from langchain_specdec.models.loader import load_model
from langchain_specdec.models.quiet_loading import quiet_loading
from tests.support import tiny_models as tiny

pytestmark = pytest.mark.transformers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of which transformers has something to say: settings of sampling beside greedy decoding."""
    folder = tmp_path_factory.mktemp("models") / "talkative"
    tiny.tiny_model().save_pretrained(folder)
    tiny.byte_tokenizer().save_pretrained(folder)
    config = {"do_sample": False, "temperature": 0.6, "top_k": 7, "eos_token_id": tiny.EOS}
    (folder / "generation_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def terminal() -> Iterator[io.StringIO]:
    """What the libraries' own handlers write, which is standard error as it was when they were imported."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    libraries = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    levels = [library.level for library in libraries]
    for library in libraries:
        library.addHandler(handler)
        # A command that ran before in this process may have left it at errors only.
        library.setLevel(logging.WARNING)
    yield stream
    for library, level in zip(libraries, levels, strict=True):
        library.removeHandler(handler)
        library.setLevel(level)


@pytest.fixture
def bars() -> Iterator[None]:
    before = transformers_logging._tqdm_active
    transformers_logging._tqdm_active = True
    yield
    transformers_logging._tqdm_active = before


@pytest.mark.usefixtures("bars")
def test_loading_shows_nothing(
    folder: Path, terminal: io.StringIO, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "langchain_specdec")
    load_model(folder, device="cpu")
    assert capsys.readouterr() == ("", "")
    assert terminal.getvalue() == ""
    assert transformers_logging.is_progress_bar_enabled()


@pytest.mark.usefixtures("bars")
def test_what_a_load_shows_outside(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Loading by transformers itself shows its bar, before and after."""
    load_model(folder, device="cpu")
    transformers.AutoModelForCausalLM.from_pretrained(folder)
    if not transformers.__version__.startswith("4."):  # which has one for several files only
        assert "Loading weights" in capsys.readouterr().err


@pytest.mark.parametrize("wanted", [True, False])
def test_bars_are_as_they_were_however_loads_overlap(wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers_logging, "_tqdm_active", wanted)
    first, second = quiet_loading(), quiet_loading()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not transformers_logging.is_progress_bar_enabled(), "the second still loads"
    second.__exit__(None, None, None)
    assert transformers_logging.is_progress_bar_enabled() == wanted
    with pytest.raises(ValueError), quiet_loading():
        raise ValueError
    assert transformers_logging.is_progress_bar_enabled() == wanted


@pytest.mark.parametrize("library", ["transformers", "huggingface_hub"])
def test_messages_of_other_threads_and_to_other_handlers_stay(
    library: str, terminal: io.StringIO, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger(f"{library}.anything")
    theirs: list[str] = []

    class Theirs(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            theirs.append(record.getMessage())

    handler = Theirs()
    logging.getLogger(library).addHandler(handler)
    caplog.set_level(logging.INFO, "langchain_specdec")
    try:
        with quiet_loading():
            logger.warning("You are sending unauthenticated requests")
            other = threading.Thread(target=logger.warning, args=("of the program's own work",))
            other.start()
            other.join()
        logger.warning("afterwards")
    finally:
        logging.getLogger(library).removeHandler(handler)
    assert terminal.getvalue() == "of the program's own work\nafterwards\n"
    assert theirs == ["You are sending unauthenticated requests", "of the program's own work", "afterwards"]
    said = [r.getMessage() for r in caplog.records if r.name == "langchain_specdec.models.quiet_loading"]
    assert said == [f"{library}.anything: You are sending unauthenticated requests"]


def test_who_asks_for_more_than_warnings_gets_them(terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "level", logging.INFO)
    logging.getLogger("transformers").manager._clear_cache()  # type: ignore[attr-defined]
    with quiet_loading():
        logging.getLogger("transformers.anything").info("loading configuration file")
    assert terminal.getvalue() == "loading configuration file\n"
    monkeypatch.undo()
    logging.getLogger("transformers").manager._clear_cache()  # type: ignore[attr-defined]
