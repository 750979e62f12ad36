"""How a small model is made of the target's own layers, and distilled on the target's answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.models.gguf.model import GGUFModel
from langchain_specdec.models.loaded_model import LoadedModel, format_names
from langchain_specdec.models.quiet_loading import quiet_loading
from langchain_specdec.paths import give_usual_modes
from langchain_specdec.runner.cpu.decoder_weights import PLAIN
from langchain_specdec.runner.cpu.matrix_layers import MatrixLinear
from langchain_specdec.training.answers import Text
from langchain_specdec.training.distilled_model import DistilledModel
from langchain_specdec.training.layer_influence import influences, most_influential
from langchain_specdec.training.output_head import OutputHead
from langchain_specdec.training.pruned_model import LayerPlan
from langchain_specdec.training.recipe import Hooks, Recipe
from langchain_specdec.training.settings import DraftSettings
from langchain_specdec.training.student import Student
from langchain_specdec.training.text_batches import TextBatches
from langchain_specdec.training.work_folder import WorkFolder

_LAYERS = "layers.json"
# Tokens by which the states that the output head reads are looked up.
_PROBED = 16


class PrunedRecipe(Recipe):
    """See `Recipe`.

    Args:
        model: The target.
        name: What the user calls it.
        settings: How the draft is made.
        hooks: What it tells.

    Raises:
        UnsupportedModelError: Layers of the target cannot be left out.
        InvalidParameterError: So many are to be kept that none is left out.
    """

    # Its weights know much already, and are to be mended rather than learned.
    learning_rate = 3e-4

    def __init__(self, model: Any, name: str, settings: DraftSettings, hooks: Hooks) -> None:
        super().__init__(settings, hooks)
        self._plan = plan = LayerPlan(model, name)
        self.points = (plan.num_layers,)
        self._count = settings.keep_layers or plan.usual_count()
        if self._count >= plan.num_layers:
            msg = (
                f"keep_layers is {self._count}, and {name} has {plan.num_layers} layers: nothing is left out. Give a "
                f"number from 2 to {plan.num_layers - 1}."
            )
            raise InvalidParameterError(msg)

    def prepare(
        self, target: LoadedModel, texts: Sequence[Text], folder: WorkFolder, num_threads: int | None
    ) -> tuple[OutputHead, Tensor | None]:
        """See `Recipe.prepare`: the layers with the most influence, and a model of them."""
        if (kept := folder.read(_LAYERS)) is None:
            found = influences(target, texts, num_threads, self._hooks.tell)
            kept = most_influential(found, self._plan.num_layers, self._count)
            folder.write_json(_LAYERS, kept)
        self._kept: list[int] = kept
        plan, named = self._plan, ", ".join(map(str, kept))
        self._hooks.note(
            f"The draft keeps {len(kept)} of {plan.num_layers} layers ({named}), which with the output head are "
            f"{plan.share(kept):.0%} of the numbers that the model reads for a token."
        )
        model = plan.prune(target.model, kept)
        self._target, self._model = target, model
        self._output = output = OutputHead.of(replace(target, model=model), None)
        with torch.inference_mode():
            tokens = torch.tensor([texts[0].tokens[:_PROBED]])
            state = plan.decoder(model)(input_ids=tokens, use_cache=False).last_hidden_state[0, -1]
            output.check(state, model(input_ids=tokens, use_cache=False).logits[0, -1], target.name)
        return output, None

    def student(self, batches: TextBatches) -> Student:
        """See `Recipe.student`."""
        device = self._target.model.device
        model = self._model.to(device)
        return DistilledModel(model, self._plan.decoder(model), self._output.to(device)).to(device)

    def save(self, student: Student, out: Path) -> dict[str, Any]:
        """See `Recipe.save`: a folder of transformers, with the target's tokenizer."""
        model = self._model.to("cpu", torch.bfloat16)
        with quiet_loading():
            model.save_pretrained(out)
        self._target.tokenizer.save_pretrained(out)
        give_usual_modes(out)
        # In bfloat16 it would read more than a target in blocks does.
        return {"draft_quantization": "int8"} if _is_in_blocks(self._target.model) else {}


def _is_in_blocks(model: Any) -> bool:
    """Whether a native decoder runs the target in blocks of few bits, as it then can a draft."""
    plain = {each.name for each in PLAIN}
    if isinstance(model, GGUFModel):
        return not format_names(model.weights) <= plain
    return any(isinstance(each, MatrixLinear) and each.format.name not in plain for each in model.modules())
