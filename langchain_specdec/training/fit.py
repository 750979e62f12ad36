"""Trains a draft by transformers' `Trainer`, so that a run that was ended goes on where its last checkpoint is."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from langchain_specdec.progress import Progress
from langchain_specdec.training.optimizer import make_optimizer, multiplies_bfloat16
from langchain_specdec.training.settings import DraftSettings
from langchain_specdec.training.student import Student
from langchain_specdec.training.text_batches import TextBatch, TextBatches

if TYPE_CHECKING:
    from transformers import Trainer

_STATE = "trainer_state.json"
# SmolLM2-135M's. Wider drafts want lower learning rates.
_USUAL_WIDTH = 576
_WARMUP_SHARE = 0.04


def fit(
    model: Student,
    batches: TextBatches,
    settings: DraftSettings,
    rate: float,
    folder: Path,
    tell: Progress,
    is_stopped: Callable[[], bool],
) -> bool:
    """Train a draft.

    Args:
        model: The draft with its loss, on the device that it is trained on.
        batches: What it is trained on.
        settings: How.
        rate: The highest learning rate; see `learning_rate`.
        folder: Keeps checkpoints. The last whole one in it is gone on with.
        tell: Told how many steps are done.
        is_stopped: Whether to end after this step, with a checkpoint.

    Returns:
        Whether it went through to the end.
    """
    trainer = _trainer(model, batches, settings, rate, folder, tell, is_stopped)
    checkpoint = last_checkpoint(folder)
    with _quiet_trainer():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return trainer.state.global_step >= len(batches) * settings.epochs


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole: its state is written last."""

    def is_whole(path: Path) -> bool:
        try:
            json.loads((path / _STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return True

    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return next((path for path in reversed(found) if is_whole(path)), None)


def learning_rate(settings: DraftSettings, usual: float, hidden_size: int) -> float:
    """The highest learning rate: what is asked for, or the usual one of a kind of drafts, less for wide ones."""
    return settings.learning_rate or usual * min(_USUAL_WIDTH / hidden_size, 1.0)


def _trainer(
    model: Student,
    batches: TextBatches,
    settings: DraftSettings,
    rate: float,
    folder: Path,
    tell: Progress,
    is_stopped: Callable[[], bool],
) -> Trainer:
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    steps = len(batches) * settings.epochs
    device = next(model.parameters()).device

    class Steps(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            tell("Training, steps", state.global_step, steps)
            if is_stopped():
                # Between two steps all that is saved belongs together.
                control.should_save = control.should_training_stop = True

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,  # a batch of texts
        num_train_epochs=settings.epochs,
        lr_scheduler_type="cosine",
        warmup_steps=int(steps * _WARMUP_SHARE),
        max_grad_norm=1.0,
        seed=settings.seed,
        data_seed=settings.seed,
        save_strategy="steps",
        save_steps=min(settings.checkpoint_steps, steps),
        save_total_limit=2,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=device.type == "cpu",
        # Weights stay in float32.
        bf16=multiplies_bfloat16(device),
    )
    # The target has one device, and so has its draft.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=batches,
        data_collator=_only,
        callbacks=[Steps()],
        optimizers=(make_optimizer(model, model.matrices(), rate), None),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _only(items: list[TextBatch]) -> dict[str, torch.Tensor]:
    """The only item, which is a batch already."""
    (batch,) = items
    return dict(batch)  # type: ignore[arg-type]


@contextmanager
def _quiet_trainer() -> Iterator[None]:
    """Keep to itself what the trainer says of defaults."""
    logger = logging.getLogger("transformers.trainer")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
