"""Gives a loaded head its slots, and what makes it fast on its device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_specdec.models.heads.eagle3_head import Eagle3Head
from langchain_specdec.models.heads.native_head import native_head
from langchain_specdec.models.heads.target_sizes import embedding_of
from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.models.memory import default_threads
from langchain_specdec.runner.cpu.native_runner import decoder_of
from langchain_specdec.runner.head_runner import HeadRunner
from langchain_specdec.runner.runner import Runner

if TYPE_CHECKING:
    from langchain_specdec.models.heads.mtp_head import MtpHead

# Entries of a text that a forward takes in beside those that it drafts from.
_LEAST_WIDTH = 16


def make_head_runner(
    head: Eagle3Head | MtpHead,
    target: LoadedModel,
    runner: Runner,
    *,
    num_slots: int,
    max_width: int,
    num_threads: int | None = None,
) -> HeadRunner:
    """Give a head its slots. On a CPU that is the native decoder, for EAGLE-3 heads that it runs.

    Args:
        head: The head.
        target: What it drafts for.
        runner: Runs the target; a text has as many positions here as there.
        num_slots: As the target's.
        max_width: Most tokens of a row in a forward.
        num_threads: Threads of a native one where its target has none; None is `default_threads`.

    Raises:
        MemoryError: There is no memory for it.
    """
    width, length = max(max_width, _LEAST_WIDTH), runner.max_length
    if runner.device.type == "cpu" and isinstance(head, Eagle3Head):
        threads = num_threads or default_threads()
        native = native_head(
            head,
            target,
            num_slots=num_slots,
            max_length=length,
            max_width=width,
            num_threads=threads,
            beside=decoder_of(runner),
        )
        if native is not None:
            return native
    from langchain_specdec.runner.module_head_runner import ModuleHeadRunner

    return ModuleHeadRunner(head, num_slots, length, width)


def make_assistant_runner(assistant: Any, target: LoadedModel, runner: Runner, max_width: int) -> HeadRunner:
    """Have an assistant of Gemma 4 read the slots of its target.

    Args:
        assistant: What `load_assistant` gave.
        target: What it drafts for.
        runner: Runs the target, by PyTorch.
        max_width: Most tokens of a row in a forward.
    """
    from langchain_specdec.runner.assistant_runner import AssistantRunner

    slots: Any = runner.cache
    return AssistantRunner(assistant, embedding_of(target), target.model.config.get_text_config(), slots, max_width)
