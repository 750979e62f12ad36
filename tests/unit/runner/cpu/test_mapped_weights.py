"""Weights leave memory once they are packed, and embeddings stay in their file; what they hold never changes."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.models.make_runner import make_runner
from langchain_specdec.runner.cpu.mapped_weights import MappedWeights, settle_weights
from langchain_specdec.runner.cpu.packed_layers import can_pack, pack_linears
from tests.support.tiny_models import tiny_model

pytestmark = [
    pytest.mark.transformers,
    pytest.mark.skipif(
        not Path("/proc/self/smaps").exists() or not can_pack(tiny_model()),
        reason="this system does not tell or not pack",
    ),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=512, num_attention_heads=4, tie_word_embeddings=True, **sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def load(folder: Path) -> Any:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def resident_pages(tensor: Tensor) -> int:
    """Pages of a tensor that count as memory of this process."""
    first = tensor.data_ptr() // mmap.PAGESIZE
    last = (tensor.data_ptr() + tensor.numel() * tensor.element_size() - 1) // mmap.PAGESIZE
    with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
        file.seek(first * 8)
        entries = file.read((last - first + 1) * 8)
    return sum(entries[at + 7] >> 7 for at in range(0, len(entries), 8))


def test_dropped_weights_leave_memory_and_can_be_read_again(folder: Path) -> None:
    weight = load(folder).model.layers[0].mlp.up_proj.weight.detach()
    expected = weight.clone()
    mapped = MappedWeights()
    assert weight in mapped
    assert resident_pages(weight) > 2
    mapped.drop(weight)
    # The first and the last page are shared with its neighbours.
    assert resident_pages(weight) <= 2
    assert torch.equal(weight, expected)


def test_what_was_written_to_is_left_alone(folder: Path) -> None:
    model = load(folder)
    weight = model.model.layers[0].mlp.up_proj.weight.detach()
    weight[3] = 7.0
    mapped = MappedWeights()
    assert weight not in mapped
    mapped.drop(weight)
    assert (weight[3] == 7.0).all()


def test_memory_of_its_own_is_left_alone() -> None:
    tensor = torch.randn(512, 512)
    expected = tensor.clone()
    mapped = MappedWeights()
    assert tensor not in mapped
    mapped.drop(tensor)
    assert torch.equal(tensor, expected)


def test_packing_leaves_the_embedding_in_its_file_and_copies_the_rest(folder: Path) -> None:
    model = load(folder)
    ids = torch.arange(24)[None]
    with torch.inference_mode():
        expected = model(ids).logits
    table = model.get_input_embeddings().weight
    place = table.data_ptr()
    packed: list[Tensor] = []
    mapped = MappedWeights()

    def take(weight: Tensor) -> None:
        packed.append(weight)
        mapped.drop(weight)

    count = pack_linears(model, take)
    assert len(packed) == count == 2 * 7 + 1
    settle_weights(model, mapped)
    assert table.data_ptr() == place
    assert resident_pages(table.data) <= 2
    assert table.data in MappedWeights()
    assert model.model.norm.weight.data not in MappedWeights()
    with torch.inference_mode():
        assert torch.allclose(model(ids).logits, expected, atol=1e-5)


def test_loaded_models_hold_no_second_copy(folder: Path) -> None:
    model = load(folder)
    loaded = LoadedModel(model, None, "tiny", (0,), is_owned=True)
    make_runner(loaded, num_slots=1, max_length=64, max_width=4)
    assert resident_pages(model.get_input_embeddings().weight.data) <= 2


def test_systems_that_do_not_tell_have_nothing_mapped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil.Process, "memory_maps", lambda *_, **__: (_ for _ in ()).throw(psutil.AccessDenied))
    model = load(folder)
    mapped = MappedWeights()
    table = model.get_input_embeddings().weight
    place, expected = table.data_ptr(), table.detach().clone()
    assert table.data not in mapped
    settle_weights(model, mapped)
    assert table.data_ptr() != place
    assert torch.equal(table, expected)
