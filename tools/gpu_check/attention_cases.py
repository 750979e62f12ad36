"""Attention as the engine has it: strided slots with junk where nobody looks, trees, padding rows; and what is right.

What may be seen is worked out here anew, by Python, so that the engine's masks are checked along with the kernels.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig

from langchain_specdec.runner.attention import ATTENTION_NAME
from langchain_specdec.runner.model_inputs import ModelInputs
from langchain_specdec.runner.step_inputs import RowBatch, RowInputs

HEADS = {"8b": (32, 8, 128), "1.8b": (16, 16, 128), "1b": (32, 8, 64), "135m": (9, 3, 64)}
"""Heads, heads of keys and values, and the size of a head."""

LENGTHS = (256, 257, 1000, 1024, 2048, 8225)
_SHAPES = ((1, 1, False), (1, 2, False), (1, 8, False), (1, 8, True), (1, 33, True), (8, 2, True), (8, 8, False))
_NUM_PADDING = 2
_PROMPT_WIDTH = 128
_LONG = 4096
# What rests in a slot may be anything that is a number.
_JUNK = 1e4


@dataclass(frozen=True)
class Case:
    """One call of attention.

    Attributes:
        model: Key of `HEADS`.
        length: Positions of a slot that the call reads.
        rows: Rows; of several the last ones are padding.
        width: Tokens of a row.
        is_tree: Whether they branch.
        is_prompt: Whether they are a piece of a prompt, which is given no mask.
    """

    model: str
    length: int
    rows: int
    width: int
    is_tree: bool
    is_prompt: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For records."""
        return asdict(self)


@dataclass(frozen=True)
class Tensors:
    """What attention is called with, and what it should return.

    Attributes:
        query: `[rows, heads, width, head_dim]`.
        key: `[rows, kv_heads, length, head_dim]`, a view of slots.
        value: As `key`.
        seen: bool `[rows, 1, width, length]`, True where a query sees a key.
        mask: What the engine makes of it.
        right: float64 `[rows, width, heads, head_dim]`.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    seen: Tensor
    mask: Any
    right: Tensor

    def error(self, found: Tensor) -> float:
        """How far `[rows, width, heads, head_dim]` is from what is right, as a share of the largest number."""
        return float((found.double() - self.right).abs().max() / self.right.abs().max())


def cases(models: Sequence[str], lengths: Sequence[int]) -> Iterator[Case]:
    """All that is worth asking; many rows of long texts would take most of the time and say nothing new."""
    for model in models:
        for length in lengths:
            for rows, width, is_tree in _SHAPES:
                if rows == 1 or length < _LONG:
                    yield Case(model, length, rows, width, is_tree)
            # The odd lengths are the hard ones: the end of a prompt, and the whole of a short one.
            for width in (min(_PROMPT_WIDTH, length // 2), length) if length % 2 else ():
                if width < _LONG:
                    yield Case(model, length, 1, width, is_tree=False, is_prompt=True)


def make(case: Case, device: torch.device, dtype: torch.dtype) -> Tensors:
    """The tensors of a case, the same each time."""
    heads, kv_heads, dim = HEADS[case.model]
    torch.manual_seed(0)
    rows, width, length = case.rows, case.width, case.length
    batch = _batch(case)
    seen = _seen(batch, case).to(device)
    slots = torch.randn(2, rows + 1, kv_heads, length + 40, dim, device=device, dtype=dtype)
    key, value = (side[1 : rows + 1, :, :length] for side in slots)
    unseen = ~seen.any(2)[:, 0]
    for side in (key, value):
        side[unseen[:, None].expand(-1, kv_heads, -1)] = _JUNK
    query = torch.randn(rows, width, heads, dim, device=device, dtype=dtype).transpose(1, 2)
    keys, values = (side.double().repeat_interleave(heads // kv_heads, 1) for side in (key, value))
    right = F.scaled_dot_product_attention(query.double(), keys, values, attn_mask=seen).transpose(1, 2)
    return Tensors(query, key, value, seen, _mask(case, batch, device, dtype), right)


def _batch(case: Case) -> RowBatch:
    """The rows that are not padding; they end at different places, none later than the slot's."""
    count = case.rows if case.rows == 1 else case.rows - _NUM_PADDING
    rng = random.Random(case.width)
    starts = [case.length - case.width - 7 * row for row in range(count)]
    chain = range(-1, case.width - 1)
    trees = [[-1, *(rng.randrange(max(0, i - 5), i) for i in range(1, case.width))] for _ in range(count)]
    parents = trees if case.is_tree else None
    return RowBatch(range(count), starts, [[0] * case.width] * count, parents or [list(chain)] * count)


def _seen(batch: RowBatch, case: Case) -> Tensor:
    """What each query sees: the text before its row, and what leads to it. Padding stands at the start of a text."""
    seen = torch.zeros(case.rows, 1, case.width, case.length, dtype=torch.bool)
    assert batch.parents is not None
    for row, (start, parents) in enumerate(zip(batch.starts, batch.parents, strict=True)):
        seen[row, :, :, :start] = True
        for node in range(case.width):
            above = node
            while above >= 0:
                seen[row, 0, node, start + above] = True
                above = parents[above]
    own = torch.eye(case.width) if case.is_tree else torch.ones(case.width, case.width).tril()
    seen[len(batch.slots) :, :, :, : case.width] = own.bool()
    return seen


def _mask(case: Case, batch: RowBatch, device: torch.device, dtype: torch.dtype) -> Any:
    """The mask that the engine gives to a model of these heads."""
    heads, kv_heads, dim = HEADS[case.model]
    config = LlamaConfig(
        hidden_size=heads * dim,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=dim,
        num_hidden_layers=1,
        max_position_embeddings=2 * case.length,
    )
    config._attn_implementation = ATTENTION_NAME
    idle = range(len(batch.slots), case.rows)
    packed = batch.pack(case.rows, case.width, has_tree=case.is_tree, idle=idle, idle_place=case.length - case.width)
    buffer = torch.from_numpy(packed).to(device)
    inputs = RowInputs.from_buffer(buffer, case.rows, case.width, has_tree=case.is_tree)
    cache: Any = None
    # In a rehearsal too, it is the mask for a GPU.
    weight = SimpleNamespace(device=torch.device("cuda"))
    model: Any = SimpleNamespace(
        config=config,
        dtype=dtype,
        base_model=SimpleNamespace(forward=lambda: None),
        get_input_embeddings=lambda: SimpleNamespace(weight=weight),
    )
    return ModelInputs(model).make(cache, inputs, case.length, is_prompt=case.is_prompt)["attention_mask"]
