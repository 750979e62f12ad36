"""What a draft is worth: how often it is right on prompts that it was not trained on, and what that brings here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.completions.completion import CompletionRequest, collect
from langchain_specdec.completions.stats import SpeculationStats
from langchain_specdec.progress import Progress
from langchain_specdec.sampling.params import SamplingParams

_MOST_PROMPTS = 16
# What statistics call tokens of a head, and of a pruned model.
_SOURCES = ("eagle3", "draft_model")


@dataclass(frozen=True)
class Verdict:
    """What a draft is worth, on prompts that were held out, one at a time.

    Attributes:
        acceptance: Where every step had a draft of one guess for each place: by place, how often it was right, given
            that those before were.
        tokens_per_step: Of that run, the target's own token included.
        step_cost: What a step of it took, drafting included, over a step of plain decoding.
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
    step_cost: float
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
        stood = any(self.accepted_by_source.get(source) for source in _SOURCES)
        return stood and self.speed > max(self.plain, self.without)

    def as_dict(self) -> dict[str, Any]:
        """All figures by name, for JSON."""
        return {**asdict(self), "observed_gain": self.observed_gain, "pays": self.pays}


def measure(
    model: Any,
    draft: Mapping[str, Any],
    num_places: int,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    options: dict[str, Any],
    tell: Progress,
) -> Verdict:
    """Run the model plainly, by lookups, with a draft of one length in every step, and with the draft as it is used.

    Args:
        model: The target, loaded.
        draft: Options of `LocalBackend` by which it is used.
        num_places: Tokens of a draft in the run that always drafts.
        prompts: Held out.
        params: What to generate.
        options: Options of `LocalBackend` for all runs.
        tell: Told how many prompts are done.
    """
    always = {"drafter": "draft_model", "draft_length": num_places}
    runs: list[dict[str, Any]] = [{"drafter": "none"}, {}, {**draft, **always}, dict(draft)]
    prompts = prompts[:_MOST_PROMPTS]
    found = []
    for number, own in enumerate(runs):
        with closing(LocalBackend(model, **{**options, "num_slots": 1, **own})) as backend:
            # The first is run once more before it counts: costs are measured, and memory is taken.
            stats = SpeculationStats()
            for place, prompt in enumerate([prompts[0], *prompts]):
                (stream,) = backend.start([CompletionRequest(prompt, params)])
                speculation = collect(stream).finish.speculation
                if place:
                    stats += speculation
                tell("Measuring, prompts", number * len(prompts) + place, len(runs) * len(prompts))
        found.append(stats)
    plain, without, chained, drafted = found
    # Drafts that stood up to each place, from those that were made.
    stood = [*chained.drafted_per_position[:1], *chained.accepted_per_position]
    return Verdict(
        acceptance=tuple(round(right / max(of, 1), 4) for of, right in pairwise(stood)),
        tokens_per_step=round(chained.tokens_per_step, 3),
        # Answers of one token take no step.
        step_cost=round(_seconds_per_step(chained) / (_seconds_per_step(plain) or 1.0), 3),
        predicted_gain=round(drafted.predicted_gain, 3),
        accepted_per_position=tuple(drafted.accepted_per_position),
        drafted_per_position=tuple(drafted.drafted_per_position),
        plain=round(plain.tokens_per_second, 2),
        without=round(without.tokens_per_second, 2),
        speed=round(drafted.tokens_per_second, 2),
        drafted_by_source=dict(drafted.drafted_by_source),
        accepted_by_source=dict(drafted.accepted_by_source),
        draft_quantization=draft.get("draft_quantization"),
    )


def _seconds_per_step(stats: SpeculationStats) -> float:
    return stats.decode_seconds / max(stats.num_steps, 1)
