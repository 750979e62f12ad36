"""Sampling parameters. No PyTorch here."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.options import Option, check_unicode, option_field, options_of

_ABOVE_0 = 5e-324  # the least number above 0
# Looking for stop strings holds up the other requests of a step by no more than this many allow.
MAX_STOPS = 256
"""Stop strings of a request."""
MAX_STOP_LENGTH = 512
"""Characters of one."""
# Seeds that are drawn stay below it, so that they survive JSON readers that know only doubles.
_DRAWN_SEED_LIMIT = 2**53
_TOKEN_ID = Option(0, "", int, 0, 2**31, range="a whole number from 0")
BIAS = Option(0.0, "", float, -100.0, 100.0, range="a number from -100 to 100")
"""What is added to a logit."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """What to generate: limits, sampling and stops of one request. Checked when constructed.

    Each parameter is declared with its default, what it is, and what it may be. None is the default of each.

    Raises:
        InvalidParameterError: A value has the wrong type or is out of its range.
    """

    # fmt: off
    max_new_tokens: int = option_field(
        256, "Most tokens to generate. An end-of-sequence token counts.", int, 1, 2**31, range="a whole number from 1")
    temperature: float = option_field(
        0.0, "0 is greedy; above 0 the scores are divided by it before sampling.", float, 0.0, 100.0,
        range="a number from 0 (greedy) to 100")
    top_k: int | None = option_field(
        None, "Sample among the k best tokens only.", int, 0, 2**31,
        range="a whole number from 1, or None for all tokens", unset="all")
    top_p: float | None = option_field(
        None, "Sample among the smallest set of best tokens whose probability reaches this (Holtzman et al. 2020).",
        float, _ABOVE_0, 1.0, range="a number above 0 and at most 1, or None", unset="off")
    min_p: float | None = option_field(
        None, "Sample among tokens at least this times as probable as the best one (Nguyen et al. 2024).",
        float, 0.0, 1.0, range="a number from 0 to 1, or None", unset="off")
    repetition_penalty: float | None = option_field(
        None, "Divides positive and multiplies negative logits of every token that stands in the prompt or the output "
        "(Keskar et al. 2019, CTRL).", float, _ABOVE_0, 100.0, range="a number above 0 (1 is off), or None",
        unset="the model's own, else off")
    presence_penalty: float = option_field(
        0.0, "Subtracted once from the logit of every token in the output.", float, -2.0, 2.0,
        range="a number from -2 to 2 (0 is off)")
    frequency_penalty: float = option_field(
        0.0, "Subtracted from the logit of a token in the output, once per occurrence.", float, -2.0, 2.0,
        range="a number from -2 to 2 (0 is off)")
    logit_bias: Mapping[int, float] | None = option_field(
        None, "Token id -> number added to its logit.", range="-100 to 100 for each token", unset="off")
    seed: int | None = option_field(
        None, "Seed of the sampling noise; one that is drawn is reported with the result.", int, 0, 2**64 - 1,
        range="a whole number from 0 to 2**64 - 1, or None", unset="drawn")
    stop: Sequence[str] = option_field(
        (), "Strings that end the text; never part of it. Not beside a grammar.",
        range=f"at most {MAX_STOPS} strings of 1 to {MAX_STOP_LENGTH} characters", unset="none")
    ignore_eos: bool = option_field(False, "Go on after an end-of-sequence token.", bool)
    logprobs: int | None = option_field(
        None, "How many of the most probable tokens to report per position; 0 reports the chosen one only. They are of "
        "the model's own distribution, before temperature, penalties and truncation.", int, 0, 20,
        range="a whole number from 0 to 20, or None", unset="off")
    adapter: str | None = option_field(
        None, "Name of the adapter that the text goes by, of those that the model was loaded with (`adapters`).",
        range="a name of one of them", unset="the base alone")
    grammar: Grammar | None = option_field(  # noqa: RUF009 - it makes a field
        None, "The form of the text. Tokens that do not fit are never chosen, and the text ends in time: close to "
        "`max_new_tokens`, what could not be ended any more is not begun. A server cuts there (`finish_reason` "
        "`length`), and what it wrote against the grammar raises a `MalformedAnswerError`.",
        range="`Grammar(schema=...)` or `Grammar(regex=...)`", unset="free")
    # fmt: on

    def __post_init__(self) -> None:
        for name, option in options_of(SamplingParams).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, option.default)
            if option.kind is not None:
                option.check(name, getattr(self, name))
        if self.adapter is not None and not isinstance(self.adapter, str):
            msg = f"adapter must be the name of one that the model was loaded with, got {self.adapter!r}."
            raise InvalidParameterError(msg)
        self._check_stop()
        self._check_bias()
        self._check_grammar()

    def _check_stop(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, Sequence) or not all(isinstance(s, str) and s for s in stop):
            msg = f"stop must be a string or a list of non-empty strings, got {self.stop!r}."
            raise InvalidParameterError(msg)
        for string in stop:
            check_unicode("A stop string", string)
        longest = max(map(len, stop), default=0)
        if len(stop) > MAX_STOPS or longest > MAX_STOP_LENGTH:
            got = f"{len(stop)} strings" if len(stop) > MAX_STOPS else f"one of {longest} characters"
            msg = f"stop must be at most {MAX_STOPS} strings of at most {MAX_STOP_LENGTH} characters, got {got}."
            raise InvalidParameterError(msg)
        object.__setattr__(self, "stop", tuple(stop))

    def _check_bias(self) -> None:
        if self.logit_bias is None:
            return
        if not isinstance(self.logit_bias, Mapping):
            msg = f"logit_bias must map token ids to numbers, got {self.logit_bias!r}."
            raise InvalidParameterError(msg)
        for token, bias in self.logit_bias.items():
            # There may be one for every token of a vocabulary, and nearly all are simply right.
            if (
                type(token) is not int
                or type(bias) is not float
                or not (0 <= token < 2**31 and -100.0 <= bias <= 100.0)
            ):
                _TOKEN_ID.check("logit_bias: the token id", token)
                BIAS.check(f"logit_bias of token {token}", bias)
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))

    def _check_grammar(self) -> None:
        if self.grammar is None:
            return
        if not isinstance(self.grammar, Grammar):
            msg = f"grammar must be a Grammar, as Grammar(schema=...) or Grammar(regex=...), got {self.grammar!r}."
            raise InvalidParameterError(msg)
        if self.stop:
            msg = (
                "stop and a form of the answer (grammar, response_format, a schema, or a tool_choice that forces a "
                "call) contradict each other: a stop string would cut the answer, which ends by itself. Leave stop out "
                "of the call; where it is a default of the model, call model.model_copy(update={'stop': None})."
            )
            raise InvalidParameterError(msg)
        if self.ignore_eos:
            msg = "ignore_eos and grammar contradict each other: after an answer of that form only an end may follow."
            raise InvalidParameterError(msg)

    def seed_or_drawn(self) -> int:
        """The seed, or one that is drawn where none is given; apart from Python's `random`, which is the program's."""
        return secrets.randbelow(_DRAWN_SEED_LIMIT) if self.seed is None else self.seed

    @property
    def needs_history(self) -> bool:
        """Whether scores depend on which tokens came before (a penalty is on)."""
        return (
            self.repetition_penalty not in (None, 1.0) or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0
        )

    @property
    def needs_only_noise(self) -> bool:
        """Whether the logits, the temperature and the noise are all that tokens are chosen by."""
        # Truncation never removes the best token, so greedy decoding needs none of it.
        is_cut = bool(self.top_k or self.min_p or self.top_p not in (None, 1.0)) and self.temperature > 0
        return not (is_cut or self.needs_history or self.logit_bias or self.grammar is not None)


def check_adapter(adapter: str | None, names: Sequence[str]) -> None:
    """Raise an `InvalidParameterError` unless calls can choose an adapter.

    Args:
        adapter: Its name; None is the base alone.
        names: Those that the model was loaded with.
    """
    if adapter is None or adapter in names:
        return
    if names:
        msg = f"adapter must be None (the base alone) or one of {', '.join(map(repr, names))}, got {adapter!r}."
    else:
        msg = (
            f"There is no adapter {adapter!r} to choose: this model was loaded without any. Give adapters="
            f"{{{adapter!r}: 'folder or model id'}} when it is loaded."
        )
    raise InvalidParameterError(msg)
