"""The programs in docs/examples, here and over a server, print text, and it is about their documents."""

from __future__ import annotations

import json
import re
import runpy
import sys
from contextlib import closing
from pathlib import Path

import pytest

from langchain_specdec import LocalBackend, SpeculativeLLM
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.models.embedded import is_available, model_path
from langchain_specdec.server.run import Server
from langchain_specdec.server.settings import ServerSettings
from langchain_specdec.server.tgi.fields import Limits
from tests.standin.models import EngineModel
from tests.standin.server import ServerThread

pytestmark = [
    pytest.mark.embedded,
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.skipif(not is_available(), reason="needs the embedded model"),
]

EXAMPLES = Path(__file__).resolve().parents[2] / "docs/examples"


@pytest.fixture(scope="module")
def server():
    """A server of the embedded model that drafts two tokens at a time."""
    model = EngineModel("embedded", 2, num_slots=4, max_length=1024)
    with ServerThread(model, Limits(max_input_tokens=1000, max_total_tokens=1024)) as server:
        # Its engine's thread begins here, so that no test is to blame for it.
        SpeculativeLLM.from_tgi(server.url).invoke("Hello", max_new_tokens=1)
        yield server
    model.close()


@pytest.fixture(params=["here", "tgi"])
def place(request, server):
    """Options of a program for a model in this process, or on a server."""
    if request.param == "here":
        return ["--model-id", "embedded"]
    return ["--tgi", server.url, "--model-id", str(model_path())]


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs a program: what it prints."""

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return str(capsys.readouterr().out)

    return run


def expect_counts(line, place, tokens=r"\d+"):
    """Steps are told by an engine in this process, and by no server."""
    steps = "" if "--tgi" in place else r" in \d+ steps: \d+\.\d\d tokens per step"
    assert re.fullmatch(rf"{tokens} tokens{steps}", line)


def test_a_summary(run, place):
    out = run("summarize.py", "stuff", "--max-new-tokens", "60", *place)
    summary, counts = out.strip().splitlines()
    assert summary.startswith("summary: ")
    assert "Eddystone Rocks" in summary
    assert len(summary.split()) > 20
    expect_counts(counts, place, "60")


def test_a_summary_of_what_is_too_long_for_one_prompt(run, place):
    out = run("summarize.py", "--max-input-tokens", "200", "--max-new-tokens", "60", *place)
    first, second, summary, *_, counts = out.strip().splitlines()
    assert [first, second] == ["map 1 of 2", "map 2 of 2"]
    assert summary.startswith("summary: ")
    assert re.search("Smeaton|Winstanley|Fresnel", summary)
    assert len(summary.split()) > 10
    expect_counts(counts, place)


def test_a_summary_by_a_graph_decodes_its_branches_together(run):
    pytest.importorskip("langgraph")
    *parts, summary, counts = run("summarize_graph.py").strip().splitlines()
    assert len(parts) == 3
    names = {name for part in parts for name in re.findall("Winstanley|Smeaton|Fresnel", part)}
    assert names == {"Winstanley", "Smeaton", "Fresnel"}
    assert re.search("Smeaton|Winstanley|Fresnel", summary.removeprefix("summary: "))
    found = re.fullmatch(r"parts: (\d+) tokens in (\d+) forward passes of the model", counts)
    assert found is not None
    # One after another, without drafts, each token would take a pass.
    assert int(found[2]) < 0.6 * int(found[1])


def test_answers_from_passages(run, place):
    lines = run("rag.py", *place).splitlines()
    assert lines[::2] == ["Who built the tower of granite?", "In which year did the new lens come to Cordouan?"]
    assert "John Smeaton" in lines[1]
    assert "1823" in lines[3]


def test_facts_as_an_object(run, place):
    out = run("extract.py", *place)
    assert json.loads(out) == {"builder": "John Smeaton", "place": "Eddystone Rocks", "year": 1759}


def test_one_flag_takes_another_kind_of_server(run):
    backend = LocalBackend("embedded", num_slots=1, max_length=1024)
    with closing(backend), Server(ServerSettings(port=0)).start(backend) as server:
        found = json.loads(run("extract.py", "--server", server.url))
    assert found == {"builder": "John Smeaton", "place": "Eddystone Rocks", "year": 1759}


def test_an_agent(run, place):
    """One that calls its tools takes a larger model; tests/unit/chat/test_chat_models.py has one that pretends."""
    pytest.importorskip("langchain")
    out = run("agent.py", *place)
    assert out.startswith("human: How many lenses are there")
    assert len(out.partition("\nai: ")[2].split()) > 5


def test_a_question_about_a_picture(run, place, tmp_path):
    """A model that reads images takes a download; tests/unit/chat/test_images.py has one that pretends."""
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"x")
    with pytest.raises(InvalidParameterError, match="the model can be given no images"):
        run("look.py", str(picture), *place)


def test_one_chain_over_both(run, server):
    """tests/integration/test_tgi_swap.py has a server that goes away."""
    out = run("swap_backends.py", "--tgi", server.url)
    lines = dict(line.split(": ", 1) for line in out.strip().splitlines() if ": " in line)
    assert lines["local"] == lines["tgi"] == lines["tgi, or else local"]
    assert len(lines["local"].split()) > 10


def test_every_program_is_tried():
    here = Path(__file__).read_text(encoding="utf-8")
    # tests/integration/hosts runs the last two, test_launch_server.py the second.
    elsewhere = {"example_options.py", "launch_server.py", "process_pool.py", "serve_fastapi.py"}
    programs = {path.name for path in EXAMPLES.glob("*.py")} - elsewhere
    assert {name for name in programs if f'run("{name}"' not in here} == set()
