"""A fresh process that summarises a text with the embedded model: what it takes beside PyTorch and transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from langchain_specdec.models import embedded
from langchain_specdec.runner.cpu.decoder_trial import native_library

_STATUS = Path("/proc/self/status")

pytestmark = [
    pytest.mark.process,
    pytest.mark.embedded,
    pytest.mark.skipif(embedded.gguf_file() is None, reason="the embedded model is not installed"),
    pytest.mark.skipif(native_library() is None, reason="there is no native decoder on this machine"),
    pytest.mark.skipif(
        not _STATUS.exists() or "VmHWM" not in _STATUS.read_text(encoding="ascii"), reason="this system does not tell"
    ),
]
_PROGRAM = """
import json
from pathlib import Path
import torch, transformers

def kilobytes(name):
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

start = kilobytes("VmRSS")
from langchain_specdec import LocalBackend
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.sampling.params import SamplingParams

# Each thread has buffers of its own.
backend = LocalBackend("embedded", drafter="none", num_slots=1, num_threads=2)
text = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 45
request = CompletionRequest(text, SamplingParams(max_new_tokens=32, ignore_eos=True))
(completion,) = backend.complete([request])
print(json.dumps({
    "own": 1024 * (kilobytes("VmHWM") - start),
    "slots": backend.engine.runner.cache.num_bytes,
    "tokens": len(backend.token_ids(text)) + len(completion.tokens),
}))
"""


def test_a_summary_takes_little_beside_the_weights_and_the_slots() -> None:
    command = [sys.executable, "-c", _PROGRAM]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)  # noqa: S603
    found = json.loads(done.stdout.splitlines()[-1])
    file = embedded.gguf_file()
    assert file is not None
    weights = file.stat().st_size
    assert 700 < found["tokens"] < 900
    # 1.66 times the file: some 20 MB are the decoder's buffers, 14 the tokenizer, 19 libraries. A second tokenizer
    # would take 35 MB more.
    assert weights < found["own"] - found["slots"] < 1.8 * weights
