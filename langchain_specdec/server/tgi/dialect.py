"""What servers behind TGI's interface may do each in its own way: limits, rules, and what they call themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_specdec._version import __version__
from langchain_specdec.server.tgi.fields import Limits
from langchain_specdec.server.tgi.frames import StopEnd


@dataclass(frozen=True)
class Dialect:
    """How a server speaks TGI's interface. This one's own way is the default.

    Attributes:
        limits: What it takes.
        router: What it calls itself.
        version: Its version.
        validation_workers: How many prompts it encodes at a time.
        make_end: Makes what ends a text at stop strings.
    """

    limits: Limits
    router: str = "specdec"
    version: str = __version__
    validation_workers: int = 1
    make_end: Callable[[Sequence[str]], StopEnd] = StopEnd

    def info(self, model_name: str) -> dict[str, Any]:
        """The answer of `/info`."""
        limits = self.limits
        return {
            # Clients of TGI find the tokenizer by it.
            "model_id": model_name,
            "model_sha": None,
            "model_pipeline_tag": None,
            "max_concurrent_requests": limits.max_concurrent_requests,
            "max_best_of": limits.max_best_of,
            "max_stop_sequences": limits.max_stop_sequences,
            "max_input_tokens": limits.max_input_tokens,
            "max_total_tokens": limits.max_total_tokens,
            "validation_workers": self.validation_workers,
            "max_client_batch_size": limits.max_client_batch_size,
            "router": self.router,
            "version": self.version,
            "sha": None,
            "docker_label": None,
        }
