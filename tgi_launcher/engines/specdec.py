"""This distribution's own engine: `specdec serve`."""

from __future__ import annotations

import re

from tgi_launcher.engines.facts import EngineFacts, FailureRule, Method, Speculation
from tgi_launcher.engines.vllm import METRICS
from tgi_launcher.errors import Reason


def _ngram(speculation: Speculation) -> tuple[str, ...]:
    return "--drafter", "prompt_lookup", "--max-draft-tokens", str(speculation.num_tokens)


def _draft_model(speculation: Speculation) -> tuple[str, ...]:
    return "--draft-model", str(speculation.model), "--max-draft-tokens", str(speculation.num_tokens)


def _error(says: str) -> re.Pattern[str]:
    return re.compile(rf"^error: ({says})", re.MULTILINE)


FACTS = EngineFacts(
    name="specdec",
    title="specdec",
    program=("specdec", "serve"),
    install="install langchain-specdec with the extras cli and serve",
    first_port=8000,
    model=lambda model: (model,),
    flags={
        "hostname": "--host",
        "port": "--port",
        "revision": "--revision",
        "dtype": "--dtype",
        "max_total_tokens": "--max-length",
        "trust_remote_code": "--trust-remote-code",
    },
    speculation={Method.NGRAM: _ngram, Method.DRAFT_MODEL: _draft_model},
    lacks={
        "num_shard": "it spreads a model over GPUs by extra_args=('--device-map', 'auto')",
        "image": "build one with the Dockerfile of its repository (docker build -t specdec .) and give "
        "docker_image='specdec'",
    },
    default_tokens=10,
    # Unasked, it drafts by n-grams and trees.
    no_speculation=("--drafter", "none"),
    module="langchain_specdec",
    key_variable="SPECDEC_API_KEY",
    variables={"PYTHONUNBUFFERED": "1"},
    option_variables=re.compile(r"SPECDEC_API_KEY"),
    metrics=METRICS,
    serving=re.compile(r"^Serving .* on http://"),
    failures=(
        FailureRule(Reason.INCOMPLETE_INSTALLATION, _error(r"specdec serve needs .*"), "{0}."),
        FailureRule(Reason.MODEL_NOT_FOUND, _error(r"(?:Cannot load|There is no (?:file|folder|model)) .*"), "{0}."),
        FailureRule(Reason.INVALID_ARGUMENTS, _error(r"(?:No such option|--[\w-]+ must ).*"), "{0}."),
    ),
    # It gives running requests 90 of them.
    drain_seconds=100.0,
)
