"""A fresh process with the embedded model: what is imported until its first token, and that it takes no PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from langchain_specdec.models import embedded
from langchain_specdec.runner.cpu.decoder_trial import native_library

pytestmark = [
    pytest.mark.process,
    pytest.mark.embedded,
    pytest.mark.skipif(embedded.gguf_file() is None, reason="the embedded model is not installed"),
    pytest.mark.skipif(native_library() is None, reason="there is no native decoder on this machine"),
]
_PROGRAM = """
import json, sys, time
import torch
started = time.process_time()
from langchain_specdec import SpeculativeLLM
llm = SpeculativeLLM.from_model_id("embedded", max_new_tokens=1)
text = llm.invoke("The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 3)
seconds = time.process_time() - started
heavy = [
    name for name in sys.modules
    if name.partition(".")[0] == "sympy" or name.startswith(("torch._dynamo", "torch._inductor"))
    or (name.startswith("transformers.models.") and ".modeling" in name)
    or name in ("transformers.modeling_utils", "transformers.configuration_utils", "transformers.generation")
]
runner = type(llm.backend.engine.runner).__name__
print(json.dumps({"text": text, "seconds": seconds, "heavy": heavy, "runner": runner}))
"""


def test_the_first_token_takes_none_of_the_model_code_of_transformers() -> None:
    command = [sys.executable, "-c", _PROGRAM]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)  # noqa: S603
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["runner"] == "NativeRunner"
    assert found["text"]
    assert found["heavy"] == []
    # Two seconds of processor time, mostly imports, where nothing else runs. Processors beside busy ones are slower.
    assert found["seconds"] < 10
