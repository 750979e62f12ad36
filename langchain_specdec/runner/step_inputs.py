"""What one forward reads of its rows, packed into one buffer, so that one copy takes it to the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from langchain_specdec.sampling.choice import pick_noisy
from langchain_specdec.sampling.noise import MakeNoise, Noise, gumbel_noise, seed_halves
from langchain_specdec.sampling.top_tokens import best_token

WIDTHS = (1, 2, 3, 5, 8, 16, 32, 64)
"""Tokens of a row that steps are measured and captured for, with the most that there can be."""

_GREEDY = Noise((0,), (0.0,))
_PER_ROW = ("slots", "starts", "places", "num_nodes")


@dataclass(frozen=True)
class RowBatch:
    """The rows of one forward, on the host.

    Attributes:
        slots: Slot of each row.
        starts: Position of each row's first token; what the slot holds before it is seen.
        tokens: The rows' tokens; rows may differ in length.
        parents: For each token the index of the one that it follows; the first has -1. None: the one before it.
        noise: The noise that picks the tokens that follow, where logits and noise are all it takes; else None.
        num_candidates: How many of the target's best tokens after each token are wanted besides its pick.
        keeps_logits: Whether the logits are going to be read where logits and noise are all it takes. A runner may
            have none to read otherwise.
    """

    slots: Sequence[int]
    starts: Sequence[int]
    tokens: Sequence[Sequence[int]]
    parents: Sequence[Sequence[int]] | None = None
    noise: Noise | None = None
    num_candidates: int = 0
    keeps_logits: bool = False

    @cached_property
    def width(self) -> int:
        """Tokens of the longest row."""
        return max(len(row) for row in self.tokens)

    @cached_property
    def is_chain(self) -> bool:
        """Whether each token follows the one before it."""
        return self.parents is None or all(list(row) == list(range(-1, len(row) - 1)) for row in self.parents)

    @property
    def is_sampled(self) -> bool:
        """Whether noise picks a token of any row; greedy rows need none."""
        return self.noise is not None and self.noise.is_sampled

    def pack(
        self,
        rows: int | None = None,
        width: int | None = None,
        *,
        has_tree: bool = False,
        idle: Sequence[int] = (),
        idle_place: int = 0,
    ) -> NDArray[np.uint8]:
        """The rows as one buffer, padded.

        Args:
            rows: Rows of the buffer; None: as many as there are.
            width: Tokens of a row of it; None: as many as the longest row has.
            has_tree: Whether it says how the tokens hang together. Without, they are chains.
            idle: Slots that padding rows write to, a different one for each.
            idle_place: Where in its slot a padding row writes; nobody reads there.
        """
        count = len(self.slots)
        rows, width = rows or count, width or self.width
        buffer = np.zeros(num_bytes(rows, width, has_tree=has_tree), dtype=np.uint8)
        at = _fields(buffer, rows, width, (np.int64, np.float32, np.bool_), has_tree=has_tree)
        for row, tokens in enumerate(self.tokens):
            at["tokens"][row, : len(tokens)] = tokens
        at["slots"][:count], at["slots"][count:] = self.slots, idle[: rows - count]
        at["starts"][:count] = at["places"][:count] = self.starts
        at["places"][count:] = idle_place
        at["num_nodes"][:] = 1
        at["num_nodes"][:count] = [len(tokens) for tokens in self.tokens]
        noise = self.noise or _GREEDY
        at["seeds"][:count] = seed_halves(noise.seeds)
        at["temperature"][:count] = noise.temperatures
        if has_tree:
            parents = self.parents or [range(-1, len(tokens) - 1) for tokens in self.tokens]
            _fill_trees(parents, at)
        return buffer


@dataclass(frozen=True)
class RowInputs:
    """The rows of one forward on the device: views of one buffer, and how their tokens hang together.

    Attributes:
        tokens: int64 `[rows, width]`.
        slots: Slot of each row, int64 `[rows]`.
        starts: Position of its first token in its text, int64 `[rows]`.
        places: Position of its first token in its slot, int64 `[rows]`: the same, but for padding rows.
        num_nodes: Tokens of its own, int64 `[rows]`; later ones are padding.
        seeds: Lower and upper half of its seed, as int32 numbers, int64 `[rows, 2]`.
        temperature: float32 `[rows]`; 0 is greedy. Apple's GPUs know no float64.
        is_chain: Whether in every row each token follows the one before it, which needs no gathering anywhere.
        parents: Index of the token that each follows, int64 `[rows, width]`; 0 for the first one and padding.
        depths: Steps from the first token, int64 `[rows, width]`.
        ancestors: bool `[rows, width, width]`: entry `[r, i, j]` says whether token j leads to token i or is token i.
    """

    tokens: Tensor
    slots: Tensor
    starts: Tensor
    places: Tensor
    num_nodes: Tensor
    seeds: Tensor
    temperature: Tensor
    is_chain: bool
    parents: Tensor
    depths: Tensor
    ancestors: Tensor

    @classmethod
    def from_batch(cls, batch: RowBatch, device: torch.device) -> RowInputs:
        """Take rows to the device, without padding rows, in one copy that the host does not wait for."""
        has_tree = not batch.is_chain
        buffer = to_device(batch.pack(has_tree=has_tree), device)
        return cls.from_buffer(buffer, len(batch.slots), batch.width, has_tree=has_tree)

    @classmethod
    def from_buffer(cls, buffer: Tensor, rows: int, width: int, *, has_tree: bool) -> RowInputs:
        """The views of a buffer that was packed for so many rows and tokens."""
        fields = _fields(buffer, rows, width, (torch.int64, torch.float32, torch.bool), has_tree=has_tree)
        if not has_tree:
            fields |= _chains(rows, width, buffer.device)
        return cls(**fields, is_chain=not has_tree or width == 1)

    @property
    def next_positions(self) -> Tensor:
        """Position in its text of the token that comes after each of these, int64 `[rows, width]`."""
        return self.starts[:, None] + 1 + self.depths

    @property
    def positions_in_slot(self) -> Tensor:
        """Where in its slot each token is written, int64 `[rows, width]`; the tokens of a tree stand one by one too."""
        first, width = self.places[:, None], self.tokens.shape[1]
        return first + torch.arange(width, device=first.device) if width > 1 else first

    def pick(
        self, logits: Tensor, positions: Tensor, *, is_sampled: bool, make_noise: MakeNoise = gumbel_noise
    ) -> Tensor:
        """The tokens that logits and noise pick for these rows; nothing in it waits for the device.

        Args:
            logits: `[rows, width, vocab]`.
            positions: Index in its text of the token to pick, int64 `[rows, width]`.
            is_sampled: Whether any row is not greedy.
            make_noise: See `MakeNoise`.

        Returns:
            Token ids, int64 `[rows, width]`.
        """
        if not is_sampled:
            return best_token(logits)
        return pick_noisy(logits, self.temperature, self.seeds, positions, make_noise)

    def following(self, tokens: Tensor) -> RowInputs:
        """What comes after these rows: one token for each, int64 `[rows, 1]`."""
        rows, device = len(tokens), tokens.device
        starts, places = self.starts + self.num_nodes, self.places + self.num_nodes
        one_each = {"num_nodes": torch.ones_like(self.num_nodes), **_chains(rows, 1, device)}
        return replace(self, tokens=tokens, starts=starts, places=places, is_chain=True, **one_each)

    def cut(self, rows: int, width: int) -> RowInputs:
        """The first rows, and the first tokens of each."""
        return RowInputs(
            **{name: getattr(self, name)[:rows, :width] for name in ("tokens", "parents", "depths")},
            **{name: getattr(self, name)[:rows] for name in (*_PER_ROW, "seeds", "temperature")},
            ancestors=self.ancestors[:rows, :width, :width],
            is_chain=self.is_chain or width == 1,
        )


def to_device(packed: NDArray[Any], device: torch.device) -> Tensor:
    """Take an array to the device, in one copy that the host does not wait for."""
    return _on_host(packed, device).to(device, non_blocking=True)


def load(packed: NDArray[np.uint8], buffer: Tensor) -> None:
    """Take a packed buffer to where another one stands on the device, in one copy that the host does not wait for."""
    buffer.copy_(_on_host(packed, buffer.device), non_blocking=True)


def _on_host(packed: NDArray[Any], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(packed)
    # torch keeps pinned memory until the copies from it are over.
    return tensor.pin_memory() if device.type == "cuda" else tensor


def num_bytes(rows: int, width: int, *, has_tree: bool) -> int:
    """Size of a packed buffer."""
    per_row = 6 + (3 * width if has_tree else width)
    return 8 * rows * per_row + 4 * rows + (rows * width * width if has_tree else 0)


def _fields(buffer: Any, rows: int, width: int, types: tuple[Any, Any, Any], *, has_tree: bool) -> dict[str, Any]:
    """The parts of a packed buffer, a numpy array or a tensor, by name."""
    whole, real, boolean = types
    shapes: dict[str, tuple[int, ...]] = {"tokens": (rows, width)}
    if has_tree:
        shapes |= {"parents": (rows, width), "depths": (rows, width)}
    shapes |= dict.fromkeys(_PER_ROW, (rows,)) | {"seeds": (rows, 2)}
    fields: dict[str, Any] = {}
    begin = 0
    for name, shape in shapes.items():
        end = begin + 8 * int(np.prod(shape))
        fields[name] = buffer[begin:end].view(whole).reshape(shape)
        begin = end
    fields["temperature"] = buffer[begin : begin + 4 * rows].view(real)
    begin += 4 * rows
    if has_tree:
        fields["ancestors"] = buffer[begin:].view(boolean).reshape((rows, width, width))
    return fields


def _chains(rows: int, width: int, device: torch.device) -> dict[str, Tensor]:
    """How tokens hang together that each follow the one before them; nothing is copied to the device."""
    depths = torch.arange(width, device=device).expand(rows, width)
    ancestors = torch.ones(width, width, dtype=torch.bool, device=device).tril().expand(rows, width, width)
    return {"parents": (depths - 1).clamp(min=0), "depths": depths, "ancestors": ancestors}


def _fill_trees(parents: Sequence[Sequence[int]], at: dict[str, Any]) -> None:
    """Write how tokens hang together into the parts of a packed buffer; padding rows and padding tokens stay zeros."""
    # Padding sees itself: seeing nothing would give NaN, and NaN in the cache would spread.
    at["ancestors"] |= np.eye(at["ancestors"].shape[-1], dtype=np.bool_)
    for row, row_parents in enumerate(parents):
        depths, sees = [0] * len(row_parents), at["ancestors"][row]
        for node in range(1, len(row_parents)):
            parent = row_parents[node]
            depths[node] = depths[parent] + 1
            sees[node] |= sees[parent]
        at["depths"][row, : len(depths)] = depths
        at["parents"][row, 1 : len(row_parents)] = row_parents[1:]
