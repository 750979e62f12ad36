"""What a model's generation_config.json asks of greedy decoding: taken where the engine has it, and named where not."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.options import options_of
from langchain_specdec.sampling.params import SamplingParams

_logger = logging.getLogger(__name__)
_NEVER = -100.0  # the lowest `logit_bias`
# What changes the text that transformers' `generate` writes, and the values that change nothing. Settings of sampling
# (do_sample, temperature, top_k, ...) and of length are the caller's to give.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "bad_words_ids": (),
    "begin_suppress_tokens": (),
    "constraints": (),
    "diversity_penalty": (0,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": (),
    "forced_bos_token_id": (),
    "forced_decoder_ids": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "sequence_bias": (),
    "stop_strings": (),
    "watermarking_config": (),
}


@dataclass(frozen=True)
class GenerationDefaults:
    """What a model does where a request says nothing.

    Attributes:
        repetition_penalty: As in `SamplingParams`; 1 is off.
        suppressed: Tokens that are never chosen, unless a request gives them another bias.
    """

    repetition_penalty: float = 1.0
    suppressed: tuple[int, ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """What of it changes a text, as plain values; empty where nothing does."""
        return {name: value for name, value in vars(self).items() if value not in (1.0, ())}

    def applied(self, params: SamplingParams, banned: Collection[int] = ()) -> SamplingParams:
        """The parameters with what they leave to the model, and with tokens that are not chosen whatever they say."""
        changes: dict[str, Any] = {}
        if params.repetition_penalty is None and self.repetition_penalty != 1.0:
            changes["repetition_penalty"] = self.repetition_penalty
        if self.suppressed or banned:
            own = dict(params.logit_bias or {})
            changes["logit_bias"] = dict.fromkeys(self.suppressed, _NEVER) | own | dict.fromkeys(banned, _NEVER)
        return replace(params, **changes) if changes else params


def read_generation_defaults(config: Any, vocab_size: int, name: str) -> GenerationDefaults:
    """Take what the engine has, and log a warning that names what it has not.

    Args:
        config: transformers' generation configuration of a model; None where it has none.
        vocab_size: Tokens that the model knows.
        name: What the user calls the model.
    """
    left_out = [name for name, neutral in _NEUTRAL.items() if _is_set(read_plain(config, name), neutral)]
    penalty = read_plain(config, "repetition_penalty")
    try:
        options_of(SamplingParams)["repetition_penalty"].check("repetition_penalty", penalty)
    except InvalidParameterError:
        left_out.append("repetition_penalty")
        penalty = None
    suppressed = read_plain(config, "suppress_tokens") or ()
    if not isinstance(suppressed, (list, tuple)) or not all(type(token) is int for token in suppressed):
        left_out.append("suppress_tokens")
        suppressed = ()
    if left_out:
        asked = ", ".join(f"{option}={read_plain(config, option)!r}" for option in sorted(left_out))
        _logger.warning(
            "%s asks for %s in its generation_config.json, which this engine does not do, so its text may differ from "
            "that of transformers' generate().",
            name,
            asked if len(asked) <= 300 else asked[:300] + " ...",
        )
    return GenerationDefaults(
        1.0 if penalty is None else float(penalty), tuple(token for token in suppressed if 0 <= token < vocab_size)
    )


def read_plain(config: Any, name: str) -> Any:
    """A setting of a configuration, None where it has none. Tensors and arrays come as plain values."""
    value: Any = getattr(config, name, None)
    return value.tolist() if hasattr(value, "tolist") else value


def _is_set(value: Any, neutral: tuple[Any, ...]) -> bool:
    if value is None or value is False or (isinstance(value, (list, tuple, dict)) and not value):
        return False
    return value not in neutral
