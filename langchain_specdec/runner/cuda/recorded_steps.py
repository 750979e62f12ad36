"""What graphs are made of: a verification with its acceptance, and a draft forward that feeds the next one."""

from __future__ import annotations

import torch
from torch import Tensor

from langchain_specdec.runner.cuda.buckets import Bucket
from langchain_specdec.runner.kv_cache import ForwardShape
from langchain_specdec.runner.model_runner import ModelRunner
from langchain_specdec.runner.step_inputs import RowInputs
from langchain_specdec.runner.verify import pick_and_accept


def verify_step(runner: ModelRunner, inputs: RowInputs, bucket: Bucket) -> tuple[Tensor, ...]:
    """A forward and its acceptance, of tensors alone; this is what is captured.

    Returns:
        The logits, the verdict, and the states where some are tapped.
    """
    logits = _forward(runner, inputs, bucket)
    states = (runner.tapped(),) if runner.is_tapped else ()
    return logits, verdict_of(logits, inputs, bucket), *states


def verdict_of(logits: Tensor, inputs: RowInputs, bucket: Bucket) -> Tensor:
    """The verdict that a verification of this bucket has."""
    return pick_and_accept(logits, inputs, is_sampled=bucket.is_sampled, num_candidates=bucket.num_candidates)


def draft_step(runner: ModelRunner, inputs: RowInputs, bucket: Bucket, vocab_size: int) -> tuple[Tensor, Tensor]:
    """A draft forward that leaves in its inputs what the next one reads; this is what is captured.

    One graph so serves a loop of any length, at one launch a token. A graph of the whole loop would save some
    microseconds a token, and be one more to make and to hold for each length.

    Returns:
        The logits after each row's last token, `[rows, vocab]`, and the tokens picked by them, `[rows, 1]`.
    """
    logits = _forward(runner, inputs.cut(bucket.rows, bucket.width), bucket)
    rows = torch.arange(bucket.rows, device=logits.device)
    last = logits[rows, inputs.num_nodes - 1, :vocab_size]
    ends = inputs.starts + inputs.num_nodes
    picked = inputs.pick(last[:, None], ends[:, None], is_sampled=bucket.is_sampled)
    inputs.tokens[:, :1].copy_(picked)
    inputs.starts.copy_(ends)
    inputs.places.add_(inputs.num_nodes)
    inputs.num_nodes.fill_(1)
    return last, picked


def _forward(runner: ModelRunner, inputs: RowInputs, bucket: Bucket) -> Tensor:
    first_slot = 0 if bucket.is_whole else None
    shape = ForwardShape(bucket.length, inputs.slots[:, None], inputs.positions_in_slot, first_slot)
    return runner.forward_static(inputs, shape)
