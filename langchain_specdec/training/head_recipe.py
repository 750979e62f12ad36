"""How an EAGLE-3 head is made for a target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from langchain_specdec.models.heads.save_head import save_head
from langchain_specdec.models.heads.target_sizes import embedding_of
from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.training.answers import Text
from langchain_specdec.training.draft_vocabulary import draft_token_ids, share_covered
from langchain_specdec.training.new_head import head_config, new_head, tap_points
from langchain_specdec.training.optimizer import has_muon
from langchain_specdec.training.output_head import OutputHead
from langchain_specdec.training.recipe import Hooks, Recipe
from langchain_specdec.training.settings import DraftSettings
from langchain_specdec.training.student import Student
from langchain_specdec.training.text_batches import TextBatches
from langchain_specdec.training.unrolled_head import UnrolledHead
from langchain_specdec.training.work_folder import WorkFolder

# Texts by whose states a new head's output is scaled.
_SCALED_BY = 32


class HeadRecipe(Recipe):
    """See `Recipe`.

    Args:
        model: The target.
        settings: How the head is made.
        hooks: What it tells.

    Raises:
        UnsupportedModelError: The target has too few layers.
    """

    def __init__(self, model: Any, settings: DraftSettings, hooks: Hooks) -> None:
        super().__init__(settings, hooks)
        # Orthogonal updates bear higher rates.
        self.learning_rate = 3e-3 if has_muon(model.device) else 1e-3
        num_layers = model.config.get_text_config().num_hidden_layers
        self.points = *tap_points(num_layers), num_layers

    def prepare(
        self, target: LoadedModel, texts: Sequence[Text], folder: WorkFolder, num_threads: int | None
    ) -> tuple[OutputHead, Tensor | None]:
        """See `Recipe.prepare`: the tokens that answers are made of."""
        vocab_size = target.model.config.get_text_config().vocab_size
        ids = draft_token_ids(texts, vocab_size, self._settings.draft_vocab_size, target.eos_token_ids)
        share = share_covered(texts, ids)
        self._hooks.note(f"The draft proposes {len(ids)} of {vocab_size} tokens, {share:.1%} of what was answered.")
        self._target, self._ids, self._output = target, ids, OutputHead.of(target, ids)
        return self._output, ids

    def student(self, batches: TextBatches) -> Student:
        """See `Recipe.student`."""
        target, device = self._target, self._target.model.device
        config, sizes = head_config(target, self._ids), _typical_sizes(batches)
        head = new_head(config, self._ids, embedding_of(target), self._output, sizes[-1], self._settings.seed)
        return UnrolledHead(head, self._output.to(device), self._settings.unroll, sizes[:-1]).to(device)

    def save(self, student: Student, out: Path) -> dict[str, Any]:
        """See `Recipe.save`."""
        head, target = cast(UnrolledHead, student).finish(), self._target
        save_head(head, out, target.name, _architectures(target.model.config), self._settings.unroll + 1)
        return {}


def _architectures(config: Any) -> list[str]:
    """The names of a model's class, as its config.json has them; a GGUF file names none."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.get_text_config().model_type)
    return list(getattr(config, "architectures", None) or ([known] if isinstance(known, str) else []))


def _typical_sizes(batches: TextBatches) -> Tensor:
    """The root mean square of each number of the states, `[points, hidden]`; of those that are always 0, 1."""
    sums, count = torch.zeros(()), 0
    for index in range(min(len(batches), _SCALED_BY)):
        batch = batches[index]
        states = batch["states"][batch["is_answered"]]
        sums, count = sums + states.double().pow(2).sum(0), count + len(states)
    sizes = (sums / count).sqrt().float()
    return sizes.where(sizes > 0, torch.ones(()))
