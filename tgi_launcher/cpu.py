"""What TGI needs to run a model on a CPU, and what it cannot do there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

# Set by `cpu=True`, beside the option `--cuda-graphs 0`. Without them TGI looks for kernels that need a GPU, and finds
# out when the model is loaded. Intel's own attention crashes with speculation.
VARIABLES = {"ATTENTION": "paged", "PREFIX_CACHING": "0"}
_CUDA_GRAPHS = (0,)
IMAGE_SUFFIX = "-intel-cpu"
# A kernel for CPUs is there for these only.
_QUANTIZATIONS = (None, "awq", "gptq")
HINT = "on a CPU TGI needs ATTENTION=paged, PREFIX_CACHING=0 and --cuda-graphs 0: cpu=True sets them"


def wants_cpu(given: Mapping[str, Any]) -> bool:
    """Whether the fields of a TGIConfig, before they are validated, ask for a CPU."""
    try:
        return TypeAdapter(bool).validate_python(given.get("cpu"))
    except ValidationError:  # which is told with the field
        return False


def with_cpu_settings(given: dict[str, Any], default_image: str) -> dict[str, Any]:
    """The fields of a TGIConfig with what a CPU needs, where they are left out."""
    env = given.get("env")
    if isinstance(env, Mapping) or env is None:
        given = {**given, "env": {**VARIABLES, **(env or {})}}
    own = {
        "num_shard": 1,
        "cuda_graphs": _CUDA_GRAPHS,
        "docker_gpus": False,
        "docker_image": default_image + IMAGE_SUFFIX,
    }
    return {**given, **{name: value for name, value in own.items() if given.get(name) is None}}


def cpu_conflict(config: Any) -> str | None:
    """What of a TGIConfig with `cpu=True` cannot be had on a CPU, in one sentence."""
    wrong = [
        (config.devices is not None, "devices must be left out: they are GPUs"),
        (config.num_shard != 1, f"num_shard must be 1, got {config.num_shard}"),
        (config.cuda_graphs != _CUDA_GRAPHS, "cuda_graphs must be 0, or left out"),
        (config.cuda_memory_fraction is not None, "cuda_memory_fraction is of GPUs: leave it out"),
        (config.kv_cache_dtype is not None, f"kv_cache_dtype={config.kv_cache_dtype!r} needs a GPU: leave it out"),
        (
            config.quantize not in _QUANTIZATIONS,
            f"quantize={config.quantize!r} needs a GPU: only awq and gptq run on a CPU",
        ),
        (config.docker_gpus, "docker_gpus must be off, or left out"),
        (
            bool(config.env.get("CUDA_VISIBLE_DEVICES")),
            "env may not set CUDA_VISIBLE_DEVICES, since TGI would take a GPU that it sees: leave it out",
        ),
        *(
            (config.env.get(name) != value, f"env may not set {name} to {config.env.get(name)!r}: it has to be {value}")
            for name, value in VARIABLES.items()
        ),
    ]
    return next((f"With cpu, {sentence}." for is_wrong, sentence in wrong if is_wrong), None)
