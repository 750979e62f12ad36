"""The programs in docs/examples, on the model that comes along, print text, and it is about their documents."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from langchain_specdec.models.embedded import is_available

pytestmark = [
    pytest.mark.embedded,
    pytest.mark.slow,
    pytest.mark.skipif(not is_available(), reason="needs the embedded model"),
]

EXAMPLES = Path(__file__).resolve().parents[2] / "docs/examples"


def run(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What a program prints."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def test_a_summary(capsys, monkeypatch):
    out = run("summarize.py", capsys, monkeypatch, "stuff", "--max-new-tokens", "60")
    summary, counts = out.strip().splitlines()
    assert summary.startswith("summary: ")
    assert "Eddystone Rocks" in summary
    assert len(summary.split()) > 20
    assert re.fullmatch(r"60 tokens in \d+ steps: \d+\.\d\d tokens per step", counts)


def test_a_summary_of_summaries(capsys, monkeypatch):
    out = run("summarize.py", capsys, monkeypatch, "map-reduce", "--max-new-tokens", "40")
    *lines, counts = out.strip().splitlines()
    for line, part in zip(lines, ("part 1: ", "part 2: ", "part 3: ", "summary: "), strict=True):
        assert line.startswith(part)
        assert len(line.split()) > 10
    for line, name in zip(lines, ("Winstanley", "Smeaton", "Fresnel", "Winstanley"), strict=True):
        assert name in line
    assert counts.endswith("tokens per step")


def test_answers_from_passages(capsys, monkeypatch):
    lines = run("rag.py", capsys, monkeypatch).splitlines()
    assert lines[::2] == ["Who built the tower of granite?", "In which year did the new lens come to Cordouan?"]
    assert "John Smeaton" in lines[1]
    assert "1823" in lines[3]


def test_facts_as_an_object(capsys, monkeypatch):
    out = run("extract.py", capsys, monkeypatch)
    assert json.loads(out) == {"builder": "John Smeaton", "place": "Eddystone Rocks", "year": 1759}


def test_every_program_is_tried():
    """By a real model here; agent.py, which takes a larger one, and the two for servers by their own tests."""
    here = Path(__file__).read_text(encoding="utf-8")
    others = {"agent.py": "unit/chat/test_chat_models.py", "swap_backends.py": "integration/test_tgi_swap.py"}
    others["launch_tgi.py"] = others["swap_backends.py"]
    for path in EXAMPLES.glob("*.py"):
        place = others.get(path.name)
        text = (EXAMPLES.parents[1] / "tests" / place).read_text(encoding="utf-8") if place else here
        assert f'"{path.name}"' in text or f'"{path.stem}"' in text
