"""The MTP layer of Qwen3-Next and Qwen3.5 as a draft head: one decoder layer of the target's own family.

At text position j it reads the embedding of token j + 1 and the state of position j as the target's final norm gives
it, and predicts token j + 2. To draft further it takes its own normed output for the next state, as in vLLM
(https://github.com/vllm-project/vllm, `qwen3_5_mtp.py`). Embeddings and the output layer are the target's. Names of
parameters are those of the checkpoints.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from langchain_specdec.models.heads.eagle3_head import Attend
from langchain_specdec.runner.model_config import decoder_layers

# What attention of the layer is called in its configuration: that of who runs the head.
_ATTENTION_NAME = "specdec_head"


class MtpHead(nn.Module):
    """An MTP layer, with what `Eagle3Head` has for those who run it.

    Of several layers only the first is there: each drafts one more token, and the first does so again and again, as in
    vLLM. All checkpoints so far have one.

    Args:
        model: The target, a Hugging Face module, whose classes it is made of.
        embedding: The target's embeddings, `[...]` to `[..., hidden_size]`.
        output: The target's output layer, `[..., hidden_size]` to `[..., vocab_size]`.

    Attributes:
        tap_points: What the target's final norm gives.
        target_ids: None: it drafts all tokens of the target, by the target's numbers.
    """

    target_ids = None
    num_layers = 1

    def __init__(self, model: Any, embedding: Callable[[Tensor], Tensor], output: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        # A copy, as the target's layers go by theirs.
        config = copy.deepcopy(model.config.get_text_config())
        config._attn_implementation = _ATTENTION_NAME
        self.tap_points = (config.num_hidden_layers,)
        config.layer_types = ["full_attention"] * config.num_hidden_layers
        self.hidden_size = self.target_hidden_size = hidden = config.hidden_size
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim: int = config.head_dim
        self.draft_vocab_size: int = config.vocab_size
        text = getattr(model.base_model, "language_model", model.base_model)
        # In a tuple, so that no module of the target becomes one of the head.
        self._of_target = (embedding, output, text.rotary_emb)
        layer_class, norm_class = type(decoder_layers(model)[0]), type(text.norm)
        self.pre_fc_norm_embedding = norm_class(hidden, eps=config.rms_norm_eps)
        self.pre_fc_norm_hidden = norm_class(hidden, eps=config.rms_norm_eps)
        self.fc = nn.Linear(2 * hidden, hidden, bias=False)
        self.layers = nn.ModuleList([layer_class(config, 0)])
        self.norm = norm_class(hidden, eps=config.rms_norm_eps)

    def condense(self, states: Tensor) -> Tensor:
        """The one state of each position, `[..., 1, hidden_size]` to `[..., hidden_size]`."""
        return states.squeeze(-2)

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings of tokens, int64 `[...]` to `[..., hidden_size]`."""
        return self._of_target[0](tokens).to(self.fc.weight.dtype)

    def forward(self, embeddings: Tensor, hidden: Tensor, positions: Tensor, attend: Attend) -> tuple[Tensor, Tensor]:
        """One step over some positions of each row; see `Eagle3Head.forward`."""
        normed = self.pre_fc_norm_embedding(embeddings), self.pre_fc_norm_hidden(hidden)
        states = self.fc(torch.cat(normed, dim=-1))
        turns = self._of_target[2](states, positions)
        states = self.layers[0](states, position_embeddings=turns, attention_mask=None, attend=attend)
        outputs = self.norm(states)
        return outputs, outputs

    def logits(self, outputs: Tensor) -> Tensor:
        """Scores of the target's tokens, `[..., hidden_size]` to `[..., vocab_size]`."""
        return self._of_target[1](outputs)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, *_: object, attend: Attend, **__: object
) -> tuple[Tensor, None]:
    """Leaves attention to who runs the head."""
    return attend(module.layer_idx, query, key, value).transpose(1, 2), None


AttentionInterface.register(_ATTENTION_NAME, _attention)
