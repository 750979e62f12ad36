"""What a draft is worth: how often it is right on prompts that it was not trained on, and what that brings here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from operator import mul
from typing import Any

import torch

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.completions.completion import CompletionRequest, collect
from langchain_specdec.completions.stats import SpeculationStats
from langchain_specdec.models.gguf.model import GGUFModel
from langchain_specdec.progress import Progress
from langchain_specdec.runner.cpu.packed_layers import PackedLinear
from langchain_specdec.sampling.params import SamplingParams
from langchain_specdec.training.student import Student
from langchain_specdec.training.text_batches import TextBatches

_MOST_PROMPTS = 16
# What statistics call tokens of such a head.
_SOURCE = "eagle3"


@dataclass(frozen=True)
class Verdict:
    """What a draft is worth, on prompts that were held out, one at a time.

    Attributes:
        acceptance: By place in a draft, how often its best token was the text's, given that those before were.
        tokens_per_step: What that gives with drafts of one guess for each place, the target's own token included.
        draft_cost: Bytes of weights that a draft token reads, over those of the target.
        predicted_gain: Tokens per second over those of plain decoding, as the engine foresaw with the draft.
        accepted_per_position: Steps whose draft token at that place stood, whatever it came from.
        drafted_per_position: Steps whose draft had a token there.
        plain: Tokens per second of plain decoding.
        without: With drafts from the text and earlier answers alone.
        speed: With the draft beside them.
        drafted_by_source: Draft tokens of that run by where they came from; see `SpeculationStats`.
        accepted_by_source: Those of them that became part of the text.
        draft_quantization: The option of that name by which the draft was used, and is best used.
    """

    acceptance: tuple[float, ...]
    tokens_per_step: float
    draft_cost: float
    predicted_gain: float
    accepted_per_position: tuple[int, ...]
    drafted_per_position: tuple[int, ...]
    plain: float
    without: float
    speed: float
    drafted_by_source: Mapping[str, int] = field(default_factory=dict)
    accepted_by_source: Mapping[str, int] = field(default_factory=dict)
    draft_quantization: str | None = None

    @property
    def observed_gain(self) -> float:
        """Tokens per second over those of plain decoding."""
        return self.speed / self.plain if self.plain else 0.0

    @property
    def pays(self) -> bool:
        """Whether it is faster with the draft than without, on this machine, and not by chance: some of it stood."""
        return self.accepted_by_source.get(_SOURCE, 0) > 0 and self.speed > max(self.plain, self.without)

    def as_dict(self) -> dict[str, Any]:
        """All figures by name, for JSON."""
        return {**asdict(self), "observed_gain": self.observed_gain, "pays": self.pays}


@torch.inference_mode()
def acceptance(model: Student, batches: TextBatches) -> tuple[float, ...]:
    """How often a draft is right by place, on texts whose states are there.

    Drafts of greedy texts would stand just so often. Those of sampled texts stand more often, as the engine samples
    drafts by the noise that the target samples by.
    """
    model.eval()
    device = next(model.parameters()).device
    sums: list[list[int]] = []
    for number in range(len(batches)):
        batch = batches[number]
        steps = model.steps(*(batch[name].to(device) for name in ("states", "tokens", "is_answered")))
        counts = [[int(step.agreed), int(step.counted)] for step in steps]
        sums = [[a + c, b + d] for (a, b), (c, d) in zip(sums, counts, strict=True)] if sums else counts
    return tuple(round(agreed / max(counted, 1), 4) for agreed, counted in sums)


def measure(
    model: Any,
    draft: Mapping[str, Any],
    draft_bytes: int,
    accepted: Sequence[float],
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    options: dict[str, Any],
    tell: Progress,
) -> Verdict:
    """Run the model plainly, with drafts that cost nothing, and with the draft.

    Args:
        model: The target, loaded.
        draft: Options of `LocalBackend` by which it is used.
        draft_bytes: What a draft token reads of its weights.
        accepted: See `acceptance`.
        prompts: Held out.
        params: What to generate.
        options: Options of `LocalBackend` for all runs.
        tell: Told how many prompts are done.
    """
    runs: dict[str, dict[str, Any]] = {
        "plain": {"drafter": "none"}, "without": {}, "with the draft": dict(draft),
    }  # fmt: skip
    prompts = prompts[:_MOST_PROMPTS]
    stats = {}
    for number, (name, own) in enumerate(runs.items()):
        with closing(LocalBackend(model, **{**options, "num_slots": 1, **own})) as backend:
            # The first is run once more before it counts: costs are measured, and memory is taken.
            stats[name] = SpeculationStats()
            for place, prompt in enumerate([prompts[0], *prompts]):
                request = CompletionRequest(prompt, params)
                (stream,) = backend.start([request])
                if place:
                    stats[name] += collect(stream).finish.speculation
                else:
                    collect(stream)
                tell("Measuring, prompts", number * len(prompts) + place, len(runs) * len(prompts))
    drafted = stats["with the draft"]
    return Verdict(
        acceptance=tuple(accepted),
        tokens_per_step=round(1 + sum(accumulate(accepted, mul)), 3),
        draft_cost=round(draft_bytes / bytes_of(model), 4),
        predicted_gain=round(drafted.predicted_gain, 3),
        accepted_per_position=tuple(drafted.accepted_per_position),
        drafted_per_position=tuple(drafted.drafted_per_position),
        plain=round(stats["plain"].tokens_per_second, 2),
        without=round(stats["without"].tokens_per_second, 2),
        speed=round(drafted.tokens_per_second, 2),
        drafted_by_source=dict(drafted.drafted_by_source),
        accepted_by_source=dict(drafted.accepted_by_source),
        draft_quantization=draft.get("draft_quantization"),
    )


def bytes_of(model: Any) -> int:
    """Bytes of a model's weights, those that are packed included."""
    if isinstance(model, GGUFModel):
        return model.weights.num_bytes
    stored: dict[int, int] = {}
    for each in [*model.parameters(), *model.buffers()]:
        storage = each.untyped_storage()
        stored[storage.data_ptr()] = storage.nbytes()
    packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
    in_packed: int = sum(m.in_features * m.out_features * model.dtype.itemsize for m in packed)
    return sum(stored.values()) + in_packed
