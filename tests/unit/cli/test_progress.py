"""Progress of commands where there is no terminal: a line every few seconds, and none before."""

from __future__ import annotations

import threading

import pytest
from rich.console import Console

from langchain_specdec.cli import loading, progress
from langchain_specdec.cli.loading import spinner
from langchain_specdec.cli.progress import Bars, Lines, followed
from tests.support.terminal import Screen


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_lines_come_every_so_often_and_say_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = Lines("Loading x\x1b[31m", clock)

    def after(seconds: float) -> str:
        clock.seconds += seconds
        lines.tick()
        return capsys.readouterr().err

    assert after(9) == ""
    assert after(1) == "Loading x\\x1b[31m (10 s)\n"
    assert after(5) == ""
    lines.tell("Pieces", 0, 4)
    lines.tell("Pieces", 1, 4)
    assert after(9) == "Pieces: 0 of 4\n"
    assert after(2) == "Pieces: 1 of 4 (11 s)\n"
    lines.tell("Pieces", 4, 4)
    lines.tell("The summary", 0, 1)
    assert after(3) == "The summary\n"
    lines.follow("Reading, tokens", 512, 4000)
    assert after(3) == "", "what is followed is written where a line is due"
    assert lines.tick() == pytest.approx(4.0)
    assert after(4) == "Reading, tokens: 512 of 4000 (10 s)\n"


def test_work_that_is_silent_is_shown_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_POLL_SECONDS", 0.001)
    asked = threading.Event()
    calls = 0

    def read() -> tuple[str, int, int]:
        nonlocal calls
        calls += 1
        if calls > 3:
            asked.set()
        return "Reading, tokens", 7, 9

    with spinner("Completing") as display, followed(display, read):
        assert asked.wait(10)
    assert "Reading, tokens: 7 of 9 (0 s)\n" in capsys.readouterr().err
    assert not [thread for thread in threading.enumerate() if thread.name == "specdec-progress"]


def test_short_work_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with spinner("Loading"):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("columns", [20, 60, 80])
def test_ctrl_c_leaves_no_row_behind(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal echoes ^C behind the last row, which has to have room for it."""
    screen = Screen(columns, 10)
    console = Console(file=screen, force_terminal=True, width=columns, height=10)  # type: ignore[arg-type]
    monkeypatch.setattr(loading, "is_drawable", lambda _: True)
    monkeypatch.setattr("rich.console.Console", lambda **_: console)
    with spinner("Summarising") as bars:
        assert isinstance(bars, Bars)
        bars.tell("Summarising pieces of the summaries", 100, 1000)
        bars.rich.refresh()
        assert "Summarising" in screen.text
        assert columns < 60 or "100/1000" in screen.text
        assert max(map(len, screen.text.splitlines())) <= columns - 4
        screen.write("^C")
    screen.write("Interrupted.")
    assert screen.text == "Interrupted."
