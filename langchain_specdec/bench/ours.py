"""Makes the contestants on this package's engine."""

from __future__ import annotations

from typing import Any

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.backends.local_options import DrafterName, checked_options
from langchain_specdec.bench.contestant import ContestantSpec
from langchain_specdec.bench.contestant_engine import EngineContestant
from langchain_specdec.bench.contestant_synthetic import AgreementDrafter, SyntheticContestant
from langchain_specdec.bench.plan import Plan
from langchain_specdec.bench.weights import Weights
from langchain_specdec.drafters.draft_model import DraftModelDrafter
from langchain_specdec.engine.engine import Engine
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.models.gguf.model import GGUFModel
from langchain_specdec.models.heads.head_source import HeadSource
from langchain_specdec.models.heads.mtp_source import find_mtp
from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.models.make_runner import make_runner
from langchain_specdec.runner.runner import Runner
from langchain_specdec.runner.trials import CompileMode

_DRAFTERS: dict[str, DrafterName] = {
    "plain": "none",
    "prompt_lookup": "prompt_lookup",
    "draft_model": "draft_model",
    "auto": "auto",
    # The model is loaded, so its layers are given beside it.
    "mtp": "auto",
}


class EngineContestants:
    """Makes them over loaded weights.

    Args:
        plan: What is to be measured.
        target: The model.
        draft: The draft model or trained head.
        max_length: Positions that the longest prompt and its answer take.
    """

    def __init__(self, plan: Plan, target: Weights, draft: Weights | HeadSource | None, max_length: int) -> None:
        self._plan = plan
        self._target = target
        self._draft = draft
        self._max_length = max_length

    def make(self, spec: ContestantSpec) -> EngineContestant:
        """The contestant of that name."""
        return self._synthetic(spec) if spec.kind == "synthetic" else self._ours(spec)

    def _form(self) -> str:
        if self._target.formats:
            return f"native decoder, weights in {self._target.formats}"
        return "packed linear layers" if self._target.num_packed else "own attention"

    def _ours(self, spec: ContestantSpec) -> EngineContestant:
        plan, target = self._plan, self._target
        loaded = _ours_of(target)
        drafter = _DRAFTERS[spec.kind]
        # Without drafts there are no wide steps to prepare.
        options: dict[str, Any] = {"max_draft_tokens": 1, "draft_length": "auto"} if drafter == "none" else {}
        drafts = "draft model"
        if spec.kind == "mtp":
            options["draft_model"], drafts = find_mtp(plan.model), "MTP layers"
        elif spec.takes and isinstance(self._draft, HeadSource):
            options["draft_model"], drafts = plan.draft_model, "trained head"
        elif spec.takes and isinstance(self._draft, Weights):
            options |= {"draft_model": _ours_of(self._draft).model, "draft_tokenizer": self._draft.tokenizer}
        if spec.setting is not None:
            options |= {"draft_length": spec.setting, "max_draft_tokens": spec.setting}
        backend = LocalBackend(
            loaded.model,
            # That of a GGUF file comes with it, as it does for whoever names the file.
            None if isinstance(loaded.model, GGUFModel) else loaded.private_tokenizer,
            drafter=drafter,
            num_slots=spec.concurrency or plan.batch,
            max_length=self._max_length,
            step_cost=self._step_cost(),
            compile=self._capture_mode(),
            **{**plan.engine, **options},
        )
        self._list_graphs(backend.engine)
        drafts = {
            "plain": "no drafts",
            "prompt_lookup": "prompt lookup",
            "draft_model": drafts,
            "auto": f"lookup and {drafts} in one tree" if "draft_model" in options else "prompt lookup",
            "mtp": f"lookup and {drafts} in one tree",
        }[spec.kind]
        length = "" if drafter == "none" else f", {spec.setting or 'as many tokens as pay'}"
        note = f"this engine ({self._form()}), {drafts}{length}"
        return EngineContestant(spec.name, note, backend.engine, plan.params, keep_prefixes=plan.keep_prefixes)

    def _synthetic(self, spec: ContestantSpec) -> SyntheticContestant:
        plan, loaded = self._plan, _ours_of(self._target)
        shared = checked_options(plan.engine)
        longest_draft = int(spec.setting) if spec.setting is not None else shared["max_draft_tokens"]
        slots = spec.concurrency or plan.batch
        runner = self._runner(loaded, slots, longest_draft)
        cost, payer = plan.synthetic_cost, None
        if cost is None:
            if not isinstance(self._draft, Weights):
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
        self._list_graphs(engine)
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
        """How each runner captures its steps for itself."""
        return "off" if self._target.captured is None else self._plan.compile

    def _list_graphs(self, engine: Engine) -> None:
        """List the graphs that an engine captures for itself."""
        if self._target.captured is None:
            return
        # A native decoder does without what this imports.
        from langchain_specdec.runner.cuda.captured_runner import CapturedRunner

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


def _ours_of(weights: Weights) -> LoadedModel:
    if weights.ours is None:
        msg = "the weights were not loaded for the engine"
        raise RuntimeError(msg)
    return weights.ours
