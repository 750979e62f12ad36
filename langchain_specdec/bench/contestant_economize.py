"""A contestant that runs the package economize on transformers' weights: its loop, with prompt lookup or a head."""

from __future__ import annotations

import importlib
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from langchain_specdec.bench.contestant import Prompt, RunResult
from langchain_specdec.bench.weights import Weights
from langchain_specdec.completions.stats import SpeculationStats
from langchain_specdec.errors import ModelLoadError
from langchain_specdec.models.heads.head_source import HeadSource
from langchain_specdec.sampling.params import SamplingParams

_WARM_UP_TOKENS = 16


class EconomizeContestant:
    """economize with prompt lookup or a trained head, as many prompts at once as may be.

    Args:
        name: As in tables.
        note: How it runs.
        weights: The model, loaded for peers too.
        params: What to generate.
        concurrency: Prompts decoded at once; None is a whole group.
        cycle_length: Its `cycle_length`: most tokens of a step.
        head: The head; None is prompt lookup.
    """

    def __init__(
        self,
        name: str,
        note: str,
        weights: Weights,
        params: SamplingParams,
        *,
        concurrency: int | None,
        cycle_length: int,
        head: HeadSource | None = None,
    ) -> None:
        self.name = name
        self.note = note
        self._base = weights.peer
        self._eos = () if params.ignore_eos else weights.eos_token_ids
        self._params = params
        self._concurrency = concurrency
        self._cycle_length = cycle_length
        self._head = head
        self._model: Any = None

    def warm_up(self, groups: Sequence[Sequence[Prompt]]) -> None:
        """Attach it to the model, and run the longest prompts."""
        if self._model is None:
            self._model = self._attach()
        longest = sorted((p for group in groups for p in group), key=lambda p: -len(p.token_ids))
        at_once = self._concurrency or max(map(len, groups))
        self._decode(longest[:at_once], min(_WARM_UP_TOKENS, self._params.max_new_tokens), lambda: None)

    def run(self, prompts: Sequence[Prompt]) -> RunResult:
        """Decode the prompts."""
        first: list[float] = []
        size = self._concurrency or len(prompts)
        started = time.perf_counter()
        results = [
            result
            for at in range(0, len(prompts), size)
            for result in self._decode(
                prompts[at : at + size], self._params.max_new_tokens, lambda: first.append(time.perf_counter())
            )
        ]
        rows = tuple(tuple(result.tokens.tolist()) for result in results)  # waits for the device
        seconds = time.perf_counter() - started
        counts = SpeculationStats()
        for result in results:
            for drafted, accepted in result.acceptance:
                counts.add_positions(drafted, accepted)
        drafts = [step for result in results for step in result.acceptance]
        return RunResult(
            token_ids=rows,
            first_seconds=first[0] - started if first else seconds,
            first_tokens=1,
            seconds=seconds,
            num_steps=sum(event.kind == "exact" for result in results for event in result.cost.events),
            drafted_tokens=sum(drafted for drafted, _ in drafts),
            accepted_tokens=sum(accepted for _, accepted in drafts),
            prefilled_tokens=sum(len(p.token_ids) for p in prompts),
            drafted_per_position=tuple(counts.drafted_per_position),
            accepted_per_position=tuple(counts.accepted_per_position),
        )

    def close(self) -> None:
        """Drop its wrapper of the model."""
        self._model = None

    def _attach(self) -> Any:
        # The package is optional, so it is imported by name.
        economize = importlib.import_module("economize")
        verifier = {"verifier": "rejection"} if self._params.temperature else {}
        decoding = economize.DecodeConfig(cycle_length=self._cycle_length, **verifier)
        if self._head is not None:
            return economize.load(self._base, _folder(self._head), format="eagle3", decoding=decoding)
        lookup = importlib.import_module("economize.techniques.lookup")
        return economize.apply(self._base, lookup.LookupConfig(), decoding=decoding)

    def _decode(self, prompts: Sequence[Prompt], max_new_tokens: int, note_first: Callable[[], None]) -> list[Any]:
        """Decode prompts together; `note_first` is called when the first of them has its first token."""
        is_first = True

        def is_end(tokens: Tensor) -> bool:
            nonlocal is_first
            if is_first:
                is_first = False
                note_first()
            return bool(self._eos) and int(tokens[-1]) in self._eos

        params = self._params
        selector = None
        if params.temperature:
            selector = importlib.import_module("economize").TopPSampler(params.temperature, seed=params.seed or 0)
        rows = [torch.tensor(p.token_ids, device=self._base.device) for p in prompts]
        with warnings.catch_warnings():
            # It calls transformers' layers by names of the version before.
            warnings.simplefilter("ignore", FutureWarning)
            results: list[Any] = self._model.decode_batch(rows, max_new_tokens, selector=selector, stop=is_end)
        return results


def _folder(head: HeadSource) -> Path:
    """Where its files are, downloaded if need be; economize reads weights that are one file."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path := head.file(name)) is not None:
            return path.parent
    msg = f"economize reads heads whose weights are one file, and {head.name} has neither model.safetensors nor a .bin."
    raise ModelLoadError(msg)
