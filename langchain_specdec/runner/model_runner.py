"""Runs forwards of one model over its slots: prefill and verification, and no policy."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from langchain_specdec.runner.cuda.attention_backend import pinned_backends
from langchain_specdec.runner.kv_cache import ForwardShape, SlotCache
from langchain_specdec.runner.layer_states import TAIL, Row, SlotStates
from langchain_specdec.runner.model_config import cached_bytes, max_positions, num_cached_layers
from langchain_specdec.runner.model_inputs import ModelInputs
from langchain_specdec.runner.model_state import WeightsState, evaluating, is_private, modules_of
from langchain_specdec.runner.module_taps import ModuleTaps
from langchain_specdec.runner.row_adapters import RowAdapters
from langchain_specdec.runner.slot_images import ForwardImages, SlotImages
from langchain_specdec.runner.stateful_layers import keep_states_in_slots, stateful_layers
from langchain_specdec.runner.step_inputs import RowBatch, RowInputs
from langchain_specdec.runner.step_logits import StepLogits
from langchain_specdec.runner.tap_points import LateStates
from langchain_specdec.runner.trials import step_clock
from langchain_specdec.runner.verify import Verification, pick_and_accept, sound_chains
from langchain_specdec.sampling.noise import gumbel_noise

PickDraft = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Picks draft tokens, int64 `[rows, 1]`, by logits `[rows, 1, vocab]`, the positions that the tokens will have
`[rows, 1]`, and the tokens drafted before `[rows, count]`."""


class ModelRunner:
    """One model, its cache, and the kinds of forward that decoding needs.

    Args:
        model: A Hugging Face causal language model. It runs in evaluation mode, and is left in the mode it is in.
        num_slots: Slots of the cache.
        max_length: Positions of a slot that text can use.
        max_width: Most tokens of a row in a verification; the cache has room for its padding.
        reads_images: Whether texts may have images; only for a model with an encoder of them.
    """

    def __init__(
        self, model: Any, num_slots: int, max_length: int, max_width: int, *, reads_images: bool = False
    ) -> None:
        self.model = model
        self.max_length = max_length
        self.max_width = max_width
        config = model.config.get_text_config()
        self.vocab_size: int = config.vocab_size
        self.max_positions = max_positions(config)
        """The most that `max_length` could be; None where the model does not say."""
        embeddings = model.get_input_embeddings().weight
        self._num_embeddings = len(embeddings)
        self.device: torch.device = embeddings.device
        # A model that is told no positions goes by how many keys there are, and has tables for so many (MPT).
        is_told = "position_ids" in inspect.signature(model.base_model.forward).parameters
        known = None if is_told else self.max_positions
        self.cache = SlotCache(config.num_hidden_layers, num_slots, max_length + max_width, known)
        self.bytes_per_token: int = num_cached_layers(config) * cached_bytes(config, model.dtype)
        """What the keys and values of one token take in all layers."""
        self.num_forwards = 0
        if stateful := stateful_layers(model):
            for layer in stateful:
                keep_states_in_slots(layer)
            self.cache.states = SlotStates(max(TAIL, max_width))
        self.takes_trees = not stateful
        """Whether drafts may branch; see `models.compatibility.takes_trees`."""
        self.adapters: RowAdapters | None = None
        """Says which adapter the text in each slot goes by; None where there are none to choose among."""
        self.images = SlotImages(model, num_slots) if reads_images else None
        """Knows the images of the text in each slot; None where the model is given text only."""
        self._inputs = ModelInputs(model, self.images.offsets if self.images is not None else None)
        self._dtype: torch.dtype = model.dtype
        self._taps: ModuleTaps | None = None
        self._modules = modules_of(model)
        self.weights = WeightsState.of(self._modules)
        """What `note_weights` saw last."""

    graphs: frozenset[Any] = frozenset()
    """Changes with what forwards cost, when graphs take over or fail; here there are none."""

    def prepare(self, rows: int, lengths: range, *, is_sampled: bool, num_candidates: int) -> None:
        """Make all graphs that decoding certain texts is likely to use, before the first forward; here there are none.

        Args:
            rows: Most texts at a time.
            lengths: How many tokens they may have.
            is_sampled: Whether noise will pick tokens.
            num_candidates: See `RowBatch`.
        """

    def prepare_drafts(self, rows: int, lengths: range, vocab_size: int, *, is_sampled: bool) -> None:
        """Make all graphs that drafting for certain texts is likely to use; here there are none."""

    def tap(self, points: Sequence[int]) -> None:
        """Have the states at these points from every forward on; see `tap_points`. Asked for before the first one.

        Raises:
            ValueError: The model has no such points.
        """
        self._taps = ModuleTaps(self.model, points)

    @property
    def is_tapped(self) -> bool:
        """Whether states are had from forwards."""
        return self._taps is not None

    @property
    def tapped(self) -> LateStates:
        """What gives the states of the latest forward when they are asked for, after others too."""
        assert self._taps is not None, "asked for before the first forward"  # noqa: S101
        states, device = self._taps.states, self.device
        return lambda: states().to(device)

    clock = staticmethod(step_clock)
    make_noise = staticmethod(gumbel_noise)
    has_own_threads = False
    """Whether its forwards run on threads of their own, so that PyTorch's need not."""
    work_bytes = 0
    """Memory that is known to be taken by forwards as they come."""

    def note_weights(self) -> bool:
        """Whether weights have changed since this was last asked."""
        model = self.model  # another thread may release it meanwhile
        if model is None or is_private(model):
            return False
        # Modules too may have come since, adapters for example.
        self._modules = modules_of(model)
        before, self.weights = self.weights, WeightsState.of(self._modules)
        return self.weights != before

    @property
    def why_unfit(self) -> str | None:
        """Why the model can run no more here: it was moved or resized, and its slots were not. None where it can."""
        model = self.model  # another thread may release it meanwhile
        if model is None:
            return None
        weight, dtype = model.get_input_embeddings().weight, model.dtype
        if weight.device != self.device or dtype != self._dtype:
            was, now = (str(dtype).removeprefix("torch.") for dtype in (self._dtype, dtype))
            return f"it was {was} on {self.device} when it was given its slots, and is {now} on {weight.device} now"
        if len(weight) != self._num_embeddings:
            return f"it had {self._num_embeddings} tokens when it was given its slots, and has {len(weight)} now"
        return None

    pads_rows = True
    """Whether each row of a forward costs as much as the widest."""

    @property
    def is_width_free(self) -> bool:
        """Whether a few more tokens cost next to nothing: on a GPU, reading the weights and launching bound a step."""
        return self.device.type == "cuda"

    @property
    def awaits_graphs(self) -> bool:
        """Whether steps are going to cost something else, once their graphs are made; here they never are."""
        return False

    def begin_turn(self, *, may_capture: bool = True) -> None:
        """Say that a turn of the engine begins. At most one graph is captured in it; here none ever is."""

    def make_next_graph(self, batch: RowBatch) -> None:
        """Capture the next graph that drafts of other sizes need at the end of a text, if one may be in this turn.

        Args:
            batch: One row of one token, the last one of the text.
        """

    @torch.inference_mode()
    def verify(self, batch: RowBatch) -> Verification:
        """Run the last token of each text and its draft, and pick what follows each where noise is all it takes."""
        self.num_forwards += 1
        inputs, noise = RowInputs.from_batch(batch, self.device), batch.noise
        logits = self._logits(batch.slots, batch.starts, inputs)
        verdict = None
        if noise is not None:
            count = batch.num_candidates
            verdict = pick_and_accept(logits, inputs, is_sampled=noise.is_sampled, num_candidates=count)
        return Verification(StepLogits(logits, self), verdict, inputs)

    @torch.inference_mode()
    def chain(self, batch: RowBatch, steps: int, vocab_size: int, pick: PickDraft | None = None) -> list[list[int]]:
        """Decode `steps` tokens after each row, each from the one before it, without waiting for the device between.

        Args:
            batch: What the slots lack of each text, and the noise that picks tokens, together with the logits.
            steps: Tokens to decode, one forward each.
            vocab_size: Tokens that may be picked: so many of the first.
            pick: Picks where that takes more than noise.

        Returns:
            The tokens, by row; none for a row where the scores were not sound, as with NaN.
        """
        inputs = RowInputs.from_batch(batch, self.device)
        starts, lengths = list(batch.starts), [len(tokens) for tokens in batch.tokens]
        chains = inputs.tokens[:, :0]
        for _ in range(steps):
            self.num_forwards += 1
            logits = self._last_logits(batch.slots, starts, inputs)[..., :vocab_size]
            positions = (inputs.starts + inputs.num_nodes)[:, None]
            if pick is not None:
                picked = pick(logits, positions, chains)
            else:
                picked = inputs.pick(logits, positions, is_sampled=batch.is_sampled)
            chains = torch.cat([chains, picked], 1)
            starts = [start + length for start, length in zip(starts, lengths, strict=True)]
            lengths = [1] * len(starts)
            inputs = inputs.following(picked)
        # Whatever is not sound stays in the slot, so that it shows in the last scores too.
        return sound_chains(chains, logits, picked)

    @torch.inference_mode()
    def last_logits(self, batch: RowBatch) -> Tensor:
        """Logits after the last token of each row, `[rows, 1, vocab]`. It is not counted as a forward."""
        return self._last_logits(batch.slots, batch.starts, RowInputs.from_batch(batch, self.device))

    @torch.inference_mode()
    def prefill(self, batch: RowBatch) -> None:
        """Take tokens into the slots; the head, whose logits nobody would read, is left out."""
        inputs, is_one = RowInputs.from_batch(batch, self.device), len(batch.slots) == 1
        images = self.images.of(batch) if self.images is not None else None
        self._run(self.model.base_model, batch.slots, batch.starts, inputs, is_prompt=is_one, images=images)
        if self.cache.states is not None:
            self.cache.states.keep_prompts(batch.slots)

    @torch.inference_mode()
    def forward_static(self, inputs: RowInputs, shape: ForwardShape) -> Tensor:
        """Logits after every token, by tensors alone: the same launches whatever the tensors hold, and no waiting."""
        length = self.cache.begin(shape, is_chain=inputs.is_chain)
        with pinned_backends(self.device), self._evaluating(), self._tapping():
            logits: Tensor = self.model(**self._inputs.make(self.cache, inputs, length)).logits
        return logits

    def release(self) -> None:
        """Let go of the model and the slots; only for a runner that runs nothing any more."""
        self.model = None
        self._modules = []
        self._taps = None
        if self.images is not None:
            self.images.release()
        self.cache.release()

    def _evaluating(self) -> AbstractContextManager[None]:
        return nullcontext() if is_private(self.model) else evaluating(self.model, self._modules)

    def _tapping(self) -> AbstractContextManager[None]:
        return nullcontext() if self._taps is None else self._taps.open()

    def _last_logits(self, slots: Sequence[int], starts: Sequence[int], inputs: RowInputs) -> Tensor:
        logits = self._logits(slots, starts, inputs)
        if logits.shape[1] == 1:
            return logits
        rows = torch.arange(len(slots), device=logits.device)
        return logits[rows, inputs.num_nodes - 1][:, None]

    def _logits(self, slots: Sequence[int], starts: Sequence[int], inputs: RowInputs) -> Tensor:
        logits: Tensor = self._run(self.model, slots, starts, inputs).logits
        return logits

    def _run(
        self,
        module: Any,
        slots: Sequence[int],
        starts: Sequence[int],
        inputs: RowInputs,
        *,
        is_prompt: bool = False,
        images: ForwardImages | None = None,
    ) -> Any:
        length = self.cache.begin(ForwardShape.from_rows(slots, starts, inputs), is_chain=inputs.is_chain)
        if self.cache.states is not None:
            self.cache.states.begin([*map(Row, slots, starts, inputs.num_nodes.tolist())])
        choosing = nullcontext() if self.adapters is None else self.adapters.choosing(slots, self.device)
        with pinned_backends(self.device), self._evaluating(), choosing, self._tapping():
            given = self._inputs.make(self.cache, inputs, length, is_prompt=is_prompt, images=images)
            return module(**given)
