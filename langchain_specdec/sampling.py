"""How the next token is chosen: parameters, scores, and the choice among them.

The rule, for every position of every request, is

    ``token = argmax_t(scores[t] + temperature * gumbel(seed, position, t))``

where ``scores`` are the model's logits after bias, penalties and truncation. Temperature 0 is greedy decoding, and
for temperature T > 0 this is the Gumbel-max trick: the token is an exact sample of ``softmax(scores / T)``. Since the
noise is shared (see `langchain_specdec.noise`), the text depends on neither the drafter nor the draft length nor the
batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar import Grammar
from langchain_specdec.noise import gumbel_noise, seed_halves
from langchain_specdec.top_tokens import best_token

__all__ = ["SamplingParams", "SamplingTable", "TokenHistory", "pick_tokens", "process_logits"]

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


class TokenHistory:
    """Which tokens stand in each slot's prompt and output, for the penalties.

    Attributes:
        in_prompt: Whether a token stands in the slot's prompt, bool `[slots, vocab]`.
        output_counts: How often it stands in the slot's output, float `[slots, vocab]`.
    """

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self.in_prompt = torch.zeros(num_slots, vocab_size, dtype=torch.bool, device=device)
        self.output_counts = torch.zeros(num_slots, vocab_size, device=device)

    def start(self, slot: int, prompt: Sequence[int]) -> None:
        """Forget the slot's last request and note the prompt of the next."""
        self.in_prompt[slot] = False
        self.output_counts[slot] = 0
        self.in_prompt[slot, torch.tensor(prompt, device=self.in_prompt.device)] = True

    def append(self, slot: int, tokens: Sequence[int]) -> None:
        """Count emitted tokens."""
        index = torch.tensor(tokens, dtype=torch.int64, device=self.output_counts.device)
        self.output_counts[slot].index_add_(0, index, torch.ones_like(index, dtype=self.output_counts.dtype))


class SamplingTable:
    """The parameters of the rows of one forward as tensors on the device; rebuilt only when the rows change.

    Args:
        params: One per row.
        seeds: The seed in force for each row (drawn where `params.seed` is None).
        slots: The slot of each row, an index into the token history.
        vocab_size: Number of logits a position has.
        device: Where the logits are.
    """

    def __init__(
        self,
        params: Sequence[SamplingParams],
        seeds: Sequence[int],
        slots: Sequence[int],
        vocab_size: int,
        device: torch.device,
    ) -> None:
        def column(values: list[float], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)[:, None, None]

        self.slots = torch.tensor(list(slots), device=device)
        self.temperature = column([p.temperature for p in params])
        self.seeds = torch.tensor(seed_halves(seeds), dtype=torch.int32).to(device)
        self.is_sampled = any(p.temperature > 0 for p in params)
        # Truncation never removes the best token, so greedy rows need none of it.
        sampled = [p.temperature > 0 for p in params]
        self.max_top_k = max((p.top_k or 0 for p, s in zip(params, sampled, strict=True) if s), default=0)
        self.max_top_k = min(self.max_top_k, vocab_size)
        self.top_k = column([(p.top_k or vocab_size) for p in params], torch.int64).clamp(max=vocab_size)
        self.has_top_p = any(p.top_p not in (None, 1.0) and s for p, s in zip(params, sampled, strict=True))
        self.top_p = column([1.0 if p.top_p is None else p.top_p for p in params])
        self.has_min_p = any(p.min_p and s for p, s in zip(params, sampled, strict=True))
        self.log_min_p = column([math.log(p.min_p) if p.min_p else -math.inf for p in params])
        self.needs_history = any(p.needs_history for p in params)
        self.repetition_penalty = column([p.repetition_penalty for p in params])
        self.presence_penalty = column([p.presence_penalty for p in params])
        self.frequency_penalty = column([p.frequency_penalty for p in params])
        self.bias: Tensor | None = None
        if any(p.logit_bias for p in params):
            self.bias = torch.zeros(len(params), 1, vocab_size, device=device)
            for row, p in enumerate(params):
                for token, value in (p.logit_bias or {}).items():
                    if token < vocab_size:
                        self.bias[row, 0, token] = value

    @property
    def is_plain(self) -> bool:
        """Whether scores are the logits themselves."""
        return not self.needs_history and self.bias is None


def _apply_penalties(
    scores: Tensor, table: SamplingTable, history: TokenHistory, drafts: Tensor, ancestors: Tensor
) -> Tensor:
    """Penalise tokens that came before; at a speculated position that includes the draft tokens leading to it."""
    rows, width, vocab = scores.shape
    counts = history.output_counts[table.slots, None, :vocab].expand(rows, width, vocab).clone()
    if drafts.shape[1]:
        index = drafts[:, None, :].expand(rows, width, drafts.shape[1])
        counts.scatter_add_(2, index, ancestors.to(counts.dtype))
    seen = history.in_prompt[table.slots, None, :vocab] | (counts > 0)
    penalty = table.repetition_penalty
    scores = torch.where(seen, torch.where(scores > 0, scores / penalty, scores * penalty), scores)
    return scores - table.frequency_penalty * counts - table.presence_penalty * (counts > 0)


def _truncate(scores: Tensor, table: SamplingTable) -> Tensor:
    """Set tokens outside top-k, top-p and min-p to minus infinity; in this order, as Hugging Face does."""
    # Greedy rows only pass through: any positive temperature leaves their best token in place.
    scaled = scores / table.temperature.clamp(min=1e-6)
    if table.max_top_k:
        best = scaled.topk(table.max_top_k, dim=-1).values
        rank = (table.top_k.clamp(max=table.max_top_k) - 1).expand(*scaled.shape[:2], 1)
        limited = table.top_k <= table.max_top_k
        scaled = scaled.masked_fill((scaled < best.gather(-1, rank)) & limited, -math.inf)
    if table.has_top_p:
        ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
        probs = ordered.softmax(-1)
        outside = (probs.cumsum(-1) - probs) >= table.top_p
        outside[..., 0] = False
        outside &= table.top_p < 1.0
        scaled = scaled.masked_fill(torch.zeros_like(outside).scatter_(-1, order, outside), -math.inf)
    if table.has_min_p:
        scaled = scaled.masked_fill(scaled < scaled.amax(-1, keepdim=True) + table.log_min_p, -math.inf)
    return scores.masked_fill(scaled == -math.inf, -math.inf)


def process_logits(
    logits: Tensor,
    table: SamplingTable,
    history: TokenHistory | None = None,
    drafts: Tensor | None = None,
    ancestors: Tensor | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """Turn logits into scores: bias, penalties, grammar, then truncation to top-k, top-p and min-p.

    Args:
        logits: `[rows, width, vocab]`, one row of the table per row.
        table: The rows' parameters.
        history: Tokens before the first position of `logits`; needed where a penalty is on.
        drafts: Speculated tokens, int64 `[rows, num_drafts]`.
        ancestors: bool `[rows, width, num_drafts]`: whether a draft token stands before the position.
        allowed: bool `[rows, width, vocab]`: which tokens a grammar allows; None: all.

    Returns:
        float32 scores `[rows, width, vocab]`; tokens that are cut are minus infinity.
    """
    scores = logits.float()
    if table.bias is not None:
        scores = scores + table.bias
    if table.needs_history:
        if history is None or drafts is None or ancestors is None:
            msg = "penalties need the token history and the draft tokens"
            raise ValueError(msg)
        scores = _apply_penalties(scores, table, history, drafts, ancestors)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    if table.max_top_k or table.has_top_p or table.has_min_p:
        scores = _truncate(scores, table)
    return scores


def pick_tokens(
    logits: Tensor,
    table: SamplingTable,
    positions: Tensor,
    history: TokenHistory | None = None,
    drafts: Tensor | None = None,
    ancestors: Tensor | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """The token that each position's distribution and noise choose; greedy and sampled alike.

    Args:
        logits: `[rows, width, vocab]`.
        table: The rows' parameters.
        positions: Index in its sequence of the token to choose, int64 `[rows, width]`.
        history: See `process_logits`.
        drafts: See `process_logits`.
        ancestors: See `process_logits`.
        allowed: See `process_logits`.

    Returns:
        Token ids, int64 `[rows, width]`.
    """
    if not table.is_sampled and table.is_plain:
        return best_token(logits if allowed is None else logits.masked_fill(~allowed, -math.inf))
    scores = process_logits(logits, table, history, drafts, ancestors, allowed)
    if table.is_sampled:
        scores = scores + table.temperature * gumbel_noise(table.seeds, positions, scores.shape[-1])
    return best_token(scores)
