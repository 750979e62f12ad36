"""A tiny model in a folder, for programs that load their model by its path, and what it writes."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.support.tiny_models import EOS, byte_tokenizer, tiny_model

TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"
LENGTH = 4096


def save_endless_model(folder: Path) -> Path:
    """A model that hardly ever ends its text, so that only a limit, or a reader who leaves, ends a completion."""
    model = tiny_model(max_position_embeddings=LENGTH)
    with torch.no_grad():
        model.lm_head.weight[EOS] = 0.0
    model.set_attn_implementation("eager")
    model.save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder
