"""Measures the figures of docs/benchmarks.md for a CPU, each by `specdec bench`: on a machine that does nothing else.

    python -m tools.cpu_figures spec_bench.jsonl [NAME ...]

Each figure's JSON goes beside the page. Without names all are measured, in a quarter of an hour on two cores.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "docs/benchmarks"
_SPECDEC = [sys.executable, "-c", "from langchain_specdec.cli import main; main()"]
_EIGHT = "--category writing --category coding --category extraction --category translation --category summarization " \
    "--category qa --category math_reasoning --category rag --limit 1 --max-new-tokens 64"  # fmt: skip
_BATCH = "--category qa --ignore-eos --max-new-tokens 64"

FIGURES = {
    "cpu-gguf": "--limit 1 --max-new-tokens 96 --repeat 2 --contestants plain,auto,llama-cpp,llama-cpp-lookup",
    "cpu/peers": "--limit 1 --max-new-tokens 64 "
    "--contestants plain,auto,hf,hf-prompt-lookup:10,economize --baseline hf",
    "cpu/auto": "--limit 4 --max-new-tokens 96 --repeat 3 --contestants plain,auto",
    "cpu/quiet": f"{_EIGHT} --contestants plain,llama-cpp",
    "cpu/one-neighbour": f"{_EIGHT} --contestants plain,llama-cpp --neighbours 1",
    "cpu/two-neighbours": f"{_EIGHT} --contestants plain,llama-cpp --neighbours 2",
    "cpu/two-engines": f"{_EIGHT} --contestants plain --neighbour-engines 1",
    "cpu/eight-at-once": f"{_BATCH} --limit 16 --batch 8 --contestants auto@1,plain,auto,llama-cpp --baseline auto@1",
    "cpu/batch-8": f"{_BATCH} --limit 16 --batch 8 --repeat 3 --contestants plain,auto",
    "cpu/batch-32": f"{_BATCH} --limit 32 --batch 32 --repeat 3 --contestants plain,auto",
    "cpu/prefill-700": "--category rag --limit 4 --max-prompt-tokens 700 --max-new-tokens 2 --repeat 2 "
    "--contestants plain,llama-cpp,hf",
    "cpu/start-up": "--startup --repeat 3 --contestants plain,auto,llama-cpp",
    "cpu/memory": "--memory --category summarization --limit 1 --max-new-tokens 32 "
    "--contestants plain,auto,hf,llama-cpp",
}
"""Options of `specdec bench`, by the file that takes what it prints."""
_WITHOUT_WORKLOAD = ("cpu/start-up",)


def command(name: str, workload: str) -> list[str]:
    """Options of a figure's measurement."""
    return [*FIGURES[name].split(), *([] if name in _WITHOUT_WORKLOAD else ["--workload", workload]), "--json"]


def main(arguments: Sequence[str]) -> int:
    """Measure figures; 1 where one failed.

    Args:
        arguments: Spec-Bench's file of questions, and the names of figures.
    """
    names = list(arguments[1:]) or list(FIGURES)
    if not arguments or not set(names) <= set(FIGURES):
        print(f"python -m tools.cpu_figures QUESTIONS.jsonl [{' | '.join(FIGURES)}]", file=sys.stderr)
        return 2
    code = 0
    for name in names:
        path = FOLDER / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        started = time.monotonic()
        ran = subprocess.run([*_SPECDEC, "bench", *command(name, arguments[0])], stdout=subprocess.PIPE, check=False)
        if ran.stdout.strip():
            path.write_bytes(ran.stdout)
        print(f"{name}: {time.monotonic() - started:.0f} s, code {ran.returncode}", file=sys.stderr, flush=True)
        code = code or ran.returncode
    return int(code != 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
