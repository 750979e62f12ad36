"""How the next token is chosen: parameters, scores, and the choice among them.

The rule, for every position of every request, is

    ``token = argmax_t(scores[t] + temperature * gumbel(seed, position, t))``

where ``scores`` are the model's logits after bias, penalties and truncation. Temperature 0 is greedy decoding, and
for temperature T > 0 this is the Gumbel-max trick: the token is an exact sample of ``softmax(scores / T)``. Since the
noise is shared (see `sampling.noise`), the text depends on neither the drafter nor the draft length nor the batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from langchain_specdec.sampling.noise import MakeNoise, gumbel_noise, seed_halves
from langchain_specdec.sampling.params import SamplingParams
from langchain_specdec.sampling.top_tokens import best_token


class TokenHistory:
    """Which tokens stand in each slot's prompt and output, for the penalties.

    Attributes:
        in_prompt: Whether a token stands in the slot's prompt, bool `[slots, vocab]`.
        output_counts: How often it stands in the slot's output, float32 `[slots, vocab]`.
    """

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self.in_prompt = torch.zeros(num_slots, vocab_size, dtype=torch.bool, device=device)
        self.output_counts = torch.zeros(num_slots, vocab_size, dtype=torch.float32, device=device)

    def start(self, slot: int, prompt: Sequence[int]) -> None:
        """Forget the slot's last request and note the prompt of the next."""
        self.in_prompt[slot] = False
        self.output_counts[slot] = 0
        self.in_prompt[slot, torch.tensor(prompt, device=self.in_prompt.device)] = True

    def append(self, slot: int, tokens: Sequence[int]) -> None:
        """Count emitted tokens."""
        index = torch.tensor(tokens, dtype=torch.int64, device=self.output_counts.device)
        self.output_counts[slot].index_add_(0, index, torch.ones_like(index, dtype=self.output_counts.dtype))


class SparseBias(NamedTuple):
    """A request's `logit_bias` as arrays: made once, however often the rows around it change.

    Attributes:
        tokens: The tokens that it names, int64 `[named]`.
        values: What is added to their logits, float32 `[named]`.
    """

    tokens: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]

    @classmethod
    def of(cls, logit_bias: Mapping[int, float] | None) -> SparseBias | None:
        """The bias of a request, None where it has none."""
        if not logit_bias:
            return None
        return cls(np.array(list(logit_bias), np.int64), np.array(list(logit_bias.values()), np.float32))

    def below(self, vocab_size: int) -> SparseBias:
        """What it says of the tokens of a vocabulary."""
        is_known = self.tokens < vocab_size
        return SparseBias(self.tokens[is_known], self.values[is_known])


class SamplingTable:
    """The parameters of the rows of one forward as tensors on the device; rebuilt only when the rows change.

    Args:
        params: One per row.
        seeds: The seed in force for each row (drawn where `params.seed` is None).
        slots: The slot of each row, an index into the token history.
        vocab_size: Number of logits a position has.
        device: Where the logits are.
        biases: The sparse bias of each row; None makes them of the parameters.
    """

    def __init__(
        self,
        params: Sequence[SamplingParams],
        seeds: Sequence[int],
        slots: Sequence[int],
        vocab_size: int,
        device: torch.device,
        biases: Sequence[SparseBias | None] | None = None,
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
        self.repetition_penalty = column([p.repetition_penalty or 1.0 for p in params])
        self.presence_penalty = column([p.presence_penalty for p in params])
        self.frequency_penalty = column([p.frequency_penalty for p in params])
        self.bias: Tensor | None = None
        if any(p.logit_bias for p in params):
            biases = [SparseBias.of(p.logit_bias) for p in params] if biases is None else biases
            self.bias = torch.zeros(len(params), 1, vocab_size, dtype=torch.float32, device=device)
            # A draft model may know fewer tokens.
            given = [(row, bias.below(vocab_size)) for row, bias in enumerate(biases) if bias is not None]
            index = np.concatenate([row * vocab_size + bias.tokens for row, bias in given])
            values = np.concatenate([bias.values for _, bias in given])
            self.bias.view(-1)[torch.tensor(index, device=device)] = torch.tensor(values, device=device)

    def take(self, rows: Tensor) -> SamplingTable:
        """The table of some of its rows.

        Args:
            rows: Their indices, int64 `[count]`, on the device.
        """
        taken = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(taken, name, value.index_select(0, rows))
        return taken

    @property
    def is_plain(self) -> bool:
        """Whether scores are the logits themselves."""
        return not self.needs_history and self.bias is None


class SampledRow(Protocol):
    """What the table needs to know of a request."""

    @property
    def request_id(self) -> int:
        """Unique within the engine."""

    @property
    def params(self) -> SamplingParams:
        """Sampling parameters."""

    @property
    def seed(self) -> int:
        """Seed in force."""

    @property
    def slot(self) -> int:
        """The cache slot that it holds; also its row in the token history."""

    @property
    def bias(self) -> SparseBias | None:
        """Its `logit_bias`, ready for a table."""


class TableCache:
    """The table of the rows of the latest forward, which are often those of the next."""

    def __init__(self) -> None:
        self._table: SamplingTable | None = None
        self._ids: tuple[int, ...] = ()

    def table(self, rows: Sequence[SampledRow], vocab_size: int, device: torch.device) -> SamplingTable:
        """The table of these rows."""
        ids = tuple(row.request_id for row in rows)
        if self._table is None or self._ids != ids:
            params, seeds, slots, biases = zip(
                *((row.params, row.seed, row.slot, row.bias) for row in rows), strict=True
            )
            self._table, self._ids = SamplingTable(params, seeds, slots, vocab_size, device, biases), ids
        return self._table


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


def noisy_scores(
    logits: Tensor,
    table: SamplingTable,
    positions: Tensor,
    history: TokenHistory | None = None,
    drafts: Tensor | None = None,
    ancestors: Tensor | None = None,
    allowed: Tensor | None = None,
    make_noise: MakeNoise = gumbel_noise,
) -> Tensor:
    """What the choice is the largest of: scores and the noise on them.

    Args:
        logits: `[rows, width, vocab]`.
        table: The rows' parameters.
        positions: Index in its sequence of the token to choose, int64 `[rows, width]`.
        history: See `process_logits`.
        drafts: See `process_logits`.
        ancestors: See `process_logits`.
        allowed: See `process_logits`.
        make_noise: See `MakeNoise`.

    Returns:
        float32 `[rows, width, vocab]`.
    """
    scores = process_logits(logits, table, history, drafts, ancestors, allowed)
    if table.is_sampled:
        scores = scores + table.temperature * make_noise(table.seeds, positions, scores.shape[-1])
    return scores


def pick_tokens(
    logits: Tensor,
    table: SamplingTable,
    positions: Tensor,
    history: TokenHistory | None = None,
    drafts: Tensor | None = None,
    ancestors: Tensor | None = None,
    allowed: Tensor | None = None,
    make_noise: MakeNoise = gumbel_noise,
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
        make_noise: See `MakeNoise`.

    Returns:
        Token ids, int64 `[rows, width]`.
    """
    if not table.is_sampled and table.is_plain:
        return best_token(logits if allowed is None else logits.masked_fill(~allowed, -math.inf))
    return best_token(noisy_scores(logits, table, positions, history, drafts, ancestors, allowed, make_noise))


def pick_noisy(
    logits: Tensor, temperature: Tensor, seeds: Tensor, positions: Tensor, make_noise: MakeNoise = gumbel_noise
) -> Tensor:
    """`pick_tokens` where `SamplingParams.needs_only_noise`; nothing in it waits for the device.

    Args:
        logits: `[rows, width, vocab]`.
        temperature: Floating point `[rows]`; 0 is greedy.
        seeds: Lower and upper half of each row's seed, as int32 numbers, any whole number type `[rows, 2]`.
        positions: Index in its sequence of the token to choose, int64 `[rows, width]`.
        make_noise: See `MakeNoise`.

    Returns:
        Token ids, int64 `[rows, width]`.
    """
    noise = make_noise(seeds.to(torch.int32), positions, logits.shape[-1])
    return best_token(logits.float() + temperature.float()[:, None, None] * noise)
