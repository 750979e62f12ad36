"""Who takes part in a measurement: how contestants are named, and what each of them has to do.

A contestant is written ``name[:setting][@concurrency]``: ``plain``, ``auto``, ``hf-prompt-lookup:3``, ``auto@8``. The
setting is the contestant's own, mostly a draft length. The concurrency is how many prompts of a group it may decode at
once; without it, as many as the group has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from langchain_specdec.errors import InvalidParameterError


@dataclass(frozen=True)
class Prompt:
    """A prompt, ready to run.

    Attributes:
        prompt_id: Identifies it in the workload.
        category: What kind of task it is.
        token_ids: Its tokens, the same for every contestant.
        is_cut: Whether it was shortened to fit.
    """

    prompt_id: str
    category: str
    token_ids: tuple[int, ...]
    is_cut: bool = False


StepCounts = tuple[int, int, int]
DraftForm = Literal["model", "head"]
"""What a draft can be of: a model of its own, or a head that was trained for the target."""


@dataclass(frozen=True)
class RunResult:
    """One timed run of a contestant over a group of prompts. Times are wall clock, as the caller sees them.

    Attributes:
        token_ids: What was returned for each prompt: every token of it, those beyond `max_new_tokens` too.
        first_seconds: From the call to the first delivery: prefill and the first decoding step.
        first_tokens: Tokens of the first delivery; more than 1 where a draft was accepted in the first step.
        seconds: From the call to the last token.
        num_steps: Target forwards that decoded; None where it is not known.
        drafted_tokens: Tokens proposed and checked; None where it is not known.
        accepted_tokens: Those that became text; None where it is not known.
        prefilled_tokens: Prompt tokens that went through the model; None where it is not known.
        drafted_per_position: Steps whose draft was so long, from 1 on; empty where it is not known.
        accepted_per_position: Those of them whose token at that place became text.
        drafted_by_source: Tokens proposed by where they came from; empty where it is not known.
        accepted_by_source: Those of them that became text.
        steps: For each prompt, for each step: its tokens, how many of them were drafted (they come first), and how many
            were proposed. Empty where it is not known.
    """

    token_ids: tuple[tuple[int, ...], ...]
    first_seconds: float
    first_tokens: int
    seconds: float
    num_steps: int | None = None
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None
    prefilled_tokens: int | None = None
    drafted_per_position: tuple[int, ...] = ()
    accepted_per_position: tuple[int, ...] = ()
    drafted_by_source: Mapping[str, int] = field(default_factory=dict)
    accepted_by_source: Mapping[str, int] = field(default_factory=dict)
    steps: tuple[tuple[StepCounts, ...], ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens returned, of all prompts."""
        return sum(len(row) for row in self.token_ids)

    @property
    def decode_tokens(self) -> int:
        """Tokens after the first delivery."""
        return self.num_tokens - self.first_tokens

    @property
    def decode_seconds(self) -> float:
        """From the first delivery to the last token."""
        return self.seconds - self.first_seconds


class Contestant(Protocol):
    """Something that decodes prompts."""

    @property
    def name(self) -> str:
        """As it was asked for, and as it stands in tables."""

    @property
    def note(self) -> str:
        """How it runs, in a few words."""

    def warm_up(self, groups: Sequence[Sequence[Prompt]]) -> None:
        """Do once whatever is slow once: allocate, compile, calibrate. Not timed with the runs.

        Args:
            groups: All groups that will be run.
        """

    def run(self, prompts: Sequence[Prompt]) -> RunResult:
        """Decode a group of prompts, timed."""

    def close(self) -> None:
        """Free what it holds."""


@dataclass(frozen=True)
class Kind:
    """What can be asked for under one name.

    Attributes:
        summary: What it is, for help texts.
        is_ours: Whether it runs on this package's engine.
        setting: What the setting means; "" where there is none.
        choices: Allowed settings that are words.
        max_setting: Largest setting that is a number, from 1; 0 where numbers make no sense.
        takes: The drafts of `--draft-model` that it takes: models, trained heads, or both.
        needs_draft: Whether it cannot do without.
        is_single: Whether it decodes one prompt at a time only.
        package: Distribution that it needs beside this one.
        is_gguf: Whether it reads the model's GGUF file, and nothing that was loaded here.
    """

    summary: str
    is_ours: bool = False
    setting: str = ""
    choices: tuple[str, ...] = ()
    max_setting: int = 0
    takes: tuple[DraftForm, ...] = ()
    needs_draft: bool = False
    is_single: bool = False
    package: str = ""
    is_gguf: bool = False


_LENGTH = "draft length"
_BOTH: tuple[DraftForm, ...] = ("model", "head")
_FORM_NAMES: Mapping[DraftForm, str] = {"model": "a draft model", "head": "a trained head"}
# These strategies of flashspec need a draft model; its others do not.
_COMPOSITES = ("composite-g4", "composite-g6-f2")
# Its "ngram-mod" is left out: what it learns of a prompt it keeps, and it would draft the answer in the next run.
_LLAMA_CPP_LOOKUPS = ("ngram-simple", "ngram-map-k", "ngram-map-k4v")
_COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")

KINDS: Mapping[str, Kind] = {
    "plain": Kind("this engine without drafts", is_ours=True),
    "prompt_lookup": Kind("this engine, prompt lookup", is_ours=True, setting=_LENGTH, max_setting=64),
    "draft_model": Kind(
        "this engine, draft model or trained head",
        is_ours=True,
        setting=_LENGTH,
        max_setting=64,
        takes=_BOTH,
        needs_draft=True,
    ),
    "auto": Kind("this engine, as it comes", is_ours=True, setting=_LENGTH, max_setting=64, takes=_BOTH),
    "mtp": Kind("this engine, MTP layers of the model and lookups", is_ours=True, setting=_LENGTH, max_setting=64),
    "synthetic": Kind(
        "this engine, a draft of set agreement and cost",
        is_ours=True,
        setting=_LENGTH,
        max_setting=64,
        takes=("model",),
    ),
    "hf": Kind("transformers' generate"),
    "hf-compiled": Kind("generate, static cache, compiled", setting="mode of torch.compile", choices=_COMPILE_MODES),
    "hf-prompt-lookup": Kind(
        "generate, prompt lookup", setting="prompt_lookup_num_tokens", max_setting=1000, is_single=True
    ),
    "hf-assisted": Kind(
        "generate, assistant model",
        setting="num_assistant_tokens",
        max_setting=1000,
        takes=("model",),
        needs_draft=True,
        is_single=True,
    ),
    "flashspec": Kind(
        "flashspec's engine",
        setting="drafter strategy",
        choices=("auto", "bandit", *_COMPOSITES),
        takes=("model",),
        is_single=True,
        package="flashspec",
    ),
    "economize": Kind(
        "economize's engine, prompt lookup", setting="cycle_length", max_setting=1000, package="economize"
    ),
    "economize-eagle3": Kind(
        "economize's engine, trained head",
        setting="cycle_length",
        max_setting=1000,
        takes=("head",),
        needs_draft=True,
        package="economize",
    ),
    "llama-cpp": Kind("llama.cpp, on the same GGUF file", package="xllamacpp", is_gguf=True),
    "llama-cpp-lookup": Kind(
        "the same with its own lookup",
        setting="kind of speculation",
        choices=_LLAMA_CPP_LOOKUPS,
        package="xllamacpp",
        is_gguf=True,
    ),
}
"""All contestants by name."""

_FORM = re.compile(r"(?P<kind>[^:@]+)(:(?P<setting>[^:@]*))?(@(?P<concurrency>[^:@]*))?")
_MAX_CONCURRENCY = 1024


@dataclass(frozen=True)
class ContestantSpec:
    """A contestant as asked for.

    Attributes:
        name: The whole of it, `name:setting@concurrency`.
        kind: Key of `KINDS`.
        setting: A number, a word, or None.
        concurrency: Prompts decoded at once; None is the whole group.
    """

    name: str
    kind: str
    setting: int | str | None = None
    concurrency: int | None = None

    @property
    def is_ours(self) -> bool:
        """Whether it runs on this package's engine."""
        return KINDS[self.kind].is_ours

    @property
    def takes(self) -> tuple[DraftForm, ...]:
        """The forms of draft that it takes."""
        return KINDS[self.kind].takes

    @property
    def needs_draft(self) -> bool:
        """Whether it cannot do without."""
        return KINDS[self.kind].needs_draft or self.setting in _COMPOSITES

    @property
    def is_gguf(self) -> bool:
        """Whether it reads the model's GGUF file by itself."""
        return KINDS[self.kind].is_gguf

    @property
    def is_peer(self) -> bool:
        """Whether it runs on the weights as transformers has them."""
        return not self.is_ours and not self.is_gguf


def parse_contestants(names: Sequence[str], *, has_draft_model: bool, batch: int) -> list[ContestantSpec]:
    """Read the contestants' names, and check that they can run.

    Args:
        names: Each `name[:setting][@concurrency]`.
        has_draft_model: Whether there is a draft model.
        batch: Prompts of a group.

    Raises:
        InvalidParameterError: A name, setting or concurrency does not exist, or does not go with the rest.
    """
    if not names:
        msg = f"There are no contestants. Known are: {_quoted(KINDS)}."
        raise InvalidParameterError(msg)
    specs = [_parse(name) for name in names]
    if repeated := sorted({spec.name for spec in specs if names.count(spec.name) > 1}):
        msg = f"A contestant can take part once only: {_quoted(repeated)}. Measure more often with --repeat."
        raise InvalidParameterError(msg)
    for spec in specs:
        kind = KINDS[spec.kind]
        if not has_draft_model and spec.needs_draft:
            wanted = " or ".join(_FORM_NAMES[form] for form in spec.takes)
            msg = f"{spec.name!r} needs {wanted}: give one with --draft-model, or leave it out."
            raise InvalidParameterError(msg)
        if kind.is_single and (spec.concurrency or batch) > 1:
            msg = f"{spec.kind} decodes one prompt at a time: with --batch {batch}, write {spec.name.split('@')[0]}@1."
            raise InvalidParameterError(msg)
    if has_draft_model and not any(spec.takes for spec in specs):
        takers = _quoted(name for name, kind in KINDS.items() if kind.takes)
        msg = f"No contestant would use the draft model. Leave it out, or take one of {takers}."
        raise InvalidParameterError(msg)
    return specs


def fitting(
    specs: Sequence[ContestantSpec], form: DraftForm, draft_model: str
) -> tuple[list[ContestantSpec], dict[str, str]]:
    """Those that can run with a draft of that form.

    Args:
        specs: The contestants.
        form: What the draft model is.
        draft_model: Its name.

    Returns:
        The contestants that are left, and the names of the others with why they are left out.

    Raises:
        InvalidParameterError: None of those that are left would take it.
    """
    kept = [spec for spec in specs if not spec.needs_draft or form in spec.takes]
    left_out = {
        spec.name: f"it takes {_FORM_NAMES[spec.takes[0]]}, and {draft_model} is {_FORM_NAMES[form]}"
        for spec in specs
        if spec not in kept
    }
    if not any(form in spec.takes for spec in kept):
        takers = _quoted(name for name, kind in KINDS.items() if form in kind.takes)
        msg = f"{draft_model} is {_FORM_NAMES[form]}, and no contestant would use it. Take one of {takers}."
        raise InvalidParameterError(msg)
    return kept, left_out


def _quoted(names: Iterable[str]) -> str:
    """A list in a message. Bare, the command line would take the names that options have too for those."""
    return ", ".join(map(repr, names))


def _parse(name: str) -> ContestantSpec:
    match = _FORM.fullmatch(name)
    if match is None or match["kind"] not in KINDS:
        msg = f"There is no contestant {name!r}. Known are: {_quoted(KINDS)}."
        raise InvalidParameterError(msg)
    kind, setting, concurrency = match["kind"], match["setting"], match["concurrency"]
    at_once: int | None = None
    if concurrency is not None:
        at_once = _number(concurrency, _MAX_CONCURRENCY)
        if at_once is None:
            msg = f"What follows @ in {name!r} must be a whole number from 1 to {_MAX_CONCURRENCY}: prompts at once."
            raise InvalidParameterError(msg)
    return ContestantSpec(name, kind, None if setting is None else _setting(kind, setting), at_once)


def _setting(name: str, text: str) -> int | str:
    kind = KINDS[name]
    if text in kind.choices:
        return text
    number = _number(text, kind.max_setting)
    if number is not None:
        return number
    if not kind.setting:
        msg = f"{name!r} has no setting, got {name}:{text}."
    else:
        allowed = ", ".join(kind.choices) if kind.choices else f"a whole number from 1 to {kind.max_setting}"
        msg = f"The setting of {name!r} is its {kind.setting}, {allowed}; got {text!r}."
    raise InvalidParameterError(msg)


def _number(text: str, largest: int) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) and 1 <= int(text) <= largest else None
