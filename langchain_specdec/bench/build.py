"""Puts a measurement together: loads the weights, makes the prompts and the contestants."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from langchain_specdec.bench.contestant import KINDS, Contestant, ContestantSpec, Prompt
from langchain_specdec.bench.plan import Plan
from langchain_specdec.bench.random_weights import is_random
from langchain_specdec.bench.weights import Weights, load_weights
from langchain_specdec.bench.workload import Question, encode
from langchain_specdec.errors import InvalidParameterError, MissingDependencyError, UnsupportedModelError
from langchain_specdec.models.devices import resolve_device
from langchain_specdec.models.heads.head_source import HeadSource, find_head
from langchain_specdec.models.heads.mtp_source import find_mtp
from langchain_specdec.progress import Progress

# Positions of a model that does not say how many it has, and most tokens of a prompt where nobody asks for more.
_MAX_LENGTH = 8192
# Contestants may write beyond the last token, so this many positions stay free.
_SPARE = 64


@dataclass(frozen=True)
class Setup:
    """What is loaded and ready.

    Attributes:
        target: The model.
        draft: The draft model, if there is one.
        head: The trained head that is given as one, which each contestant loads for itself.
        prompts: The workload as tokens.
        contestants: Who takes part, in the order asked for.
        is_chat: Whether prompts are in the chat format.
    """

    target: Weights
    draft: Weights | None
    head: HeadSource | None
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


def named_head(draft_model: str | None) -> HeadSource | None:
    """The trained head that is given as a draft model; None where there is none.

    Raises:
        InvalidParameterError: It is no name.
        ModelLoadError: There is no such folder or id.
    """
    return None if draft_model is None or is_random(draft_model) else find_head(draft_model)


def why_no_mtp(model: str) -> str:
    """Why a model cannot draft by MTP layers of its own, as the end of a sentence; "" where it can.

    Raises:
        ModelLoadError: There is no such model, or it cannot be read.
    """
    if is_random(model):
        return f"{model} has no MTP layers"
    try:
        source = find_mtp(model)
        # What is imported here is not to count for contestants that can do without.
        from langchain_specdec.models.heads.load_mtp import check_mtp
        from langchain_specdec.models.loader import load_config

        check_mtp(source, load_config(model))
    except (InvalidParameterError, UnsupportedModelError) as error:
        # What follows is advice to who named the drafter.
        return str(error).partition(". ")[0]
    return ""


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
        "for_peers": any(spec.is_peer for spec in plan.specs),
        "dtype": plan.dtype,
        "device": plan.device,
        "progress": progress,
    }
    for_gguf = any(spec.is_gguf for spec in plan.specs)
    if for_gguf and (device := resolve_device(plan.device)).type != "cpu":
        msg = f"llama-cpp runs on the CPU here, and the others on {device}. Leave it out, or measure with --device cpu."
        raise InvalidParameterError(msg)
    target = load_weights(plan.model, compile=plan.compile, for_gguf=for_gguf, **forms)
    head = named_head(plan.draft_model)
    draft = load_weights(plan.draft_model, **forms) if plan.draft_model is not None and head is None else None
    is_chat = _is_chat(plan, target)
    prompts = _encode_all(plan, questions, target, draft, is_chat=is_chat)
    with contextlib.ExitStack() as stack:
        if plan.engine.get("num_threads"):
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(plan.num_threads)
        max_length = max(len(p.token_ids) for p in prompts) + plan.params.max_new_tokens + _SPARE // 2
        contestants = []
        for spec in plan.specs:
            contestants.append(_make(spec, plan, target, head or draft, max_length))
            stack.callback(contestants[-1].close)
        yield Setup(target, draft, head, prompts, contestants, is_chat)


def _make(
    spec: ContestantSpec, plan: Plan, target: Weights, draft: Weights | HeadSource | None, max_length: int
) -> Contestant:
    # What the others import is not to count for a contestant that has the process to itself.
    if spec.is_ours:
        from langchain_specdec.bench.ours import EngineContestants

        return EngineContestants(plan, target, draft, max_length).make(spec)
    from langchain_specdec.bench.peers import make_peer

    num_slots = spec.concurrency or plan.batch
    return make_peer(
        spec, target, draft, plan.params, num_slots=num_slots, max_length=max_length, num_threads=plan.num_threads
    )


def _is_chat(plan: Plan, target: Weights) -> bool:
    has_format = target.tokenizer.copied.chat_template is not None
    if plan.is_chat and not has_format:
        msg = f"{target.name} has no chat format. Leave --chat out, or take the model's chat or instruct version."
        raise InvalidParameterError(msg)
    return has_format and plan.is_chat is not False


def _encode_all(
    plan: Plan, questions: Sequence[Question], target: Weights, draft: Weights | None, *, is_chat: bool
) -> list[Prompt]:
    positions = [w.max_positions or _MAX_LENGTH for w in (target, draft) if w is not None]
    room = min(positions) - plan.params.max_new_tokens - _SPARE
    if room < 1:
        msg = f"max_new_tokens is {plan.params.max_new_tokens}, and {target.name} has {min(positions)} positions only."
        raise InvalidParameterError(msg)
    limit = min(room, plan.max_prompt_tokens or _MAX_LENGTH)
    return [encode(question, target.tokenizer.copied, limit, is_chat=is_chat) for question in questions]
