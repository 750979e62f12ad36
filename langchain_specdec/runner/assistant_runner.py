"""Runs an assistant of Gemma 4, which keeps no keys of its own: it reads those of its target, from the target's slots.

After a text of n tokens, of which the target has read all but the last, it takes the embedding of the last token and
the state of the one before, stands at position n - 1 for the whole draft, and attends to the target's last layer of
each kind whose keys are its own. To draft further it takes what it drafted, and its own projected output for the state.
So nothing of it depends on what was drafted beside, and drafts branch at no more cost. As in transformers'
`SinglePositionMultiTokenCandidateGenerator`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from langchain_specdec.runner.attention import additive_mask
from langchain_specdec.runner.cuda.attention_backend import pinned_backends
from langchain_specdec.runner.head_runner import Candidates, likeliest_by_logits
from langchain_specdec.runner.kv_cache import SlotCache
from langchain_specdec.runner.model_config import keyed_layers
from langchain_specdec.runner.model_inputs import gpu_mask
from langchain_specdec.runner.module_head_runner import padded
from langchain_specdec.runner.step_inputs import RowBatch, RowInputs
from langchain_specdec.runner.trials import step_clock

_SLIDING = "sliding_attention"


class AssistantRunner:
    """Runs an assistant; see `HeadRunner`. What `run` takes stands elsewhere, as said there.

    Args:
        assistant: Transformers' `Gemma4AssistantForCausalLM`, or that of the unified models.
        embed: The target's embeddings, int64 `[...]` to `[..., hidden]`.
        config: The target's text configuration.
        slots: The target's slots.
        max_width: Most tokens of a row in `run`.
    """

    has_own_threads = False
    work_bytes = 0
    bytes_per_token = 0
    clock = staticmethod(step_clock)

    def __init__(
        self, assistant: Any, embed: Callable[[Tensor], Tensor], config: Any, slots: SlotCache, max_width: int
    ) -> None:
        self._assistant: Any = assistant
        self._embed: Any = embed
        self._slots: Any = slots
        weight: Tensor = assistant.pre_projection.weight
        self.device, self._dtype = weight.device, weight.dtype
        self.tap_points: tuple[int, ...] = (config.num_hidden_layers,)
        self.target_ids: Tensor | None = None
        self.vocab_size: int = assistant.vocab_size
        self.hidden_size: int = assistant.backbone_hidden_size
        text = assistant.config.get_text_config()
        self.num_layers: int = text.num_hidden_layers
        self._window: int = text.sliding_window
        self._num_heads: int = text.num_attention_heads
        self._layers = keyed_layers(config)
        # As in `ModelInputs`.
        self.is_for_gpu = self.device.type == "cuda"
        self.max_width = max_width
        self.num_forwards = 0
        self.cache = SlotCache(0, slots.num_slots, slots.max_length)

    def note_weights(self) -> bool:
        """They never do: the assistant is nobody else's."""
        return False

    def condense(self, states: Tensor) -> Tensor:
        """The one state of each position, `[count, 1, hidden]` to `[count, hidden]`."""
        return states.squeeze(-2).to(self.device, self._dtype)

    def extend(self, batch: RowBatch, hidden: Sequence[Tensor]) -> None:
        """Nothing: there are no entries."""

    @torch.inference_mode()
    def run(
        self, batch: RowBatch, hidden: Sequence[Tensor], wanted: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Say what follows tokens of drafts, none of which sees another.

        Args:
            batch: Their rows. A row starts where the last token of its text stands, for all of its tokens.
            hidden: See `HeadRunner.run`.
            wanted: Likewise; logits of all are at hand.

        Returns:
            See `HeadRunner.run`.
        """
        self.num_forwards += 1
        inputs = RowInputs.from_batch(batch, self.device)
        states = torch.cat([self._embed(inputs.tokens), padded(hidden, batch.width)], -1).to(self._dtype)
        seen = {kind: self._seen(kind, batch, inputs) for kind in self._layers}
        assistant = self._assistant
        with pinned_backends(self.device):
            outputs = assistant.model(
                inputs_embeds=assistant.pre_projection(states),
                attention_mask={kind: mask for kind, (_, mask) in seen.items()},
                position_ids=inputs.starts[:, None].expand(-1, batch.width),
                shared_kv_states={kind: keys for kind, (keys, _) in seen.items()},
                use_cache=False,
                # A number of tokens, 0 too, has transformers cut inputs by layer out, of which there are none.
                logits_to_keep=None,
            ).last_hidden_state
        return self._logits(outputs), assistant.post_projection(outputs)

    @torch.inference_mode()
    def likeliest(
        self, batch: RowBatch, hidden: Sequence[Tensor], wanted: Sequence[int]
    ) -> tuple[list[Candidates | None], Tensor]:
        """See `HeadRunner.likeliest`."""
        return likeliest_by_logits(self, batch, hidden, wanted)

    def release(self) -> None:
        """See `HeadRunner.release`; the target's slots are its own to release."""
        self._assistant = self._embed = self._slots = None

    def _seen(self, kind: str, batch: RowBatch, inputs: RowInputs) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Keys and values of a layer that these rows see, and a mask; see `slot_attention`."""
        # As transformers counts: the last token has no key yet, and the window is of those before it and one more.
        window = self._window + 1 if kind == _SLIDING else None
        begin = 0 if window is None else max(min(batch.starts) - window, 0)
        layer = self._slots.layers[self._layers[kind]]
        first, count, end = batch.slots[0], len(batch.slots), max(batch.starts)
        if list(batch.slots) == list(range(first, first + count)):
            kept = [buffer[first : first + count, :, begin:end] for buffer in (layer.keys, layer.values)]
        else:
            slots = inputs.slots.to(layer.keys.device)
            kept = [buffer[:, :, begin:end].index_select(0, slots) for buffer in (layer.keys, layer.values)]
        places, ends = torch.arange(begin, end, device=self.device), inputs.starts[:, None]
        sees = places < ends
        if window is not None:
            sees = sees & (places >= ends - window)
        mask = sees[:, None].expand(-1, batch.width, -1)
        if self.is_for_gpu:
            mask = gpu_mask(mask, self._dtype, self._num_heads // layer.keys.shape[1])
        else:
            mask = additive_mask(mask[:, None], self._dtype)
        return (kept[0].to(self.device), kept[1].to(self.device)), mask

    def _logits(self, outputs: Tensor) -> Tensor:
        """Scores of all tokens; where they are ordered by centroids, of those of the likeliest centroids."""
        assistant = self._assistant
        centroids = assistant.masked_embedding
        if centroids is None:
            scores: Tensor = assistant.lm_head(outputs)
            return scores
        best = centroids.centroids(outputs).topk(centroids.centroid_intermediate_top_k).indices
        tokens = centroids.token_ordering.long().view(centroids.num_centroids, -1)[best].flatten(-2)
        scores = (assistant.lm_head.weight[tokens] @ outputs[..., None])[..., 0]
        return scores.new_full((*outputs.shape[:-1], self.vocab_size), -math.inf).scatter_(-1, tokens, scores)
