"""A model of some of another's layers, as transformers knows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from langchain_specdec.errors import UnsupportedModelError
from langchain_specdec.models.gguf.config import GGUFConfig
from langchain_specdec.models.gguf.model import GGUFModel
from langchain_specdec.models.gguf.rotary import FACTORS
from langchain_specdec.models.gguf.to_transformers import to_transformers, transformers_config
from langchain_specdec.models.quiet_loading import quiet_loading
from langchain_specdec.runner.model_config import decoder_layers
from langchain_specdec.training.plain_weights import linear_rows, table

_FEWEST_LAYERS = 3
# Lists of a configuration that are never of the layers, however long they are.
_NOT_OF_LAYERS = ("_token_id", "architectures")
# Of a target's weights, what a draft may read for a token where nobody says how many layers it has.
_SHARE = 0.2


class LayerPlan:
    """The layers of a model and their sizes, without its weights.

    Args:
        model: The model.
        name: What the user calls it.

    Attributes:
        num_layers: Its layers.

    Raises:
        UnsupportedModelError: Its layers cannot be left out one by one.
    """

    def __init__(self, model: Any, name: str) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        self._name = name
        if isinstance(model, GGUFModel):
            if any(factor in model.file.tensors for factor in FACTORS):
                msg = (
                    f"{name} has rotary frequencies in its GGUF file that a config.json does not hold, so no pruned "
                    "model can be written of it. Give the model that the file was made from, or take --kind head."
                )
                raise UnsupportedModelError(msg)
            values = transformers_config(model)
            self._config = AutoConfig.for_model(values.pop("model_type"), **values)
        else:
            self._config = model.config
        if self._config.get_text_config() is not self._config:
            self._refuse("it is made of several models, such as one that reads images")
        try:
            classes: Any = AutoModelForCausalLM._model_mapping
            self._class: Any = classes[type(self._config)]
        except KeyError:
            self._refuse("transformers has no class of it that can be saved without code of its own")
        if not isinstance(model, GGUFModel) and type(model) is not self._class:
            self._refuse(f"it is a {type(model).__name__}")
        self.num_layers: int = self._config.num_hidden_layers
        if self.num_layers < _FEWEST_LAYERS:
            msg = (
                f"{name} has {self.num_layers} layers, and the first and the last are always kept: nothing is left out."
            )
            raise UnsupportedModelError(msg)
        if getattr(self._config, "num_kv_shared_layers", None):
            self._refuse("layers read the keys and values of others")
        self._whole = self._on_no_device(self._config)
        # Older versions of transformers call the text model of Gemma 3 otherwise.
        layers = decoder_layers(self._whole) or decoder_layers(getattr(self._whole, "model", self._whole))
        if not layers:
            self._refuse("they are in no list of all of them")
        path = next(name for name, module in self._whole.named_modules() if module is layers[0])
        self._prefix = path.rpartition(".")[0]
        self._sizes: list[int] = [sum(each.numel() for each in layer.parameters()) for layer in layers]
        rest = {id(each): each.numel() for each in self._whole.parameters()}
        self._rest: int = sum(rest.values()) - sum(self._sizes)
        if not self._config.tie_word_embeddings:
            # Of the table a token reads a row.
            self._rest -= self._whole.get_input_embeddings().weight.numel()
        self._check([0, self.num_layers - 1])

    def decoder(self, model: Any) -> Any:
        """What gives a model of these layers the states that its output head reads."""
        return model.get_submodule(self._prefix.rpartition(".")[0])

    def numbers(self, kept: Sequence[int]) -> int:
        """Numbers that a model of these layers reads for a token."""
        return self._rest + sum(self._sizes[layer] for layer in kept)

    def share(self, kept: Sequence[int]) -> float:
        """Of the numbers that the whole model reads for a token, those that one of these layers reads."""
        return self.numbers(kept) / self.numbers(range(self.num_layers))

    def usual_count(self) -> int:
        """As many layers as read at most a fifth of what the model reads, and 2 at least."""
        counts = range(2, self.num_layers)
        return max((count for count in counts if self.share(range(count)) <= _SHARE), default=2)

    def _refuse(self, reason: str) -> NoReturn:
        msg = f"No layers can be left out of {self._name}: {reason}. Take --kind head."
        raise UnsupportedModelError(msg)

    def _on_no_device(self, config: Any) -> Any:
        with torch.device("meta"), quiet_loading():
            return self._class(config)

    def _source(self, name: str, kept: Sequence[int]) -> str:
        """The name in the whole model of a weight of a pruned one."""
        before, found, after = name.partition(f"{self._prefix}.")
        if before or not found:
            return name
        number, _, rest = after.partition(".")
        return f"{self._prefix}.{kept[int(number)]}.{rest}"

    def _check(self, kept: Sequence[int]) -> Any:
        """Raise unless the layers fit into a model of so many; give its configuration and that, without weights."""
        try:
            config = _pruned_config(self._config, kept)
            pruned = self._on_no_device(config)
        except Exception as error:
            self._refuse(f"its configuration fits no model of fewer ({' '.join(str(error).split())})")
        weights, whole = pruned.state_dict(), self._whole.state_dict()
        sources = {name: self._source(name, kept) for name in weights}
        if any(source not in whole or whole[source].shape != weights[name].shape for name, source in sources.items()):
            self._refuse("its layers are of several kinds, each with a place of its own")
        return config, pruned

    def prune(self, model: Any, kept: Sequence[int]) -> Any:
        """A model of these layers, in float32 on the CPU, with memory of its own.

        Its numbers are those that bfloat16 holds, as it will be saved.

        Args:
            model: The whole one.
            kept: Numbers of layers, ascending.

        Raises:
            UnsupportedModelError: The layers do not fit into a model of so many.
        """
        config, pruned = self._check(kept)
        if isinstance(model, GGUFModel):
            values = transformers_config(model)
            values = {name: _kept_of(name, value, self.num_layers, kept) for name, value in values.items()}
            layers = [model.weights.layers[layer] for layer in kept]
            values["num_hidden_layers"] = len(kept)
            made = to_transformers(
                replace(model, config=GGUFConfig(**values), weights=replace(model.weights, layers=layers))
            )
        else:
            state = {
                name: _numbers(model, self._source(name, kept), wanted, pruned.get_submodule(name.rpartition(".")[0]))
                for name, wanted in pruned.state_dict().items()
                if not (name == "lm_head.weight" and config.tie_word_embeddings)
            }
            with quiet_loading():
                made = self._class.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)
            made.generation_config = model.generation_config
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.copy_(parameter.bfloat16())
        return made.eval()


def _pruned_config(config: Any, kept: Sequence[int]) -> Any:
    count = config.num_hidden_layers
    values = {name: _kept_of(name, value, count, kept) for name, value in config.to_dict().items()}
    values[getattr(config, "attribute_map", {}).get("num_hidden_layers", "num_hidden_layers")] = len(kept)
    values.pop("quantization_config", None)
    return type(config).from_dict(values)


def _kept_of(name: str, value: Any, count: int, kept: Sequence[int]) -> Any:
    """A value of a configuration; of a list of all layers, those that are kept."""
    is_of_layers = isinstance(value, (list, tuple)) and len(value) == count and not name.endswith(_NOT_OF_LAYERS)
    return [value[layer] for layer in kept] if is_of_layers else value


@torch.no_grad()
def _numbers(model: Any, source: str, wanted: Tensor, of: nn.Module) -> Tensor:
    """A weight or a buffer of a model, float32 on the CPU, laid out as `wanted` is, which is one of the module `of`."""
    from transformers.pytorch_utils import Conv1D

    path, _, attribute = source.rpartition(".")
    layer: Any = model.get_submodule(path)
    found = getattr(layer, attribute, None)
    if attribute == "weight" and isinstance(layer, nn.Embedding):
        found = table(layer)
    elif attribute in ("weight", "bias") and hasattr(layer, "in_features") and type(of) in (nn.Linear, Conv1D):
        weight, bias = linear_rows(layer, None, model.dtype)
        # GPT-2 keeps [inputs, outputs].
        weight = weight.T if type(of) is Conv1D else weight
        found = weight if attribute == "weight" else bias
    if not isinstance(found, Tensor) or found.shape != wanted.shape:
        msg = f"{source} of this model is kept in a way that shows no numbers. Take --kind head."
        raise UnsupportedModelError(msg)
    return found.detach().float().cpu().clone(memory_format=torch.contiguous_format)
