"""llama.cpp: its `llama-server`, as of build 11549."""

from __future__ import annotations

import re

from tgi_launcher.engines.facts import EngineFacts, FailureRule, Images, Method, MetricNames, Speculation
from tgi_launcher.errors import Reason
from tgi_launcher.logs import Stage

_NGRAM = 4
_IS_FILE = re.compile(r".*\.gguf", re.IGNORECASE)


def _model(model: str) -> tuple[str, str]:
    return "--model" if _IS_FILE.fullmatch(model) else "--hf-repo", model


def _ngram(speculation: Speculation) -> tuple[str, ...]:
    num_tokens = speculation.num_tokens
    # Where the n-gram that is looked up, of 12 tokens unless said otherwise, is longer than the draft, there is none.
    size = min(_NGRAM, num_tokens)
    return (
        *("--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", str(size)),
        *("--spec-ngram-simple-size-m", str(num_tokens)),
    )


def _drafted(kind: str, speculation: Speculation) -> tuple[str, ...]:
    model = str(speculation.model)
    flag = "--spec-draft-model" if _IS_FILE.fullmatch(model) else "--spec-draft-hf"
    return "--spec-type", kind, flag, model, "--spec-draft-n-max", str(speculation.num_tokens)


FACTS = EngineFacts(
    name="llama-cpp",
    title="llama.cpp",
    program=("llama-server",),
    install="install llama.cpp",
    first_port=8080,
    model=_model,
    flags={"hostname": "--host", "port": "--port", "max_total_tokens": "--ctx-size"},
    speculation={
        Method.NGRAM: _ngram,
        Method.DRAFT_MODEL: lambda speculation: _drafted("draft-simple", speculation),
        Method.EAGLE3: lambda speculation: _drafted("draft-eagle3", speculation),
    },
    lacks={
        "num_shard": "it splits a model over all GPUs that it sees, so give devices",
        "pipeline_parallel_size": "it splits a model over all GPUs that it sees, so give devices",
        "nnodes": "it reaches other machines by its rpc-server, so give extra_args=('--rpc', 'HOST:PORT')",
        "folder": "a GGUF file for llama.cpp, or a model id of the Hub",
        "dtype": "a GGUF file has its own",
        "revision": "give a file, or the name of a quantization behind the id, as in owner/name:Q4_K_M",
    },
    always=("--metrics", "--jinja"),
    key_variable="LLAMA_API_KEY",
    # Images are made once a day, and not of each build.
    images=Images("ghcr.io/ggml-org/llama.cpp:server-cuda-b11429", "ghcr.io/ggml-org/llama.cpp:server-b11429"),
    option_variables=re.compile(r"LLAMA_(?:ARG_\w+|API_KEY)"),
    metrics=MetricNames(
        generated="llamacpp:tokens_predicted",
        accepted="llamacpp:spec_decode_num_accepted_tokens",
        drafted="llamacpp:spec_decode_num_draft_tokens",
        running="llamacpp:requests_processing",
        waiting="llamacpp:requests_deferred",
    ),
    # Time since its start, level, part of it and function.
    record=re.compile(r"\d+\.\d\d\.\d{3}\.\d{3} (?P<level>[DIWE]) (?P<message>.*)"),
    stages=(
        (re.compile(r"\bbuild(?:_info)?:|system_info:"), Stage.LAUNCH),
        (re.compile(r"(?i:\bdownloading\b)"), Stage.DOWNLOAD),
        (re.compile(r": loading model"), Stage.SHARDS),
        (re.compile(r": model loaded"), Stage.ROUTER),
    ),
    # It opens its port before it loads the model, but answers nothing then.
    serving=re.compile(r": (?:model loaded|(?:server is )?listening on http)"),
    failures=(
        FailureRule(
            Reason.INVALID_ARGUMENTS,
            re.compile(r"^error: (.*argument.*)", re.MULTILINE),
            "llama-server does not take an option that it was given, so it may be of another version: {0}.",
        ),
        FailureRule(
            Reason.PORT_TAKEN, re.compile(r"(?i:couldn't bind|failed to bind)"), "Port {port} is taken: somebody else "
            "bound it in the meantime.",
        ),
        FailureRule(
            Reason.MODEL_NOT_FOUND,
            re.compile(r"(?:error loading model|failed to load model): *(.*)"),
            "llama.cpp cannot load {model}: {0}.",
        ),
    ),
)  # fmt: skip
