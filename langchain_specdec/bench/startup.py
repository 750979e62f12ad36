"""Time from a fresh process to the first token, each contestant in processes of its own, as a user's program has it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

from langchain_specdec.bench.contestant import ContestantSpec
from langchain_specdec.errors import InvalidParameterError, SpecDecError

# Ctrl-C reaches this process too. It ignores the signal, as its parent ends it.
_CHILD = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "from langchain_specdec.bench.startup import main; main()"
)
PROMPT = (
    "A lighthouse keeper wrote a letter to his sister about the winter storms, the ships that passed in the night, and "
    "the birds that rested on the rocks below the tower. She answered that in the city nobody could see the "
    "stars for all the lamps"
)
"""What is completed: some 50 tokens."""


@dataclass(frozen=True)
class StartUp:
    """What a contestant took to begin.

    Attributes:
        contestant: Who.
        seconds: From the end of `import torch` to the first token, its own imports and loading included, for each
            process.
        process_seconds: From the start of the process.
        failure: Why there are no figures; "" where there are.
    """

    contestant: str
    seconds: tuple[float, ...] = ()
    process_seconds: tuple[float, ...] = ()
    failure: str = ""


def check_startup(specs: Sequence[ContestantSpec], model: str) -> None:
    """Raise unless it can be measured for these.

    Raises:
        InvalidParameterError: For one it cannot.
        ModelLoadError: The model is certainly not where its name says.
    """
    # Here, as the process that is measured imports this module before its clock starts.
    from langchain_specdec.models.model_source import check_source, means_gguf

    if unknown := [repr(spec.name) for spec in specs if spec.kind not in _PROGRAMS or spec.concurrency]:
        msg = f"--startup measures {', '.join(_PROGRAMS)}, one prompt at a time; got {', '.join(unknown)}."
        raise InvalidParameterError(msg)
    if model.startswith("random:"):
        msg = f"--startup measures how long a model takes to load, and {model} is made up. Give another model."
        raise InvalidParameterError(msg)
    if means_gguf(model) and any(spec.kind == "hf" for spec in specs):
        msg = f"transformers would dequantise {model} first: leave 'hf' out, or give the model that it was made from."
        raise InvalidParameterError(msg)
    check_source(model)


def sources(model: str, specs: Sequence[ContestantSpec]) -> dict[str, str]:
    """What each kind of contestant loads, for `measure_startup`.

    Raises:
        SpecDecError: One has nothing to load.
    """
    from langchain_specdec.bench.weights import gguf_file
    from langchain_specdec.models import embedded

    found = {"ours": model, "peer": model}
    if any(spec.is_gguf for spec in specs):
        found["gguf"] = gguf_file(model)
    if model == embedded.EMBEDDED_MODEL_ID and any(spec.is_peer for spec in specs):
        found["peer"] = str(embedded.model_path())
    return found


def measure_startup(spec: ContestantSpec, models: Mapping[str, str], repeat: int) -> StartUp:
    """Start a contestant so many times.

    Args:
        spec: Which one.
        models: What to load, as `sources` finds it.
        repeat: How often. One more start before these, which is not counted, brings the files into the page cache.
    """
    asked = json.dumps({"kind": spec.kind, "models": dict(models)})
    seconds, process_seconds = [], []
    for number in range(repeat + 1):
        started = time.time()
        child = subprocess.run(  # noqa: S603 - this very interpreter and a constant
            [sys.executable, "-c", _CHILD], input=asked, stdout=subprocess.PIPE, text=True, check=False
        )
        try:
            told = json.loads(child.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            told = {"failure": f"its process ended with code {child.returncode}; see above for why"}
        if failure := told.get("failure"):
            return StartUp(spec.name, failure=failure)
        if number:
            seconds.append(float(told["seconds"]))
            process_seconds.append(told["at"] - started)
    return StartUp(spec.name, tuple(seconds), tuple(process_seconds))


def main() -> None:
    """What the process does: it takes what to run from standard input, and prints when the first token was there.

    Or why there is none: a failure to load ends up here, any other with a traceback.
    """
    asked = json.loads(sys.stdin.read())
    with redirect_stdout(sys.stderr):
        import torch  # noqa: F401 - what it takes is not counted

        started = time.perf_counter()
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            close = _PROGRAMS[asked["kind"]](asked["models"])
        except (SpecDecError, RuntimeError, OSError) as error:
            told: dict[str, Any] = {"failure": " ".join(str(error).split())}
        else:
            told = {"seconds": time.perf_counter() - started, "at": time.time()}
            close()
    sys.stdout.write(json.dumps(told) + "\n")


def _ours(drafter: str) -> Callable[[Mapping[str, str]], Callable[[], Any]]:
    def run(models: Mapping[str, str]) -> Callable[[], Any]:
        from langchain_specdec import SpeculativeLLM

        llm = SpeculativeLLM.from_model_id(models["ours"], device="cpu", drafter=drafter)  # type: ignore[arg-type]
        stream = llm.stream(PROMPT)
        next(stream)
        return stream.close  # type: ignore[attr-defined, no-any-return]

    return run


def _hf(models: Mapping[str, str]) -> Callable[[], Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(models["peer"])
    model = AutoModelForCausalLM.from_pretrained(models["peer"])
    model.generate(**tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=1)
    return lambda: None


def _llama_cpp(models: Mapping[str, str]) -> Callable[[], Any]:
    from importlib import import_module

    from langchain_specdec.models.memory import default_threads

    xllamacpp = import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = models["gguf"]
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = default_threads()
    params.verbosity = 0
    server = xllamacpp.Server(params)
    server.handle_completions({"prompt": PROMPT, "max_tokens": 1, "temperature": 0})
    return lambda: None


_PROGRAMS: Mapping[str, Callable[[Mapping[str, str]], Callable[[], Any]]] = {
    "plain": _ours("none"),
    "auto": _ours("auto"),
    "hf": _hf,
    "llama-cpp": _llama_cpp,
}
