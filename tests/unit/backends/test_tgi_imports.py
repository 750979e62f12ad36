"""What a client of a server needs not import: PyTorch, transformers, LangChain's models take seconds and gigabytes."""

from __future__ import annotations

import subprocess
import sys

import pytest

# The errors need `langchain_core.exceptions`, which takes milliseconds.
HEAVY = ("torch", "transformers", "langchain_core.messages", "langchain_core.runnables", "langsmith")


@pytest.mark.process
@pytest.mark.parametrize(
    "statement",
    [
        "import langchain_specdec",
        "import langchain_specdec.backends.tgi",
        "from langchain_specdec import OpenAIBackend; OpenAIBackend('http://127.0.0.1:9')",
        "from langchain_specdec.sampling.params import SamplingParams",
        "import langchain_specdec.server.tgi.routes, langchain_specdec.server.guard",
        "from langchain_specdec import Grammar, SamplingParams, TGIBackend; TGIBackend('http://127.0.0.1:9')",
    ],
)
def test_it_is_imported_without_what_runs_a_model(statement: str) -> None:
    code = f"import sys\n{statement}\nprint([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)  # noqa: S603
    assert done.stdout.strip() == "[]"
