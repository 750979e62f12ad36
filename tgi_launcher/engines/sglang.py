"""SGLang: `sglang serve`, as of 0.5.23."""

from __future__ import annotations

import re

from tgi_launcher.engines.facts import EngineFacts, Images, Machines, Method, MetricNames, Speculation
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


def _machines(machines: Machines) -> tuple[str, ...]:
    address = f"[{machines.address}]" if ":" in machines.address else machines.address
    return (
        *("--nnodes", str(machines.num_nodes), "--node-rank", str(machines.rank)),
        *("--dist-init-addr", f"{address}:{machines.port}"),
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
        "data_parallel_size": "--dp-size",
        "pipeline_parallel_size": "--pp-size",
        "trust_remote_code": "--trust-remote-code",
    },
    speculation={
        Method.NGRAM: _ngram,
        Method.DRAFT_MODEL: lambda speculation: _chain("STANDALONE", speculation),
        Method.EAGLE3: lambda speculation: _chain("EAGLE3", speculation),
    },
    key_file_option="--config",
    images=Images("lmsysorg/sglang:v0.5.23", words=("sglang", "serve"), shm_size="32g"),
    machines=_machines,
    followers_answer=True,
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
