"""Contestants that run other engines on the same weights: transformers' `generate` in its kinds, and flashspec."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CompileConfig, GenerationConfig
from transformers.generation.streamers import BaseStreamer

from langchain_specdec.bench.contestant import Prompt, RunResult
from langchain_specdec.bench.weights import Weights
from langchain_specdec.completions.stats import SpeculationStats
from langchain_specdec.sampling.params import SamplingParams

_WARM_UP_TOKENS = 16
# No token has this id, so no text ends by it.
_NO_TOKEN = -1


class _Clock(BaseStreamer):
    """Notes when the first tokens came, how many they were, and how many deliveries there were.

    `generate` hands over the prompt first, and then the tokens of every forward.
    """

    def __init__(self) -> None:
        self.first_at = 0.0
        self.first_tokens = 0
        self.num_deliveries = -1

    def put(self, value: Tensor) -> None:
        """Called by `generate`."""
        self.num_deliveries += 1
        if self.num_deliveries == 1:
            self.first_at = time.perf_counter()
            self.first_tokens = value.numel()

    def end(self) -> None:
        """Called by `generate` at the end."""


class GenerateContestant:
    """transformers' `generate`.

    Prompts of a group are padded to the longest on the left and decoded together, as many as may be at once.

    Args:
        name: As in tables.
        note: How it runs.
        weights: The model, loaded for peers too.
        params: What to generate.
        concurrency: Prompts decoded at once; None is a whole group.
        options: Further arguments of `generate`.
        assistant_tokens: `num_assistant_tokens` of the assistant model among them; None is its usual number.
        compile_mode: Mode of torch.compile; None does not compile. Compiling takes a static cache, as large as the
            longest prompt of the workload needs, so that all runs use the same compiled code.
    """

    def __init__(
        self,
        name: str,
        note: str,
        weights: Weights,
        params: SamplingParams,
        *,
        concurrency: int | None,
        options: dict[str, Any],
        assistant_tokens: int | None,
        compile_mode: str | None,
    ) -> None:
        self.name = name
        self.note = note
        self._model = weights.peer
        self._eos = list(weights.eos_token_ids)
        self._params = params
        self._concurrency = concurrency
        self._options = options
        self._assistant_tokens = assistant_tokens
        self._compile_mode = compile_mode

    def warm_up(self, groups: Sequence[Sequence[Prompt]]) -> None:
        """Size the static cache, and run every number of rows that will come."""
        longest = max(len(p.token_ids) for group in groups for p in group)
        if self._compile_mode is not None:
            self._options |= _compiled(self._compile_mode, longest + self._params.max_new_tokens)
        by_rows: dict[int, Sequence[Prompt]] = {}
        for group in groups:
            for chunk in self._chunks(group):
                best = by_rows.get(len(chunk), ())
                if sum(len(p.token_ids) for p in chunk) > sum(len(p.token_ids) for p in best):
                    by_rows[len(chunk)] = chunk
        for chunk in by_rows.values():
            # Compiled code may record CUDA graphs only in its second call.
            for _ in range(1 if self._compile_mode is None else 3):
                self._generate(chunk, min(_WARM_UP_TOKENS, self._params.max_new_tokens))

    def run(self, prompts: Sequence[Prompt]) -> RunResult:
        """Decode the prompts."""
        started = time.perf_counter()
        rows: list[tuple[int, ...]] = []
        clocks: list[_Clock] = []
        for chunk in self._chunks(prompts):
            answers, clock = self._generate(chunk, self._params.max_new_tokens)
            rows += answers
            clocks.append(clock)
        seconds = time.perf_counter() - started
        is_speculative = any(name in self._options for name in ("prompt_lookup_num_tokens", "assistant_model"))
        steps = sum(c.num_deliveries for c in clocks)
        return RunResult(
            token_ids=tuple(rows),
            first_seconds=clocks[0].first_at - started,
            first_tokens=clocks[0].first_tokens,
            seconds=seconds,
            # The rows of a batch share its steps, and end at different ones.
            num_steps=steps if len(clocks) == len(prompts) else None,
            drafted_tokens=None if is_speculative else 0,
            accepted_tokens=sum(map(len, rows)) - steps if is_speculative and len(clocks) == len(prompts) else None,
            prefilled_tokens=sum(len(p.token_ids) for p in prompts),
        )

    def close(self) -> None:
        """Drop the compiled code and the cache."""
        for name in ("_cache", "_compiled_call", "_last_compile_config"):
            if self._compile_mode is not None and name in vars(self._model):
                delattr(self._model, name)

    def _chunks(self, prompts: Sequence[Prompt]) -> list[Sequence[Prompt]]:
        size = self._concurrency or len(prompts)
        return [prompts[i : i + size] for i in range(0, len(prompts), size)]

    def _generate(self, prompts: Sequence[Prompt], max_new_tokens: int) -> tuple[list[tuple[int, ...]], _Clock]:
        params = self._params
        eos = self._eos if self._eos and not params.ignore_eos else [_NO_TOKEN]
        config = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=eos, pad_token_id=max(eos[0], 0))
        if params.temperature:
            config.update(do_sample=True, temperature=params.temperature, top_k=0, top_p=1.0)
            torch.manual_seed(params.seed or 0)
        else:
            config.update(do_sample=False)
        width = max(len(p.token_ids) for p in prompts)
        padded = [[config.pad_token_id] * (width - len(p.token_ids)) + list(p.token_ids) for p in prompts]
        seen = [[0] * (width - len(p.token_ids)) + [1] * len(p.token_ids) for p in prompts]
        device = self._model.device
        if "assistant_model" in self._options:
            # `generate` reads the number from the assistant, changes it there, and contestants share the assistant.
            length = {} if self._assistant_tokens is None else {"num_assistant_tokens": self._assistant_tokens}
            self._options["assistant_model"].generation_config = GenerationConfig(**length)
        clock = _Clock()
        output = self._model.generate(
            torch.tensor(padded, device=device),
            attention_mask=torch.tensor(seen, device=device),
            generation_config=config,
            streamer=clock,
            **self._options,
        )
        rows = output[:, width:].tolist()  # waits for the device
        return [_until_end(row, set(eos)) for row in rows], clock


def _compiled(mode: str, cache_length: int) -> dict[str, Any]:
    config = CompileConfig(mode=mode)
    # transformers compiles on GPUs only unless told otherwise here.
    config._compile_all_devices = True  # type: ignore[assignment]
    options: dict[str, Any] = {"cache_implementation": "static", "compile_config": config}
    if hasattr(GenerationConfig(), "max_cache_len"):
        options["max_cache_len"] = cache_length
    return options


def _until_end(row: Sequence[int], eos: set[int]) -> tuple[int, ...]:
    """A row of a batch without the padding after its end."""
    end = next((i + 1 for i, token in enumerate(row) if token in eos), len(row))
    return tuple(row[:end])


class FlashspecContestant:
    """The engine of the package flashspec, one prompt at a time.

    It has no streaming: the time of the first delivery is taken from its own record of its steps.

    Args:
        name: As in tables.
        note: How it runs.
        weights: The model, loaded for peers too.
        params: What to generate.
        draft_model: As transformers makes it; None drafts by its n-gram lookup alone.
        strategy: Its `drafter_strategy`.
    """

    def __init__(
        self, name: str, note: str, weights: Weights, params: SamplingParams, *, draft_model: Any, strategy: str
    ) -> None:
        self.name = name
        self.note = note
        self._models = (weights.peer, draft_model)
        self._eos = () if params.ignore_eos else weights.eos_token_ids
        self._params = params
        self._strategy = strategy
        self._engine: Any = None

    def warm_up(self, groups: Sequence[Sequence[Prompt]]) -> None:
        """Build its engine, with a cache that the longest prompt fits in, and run that prompt."""
        longest = max((p for group in groups for p in group), key=lambda p: len(p.token_ids))
        self._engine = self._build(len(longest.token_ids) + self._params.max_new_tokens)
        for _ in range(2):
            self._generate(longest, min(_WARM_UP_TOKENS, self._params.max_new_tokens))

    def run(self, prompts: Sequence[Prompt]) -> RunResult:
        """Decode the prompts, one after the other."""
        started = time.perf_counter()
        results = []
        first_seconds, first_tokens = 0.0, 0
        for number, prompt in enumerate(prompts):
            result, row = self._generate(prompt, self._params.max_new_tokens)
            results.append((result, row))
            if number == 0 and result.arm_steps:
                first_seconds = time.perf_counter() - started - sum(s.seconds for s in result.arm_steps[1:])
                first_tokens = result.arm_steps[0].emitted
        seconds = time.perf_counter() - started
        steps = [step for result, _ in results for step in result.arm_steps]
        counts = SpeculationStats()
        for step in steps:
            counts.add_positions(step.proposed, step.accepted)
        return RunResult(
            token_ids=tuple(row for _, row in results),
            first_seconds=first_seconds,
            first_tokens=first_tokens,
            seconds=seconds,
            num_steps=len(steps),
            drafted_tokens=sum(step.proposed for step in steps),
            accepted_tokens=sum(step.accepted for step in steps),
            prefilled_tokens=sum(len(p.token_ids) for p in prompts),
            drafted_per_position=tuple(counts.drafted_per_position),
            accepted_per_position=tuple(counts.accepted_per_position),
        )

    def close(self) -> None:
        """Drop its engine."""
        self._engine = None

    def _build(self, cache_length: int) -> Any:
        # The package is optional and has no types, so it is imported by name.
        flashspec = importlib.import_module("flashspec")
        parts = importlib.import_module("flashspec.engine")
        logging.getLogger("flashspec").setLevel(logging.ERROR)
        model, draft_model = self._models
        device, dtype = model.device, model.dtype
        target = parts.TargetModel("target", device, dtype, model=model)
        strategy = self._strategy
        if draft_model is None:
            drafters, strategy = [parts.NgramDrafter()], "bandit"
        else:
            temperature = self._params.temperature
            drafters = [parts.HuggingFaceDrafter("draft", device, dtype, temperature=temperature, model=draft_model)]
        config = flashspec.FlashSpecConfig(
            device=str(device),
            sampling=flashspec.SamplingConfig(temperature=self._params.temperature, seed=self._params.seed),
            drafter_strategy=strategy,
            bandit=flashspec.BanditConfig(n_arms=len(drafters)),
            compile_max_cache_len=max(cache_length + 64, 1024),
        )
        return flashspec.SpeculativeEngine(config, drafters, target)

    def _generate(self, prompt: Prompt, max_new_tokens: int) -> tuple[Any, tuple[int, ...]]:
        ids = torch.tensor([prompt.token_ids], device=self._models[0].device)
        with torch.inference_mode():
            result = self._engine.generate(ids, max_new_tokens=max_new_tokens, eos_token_ids=self._eos)
        return result, tuple(token for token in result.output_ids[0].tolist() if token >= 0)
