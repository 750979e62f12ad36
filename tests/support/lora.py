"""LoRAs of random weights, as PEFT saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM

RANK = 2


def write_lora(folder: Path, base: Path, seed: int, targets: list[str], **changes: Any) -> None:
    """A LoRA as PEFT saves it."""
    model = AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=RANK, lora_alpha=6, target_modules=targets, task_type="CAUSAL_LM", **changes)
    tuned = peft.get_peft_model(model, config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    tuned.save_pretrained(str(folder))
