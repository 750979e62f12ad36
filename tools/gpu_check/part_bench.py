"""This engine and its peers on the same random weights: `specdec bench`."""

from __future__ import annotations

from importlib.util import find_spec

from tools.gpu_check.bench_runs import run_bench
from tools.gpu_check.check import Check
from tools.gpu_check.child import LeftOutError

TARGET = "--model random:qwen1.5-1.8b"
FEW = "--category summarization --repeat 3"
_EIGHT = "--model random:llama-8b"


def common(check: Check) -> str:
    """What all measurements have in common. On a CPU, layers would be compiled, which takes minutes."""
    limits = "--limit 1 --max-prompt-tokens 200 --max-new-tokens 128"
    return limits + str(check.pick(" --dtype bfloat16 --compile reduce-overhead", ""))


def pair(check: Check) -> None:
    """A model and its draft model of as many layers; then the peer that compiles, which takes most of a minute."""
    draft = "--draft-model random:qwen1.5-0.5b"
    contestants = "--contestants plain,plain@8,auto,draft_model:2,synthetic,hf"
    run_bench(check, "pair", f"{TARGET} {draft} {common(check)} {contestants}")
    _beside_compiled(check, "pair", TARGET, FEW)


def flashspec(check: Check) -> None:
    """The peer that speculates too."""
    if find_spec("flashspec") is None:
        raise LeftOutError("flashspec is not installed")
    contestants = "--contestants plain,auto,flashspec --baseline flashspec"
    run_bench(check, "flashspec", f"{TARGET} {common(check)} {FEW} {contestants}")


def eight(check: Check) -> None:
    """A large model with a small one of fewer layers."""
    contestants = "--contestants plain,draft_model:3,synthetic,hf,hf-assisted"
    repeated = "--category summarization --repeat 2"
    run_bench(check, "eight", f"{_EIGHT} --draft-model random:llama-1b {common(check)} {repeated} {contestants}")
    _beside_compiled(check, "eight", _EIGHT, repeated)


def _beside_compiled(check: Check, name: str, target: str, runs: str) -> None:
    """The target beside the peer that compiles, which would take minutes on a CPU."""
    if not check.is_rehearsal:
        run_bench(check, f"{name} compiled", f"{target} {common(check)} {runs} --contestants plain,hf-compiled")
