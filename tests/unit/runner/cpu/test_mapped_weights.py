"""Weights leave memory once they are packed, and nothing that runs is left in a file; what they hold never changes."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from langchain_specdec.models import module_runner
from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.models.make_runner import make_runner
from langchain_specdec.models.private_tokenizer import PrivateTokenizer
from langchain_specdec.runner.cpu.kernel_linear import can_use_panels
from langchain_specdec.runner.cpu.mapped_weights import MappedWeights, copy_mapped
from langchain_specdec.runner.cpu.packed_layers import can_pack, pack_linears
from tests.support.tiny_models import byte_tokenizer, tiny_model

pytestmark = [
    pytest.mark.transformers,
    pytest.mark.skipif(
        not Path("/proc/self/smaps").exists() or not can_pack(tiny_model()),
        reason="this system does not tell or not pack",
    ),
]


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    config = LlamaConfig(
        vocab_size=512, num_attention_heads=4, tie_word_embeddings=getattr(request, "param", True), **sizes
    )
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


def spoil(folder: Path) -> None:
    """Overwrite the weights in place, as `cp` or `rsync --inplace` over a folder that is in use, then cut them short.

    What is still the file's would read as zeros, and then end the process.
    """
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    path.write_bytes(b"")


def numbers(model: Any, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(ids, use_cache=False).logits
    return logits


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("is_written", [True, False])
@pytest.mark.parametrize("folder", [True, False], indirect=True, ids=["tied", "untied"])
def test_nothing_of_a_model_is_read_from_its_file_any_more(
    folder: Path, is_packed: bool, is_written: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = load(folder), torch.arange(24)[None]
    # As a loader may leave it: a buffer that is read with the weights, and a weight that was changed since.
    model.register_buffer("counts", model.model.layers[1].mlp.up_proj.weight.detach()[:2])
    if is_written:
        model.model.layers[0].mlp.up_proj.weight.data[3] = 7.0
    expected, counts = numbers(model, ids), model.counts.clone()
    monkeypatch.setattr(module_runner, "can_pack", lambda _: is_packed)
    loaded = LoadedModel(model, PrivateTokenizer(byte_tokenizer()), "tiny", (0,), is_owned=True)
    make_runner(loaded, num_slots=1, max_length=64, max_width=4)
    mapped = MappedWeights()
    for name, holder in (*model.named_parameters(), *model.named_buffers()):
        assert not mapped.may_touch(holder.data), f"{name} is still the file's"
    spoil(folder)
    assert torch.allclose(numbers(model, ids), expected, atol=1e-5)
    assert torch.equal(model.counts, counts)


def test_a_tied_table_takes_no_memory_beside_the_packed_head(folder: Path) -> None:
    if not can_use_panels(torch.float32):
        pytest.skip("only the kernel gives back rows of a packed head")
    model = load(folder)
    expected = model.get_input_embeddings().weight.detach().clone()
    packed: list[Tensor] = []
    assert pack_linears(model, packed.append) == len(packed) == 2 * 7 + 1
    table = model.get_input_embeddings()
    assert table.weight.shape == expected.shape
    assert table.weight.dtype == expected.dtype
    assert table.weight.untyped_storage().nbytes() <= expected.element_size()
    assert torch.equal(table(torch.arange(512)), expected)
    copy_mapped(model, MappedWeights())
    assert table.weight.untyped_storage().nbytes() <= expected.element_size()


def test_memory_that_is_no_files_is_not_copied() -> None:
    model = tiny_model()
    places = [parameter.data_ptr() for parameter in model.parameters()]
    copy_mapped(model, MappedWeights())
    assert [parameter.data_ptr() for parameter in model.parameters()] == places


def test_systems_that_do_not_tell_have_everything_copied(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil.Process, "memory_maps", lambda *_, **__: (_ for _ in ()).throw(psutil.AccessDenied))
    model = load(folder)
    mapped = MappedWeights()
    table = model.get_input_embeddings().weight
    place, expected = table.data_ptr(), table.detach().clone()
    assert table.data not in mapped
    copy_mapped(model, mapped)
    assert table.data_ptr() != place
    assert torch.equal(table, expected)
