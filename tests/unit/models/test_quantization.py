"""`quantization="int8"` and `"int4"`: what becomes of a model, and that its text is that of the quantised one."""

from __future__ import annotations

import copy
import sys
from contextlib import closing
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.errors import InvalidParameterError, MissingDependencyError, UnsupportedModelError
from langchain_specdec.models import gpu_quantization
from langchain_specdec.models.gpu_quantization import gpu_quantization_config
from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.models.loader import load_model
from langchain_specdec.models.quantization import QUANTIZATIONS
from langchain_specdec.models.quantized_loading import quantized_loading
from langchain_specdec.models.quantized_module import quantize_module, widen_module
from langchain_specdec.runner.cpu.decoder_trial import native_library
from langchain_specdec.runner.cpu.decoder_weights import Format, Matrix
from langchain_specdec.runner.cpu.matrix_layers import MatrixEmbedding, MatrixLinear, widened
from langchain_specdec.runner.cpu.native_runner import NativeRunner
from langchain_specdec.runner.cpu.quantized_blocks import quantized_matrix
from langchain_specdec.sampling.params import SamplingParams
from tests.support import tiny_models as tiny

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("records")]
WORDS = ("int8", "int4")


def rounded(weight: Tensor, format_: Format) -> Tensor:
    """A weight with the numbers that its blocks stand for, by gguf."""
    made = quantized_matrix(Matrix(weight.contiguous().numpy().view(np.uint8), Format.F32, weight.shape[1]), format_)
    assert made is not None
    return torch.from_numpy(gguf.dequantize(made.data, GGMLQuantizationType(format_)))


# Modules.


def as_blocks(model: nn.Module) -> dict[str, tuple[Format, Tensor]]:
    """What each matrix of a quantised module is in, and its numbers."""
    layers = {name: each for name, each in model.named_modules() if isinstance(each, (MatrixLinear, MatrixEmbedding))}
    return {name: (each.format, widened(each.rows, each.format)) for name, each in layers.items()}


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("word", WORDS)
def test_every_matrix_of_a_module(
    word: str, dtype: torch.dtype, is_tied: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny.tiny_model(tie_word_embeddings=is_tied, dtype=dtype)
    before = copy.deepcopy(model).float()
    quantize_module(model, word, "the/model")
    found = as_blocks(model)
    formats = QUANTIZATIONS[word]
    weights = {name: each.weight.detach() for name, each in before.named_modules() if hasattr(each, "weight")}
    assert found.keys() == {name for name, weight in weights.items() if weight.ndim == 2}
    for name, (format_, numbers) in found.items():
        wanted = formats.tables if name in ("lm_head", "model.embed_tokens") else formats.layers
        assert format_ is wanted, name
        assert torch.equal(numbers, rounded(weights[name], wanted)), name
    assert (model.lm_head.rows.data_ptr() == model.model.embed_tokens.rows.data_ptr()) == is_tied
    norms = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    assert all(torch.equal(a, b) for a, b in zip(norms, (p for p in before.parameters() if p.ndim == 1), strict=True))
    assert model.dtype == torch.float32
    assert not caplog.records


@pytest.mark.parametrize("word", WORDS)
def test_pytorch_computes_with_the_numbers_of_the_blocks(word: str, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny.tiny_model()
    oracle = copy.deepcopy(model)
    quantize_module(model, word, "the/model")
    for name, (_, numbers) in as_blocks(model).items():
        oracle.get_submodule(name).weight.data = numbers
    widen_module(model, word, "the/model")
    assert not any(isinstance(each, MatrixLinear) for each in model.modules())
    ids = torch.arange(12)[None]
    assert torch.equal(model(ids).logits, oracle(ids).logits)
    (record,) = caplog.records
    assert f"those of the model quantised to {QUANTIZATIONS[word]}" in record.getMessage()
    assert "neither smaller nor faster" in record.getMessage()


@pytest.mark.parametrize("word", WORDS)
def test_weights_that_stand_on_their_side(word: str, caplog: pytest.LogCaptureFixture) -> None:
    """GPT-2 keeps `[inputs, outputs]`, and a table of positions, which stays."""
    sizes: Any = {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()
    before = copy.deepcopy(model)
    quantize_module(model, word, "the/model")
    old, new = before.transformer.h[0].mlp.c_fc, model.transformer.h[0].mlp.c_fc
    expected = rounded(old.weight.detach().T, QUANTIZATIONS[word].layers)
    inputs = torch.randn(3, 32)
    assert torch.allclose(new(inputs), inputs @ expected.T + old.bias, atol=1e-5)
    assert torch.equal(model.transformer.wpe.weight, before.transformer.wpe.weight)
    left, of_gpt2 = 16 * 32, (64 + 3 * 32 + 32 + 4 * 32 + 4 * 32) * 32
    share = 100 * left / (left + of_gpt2)
    assert caplog.messages[0].startswith(f"{share:.2g}% of the weights of the/model keep their numbers")


def test_what_cannot_be_quantised_keeps_its_numbers_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny.tiny_model(intermediate_size=40)
    weights = model.model.layers[1].mlp.down_proj.weight.detach().clone()
    quantize_module(model, "int8", "the/model")
    assert torch.equal(model.model.layers[1].mlp.down_proj.weight, weights), "rows of 40 numbers"
    assert isinstance(model.model.layers[1].mlp.up_proj, MatrixLinear)
    assert "% of the weights of the/model keep their numbers and are not quantised to int8" in caplog.messages[0]


def test_a_model_of_which_nothing_can_be_quantised() -> None:
    with pytest.raises(UnsupportedModelError, match=r"Nothing of the/model can be quantised to int4.*multiple of 32"):
        quantize_module(tiny.tiny_model(hidden_size=24, intermediate_size=40), "int4", "the/model")


def test_only_plain_linear_layers_of_a_module() -> None:
    class Own(nn.Linear):
        pass

    model: Any = nn.Sequential(Own(32, 32), nn.Linear(32, 32))
    model.get_input_embeddings = model.get_output_embeddings = lambda: None
    quantize_module(model, "int8", "it")
    assert type(model[0]) is Own
    assert isinstance(model[1], MatrixLinear)


# The whole way.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny.tiny_model(dtype=torch.bfloat16).save_pretrained(folder)
    tiny.byte_tokenizer().save_pretrained(folder)
    return folder


def greedy(folder: Path, **options: Any) -> list[int]:
    """24 tokens."""
    params = SamplingParams(max_new_tokens=24, ignore_eos=True)
    with closing(LocalBackend(folder, device="cpu", max_length=64, **options)) as backend:
        return tiny.token_ids(tiny.read(backend.start([CompletionRequest("The sea", params)])[0])[0])


@pytest.mark.parametrize("is_native", [True, False])
@pytest.mark.parametrize("word", WORDS)
def test_the_text_is_that_of_the_quantised_model(
    folder: Path, word: Any, is_native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By transformers alone, in float32, with the weights that gguf makes of the blocks."""
    plain_model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    oracle = copy.deepcopy(plain_model)
    for name, parameter in oracle.named_parameters():
        if parameter.ndim > 1:
            is_table = "embed" in name or "lm_head" in name
            formats = QUANTIZATIONS[word]
            parameter.data = rounded(parameter.data, formats.tables if is_table else formats.layers)
    prompt = torch.tensor([tiny.byte_tokenizer().encode("The sea")])
    written = [
        model.generate(prompt, max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)[
            0, prompt.shape[1] :
        ]
        for model in (oracle, plain_model)
    ]
    assert not torch.equal(*written), "else this shows nothing"
    if not is_native:
        monkeypatch.setattr("langchain_specdec.models.make_runner.native_library", lambda: None)
    elif native_library() is None:
        pytest.skip("there is no native decoder here")
    with closing(LocalBackend(folder, device="cpu", max_length=64, quantization=word)) as backend:
        assert isinstance(backend.engine.runner, NativeRunner) == is_native
    assert greedy(folder, quantization=word) == written[0].tolist()


def test_the_identity_names_what_the_weights_became(folder: Path) -> None:
    def identity(**options: Any) -> dict[str, Any]:
        loaded = load_model(folder, device="cpu", **options)
        return loaded.identity(folder, None, is_own_tokenizer=True)

    unquantised, *others = identity(), identity(quantization="int8"), identity(quantization="int4")
    assert "quantization" not in unquantised
    assert [each["quantization"] for each in others] == ["Q8_0", "IQ4_NL, embedding and head Q8_0"]
    for other in others:
        assert {**unquantised, "quantization": other["quantization"]} == other


def test_a_draft_model_is_quantised_and_changes_no_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = greedy(folder)
    made: list[LoadedModel] = []

    def spy(*arguments: Any, **options: Any) -> LoadedModel:
        made.append(load_model(*arguments, **options))
        return made[-1]

    monkeypatch.setattr("langchain_specdec.backends.local_drafts.load_model", spy)
    assert greedy(folder, draft_model=folder, draft_quantization="int4") == expected
    assert [each.quantization for each in made] == [None, "int4"]


# What is refused.


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        pytest.fail("this is too early for work")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", forbidden)
    monkeypatch.setattr("langchain_specdec.models.embedded.model_path", forbidden)


CPU = {"device": "cpu", "quantization": "int4"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization": "int3"}, "quantization must be one of 'int8', 'int4', got 'int3'"),
        ({"quantization": 8}, "quantization must be one of 'int8', 'int4', got 8"),
        ({"draft_quantization": "Q4_0", "draft_model": "x"}, "draft_quantization must be one of"),
        ({"draft_quantization": "int4"}, "draft_quantization needs a draft model"),
        ({**CPU, "quantization_config": SimpleNamespace(bits=4)}, "quantization or quantization_config, not both"),
        ({**CPU, "dtype": "bfloat16"}, "float32, got dtype='bfloat16'. Leave dtype out"),
        ({"quantization": "int4", "device_map": "cpu"}, "no use for a device_map"),
        ({"quantization": "int4", "device_map": {"model": "cpu", "lm_head": "disk"}}, "no use for a device_map"),
    ],
)
def test_what_contradicts_it(folder: Path, options: dict[str, Any], message: str, no_work: None) -> None:
    with pytest.raises(InvalidParameterError, match=message):
        LocalBackend(folder, **options)


@pytest.mark.parametrize("device", ["cpu", None])
@pytest.mark.parametrize("name", ["embedded", "model.gguf", "owner/name:model-Q4_K_M.gguf"])
def test_a_gguf_model_has_its_bits(
    name: str, device: str | None, folder: Path, no_work: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.gguf").touch()
    message = f"^{name} comes in the bits of a GGUF file: leave {{}} out, or give"
    with pytest.raises(InvalidParameterError, match=message.format("quantization")):
        LocalBackend(name, quantization="int8", device=device)
    with pytest.raises(InvalidParameterError, match=message.format("draft_quantization")):
        LocalBackend(folder, draft_model=name, draft_quantization="int4", device=device)


def test_a_model_that_comes_quantised(folder: Path, tmp_path: Path, no_work: None) -> None:
    there = tmp_path / "quantised"
    tiny.tiny_model().save_pretrained(there)
    config = (there / "config.json").read_text()
    (there / "config.json").write_text('{"quantization_config": {"quant_method": "awq", "bits": 4},' + config[1:])
    with pytest.raises(InvalidParameterError, match=r"comes quantised \(awq\).* to int8: leave its quantization out"):
        load_model(there, tiny.byte_tokenizer(), quantization="int8", device="cpu")


# GPUs, where transformers quantises.


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the packages that there are; empty it or add to it."""
    names: list[str] = ["accelerate"]
    packages = [
        gpu_quantization._Package(each.name, lambda name=each.name: name in names, each.make, each.results)  # type: ignore[misc]
        for each in gpu_quantization._PACKAGES
    ]
    monkeypatch.setattr(gpu_quantization, "_PACKAGES", packages)
    monkeypatch.setattr(gpu_quantization, "is_accelerate_available", lambda: "accelerate" in names)
    # transformers 4 asks for the package's version when it makes one.
    monkeypatch.setattr(gpu_quantization, "BitsAndBytesConfig", lambda **given: SimpleNamespace(**given))
    return names


@pytest.fixture
def torchao(monkeypatch: pytest.MonkeyPatch, installed: list[str]) -> Any:
    """A stand-in for torchao, with the parts that are used."""

    @dataclass
    class Int8WeightOnlyConfig:
        set_inductor_config: bool = True

    @dataclass
    class Int4WeightOnlyConfig:
        group_size: int = 128
        set_inductor_config: bool = True
        int4_packing_format: str = "plain"

    module = SimpleNamespace(Int8WeightOnlyConfig=Int8WeightOnlyConfig, Int4WeightOnlyConfig=Int4WeightOnlyConfig)
    monkeypatch.setitem(sys.modules, "torchao", SimpleNamespace(quantization=module))
    monkeypatch.setitem(sys.modules, "torchao.quantization", module)
    monkeypatch.setattr(gpu_quantization, "TorchAoConfig", lambda quant_type: SimpleNamespace(quant_type=quant_type))
    installed.append("torchao")
    return module


def test_torchao_comes_first(torchao: Any, installed: list[str]) -> None:
    installed.append("bitsandbytes")
    made = gpu_quantization_config("int8", torch.float16).quant_type
    assert made == torchao.Int8WeightOnlyConfig(set_inductor_config=False)
    made = gpu_quantization_config("int4", torch.bfloat16).quant_type
    assert made == torchao.Int4WeightOnlyConfig(32, set_inductor_config=False, int4_packing_format="tile_packed_to_4d")
    assert gpu_quantization_config("int4", torch.float16).load_in_4bit, "by bitsandbytes"


def test_an_older_torchao_has_one_way_of_packing(torchao: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    older = make_dataclass("Older", [("group_size", int), ("set_inductor_config", bool)])
    monkeypatch.setattr(torchao, "Int4WeightOnlyConfig", older)
    assert gpu_quantization_config("int4", torch.bfloat16).quant_type == older(32, set_inductor_config=False)


def test_the_4_bits_of_torchao_are_for_bfloat16(torchao: Any) -> None:
    with pytest.raises(InvalidParameterError, match=r"bfloat16 only, got dtype='float16'.*pip install bitsandbytes"):
        gpu_quantization_config("int4", torch.float16)


def test_bitsandbytes(installed: list[str]) -> None:
    installed.append("bitsandbytes")
    made = gpu_quantization_config("int8", torch.bfloat16)
    assert made.load_in_8bit
    made = gpu_quantization_config("int4", torch.float16)
    assert gpu_quantization.description("int4") == "NF4 (bitsandbytes)"
    assert (made.load_in_4bit, made.bnb_4bit_quant_type, made.bnb_4bit_compute_dtype) == (True, "nf4", torch.float16)


@pytest.mark.parametrize("names", [["accelerate"], ["torchao"]])
def test_no_package_for_a_gpu(names: list[str], installed: list[str]) -> None:
    installed[:] = names
    with pytest.raises(MissingDependencyError, match="pip install torchao accelerate"):
        gpu_quantization_config("int8", torch.bfloat16)
    assert not gpu_quantization.description("int8")


@pytest.mark.parametrize(
    ("dtype", "expected"), [("auto", torch.bfloat16), ("float16", torch.float16), ("float32", torch.float32)]
)
def test_what_is_not_quantised_on_a_gpu(dtype: str, expected: torch.dtype, installed: list[str]) -> None:
    installed.append("bitsandbytes")
    given = "auto" if dtype == "auto" else getattr(torch, dtype)
    how = quantized_loading("int8", given, torch.device("cuda"), None)
    assert (how.by_runner, how.dtype) == (None, expected)
    assert how.config.load_in_8bit


@pytest.mark.parametrize(
    ("device_map", "is_gpu"),
    [({"": 0}, True), ("cuda:1", True), ("mps", True), ({"a": 0, "b": "cpu"}, True), ("auto", True), ("cpu", False)],
)
def test_where_a_device_map_leads(
    device_map: Any, is_gpu: bool, installed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("langchain_specdec.models.quantized_loading.default_device", lambda: torch.device("cuda"))
    installed.append("bitsandbytes")
    asked: Any = ("int8", "auto", torch.device("cuda"), device_map)
    if is_gpu:
        assert quantized_loading(*asked).config.load_in_8bit
        return
    with pytest.raises(InvalidParameterError, match="no use for a device_map"):
        quantized_loading(*asked)


def test_the_configuration_reaches_transformers(
    folder: Path, installed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the tiny model stands for the one that transformers would quantise there."""
    installed.append("bitsandbytes")
    calls: list[dict[str, Any]] = []

    def from_pretrained(source: str, **options: Any) -> tuple[Any, dict[str, list[str]]]:
        calls.append(options)
        return tiny.tiny_model(), {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    monkeypatch.setattr("langchain_specdec.models.quantized_loading._is_cpu", lambda *_: False)
    loaded = load_model(folder, device="cpu", dtype="bfloat16", quantization="int4")
    (options,) = calls
    assert options["quantization_config"].load_in_4bit
    assert options["dtype"] == torch.bfloat16
    assert options["device_map"] == {"": torch.device("cpu")}
    assert loaded.quantization is None, "nothing is left to the runner"


def test_a_loaded_model_comes_too_late_before_any_is_read(folder: Path) -> None:
    loaded = tiny.tiny_model()
    for options in ({"quantization": "int8"}, {"draft_model": folder, "quantization": "int8"}):
        with pytest.raises(InvalidParameterError, match=r"loaded already, which is too late for quantization\. Leave"):
            LocalBackend(loaded, tiny.byte_tokenizer(), device="cpu", **options)
    with pytest.raises(InvalidParameterError, match="is loaded already, which is too late for draft_quantization"):
        LocalBackend("no/such", draft_model=loaded, draft_quantization="int8", device="cpu")
