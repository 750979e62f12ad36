"""States as they are written down: the model's own, whatever runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.models.make_runner import make_runner
from langchain_specdec.training import states
from langchain_specdec.training.answers import Text
from langchain_specdec.training.new_head import tap_points
from langchain_specdec.training.states import RecordedStates, bytes_of, check_room, probe, record_states
from langchain_specdec.training.work_folder import WorkFolder
from tests.support.tiny_models import loaded, tiny_model

pytestmark = pytest.mark.transformers

POINTS = (1, 2, 3, 4)


def test_states_are_the_models_own_and_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "_CHUNK", 4)  # a text is read in several forwards
    monkeypatch.setattr(states, "_FILE_BYTES", bytes_of(10, len(POINTS), 32))
    model = tiny_model(num_hidden_layers=4)
    texts = [Text(tuple(range(3, 3 + length)), 2) for length in (9, 7, 5)]
    folder = WorkFolder(tmp_path / "draft", {}, goes_on=False)
    runner = make_runner(loaded(model), num_slots=1, max_length=16, max_width=1)
    runner.tap(POINTS)
    told: list[tuple[int, int]] = []
    record_states(runner, POINTS, 32, texts, folder, lambda _, done, total: told.append((done, total)))
    assert told == [(9, 21), (16, 21), (21, 21)]
    assert [path.stem for path in folder.files("states-*")] == ["states-0000000", "states-0000002"]
    written = RecordedStates(folder)
    for number, text in enumerate(texts):
        with torch.inference_mode():
            own = model(input_ids=torch.tensor([text.tokens]), output_hidden_states=True)
        expected = torch.stack([own.hidden_states[point][0] for point in POINTS], 1)
        assert written[number].dtype == torch.float16
        torch.testing.assert_close(written[number].float(), expected, rtol=2e-3, atol=2e-3)
    state, logits = probe(runner, texts[2].tokens)
    torch.testing.assert_close(logits, own.logits[0, -1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.lm_head(state.float()), logits, rtol=2e-3, atol=2e-2)
    monkeypatch.setattr(states, "states_of", lambda *_: pytest.fail("a state is computed twice"))
    record_states(runner, POINTS, 32, texts, folder, lambda *_: None)


def test_a_disk_without_room_is_told_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = WorkFolder(tmp_path / "draft", {}, goes_on=False)
    monkeypatch.setattr(WorkFolder, "free_bytes", lambda _: 10)
    folder.write("states-0000000.safetensors", b"x" * 20)
    check_room(folder, 30)  # what is there takes no more
    with pytest.raises(InvalidParameterError, match="Give a folder on another disk"):
        check_room(folder, 31)


def test_points_are_early_in_the_middle_and_late() -> None:
    assert [tap_points(layers) for layers in (2, 4, 7, 8, 30)] == [
        (0, 1, 1), (1, 2, 3), (1, 3, 6), (2, 4, 5), (2, 15, 27),
    ]  # fmt: skip
