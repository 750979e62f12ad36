"""SGLang: `sglang serve`, as of 0.5.23."""

from __future__ import annotations

import re

from tgi_launcher.engines.facts import EngineFacts, Method, MetricNames, Speculation
from tgi_launcher.logs import Stage


def _ngram(speculation: Speculation) -> tuple[str, ...]:
    return "--speculative-algorithm", "NGRAM", "--speculative-num-draft-tokens", str(speculation.num_tokens)


def _chain(algorithm: str, speculation: Speculation) -> tuple[str, ...]:
    """Drafts that do not branch: the token that is known is counted as a draft token, too."""
    return (
        *("--speculative-algorithm", algorithm, "--speculative-draft-model-path", str(speculation.model)),
        *("--speculative-num-steps", str(speculation.num_tokens), "--speculative-eagle-topk", "1"),
        *("--speculative-num-draft-tokens", str(speculation.num_tokens + 1)),
    )


FACTS = EngineFacts(
    name="sglang",
    title="SGLang",
    program=("sglang", "serve"),
    install="install it (pip install sglang)",
    first_port=30000,
    model=lambda model: ("--model-path", model),
    flags={
        "hostname": "--host",
        "port": "--port",
        "revision": "--revision",
        "dtype": "--dtype",
        "max_total_tokens": "--context-length",
        "num_shard": "--tp-size",
        "trust_remote_code": "--trust-remote-code",
    },
    speculation={
        Method.NGRAM: _ngram,
        Method.DRAFT_MODEL: lambda speculation: _chain("STANDALONE", speculation),
        Method.EAGLE3: lambda speculation: _chain("EAGLE3", speculation),
    },
    lacks={
        "api_key": "it takes a key on its command line only, where every user of this machine can read it",
    },
    always=("--enable-metrics",),
    variables={"PYTHONUNBUFFERED": "1"},
    metrics=MetricNames(
        generated="sglang:generation_tokens",
        requests="sglang:num_requests",
        verified="sglang:spec_verify_calls",
        running="sglang:num_running_reqs",
        waiting="sglang:num_queue_reqs",
    ),
    record=re.compile(
        r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?: [^\]]*)?\] (?:(?P<level>INFO|WARNING|ERROR):? +)?(?P<message>.*)"
    ),
    stages=(
        (re.compile(r"^server_args="), Stage.LAUNCH),
        (re.compile(r"^Load weight begin|^Loading safetensors"), Stage.SHARDS),
        (re.compile(r"^Load weight end|^KV Cache is allocated|^Capture \w+ graph"), Stage.WARM_UP),
        (re.compile(r"Started server process|Uvicorn running"), Stage.ROUTER),
    ),
    serving=re.compile(r"Uvicorn running|fired up and ready to roll"),
)
