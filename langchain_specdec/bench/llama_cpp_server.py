"""llama.cpp's server in a process of its own, by the package xllamacpp.

Beside PyTorch in one process it would run at half its speed: both have threads by GNU's OpenMP, which has them sleep,
and not spin, where there are more of them than cores. So the process runs the text of this file, which imports nothing
of this package.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Mapping
from typing import Any


def start(options: Mapping[str, Any]) -> Any:
    """A server in this process.

    Args:
        options: `gguf`, the model's file; `num_slots`; `max_length`, positions of a slot; `num_threads`; `speculation`,
            its kind of drafts, or ""; `key`, what it has to be asked with.
    """
    # The package is optional and has no types, so it is imported by name.
    xllamacpp = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = options["gguf"]
    params.n_ctx = options["num_slots"] * options["max_length"]
    params.n_parallel = options["num_slots"]
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options["num_threads"]
    # Every run reads its whole prompt, and nobody else may ask.
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.api_keys = [options["key"]]
    params.ui = False
    params.verbosity = 0
    if options["speculation"]:
        kind = "COMMON_SPECULATIVE_TYPE_" + options["speculation"].upper().replace("-", "_")
        params.speculative.types = [getattr(xllamacpp.common_speculative_type, kind)]
    return xllamacpp.Server(params)


def main() -> None:
    """What the process does: it takes options from standard input, tells its address, and runs until that ends."""
    address = os.dup(1)
    # What llama.cpp writes itself is not the address.
    os.dup2(2, 1)
    server = start(json.loads(sys.stdin.readline()))
    os.write(address, f"{server.listening_address}\n".encode())
    sys.stdin.read()
    # Whatever it does at the moment.
    os._exit(0)


if __name__ == "__main__":
    import signal

    # Ctrl-C reaches this process too. Its parent ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main()
