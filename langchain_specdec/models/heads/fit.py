"""Whether a head fits the model that it is to draft for, told before it drafts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from langchain_specdec.errors import UnsupportedModelError
from langchain_specdec.models.heads.eagle3_config import Eagle3Config
from langchain_specdec.models.heads.eagle3_format import Shapes, read_format
from langchain_specdec.models.heads.eagle3_head import Eagle3Head
from langchain_specdec.models.heads.head_source import HeadSource
from langchain_specdec.models.heads.target_sizes import TargetSizes

MAPS = ("d2t", "t2d")
"""Of the numbers of draft tokens to the target's, and back; no weights of the head."""
_NUM_NAMED = 3
_RIGHT_ONE = "Give the head that was trained for this model, or the model that it was trained for"


def check_head(source: HeadSource, target: TargetSizes, shapes: Shapes) -> Eagle3Config:
    """The configuration of a head that fits its target.

    Args:
        source: The head.
        target: What it is to draft for.
        shapes: Of its weights and maps, by name.

    Raises:
        UnsupportedModelError: It does not fit the target, is no EAGLE-3 head, or its weights are not those that its
            config.json tells of.
    """
    config = read_format(source, shapes, target)
    if reason := _misfit(config, target, shapes):
        msg = f"{source.name} cannot draft for {target.name}: {reason}."
        raise UnsupportedModelError(msg)
    with torch.device("meta"):
        expected = {name: tuple(weight.shape) for name, weight in Eagle3Head(config).state_dict().items()}
    _check_weights(source, expected, shapes, config)
    return config


def target_ids(source: HeadSource, weights: Mapping[str, Tensor], config: Eagle3Config) -> Tensor | None:
    """The target's number of each draft token, int64 `[draft_vocab_size]`; None where they are the same.

    Raises:
        UnsupportedModelError: One is no token of the target, or two are the same one.
    """
    if "d2t" not in weights:
        return None
    same = torch.arange(config.draft_vocab_size)
    ids = same + weights["d2t"].to(torch.int64)
    outside = int(((ids < 0) | (ids >= config.vocab_size)).sum())
    if outside or len(ids.unique()) < len(ids):
        what = (
            f"{outside} of its {len(ids)} draft tokens are outside the {config.vocab_size} of the model" if outside
            else "several of its draft tokens stand for the same one of the model"
        )  # fmt: skip
        msg = f"The head {source.name} is damaged: by its d2t, {what}. Download it anew."
        raise UnsupportedModelError(msg)
    return None if len(ids) == config.vocab_size and torch.equal(ids, same) else ids


def _misfit(config: Eagle3Config, target: TargetSizes, shapes: Shapes) -> str | None:
    """Why a head does not fit its target; None where it does."""
    hidden, vocab, taps = target.hidden_size, target.vocab_size, len(config.tap_points)
    if target.has_states:
        return (
            "the model keeps recurrent states, and heads draft for models with attention alone. Leave the draft model "
            "out: prompt lookup needs none"
        )
    if config.target_hidden_size != hidden:
        return f"it reads states of {config.target_hidden_size} numbers, and the model's have {hidden}. {_RIGHT_ONE}"
    fc = shapes.get("fc.weight", (0,))[-1]
    if config.has_fc and fc not in (0, taps * hidden):
        return (
            f"its fc reads {fc} numbers at a time, and {taps} states of the model, of {hidden} each, are "
            f"{taps * hidden}. {_RIGHT_ONE}"
        )
    if not config.has_fc and config.hidden_size != hidden:
        return f"it takes states of {config.hidden_size} numbers, and the model's have {hidden}. {_RIGHT_ONE}"
    if outside := [point for point in config.tap_points if not 0 <= point <= target.num_layers]:
        listed = ", ".join(map(str, config.tap_points))
        return (
            f"it reads the states that enter the layers {listed}, and the model has {target.num_layers} layers, so "
            f"there is no {outside[-1]}. {_RIGHT_ONE}"
        )
    if config.vocab_size != vocab:
        return f"it was made for a model of {config.vocab_size} tokens, and this one has {vocab}. {_RIGHT_ONE}"
    if "d2t" in shapes and shapes["d2t"] != (config.draft_vocab_size,):
        return f"its d2t numbers {shapes['d2t'][0]} tokens, and it drafts {config.draft_vocab_size}. Download it anew"
    if "d2t" not in shapes and config.draft_vocab_size != vocab:
        return (
            f"it drafts {config.draft_vocab_size} of the model's {vocab} tokens, and its files do not say which (d2t). "
            "Download it anew"
        )
    if not config.has_embedding and config.embedding_size != hidden:
        return (
            f"it has no embeddings of its own and reads some of {config.embedding_size} numbers, and the model's have "
            f"{hidden}. {_RIGHT_ONE}"
        )
    if not config.has_output and (config.draft_vocab_size, config.hidden_size) != (vocab, hidden):
        return (
            f"it has no output layer of its own (lm_head.weight), and its {config.hidden_size} numbers and "
            f"{config.draft_vocab_size} tokens do not go through the model's, of {hidden} and {vocab}. Download it anew"
        )
    return None


def _check_weights(source: HeadSource, expected: Shapes, shapes: Shapes, config: Eagle3Config) -> None:
    given = {name: shape for name, shape in shapes.items() if name not in MAPS}
    if not config.has_fc:
        given.pop("fc.weight", None)  # what is left of training with one
    reason = None
    if missing := [name for name in expected if name not in given and not name.endswith("self_attn.o_proj.bias")]:
        reason = f"they lack {len(missing)} of {len(expected)} weights ({_named(missing)})"
    elif unknown := [name for name in given if name not in expected]:
        reason = f"they hold others than an EAGLE-3 head of such a configuration has ({_named(unknown)})"
    elif wrong := [name for name in given if given[name] != expected[name]]:
        reason = (
            f"the size of {_named(wrong)} is another than by its config.json and the others: {wrong[0]} is "
            f"{list(given[wrong[0]])}, and {list(expected[wrong[0]])} is due"
        )
    if reason:
        msg = (
            f"The head {source.name} cannot be run, as its files do not fit each other: {reason}. Take files that "
            "belong together, from one download, or another head."
        )
        raise UnsupportedModelError(msg)


def _named(names: list[str]) -> str:
    return ", ".join(sorted(names)[:_NUM_NAMED]) + ", ..." * (len(names) > _NUM_NAMED)
