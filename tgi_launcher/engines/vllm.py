"""vLLM: `vllm serve`, as of 0.32."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from tgi_launcher.engines.facts import EngineFacts, FailureRule, Images, Machines, Method, MetricNames, Speculation
from tgi_launcher.errors import Reason
from tgi_launcher.logs import Stage


def _config(method: str, **more: object) -> Callable[[Speculation], tuple[str, str]]:
    """The option for a method of vLLM's, whose name differs from ours by a hyphen at most."""

    def arguments(speculation: Speculation) -> tuple[str, str]:
        given: dict[str, object] = {"method": method, "num_speculative_tokens": speculation.num_tokens, **more}
        if speculation.model is not None:
            given["model"] = speculation.model
        return "--speculative-config", json.dumps(given)

    return arguments


def _machines(machines: Machines) -> tuple[str, ...]:
    return (
        *("--nnodes", str(machines.num_nodes), "--node-rank", str(machines.rank)),
        *("--master-addr", machines.address, "--master-port", str(machines.port)),
        *(("--headless",) if machines.rank else ()),
    )


METRICS = MetricNames(
    generated="vllm:generation_tokens",
    requests="vllm:request_success",
    accepted="vllm:spec_decode_num_accepted_tokens",
    drafted="vllm:spec_decode_num_draft_tokens",
    running="vllm:num_requests_running",
    waiting="vllm:num_requests_waiting",
)

FACTS = EngineFacts(
    name="vllm",
    title="vLLM",
    program=("vllm", "serve"),
    install="install it (pip install vllm)",
    first_port=8000,
    model=lambda model: (model,),
    flags={
        "hostname": "--host",
        "port": "--port",
        "revision": "--revision",
        "dtype": "--dtype",
        "max_total_tokens": "--max-model-len",
        "num_shard": "--tensor-parallel-size",
        "data_parallel_size": "--data-parallel-size",
        "pipeline_parallel_size": "--pipeline-parallel-size",
        "trust_remote_code": "--trust-remote-code",
    },
    speculation={
        # Without a lower end, vLLM looks up n-grams of the upper one's length only.
        Method.NGRAM: _config("ngram", prompt_lookup_min=2, prompt_lookup_max=4),
        Method.SUFFIX: _config("suffix"),
        Method.DRAFT_MODEL: _config("draft_model"),
        Method.EAGLE3: _config("eagle3"),
        Method.MEDUSA: _config("medusa"),
    },
    when_speculating=("--per-request-spec-decode-metrics", "summary"),
    key_variable="VLLM_API_KEY",
    images=Images("vllm/vllm-openai:v0.32.0", "vllm/vllm-openai-cpu:v0.32.0", shm_size="16g"),
    machines=_machines,
    # It would tell its makers how it is used.
    variables={"PYTHONUNBUFFERED": "1", "VLLM_NO_USAGE_STATS": "1"},
    option_variables=re.compile(r"VLLM_(?:API_KEY|PORT|HOST_IP)"),
    metrics=METRICS,
    record=re.compile(
        r"(?:\([\w ]+pid=\d+\) )?(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL):? "
        r"+(?:\d\d-\d\d \d\d:\d\d:\d\d )?(?P<message>.*)"
    ),
    stages=(
        (re.compile(r"vLLM API server version|non-default args"), Stage.LAUNCH),
        (re.compile(r"Starting to load model|Loading safetensors|Loading weights took"), Stage.SHARDS),
        (re.compile(r"[Mm]emory profiling|torch\.compile takes|Capturing|Warming up|init engine"), Stage.WARM_UP),
        (re.compile(r"Starting vLLM API server|Started server process"), Stage.ROUTER),
    ),
    serving=re.compile(r"Application startup complete"),
    failures=(
        FailureRule(
            Reason.SPECULATION_UNSUPPORTED,
            re.compile(r"Arctic Inference is required|arctic-inference"),
            "vLLM needs another package to speculate by suffixes: pip install arctic-inference.",
        ),
        FailureRule(
            Reason.OUT_OF_MEMORY,
            re.compile(r"No available memory for the cache blocks|larger than the available KV cache memory"),
            "vLLM has no memory left for keys and values beside {model}: set a smaller max_total_tokens.",
        ),
        FailureRule(
            Reason.INVALID_ARGUMENTS,
            re.compile(r"User-specified max_model_len \((\d+)\) is greater than the derived max_model_len \D*(\d+)"),
            "max_total_tokens={0} is more than {model} was made for ({1}): set a smaller one.",
        ),
    ),
)  # fmt: skip
