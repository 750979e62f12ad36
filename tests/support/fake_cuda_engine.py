"""Whole turns of the engine on fake CUDA, one after the other in the test's own thread."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.drafters.base import Drafter
from langchain_specdec.drafters.combined import CombinedDrafter
from langchain_specdec.drafters.draft_head import DraftHeadDrafter
from langchain_specdec.drafters.draft_model import DraftModelDrafter
from langchain_specdec.drafters.head_tree import NUM_BRANCHES
from langchain_specdec.drafters.lookup_tree import LookupTreeDrafter
from langchain_specdec.drafters.prompt_lookup import PromptLookupDrafter
from langchain_specdec.engine.engine import Engine
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.models.heads.eagle3_config import Eagle3Config
from langchain_specdec.models.heads.eagle3_head import Eagle3Head
from langchain_specdec.models.make_runner import make_runner
from langchain_specdec.runner.attention import ATTENTION_NAME
from langchain_specdec.runner.cuda.captured_runner import CapturedRunner
from langchain_specdec.runner.model_runner import ModelRunner
from langchain_specdec.runner.module_head_runner import ModuleHeadRunner
from langchain_specdec.runner.runner import Runner
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.runner.verify import is_gapless
from langchain_specdec.sampling.params import SamplingParams
from tests.support.fake_cuda import FIRST_LETTER, NUM_LETTERS, FakeCapture, FakeCuda, Record, letters, make_model
from tests.support.model_families import make_config
from tests.support.tiny_models import EOS, VOCAB, byte_tokenizer, loaded, read

DRAFTINGS = ("none", "lookup", "auto", "draft model", "combined", "head")
NUM_SLOTS = 2
PREFILL_CHUNK = 16

_MAX_DRAFT_TOKENS = 5
_MAX_TREE_NODES = 16
# So that some drafts are looked up and some are computed, where both can be had.
_DRAFT_COST = 0.4
# What a draft head says of each node: chances, and letters.
_HEAD_SAYS = [0.6, 0.3, *[0.01] * (NUM_BRANCHES - 2), *range(FIRST_LETTER, FIRST_LETTER + NUM_BRANCHES)]
# Draft tokens of a row that stand in a step, at most.
_NUM_STANDING = 2


@dataclass(frozen=True)
class Turn:
    """One turn of the engine.

    Attributes:
        record: What ran on the device.
        is_steady: Whether nothing but a decoding step of all slots did: no row had joined or left since the step
            before it, and no graph was made.
    """

    record: Record
    is_steady: bool


class FakeCudaEngine:
    """An engine on a tiny model whose target takes most of what is drafted, by paths with gaps where it can.

    Args:
        cuda: The device.
        drafting: One of `DRAFTINGS`.
        is_captured: Whether steps are captured graphs.
        dtype: Of the models.

    Attributes:
        num_gaps: Paths of trees so far that had gaps.
    """

    def __init__(
        self, cuda: FakeCuda, drafting: str = "auto", *, is_captured: bool = False, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        self._cuda = cuda
        self.num_gaps = 0
        self._batch: RowBatch | None = None
        uncaptured = [
            make_runner(loaded(_model(dtype)), num_slots=NUM_SLOTS, max_length=128, max_width=1 + _MAX_TREE_NODES)
            for _ in ("target", "draft")
        ]
        self.runners: list[Any] = list(uncaptured)
        if is_captured:
            self.runners = [_captured(runner, cuda) for runner in uncaptured]
        if drafting == "head":
            self.runners[1] = ModuleHeadRunner(_head(dtype), NUM_SLOTS, 128, 1 + _MAX_TREE_NODES)
        target, draft = self.runners
        drafter = _drafter(drafting, target, draft)
        self._engine = Engine(
            target,
            drafter,
            byte_tokenizer(),
            (EOS,),
            max_draft_tokens=_MAX_DRAFT_TOKENS,
            max_tree_nodes=_MAX_TREE_NODES if drafting in ("auto", "combined", "head") else 0,
            prefill_chunk=PREFILL_CHUNK,
            step_cost=StepCost.flat(draft=_DRAFT_COST),
        )
        self._engine._start_thread = lambda: None  # type: ignore[method-assign]
        self._verify = target.verify
        target.verify = self._remembered
        cuda.answer = self._answer

    def run(self, completions: Sequence[tuple[Sequence[int], SamplingParams]]) -> list[Turn]:
        """Run completions to their end, turn by turn.

        Raises:
            AssertionError: Something failed on the way; the engine may have gone on without it.
        """
        streams = self._engine.submit_all([CompletionRequest(*completion) for completion in completions])
        turns: list[Turn] = []
        # Rows at the end of the turns so far: a step knows its rows if they were there a step earlier.
        rows: list[list[int]] = [[], []]
        while self._engine.num_running or self._engine.num_waiting:
            made = self._num_made
            with self._cuda.watch() as record:
                self._engine._run_once()
            rows.append([request.request_id for request in self._engine._scheduler.next_decode()])
            is_steady = len(rows[-1]) == NUM_SLOTS and rows[-1] == rows[-2] == rows[-3] and made == self._num_made
            turns.append(Turn(record, is_steady))
        for (_, params), stream in zip(completions, streams, strict=True):
            tokens, _ = read(stream)
            assert len(tokens) <= params.max_new_tokens
        return turns

    @property
    def _num_made(self) -> int:
        return sum(r.store.num_made for r in self.runners if isinstance(r, CapturedRunner))

    def _remembered(self, batch: RowBatch, **options: Any) -> Any:
        self._batch = batch
        return self._verify(batch, **options)

    def _answer(self, tensor: Tensor) -> Any:
        batch = self._batch
        if tensor.is_floating_point() and tensor.dim() == 2 and tensor.shape[1] == 2 * NUM_BRANCHES:
            return [_HEAD_SAYS] * len(tensor)
        if batch is None or tuple(tensor.shape) != (2 + batch.num_candidates, len(batch.slots), batch.width):
            return letters(tensor)
        picks, stands = zip(*(self._row_verdict(batch, row) for row in range(len(batch.slots))), strict=True)
        ranked = [[[FIRST_LETTER + rank] * batch.width] * len(batch.slots) for rank in range(batch.num_candidates)]
        return [list(picks), list(stands), *ranked]

    def _row_verdict(self, batch: RowBatch, row: int) -> tuple[list[int], list[int]]:
        """The target's picks and which nodes stand: of siblings the last, and then a letter that no child is."""
        tokens = batch.tokens[row]
        parents = batch.parents[row] if batch.parents is not None else range(-1, len(tokens) - 1)
        picks, path = [FIRST_LETTER] * batch.width, [0]
        while children := [node for node in range(1, len(tokens)) if parents[node] == path[-1]]:
            if len(path) > _NUM_STANDING:
                break
            picks[path[-1]] = tokens[children[-1]]
            path.append(children[-1])
        others = {tokens[node] for node in children}
        turned = (FIRST_LETTER + (sum(batch.starts) + row + i) % NUM_LETTERS for i in range(NUM_LETTERS))
        picks[path[-1]] = next(letter for letter in turned if letter not in others)
        self.num_gaps += not is_gapless(path)
        return picks, [int(node in path) for node in range(batch.width)]


@functools.cache
def _model(dtype: torch.dtype) -> Any:
    config = make_config("llama")
    config.num_hidden_layers, config.max_position_embeddings = 1, 512
    return make_model(config, ATTENTION_NAME, dtype)


def _captured(runner: Runner, cuda: FakeCuda) -> CapturedRunner:
    assert isinstance(runner, ModelRunner)
    return CapturedRunner(runner, FakeCapture(cuda), "reduce-overhead")


@functools.cache
def _head(dtype: torch.dtype) -> Eagle3Head:
    config = make_config("llama")
    hidden, vocab = config.hidden_size, config.vocab_size
    made = Eagle3Config((0, 1), hidden, hidden, hidden, 48, 4, 2, 8, vocab, vocab // 2, has_embedding=True)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("cuda"):
            return Eagle3Head(made, torch.arange(vocab // 2)).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(usual)


def _drafter(drafting: str, target: Runner, draft: Any) -> Drafter:
    if drafting == "none":
        return Drafter()
    if drafting == "lookup":
        return PromptLookupDrafter(5)
    if drafting == "head":
        return DraftHeadDrafter(target, draft, "eagle3", PREFILL_CHUNK)
    model = DraftModelDrafter(draft, VOCAB, PREFILL_CHUNK)
    if drafting == "draft model":
        return model
    tree = LookupTreeDrafter(5)
    return CombinedDrafter([tree, model]) if drafting == "combined" else tree
