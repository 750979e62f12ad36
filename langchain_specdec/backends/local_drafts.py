"""Where a local backend's drafts come from: lookups, and the draft model or head that is asked for."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_specdec.backends.local_options import LocalOptions
from langchain_specdec.drafters.assistant import AssistantDrafter
from langchain_specdec.drafters.base import Drafter
from langchain_specdec.drafters.combined import CombinedDrafter
from langchain_specdec.drafters.draft_head import DraftHeadDrafter
from langchain_specdec.drafters.draft_model import DraftModelDrafter
from langchain_specdec.drafters.lookup_tree import LookupTreeDrafter
from langchain_specdec.drafters.prompt_lookup import PromptLookupDrafter
from langchain_specdec.errors import InvalidParameterError, SpecDecError, UnsupportedModelError
from langchain_specdec.models.common_vocabulary import CommonVocabulary
from langchain_specdec.models.compatibility import common_vocabulary
from langchain_specdec.models.heads.head_source import HeadSource, find_head
from langchain_specdec.models.heads.load_assistant import is_assistant, load_assistant
from langchain_specdec.models.heads.load_head import load_head
from langchain_specdec.models.heads.make_head_runner import make_assistant_runner, make_head_runner
from langchain_specdec.models.heads.mtp_source import MtpSource, find_mtp
from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.models.loader import load_model
from langchain_specdec.models.make_runner import make_runner
from langchain_specdec.progress import telling
from langchain_specdec.runner.head_runner import HeadRunner
from langchain_specdec.runner.runner import Runner

if TYPE_CHECKING:
    from langchain_specdec.models.heads.eagle3_head import Eagle3Head
    from langchain_specdec.models.heads.mtp_head import MtpHead

# What the draft model is loaded with too.
_LOADED_ALIKE = (
    "dtype", "device", "device_map", "attn_implementation", "trust_remote_code", "token", "progress",
)  # fmt: skip
_UNLIKE = (
    "%s has another tokenizer than %s: it drafts from the %d tokens that both have (%.0f%% of the target's). "
    "The text is the same."
)
# What only a draft model can be given.
_NOT_OF_HEADS = ("draft_tokenizer", "draft_quantization")
_logger = logging.getLogger(__name__)


def load_alike(model: Any, tokenizer: Any, options: Mapping[str, Any], **own: Any) -> LoadedModel:
    """Load the target or its draft model, by the options that are for both and those of its own."""
    try:
        with telling(options["progress"]):
            return load_model(model, tokenizer, **own, **{name: options[name] for name in _LOADED_ALIKE})
    except SpecDecError as error:
        _explain_head(model, own.get("revision"), options["token"], error)
        raise


def _explain_head(model: Any, revision: str | None, token: str | bool | None, error: SpecDecError) -> None:
    """Raise what helps where a trained head was given for a model."""
    try:
        found = find_head(model, revision=revision, token=token)
    except SpecDecError:
        return
    if found is not None:
        msg = (
            f"{found.name} is a trained head, which drafts for a model and writes nothing by itself. Give the model "
            "that it was trained for as the model, and this as its draft_model."
        )
        raise UnsupportedModelError(msg) from error


def find_draft_head(model: Any, options: LocalOptions) -> HeadSource | MtpSource | None:
    """The head that is asked for, of which little is read so far; None: there is none.

    That is one that the draft model's name stands for, or the MTP layers of the model itself. Those of a model that is
    loaded already are given as its draft model, as a `MtpSource`.

    Args:
        model: The model as it is given to be loaded.
        options: All options.

    Raises:
        InvalidParameterError: Options are given that are of no use to a head, the name is none, or a model in this form
            has no MTP layers.
        UnsupportedModelError: The model has no MTP layers.
        ModelLoadError: There is no such folder or id.
    """
    if options["drafter"] == "mtp":
        return find_mtp(model, revision=options["revision"], token=options["token"])
    source = options["draft_model"]
    if isinstance(source, MtpSource):
        return source
    if not isinstance(source, (str, os.PathLike)):
        return None
    found = find_head(source, revision=options["draft_revision"], token=options["token"])
    given: Mapping[str, Any] = options
    if found is not None and (useless := [name for name in _NOT_OF_HEADS if given[name] is not None]):
        msg = (
            f"{found.name} is a trained head, not a model: {' and '.join(useless)} would do nothing for it. Leave "
            f"{'them' if len(useless) > 1 else 'it'} out."
        )
        raise InvalidParameterError(msg)
    return found


@dataclass(frozen=True)
class LoadedDrafts:
    """The draft model, or the head, of a target; both are None where neither is asked for.

    Attributes:
        model: The draft model.
        common: What it has in common with the target's tokenizer; None where that is its own.
        head: The head.
        assistant: The head, where it is an assistant of Gemma 4.
        head_name: What its drafts are called among those of other sources.
    """

    model: LoadedModel | None = None
    common: CommonVocabulary | None = None
    head: Eagle3Head | MtpHead | None = None
    assistant: Any = None
    head_name: str = "eagle3"

    @classmethod
    def load(cls, target: LoadedModel, head: HeadSource | MtpSource | None, options: LocalOptions) -> LoadedDrafts:
        """Load what is asked for.

        Raises:
            ModelLoadError: It cannot be read.
            UnsupportedModelError: It cannot draft for the target.
        """
        source = options["draft_model"]
        if isinstance(head, MtpSource):
            # Made of the target's classes, which are imported by now.
            from langchain_specdec.models.heads.load_mtp import load_mtp

            return cls(head=load_mtp(head, target), head_name="mtp")
        if head is not None and is_assistant(head):
            return cls(assistant=load_assistant(head, target), head_name="assistant")
        if head is not None:
            return cls(head=load_head(head, target))
        if source is None:
            return cls()
        model = load_alike(
            source,
            options["draft_tokenizer"],
            options,
            revision=options["draft_revision"],
            quantization=options["draft_quantization"],
        )
        common = common_vocabulary(target, model)
        if common is not None:
            _logger.info(_UNLIKE, model.name, target.name, len(common), 100 * common.share)
        return cls(model, common)

    @property
    def max_positions(self) -> int | None:
        """The most positions that a draft model was made for; None sets no limit."""
        return self.model.max_positions if self.model is not None else None

    def runners(self, target: LoadedModel, runner: Runner, options: LocalOptions) -> list[Runner | HeadRunner]:
        """What runs it: one runner, or none.

        Args:
            target: The target.
            runner: Runs the target, whose slots it follows.
            options: All options.

        Raises:
            InvalidParameterError: The draft model has not as many positions as a slot.
        """
        if self.model is not None:
            return [_draft_runner(self.model, runner, options)]
        width = 1 + max(options["max_draft_tokens"], options["max_tree_nodes"])
        if self.assistant is not None:
            return [make_assistant_runner(self.assistant, target, runner, width)]
        if self.head is None:
            return []
        slots, threads = options["num_slots"], options["num_threads"]
        return [make_head_runner(self.head, target, runner, num_slots=slots, max_width=width, num_threads=threads)]

    def drafter(self, target: Runner, own: Sequence[Runner | HeadRunner], options: LocalOptions) -> Drafter:
        """The drafter that is asked for.

        Args:
            target: Runs the target.
            own: What `runners` gave.
            options: All options.
        """
        max_ngram = options["prompt_lookup_max_ngram"]
        if options["drafter"] == "none":
            return Drafter()
        if options["drafter"] == "prompt_lookup":
            return PromptLookupDrafter(max_ngram)
        computed = [self._computed(target, runner, options["prefill_chunk"]) for runner in own]
        if options["drafter"] == "draft_model":
            return computed[0]
        tree = LookupTreeDrafter(max_ngram, is_shared=options["shared_lookup"])
        return CombinedDrafter([tree, *computed]) if computed else tree

    def _computed(self, target: Runner, runner: Any, chunk: int) -> Drafter:
        if self.assistant is not None:
            return AssistantDrafter(target, runner, self.head_name, chunk)
        if self.head is not None:
            return DraftHeadDrafter(target, runner, self.head_name, chunk)
        return DraftModelDrafter(runner, target.vocab_size, chunk, self.common)


def _draft_runner(draft: LoadedModel, target: Runner, options: LocalOptions) -> Runner:
    # One position more than the target: its first token in a step may be the one before the last.
    length = min(target.max_length, draft.max_positions or target.max_length)
    if length < target.max_length:
        msg = (
            f"{draft.name} was made for {length} positions, but a slot has {target.max_length}. "
            f"Set max_length={length} or take a draft model with a longer context."
        )
        raise InvalidParameterError(msg)
    return make_runner(
        draft,
        num_slots=options["num_slots"],
        max_length=length,
        max_width=1 + options["max_draft_tokens"],
        # It may be on a CPU beside a target on a GPU.
        compile=options["compile"] if draft.model.device.type == "cuda" else "off",
        num_threads=options["num_threads"],
        beside=target,
    )
