"""`llama-server` on the package xllamacpp: llama.cpp's own server, with the options that the launcher gives.

What it says of an option that it does not take is as in llama.cpp's common/arg.cpp; the log is llama.cpp's own. SIGTERM
ends it at once, as the package has no other way.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from typing import Any, NoReturn


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split()[0]
        sys.exit(f"error: invalid argument: {unknown}")


def _options() -> argparse.Namespace:
    parser = _Parser(allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ctx-size", type=int, default=2048)
    parser.add_argument("--metrics", action="store_true")
    parser.add_argument("--jinja", action="store_true")
    parser.add_argument("--spec-type", default="")
    parser.add_argument("--spec-ngram-simple-size-n", type=int)
    parser.add_argument("--spec-ngram-simple-size-m", type=int)
    parser.add_argument("--spec-draft-model")
    parser.add_argument("--spec-draft-n-max", type=int)
    return parser.parse_args()


def _params(options: argparse.Namespace, xllamacpp: Any) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.hostnames, params.port = [options.host], options.port
    params.n_ctx, params.n_parallel, params.n_gpu_layers = options.ctx_size, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.endpoint_metrics, params.use_jinja, params.ui = options.metrics, options.jinja, False
    params.cache_ram_mib = 0
    if key := os.environ.get("LLAMA_API_KEY"):
        params.api_keys = [key]
    if options.spec_type:
        kind = "COMMON_SPECULATIVE_TYPE_" + options.spec_type.upper().replace("-", "_")
        params.speculative.types = [getattr(xllamacpp.common_speculative_type, kind)]
    if options.spec_ngram_simple_size_n:
        params.speculative.ngram_simple.size_n = options.spec_ngram_simple_size_n
    if options.spec_ngram_simple_size_m:
        params.speculative.ngram_simple.size_m = options.spec_ngram_simple_size_m
    if options.spec_draft_model:
        params.speculative.draft.mparams.path = options.spec_draft_model
    if options.spec_draft_n_max:
        params.speculative.draft.n_max = options.spec_draft_n_max
    return params


def main() -> None:
    """Serve until a signal comes."""
    options = _options()
    xllamacpp = importlib.import_module("xllamacpp")
    for number in (signal.SIGTERM, signal.SIGINT):
        # Its threads hold Python up, so nothing is cleaned up.
        signal.signal(number, lambda *_: os._exit(0))
    try:
        # Kept, as it ends when nothing refers to it.
        server = xllamacpp.Server(_params(options, xllamacpp))
    except RuntimeError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    while server:
        signal.pause()


if __name__ == "__main__":
    main()
