"""One chain on either backend: by constructor, by configuration, as a fallback; and a server launched for it."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import ConfigurableField

from langchain_specdec import SpeculativeLLM, TGIBackend
from langchain_specdec.errors import BackendUnavailableError, GenerationError
from langchain_specdec.models.embedded import is_available
from langchain_specdec.server.tgi.fields import Limits
from tests.standin.clients import no_leaks
from tests.standin.models import FakeModel
from tests.standin.server import ServerThread
from tests.support.backends import make_llm
from tests.support.launcher import put_launcher_on_path
from tgi_launcher import StartError

pytestmark = [pytest.mark.process, pytest.mark.server]

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs/examples"
TEXT = FakeModel.ANSWER
PROMPT = PromptTemplate.from_template("Say: {text}")


@pytest.fixture
def server():
    with ServerThread(FakeModel(), Limits(max_input_tokens=2000, max_total_tokens=2048)) as server:
        yield server


@pytest.fixture
def local():
    with make_llm() as local:
        local.invoke("x", max_new_tokens=1)
        yield local


@pytest.fixture
def remote(server):
    with SpeculativeLLM.from_tgi(server.url, max_retries=0) as remote:
        yield remote


def chain_on(llm):
    return PROMPT | llm | StrOutputParser()


def test_by_constructor(local, remote):
    answers = {name: chain_on(llm).invoke({"text": "x"}) for name, llm in (("local", local), ("tgi", remote))}
    assert answers["tgi"] == TEXT != answers["local"]


def test_by_configuration(local, server):
    made = []

    def make():
        made.append(SpeculativeLLM.from_tgi(server.url))
        return made[-1]

    chain = chain_on(local.configurable_alternatives(ConfigurableField(id="backend"), default_key="local", tgi=make))
    assert chain.invoke({"text": "x"}) == chain_on(local).invoke({"text": "x"})
    assert made == []
    on_tgi = chain.with_config(configurable={"backend": "tgi"})
    assert on_tgi.invoke({"text": "x"}) == TEXT
    assert "".join(on_tgi.stream({"text": "x"})) == TEXT
    for llm in made:
        llm.close()


def test_as_a_fallback(local, server, remote):
    chain = chain_on(remote.with_fallbacks([local], exceptions_to_handle=(BackendUnavailableError, GenerationError)))
    assert chain.invoke({"text": "x"}) == TEXT
    expected = chain_on(local).invoke({"text": "x"})
    server.set_faults("generation:times=1")
    assert chain.invoke({"text": "x"}) == expected
    assert chain.batch([{"text": "x"}] * 3) == [TEXT] * 3
    server.close()
    assert chain.invoke({"text": "x"}) == expected
    assert chain.batch([{"text": "x"}] * 3) == [expected] * 3
    assert "".join(chain.stream({"text": "x"})) == expected


async def test_as_a_fallback_in_an_event_loop(local):
    with SpeculativeLLM.from_tgi("http://127.0.0.1:9", max_retries=0) as remote:
        chain = chain_on(remote.with_fallbacks([local]))
        expected = chain_on(local).invoke({"text": "x"})
        assert await chain.ainvoke({"text": "x"}) == expected
        assert "".join([piece async for piece in chain.astream({"text": "x"})]) == expected


# A server that is launched


@pytest.fixture
def launcher_on_path(monkeypatch, tmp_path):
    put_launcher_on_path(monkeypatch, tmp_path)


def test_a_launched_server_lives_as_long_as_the_model(launcher_on_path):
    stages: list[Any] = []
    with no_leaks():
        with SpeculativeLLM.launch_tgi(
            "fake", speculate=2, api_key="sesame", max_tokens=60, max_concurrent_requests=3, read_timeout=20,
            on_progress=stages.append,
        ) as llm:  # fmt: skip
            assert [step.stage for step in stages][-1].value == "ready"
            assert llm.invoke("Hello") == TEXT
            assert llm.batch(["a"] * 5) == [TEXT] * 5
            assert "".join(llm.stream("Hello")) == TEXT
            assert isinstance(llm.backend, TGIBackend)
            url = llm.backend.base_url
            assert "sesame" not in repr(llm) + repr(llm.backend)
        llm.close()
    with SpeculativeLLM.from_tgi(url, max_retries=0) as gone, pytest.raises(BackendUnavailableError):
        gone.invoke("Hello")


def test_a_server_that_does_not_start_leaves_nothing(launcher_on_path, monkeypatch):
    monkeypatch.setenv("STANDIN_FAULT", "out-of-memory")
    with no_leaks(), pytest.raises(StartError, match="memory"):
        SpeculativeLLM.launch_tgi("fake")


def test_a_server_is_ended_if_the_model_cannot_be_made(launcher_on_path, monkeypatch):
    ended = []
    monkeypatch.setattr("tgi_launcher.TGIServer.start", lambda self: None)
    monkeypatch.setattr("tgi_launcher.TGIServer.stop", lambda self: ended.append(self))
    monkeypatch.setattr("tgi_launcher.TGIServer.base_url", "no address")
    with pytest.raises(ValueError, match="root address"):
        SpeculativeLLM.launch_tgi("fake")
    assert len(ended) == 1


# The examples


def run(name, capsys, *arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


needs_embedded = pytest.mark.skipif(not is_available(), reason="the embedded model is not installed")


@pytest.mark.embedded
@needs_embedded
def test_the_swap_example(capsys, monkeypatch, server):
    out = run("swap_backends.py", capsys, "--tgi", server.url, monkeypatch=monkeypatch)
    assert f"tgi: {TEXT}" in out
    server.close()
    out = run("swap_backends.py", capsys, "--tgi", server.url, monkeypatch=monkeypatch)
    lines = dict(line.split(": ", 1) for line in out.strip().splitlines() if ": " in line)
    assert lines["tgi, or else local"] == lines["local"]
    assert len(lines["local"].split()) > 10
    assert "cannot be reached" in lines["tgi"]


def test_the_launch_example(capsys, monkeypatch, launcher_on_path):
    answers = iter(["Hello", "And now?", ""])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(answers))
    arguments = ("--engine", "tgi", "--model-id", "fake", "--speculate", "2")
    out = run("launch_server.py", capsys, *arguments, monkeypatch=monkeypatch)
    assert out.count(TEXT) == 2
    assert "loading the model" in out
