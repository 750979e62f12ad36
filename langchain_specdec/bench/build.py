"""Puts a measurement together: loads the weights, makes the prompts and the contestants."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.backends.local_options import DrafterName, checked_options
from langchain_specdec.bench.contestant import KINDS, Contestant, ContestantSpec, Prompt
from langchain_specdec.bench.contestant_engine import EngineContestant
from langchain_specdec.bench.contestant_peers import FlashspecContestant, GenerateContestant
from langchain_specdec.bench.contestant_synthetic import AgreementDrafter, SyntheticContestant
from langchain_specdec.bench.weights import Weights, load_weights
from langchain_specdec.bench.workload import Question, encode
from langchain_specdec.drafters.draft_model import DraftModelDrafter
from langchain_specdec.engine.engine import Engine
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.errors import InvalidParameterError, MissingDependencyError
from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.models.make_runner import make_runner
from langchain_specdec.progress import Progress
from langchain_specdec.runner.cuda.captured_runner import CapturedRunner
from langchain_specdec.runner.runner import Runner
from langchain_specdec.runner.trials import CompileMode
from langchain_specdec.sampling.params import SamplingParams

_DRAFTERS: dict[str, DrafterName] = {
    "plain": "none",
    "prompt_lookup": "prompt_lookup",
    "draft_model": "draft_model",
    "auto": "auto",
}
# Peers draft so many tokens where the contestant has no setting: what their authors measured with.
_PEER_LENGTHS = {"hf-prompt-lookup": 10, "hf-assisted": None}
# Contestants may write beyond the last token, so this many positions stay free.
_SPARE = 64


@dataclass(frozen=True)
class Plan:
    """What is to be measured.

    Attributes:
        model: Model id, folder, `"embedded"` or `"random:SHAPE"`.
        specs: The contestants.
        params: What to generate.
        engine: Options of `LocalBackend` that the engine's contestants share.
        draft_model: The draft model, given as `model` is.
        batch: Prompts of a group.
        dtype: `"auto"` or the name of a torch dtype.
        device: Where to run; None is the best there is.
        is_chat: Whether prompts go into the chat format; None: where there is one.
        max_prompt_tokens: Most tokens of a prompt; None: as many as the models have positions for.
        keep_prefixes: Whether the engine's runs may reuse what rests in its slots.
        synthetic_agreement: Chance that a synthetic draft token is right.
        synthetic_cost: Its cost in plain steps; None: that of the draft model's forward.
        step_cost: What the engine takes steps to cost: `"measured"` as it finds them, `"flat"` the same at any width.
        compile: How the engine's layers run: `"off"` as they are; else compiled, or captured on CUDA, from the warm-up
            on.
    """

    model: str
    specs: Sequence[ContestantSpec]
    params: SamplingParams
    engine: Mapping[str, Any] = field(default_factory=dict)
    draft_model: str | None = None
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


@dataclass(frozen=True)
class Setup:
    """What is loaded and ready.

    Attributes:
        target: The model.
        draft: The draft model, if there is one.
        prompts: The workload as tokens.
        contestants: Who takes part, in the order asked for.
        is_chat: Whether prompts are in the chat format.
    """

    target: Weights
    draft: Weights | None
    prompts: Sequence[Prompt]
    contestants: Sequence[Contestant]
    is_chat: bool


def check_packages(specs: Sequence[ContestantSpec]) -> None:
    """Raise unless every package that a contestant needs is there.

    Raises:
        MissingDependencyError: One is not installed.
    """
    for spec in specs:
        package = KINDS[spec.kind].package
        if package and importlib.util.find_spec(package) is None:
            msg = f"{spec.kind} is a package of its own, which is not installed:\n    pip install {package}"
            raise MissingDependencyError(msg)


@contextlib.contextmanager
def set_up(plan: Plan, questions: Sequence[Question], progress: Progress | None = None) -> Iterator[Setup]:
    """Load everything; when the block ends, the contestants are closed.

    Args:
        plan: What is to be measured.
        questions: The workload.
        progress: Told while the embedded model is prepared.

    Raises:
        SpecDecError: Something cannot be loaded or does not fit.
    """
    forms: dict[str, Any] = {
        "for_ours": any(spec.is_ours for spec in plan.specs),
        "for_peers": any(not spec.is_ours for spec in plan.specs),
        "dtype": plan.dtype,
        "device": plan.device,
        "progress": progress,
    }
    target = load_weights(plan.model, compile=plan.compile, **forms)
    draft = load_weights(plan.draft_model, **forms) if plan.draft_model is not None else None
    is_chat = _is_chat(plan, target)
    prompts = _encode_all(plan, questions, target, draft, is_chat=is_chat)
    with contextlib.ExitStack() as stack:
        builder = _Builder(plan, target, draft, max(len(p.token_ids) for p in prompts), stack.callback)
        contestants = [builder.build(spec) for spec in plan.specs]
        yield Setup(target, draft, prompts, contestants, is_chat)


def _is_chat(plan: Plan, target: Weights) -> bool:
    has_format = target.tokenizer.chat_template is not None
    if plan.is_chat and not has_format:
        msg = f"{target.name} has no chat format. Leave --chat out, or take the model's chat or instruct version."
        raise InvalidParameterError(msg)
    return has_format and plan.is_chat is not False


def _encode_all(
    plan: Plan, questions: Sequence[Question], target: Weights, draft: Weights | None, *, is_chat: bool
) -> list[Prompt]:
    positions = [8192]
    for weights in (target, draft):
        form = weights and (weights.ours.model if weights.ours else weights.peer)
        if form:
            positions.append(getattr(form.config.get_text_config(), "max_position_embeddings", None) or positions[0])
    room = min(positions) - plan.params.max_new_tokens - _SPARE
    if room < 1:
        msg = f"max_new_tokens is {plan.params.max_new_tokens}, and {target.name} has {min(positions)} positions only."
        raise InvalidParameterError(msg)
    limit = min(room, plan.max_prompt_tokens or room)
    return [encode(question, target.tokenizer, limit, is_chat=is_chat) for question in questions]


class _Builder:
    """Makes contestants over loaded weights.

    Args:
        plan: What is to be measured.
        target: The model.
        draft: The draft model.
        longest: Tokens of the longest prompt.
        on_close: Takes what is to be called at the end.
    """

    def __init__(
        self, plan: Plan, target: Weights, draft: Weights | None, longest: int, on_close: Callable[..., Any]
    ) -> None:
        self._plan = plan
        self._target = target
        self._draft = draft
        self._max_length = longest + plan.params.max_new_tokens + _SPARE // 2
        self._on_close = on_close

    def build(self, spec: ContestantSpec) -> Contestant:
        """The contestant of that name."""
        contestant: Contestant
        if spec.kind == "synthetic":
            contestant = self._synthetic(spec)
        elif spec.is_ours:
            contestant = self._ours(spec)
        elif spec.kind == "flashspec":
            contestant = self._flashspec(spec)
        else:
            contestant = self._generate(spec)
        self._on_close(contestant.close)
        return contestant

    def _slots(self, spec: ContestantSpec) -> int:
        return spec.concurrency or self._plan.batch

    def _form(self) -> str:
        return "packed linear layers" if self._target.num_packed else "own attention"

    def _ours(self, spec: ContestantSpec) -> EngineContestant:
        plan, target = self._plan, self._target
        loaded, draft = _ours_of(target), self._draft
        drafter = _DRAFTERS[spec.kind]
        takes_draft = draft is not None and drafter in ("auto", "draft_model")
        # Without drafts there are no wide steps to prepare.
        options: dict[str, Any] = {"max_draft_tokens": 1, "draft_length": "auto"} if drafter == "none" else {}
        if takes_draft and draft is not None:
            options |= {"draft_model": _ours_of(draft).model, "draft_tokenizer": draft.tokenizer}
        if spec.setting is not None:
            options |= {"draft_length": spec.setting, "max_draft_tokens": spec.setting}
        backend = LocalBackend(
            loaded.model,
            loaded.tokenizer,
            drafter=drafter,
            num_slots=self._slots(spec),
            max_length=self._max_length,
            step_cost=self._step_cost(),
            compile=self._capture_mode(),
            **{**plan.engine, **options},
        )
        self._share(backend.engine)
        drafts = {
            "plain": "no drafts",
            "prompt_lookup": "prompt lookup",
            "draft_model": "draft model",
            "auto": "lookup, else draft model" if takes_draft else "prompt lookup",
        }[spec.kind]
        length = "" if drafter == "none" else f", {spec.setting or 'as many tokens as pay'}"
        note = f"this engine ({self._form()}), {drafts}{length}"
        return EngineContestant(spec.name, note, backend.engine, plan.params, keep_prefixes=plan.keep_prefixes)

    def _synthetic(self, spec: ContestantSpec) -> SyntheticContestant:
        plan, loaded = self._plan, _ours_of(self._target)
        shared = checked_options(plan.engine)
        longest_draft = int(spec.setting) if spec.setting is not None else shared["max_draft_tokens"]
        slots = self._slots(spec)
        runner = self._runner(loaded, slots, longest_draft)
        cost, payer = plan.synthetic_cost, None
        if cost is None:
            if self._draft is None:
                msg = "The synthetic drafts need --synthetic-cost, or --draft-model, whose forwards they then cost."
                raise InvalidParameterError(msg)
            draft_runner = self._runner(_ours_of(self._draft), slots, longest_draft)
            payer = DraftModelDrafter(draft_runner, runner.vocab_size, shared["prefill_chunk"])
        drafter = AgreementDrafter(plan.synthetic_agreement, runner.vocab_size, payer)
        engine = Engine(
            runner,
            drafter,
            loaded.private_tokenizer,
            loaded.eos_token_ids,
            max_draft_tokens=longest_draft,
            draft_length="auto" if spec.setting is None else longest_draft,
            prefill_chunk=shared["prefill_chunk"],
            step_cost=self._step_cost(),
        )
        self._share(engine)
        price = "of the draft model's forwards" if cost is None else f"of {cost:g} plain steps each"
        note = (
            f"this engine ({self._form()}), drafts at {plan.synthetic_agreement:.0%} agreement "
            f"and a cost {price}, {spec.setting or 'as many tokens as pay'}"
        )
        return SyntheticContestant(
            spec.name,
            note,
            engine,
            plan.params,
            keep_prefixes=plan.keep_prefixes,
            cost=cost,
            drafter=drafter,
        )

    def _capture_mode(self) -> CompileMode:
        """On CUDA each runner captures for itself; elsewhere all share what `Weights.compiled` compiles."""
        return "off" if self._target.captured is None else self._plan.compile

    def _share(self, engine: Engine) -> None:
        """Have all engines run the same compiled layers, or list the graphs that each captures for itself."""
        if not isinstance(engine.runner, CapturedRunner):
            engine.runner.compiled = self._target.compiled
        if self._target.captured is not None:
            runners = (engine.runner, *engine.drafter.runners)
            self._target.captured.extend(runner.store for runner in runners if isinstance(runner, CapturedRunner))

    def _step_cost(self) -> StepCost | None:
        return StepCost.flat() if self._plan.step_cost == "flat" else None

    def _runner(self, loaded: LoadedModel, slots: int, longest_draft: int) -> Runner:
        return make_runner(
            loaded,
            num_slots=slots,
            max_length=self._max_length,
            max_width=1 + longest_draft,
            compile=self._capture_mode(),
        )

    def _generate(self, spec: ContestantSpec) -> GenerateContestant:
        options: dict[str, Any] = {}
        mode = None
        note = "transformers' generate, dynamic cache"
        length = spec.setting if spec.setting is not None else _PEER_LENGTHS.get(spec.kind)
        if spec.kind == "hf-prompt-lookup":
            options["prompt_lookup_num_tokens"] = length
            note = f"transformers' prompt lookup, {length} tokens; may return more than max_new_tokens"
        elif spec.kind == "hf-assisted" and self._draft is not None:
            options["assistant_model"] = self._draft.peer
            note = f"transformers' assisted generation, {length or 'its usual number of'} tokens"
        elif spec.kind == "hf-compiled":
            mode = str(spec.setting or "reduce-overhead")
            note = f"transformers' generate, static cache, torch.compile({mode})"
        tokens = int(length) if "assistant_model" in options and length is not None else None
        return GenerateContestant(
            spec.name,
            note,
            self._target,
            self._plan.params,
            concurrency=spec.concurrency,
            options=options,
            assistant_tokens=tokens,
            compile_mode=mode,
        )

    def _flashspec(self, spec: ContestantSpec) -> FlashspecContestant:
        draft = self._draft.peer if self._draft is not None else None
        strategy = str(spec.setting or "auto")
        note = f"flashspec, {strategy if draft is not None else 'n-gram lookup'}"
        return FlashspecContestant(
            spec.name, note, self._target, self._plan.params, draft_model=draft, strategy=strategy
        )


def _ours_of(weights: Weights) -> LoadedModel:
    if weights.ours is None:
        msg = "the weights were not loaded for the engine"
        raise RuntimeError(msg)
    return weights.ours
