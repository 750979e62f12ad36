"""Sampling parameters. No PyTorch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.grammar import Grammar

__all__ = ["SamplingParams"]

_MAX_SEED = 2**64 - 1
_MAX_LOGPROBS = 20


def _check_number(name: str, value: object, allowed: str, *, low: float, high: float, open_low: bool = False) -> None:
    """Raise unless `value` is a number in [low, high] (or ]low, high] where `open_low`)."""
    # The bounds are finite, so they also keep out infinity and NaN.
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or (open_low and value == low):  # type: ignore[operator]
        msg = f"{name} must be {allowed}, got {value!r}."
        raise InvalidParameterError(msg)


def _check_int(name: str, value: object, allowed: str, *, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        msg = f"{name} must be {allowed}, got {value!r}."
        raise InvalidParameterError(msg)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """What to generate: limits, sampling and stops of one request. Checked when constructed.

    Attributes:
        max_new_tokens: Most tokens to generate, at least 1. An end-of-sequence token counts.
        temperature: 0 is greedy; above 0 the scores are divided by it before sampling.
        top_k: Keep the k best tokens (None or 0: all).
        top_p: Keep the smallest set of best tokens whose probability reaches top_p (Holtzman et al. 2020).
        min_p: Keep tokens at least min_p times as probable as the best one (Nguyen et al. 2024).
        repetition_penalty: Divides positive and multiplies negative logits of every token that stands in the prompt
            or the output (Keskar et al. 2019, CTRL); 1 is off.
        presence_penalty: Subtracted once from the logit of every token in the output; -2 to 2.
        frequency_penalty: Subtracted once per occurrence in the output; -2 to 2.
        logit_bias: Token id -> number added to its logit, -100 to 100.
        seed: Seed of the noise, 0 to 2**64 - 1. None draws one, which is reported with the result.
        stop: Strings that end the text; never part of it.
        ignore_eos: Go on after an end-of-sequence token.
        logprobs: How many of the most probable tokens to report per position (0: the chosen token only; None: off).
            They are of the model's own distribution, before temperature, penalties and truncation.
        grammar: The form of the text; None is free. Tokens that do not fit are never chosen, and the text ends in time:
            close to `max_new_tokens`, what could not be ended any more is not begun.

    Raises:
        InvalidParameterError: A value has the wrong type or is out of its range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    stop: Sequence[str] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        _check_int("max_new_tokens", self.max_new_tokens, "a whole number from 1", low=1, high=2**31)
        _check_number("temperature", self.temperature, "a number from 0 (greedy) to 100", low=0.0, high=100.0)
        if self.top_k is not None:
            _check_int("top_k", self.top_k, "a whole number from 1, or None for all tokens", low=0, high=2**31)
        if self.top_p is not None:
            _check_number(
                "top_p", self.top_p, "a number above 0 and at most 1, or None", low=0.0, high=1.0, open_low=True
            )
        if self.min_p is not None:
            _check_number("min_p", self.min_p, "a number from 0 to 1, or None", low=0.0, high=1.0)
        _check_number(
            "repetition_penalty",
            self.repetition_penalty,
            "a number above 0 (1 is off)",
            low=0.0,
            high=100.0,
            open_low=True,
        )
        for name in ("presence_penalty", "frequency_penalty"):
            _check_number(name, getattr(self, name), "a number from -2 to 2 (0 is off)", low=-2.0, high=2.0)
        if self.seed is not None:
            _check_int("seed", self.seed, "a whole number from 0 to 2**64 - 1, or None", low=0, high=_MAX_SEED)
        if self.logprobs is not None:
            allowed = f"a whole number from 0 to {_MAX_LOGPROBS}, or None"
            _check_int("logprobs", self.logprobs, allowed, low=0, high=_MAX_LOGPROBS)
        if not isinstance(self.ignore_eos, bool):
            msg = f"ignore_eos must be True or False, got {self.ignore_eos!r}."
            raise InvalidParameterError(msg)
        self._check_stop()
        self._check_bias()
        self._check_grammar()

    def _check_stop(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, Sequence) or not all(isinstance(s, str) and s for s in stop):
            msg = f"stop must be a string or a list of non-empty strings, got {self.stop!r}."
            raise InvalidParameterError(msg)
        object.__setattr__(self, "stop", tuple(stop))

    def _check_bias(self) -> None:
        if self.logit_bias is None:
            return
        if not isinstance(self.logit_bias, Mapping):
            msg = f"logit_bias must map token ids to numbers, got {self.logit_bias!r}."
            raise InvalidParameterError(msg)
        for token, bias in self.logit_bias.items():
            _check_int("logit_bias: the token id", token, "a whole number from 0", low=0, high=2**31)
            _check_number(f"logit_bias of token {token}", bias, "a number from -100 to 100", low=-100.0, high=100.0)
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))

    def _check_grammar(self) -> None:
        if self.grammar is None:
            return
        if not isinstance(self.grammar, Grammar):
            msg = f"grammar must be a Grammar, as Grammar(schema=...) or Grammar(regex=...), got {self.grammar!r}."
            raise InvalidParameterError(msg)
        if self.ignore_eos:
            msg = "ignore_eos and grammar contradict each other: after an answer of that form only an end may follow."
            raise InvalidParameterError(msg)

    @property
    def needs_history(self) -> bool:
        """Whether scores depend on which tokens came before (a penalty is on)."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def needs_only_noise(self) -> bool:
        """Whether the logits, the temperature and the noise are all that tokens are chosen by."""
        # Truncation never removes the best token, so greedy decoding needs none of it.
        is_cut = bool(self.top_k or self.min_p or self.top_p not in (None, 1.0)) and self.temperature > 0
        return not (is_cut or self.needs_history or self.logit_bias or self.grammar is not None)

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Names of all parameters, in order."""
        return tuple(f.name for f in fields(cls))
