"""What a measurement is to be made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_specdec.bench.contestant import ContestantSpec
from langchain_specdec.models.memory import default_threads
from langchain_specdec.runner.trials import CompileMode
from langchain_specdec.sampling.params import SamplingParams


@dataclass(frozen=True)
class Plan:
    """What is to be measured.

    Attributes:
        model: Model id, folder, `"embedded"` or `"random:SHAPE"`.
        specs: The contestants.
        params: What to generate.
        engine: Options of `LocalBackend` that the engine's contestants share; peers have its `num_threads` too.
        draft_model: The draft model, given as `model` is, or a trained head.
        left_out: Contestants that were asked for and do not go with that, and why.
        batch: Prompts of a group.
        dtype: `"auto"` or the name of a torch dtype.
        device: Where to run; None is the best there is.
        is_chat: Whether prompts go into the chat format; None: where there is one.
        max_prompt_tokens: Most tokens of a prompt; None: as many as the models have positions for.
        keep_prefixes: Whether the engine's runs may reuse what rests in its slots.
        synthetic_agreement: Chance that a synthetic draft token is right.
        synthetic_cost: Its cost in plain steps; None: that of the draft model's forward.
        step_cost: What the engine takes steps to cost: `"measured"` as it finds them, `"flat"` the same at any width.
        compile: How the engine's steps are captured on CUDA: `"off"` not at all; else from the warm-up
            on.
        neighbours: Busy processes beside.
        neighbour_engines: Processes beside that decode by this engine.
    """

    model: str
    specs: Sequence[ContestantSpec]
    params: SamplingParams
    engine: Mapping[str, Any] = field(default_factory=dict)
    draft_model: str | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    batch: int = 1
    dtype: str = "auto"
    device: str | None = None
    is_chat: bool | None = None
    max_prompt_tokens: int | None = None
    keep_prefixes: bool = False
    synthetic_agreement: float = 0.9
    synthetic_cost: float | None = 0.05
    step_cost: str = "measured"
    compile: CompileMode = "off"
    neighbours: int = 0
    neighbour_engines: int = 0

    @property
    def num_threads(self) -> int:
        """Threads of each contestant on a CPU."""
        return self.engine.get("num_threads") or default_threads()
