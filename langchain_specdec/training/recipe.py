"""What kinds of drafts differ in as they are made: what is recorded of the target, what is trained, what is saved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.progress import Progress
from langchain_specdec.training.answers import Text
from langchain_specdec.training.output_head import OutputHead
from langchain_specdec.training.settings import DraftSettings
from langchain_specdec.training.student import Student
from langchain_specdec.training.text_batches import TextBatches
from langchain_specdec.training.work_folder import WorkFolder


@dataclass(frozen=True)
class Hooks:
    """What a run tells, and asks.

    Attributes:
        tell: Told how far a stage is.
        note: Told what is worth a line.
        is_stopped: Whether to end soon, so that the run can go on later.
    """

    tell: Progress
    note: Callable[[str], None]
    is_stopped: Callable[[], bool] = lambda: False


class Recipe(ABC):
    """How a draft of one kind is made for a target.

    Args:
        settings: How the draft is made.
        hooks: What it tells.

    Attributes:
        points: Where the target is tapped while its states are recorded. The last is what its output head reads.
        learning_rate: The highest, unless another is asked for, of a draft as wide as SmolLM2-135M.
    """

    points: tuple[int, ...]
    learning_rate: float

    def __init__(self, settings: DraftSettings, hooks: Hooks) -> None:
        self._settings, self._hooks = settings, hooks

    @abstractmethod
    def prepare(
        self, target: LoadedModel, texts: Sequence[Text], folder: WorkFolder, num_threads: int | None
    ) -> tuple[OutputHead, Tensor | None]:
        """Choose what the draft is made of.

        Args:
            target: The target, which runs nothing meanwhile.
            texts: Prompts with answers, which are trained on.
            folder: Keeps what is chosen.
            num_threads: See `make_runner`.

        Returns:
            The target's output head of the tokens that the draft proposes, and their ids, int64 `[tokens]`; None where
            they are all.

        Raises:
            UnsupportedModelError: There can be no such draft for this model.
        """

    @abstractmethod
    def student(self, batches: TextBatches) -> Student:
        """The draft before its training, on the device of the target.

        Args:
            batches: What it is trained on.
        """

    @abstractmethod
    def save(self, student: Student, out: Path) -> Mapping[str, Any]:
        """Write the draft into a folder.

        Returns:
            Options of `LocalBackend` by which it is used best, beside `draft_model`.
        """
