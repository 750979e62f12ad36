"""A draft head as it is trained: unrolled over its own outputs, as it drafts (EAGLE-3, arXiv 2503.01840, section 3.3).

The first step predicts from the target's states everywhere. Each further step takes the head's own state for the one
that it cannot have while drafting, and the text's tokens for its own. A place sees the true entries up to itself, and
of the later steps its own only: just what a chain sees that was drafted from there. So places need no other's later
steps, and a part of them, drawn anew each time, teaches these as well as all, in a part of the time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langchain_specdec.models.heads.eagle3_head import Eagle3Head
from langchain_specdec.training.output_head import OutputHead
from langchain_specdec.training.student import Student, shifted

# How much each further step counts, as in EAGLE-3's published training code.
_DECAY = 0.8
# Of the places, how many are trained beyond the first step.
_CHAINED_SHARE = 0.4


class UnrolledHead(Student):
    """The head, and the loss of drafts that it would make.

    Args:
        head: The head, which is trained.
        output: The target's own distribution over the draft tokens.
        num_steps: Tokens in a row that it drafts.
        scale: What tapped states are divided by, `[points, hidden]`; see `finish`. None: nothing.
    """

    _is_drafted: Tensor
    _scale: Tensor | None

    def __init__(self, head: Eagle3Head, output: OutputHead, num_steps: int, scale: Tensor | None = None) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("_scale", scale, persistent=False)
        # Not a part of what is trained and saved.
        self._frozen = (output,)
        self._num_steps = num_steps
        ids = head.target_ids
        assert ids is not None  # noqa: S101 - drafts are made with a vocabulary of their own
        is_drafted = torch.zeros(head.config.vocab_size, dtype=torch.bool)
        is_drafted[ids] = True
        self.register_buffer("_is_drafted", is_drafted, persistent=False)

    @property
    def draft(self) -> Eagle3Head:
        """See `Student.draft`."""
        return self.head

    def matrices(self) -> list[nn.Parameter]:
        """See `Student.matrices`: all but the table of tokens that the output layer is."""
        parameters = dict(self.head.named_parameters())
        return [each for name, each in parameters.items() if each.ndim == 2 and not name.startswith("lm_head.")]

    def forward(self, states: Tensor, tokens: Tensor, is_answered: Tensor) -> dict[str, Tensor]:
        """The loss of a batch, as `Trainer` wants it; see `TextBatch`."""
        weights = [_DECAY**step for step in range(self._num_steps)]
        losses = self.divergences(states, tokens, is_answered)
        weighted = [weight * loss for weight, loss in zip(weights, losses, strict=True)]
        return {"loss": torch.stack(weighted).sum() / sum(weights)}

    def finish(self) -> Eagle3Head:
        """The head, which takes states as they are tapped from here on.

        Numbers of tapped states differ a hundredfold in size, so those of the first matrix that are multiplied with
        them would learn at as different rates. What the states are divided by while it learns becomes a part of it.
        """
        if self._scale is not None:
            with torch.no_grad():
                self.head.fc.weight.div_(self._scale.flatten())
            self._scale = None
        return self.head

    def divergences(self, states: Tensor, tokens: Tensor, is_answered: Tensor) -> list[Tensor]:
        """By place in a draft, the mean divergence of the head's distribution from the target's, in nats."""
        wanted = self._wanted(tokens, is_answered)
        # Which of the target's distributions is that of a position.
        index = torch.zeros_like(tokens)
        index[wanted] = torch.arange(int(wanted.sum()), device=tokens.device)
        with torch.autocast(states.device.type, enabled=False):
            teacher = self._frozen[0](states[:, :, -1][wanted])
        probabilities = teacher.softmax(-1)
        entropy = -(probabilities * teacher.log_softmax(-1)).sum(-1)
        attention = _Unrolled()
        tapped = states[:, :, :-1] if self._scale is None else states[:, :, :-1] / self._scale
        # The residual stream stays in float32 where products are computed in bfloat16.
        hidden = self.head.condense(tapped).float()
        columns = torch.arange(tokens.shape[1], device=tokens.device)
        losses = []
        for step in range(self._num_steps):
            shift = step + 1
            if step == 1:
                columns = self._chained(wanted)
                hidden = hidden[:, columns]
            attention.begin_step(columns)
            embeddings = self.head.embed(shifted(tokens, shift)[:, columns])
            positions = (columns + step).expand(len(tokens), -1)
            outputs, hidden = self.head(embeddings, hidden, positions, attention)
            is_wanted = shifted(wanted, shift)[:, columns]
            rows = shifted(index, shift)[:, columns][is_wanted]
            scores = self.head.logits(outputs[is_wanted]).float()
            cross = -(probabilities[rows] * scores.log_softmax(-1)).sum(-1)
            # The mean of none is no number.
            losses.append((cross - entropy[rows]).sum() / max(len(rows), 1))
        return losses

    def _chained(self, wanted: Tensor) -> Tensor:
        """The places, int64 `[columns]`, ascending, that go beyond the first step: a part of those that a draft needs.

        All of them where nothing is trained.
        """
        # Before the first one that is of use, only keys and values are.
        first = max(int(wanted.any(0).int().argmax()) - self._num_steps, 0)
        count = wanted.shape[1] - first
        places = torch.arange(count)
        if self.training:
            places = torch.randperm(count)[: max(int(count * _CHAINED_SHARE), 1)].sort().values
        return (places + first).to(wanted.device)

    def _wanted(self, tokens: Tensor, is_answered: Tensor) -> Tensor:
        """Positions whose next token is the answer's, and one that the draft can propose."""
        following = shifted(tokens, 1)
        return is_answered & self._is_drafted[following]


class _Unrolled:
    """Attention over the true entries up to a place, and over the later steps' entries at that place alone."""

    def __init__(self) -> None:
        self._kept: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._columns = torch.zeros(0)

    def begin_step(self, columns: Tensor) -> None:
        """Say which places the next step's queries are at; the first step's are all."""
        self._columns = columns

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        kept = self._kept.setdefault(layer, [])
        kept.append((key, value))
        if len(kept) == 1:
            return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        (keys, values), own = kept[0], kept[1:]
        width = keys.shape[2]
        grouped = query.unflatten(1, (key.shape[1], -1)) * query.shape[-1] ** -0.5
        seen = torch.arange(width, device=query.device) <= self._columns[:, None]
        scores = (grouped @ keys[:, :, None].transpose(-1, -2)).masked_fill(~seen, -torch.inf)
        of_own = [(grouped * keys_of[:, :, None]).sum(-1, keepdim=True) for keys_of, _ in own]
        weights = torch.cat([scores, *of_own], -1).softmax(-1)
        attended = weights[..., :width] @ values[:, :, None]
        for number, (_, values_of) in enumerate(own):
            attended = attended + weights[..., width + number, None] * values_of[:, :, None]
        return attended.flatten(1, 2)
