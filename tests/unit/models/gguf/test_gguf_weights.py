"""Weights out of GGUF files: the model is the one that was written."""

from typing import Any

import gguf
import numpy as np
import pytest
import torch

from langchain_specdec.errors import ModelLoadError, UnsupportedModelError
from langchain_specdec.models.gguf import read_gguf
from langchain_specdec.models.gguf.to_transformers import dequantised, to_transformers
from langchain_specdec.runner.cpu.decoder_weights import Format
from tests.support.gguf_files import FAMILIES, HEAD_DIM, HIDDEN, POSITIONS, VOCAB, tiny_model, write_gguf
from tests.support.reference_decoder import reference_logits

pytestmark = pytest.mark.transformers
TOKENS = [int(token) for token in np.random.default_rng(0).integers(0, VOCAB, 20)]


def logits_of(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.tensor([TOKENS])).logits[0]
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_each_family_computes_what_transformers_does(family, tmp_path):
    model = tiny_model(family)
    read = read_gguf(write_gguf(tmp_path / "x.gguf", model))
    assert read.config.model_type == family
    torch.testing.assert_close(reference_logits(read.weights, TOKENS), logits_of(model), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dequantised_model_is_the_one_that_was_written(family, tmp_path):
    model = tiny_model(family)
    made = to_transformers(read_gguf(write_gguf(tmp_path / "x.gguf", model)))
    assert type(made) is type(model)
    assert made.state_dict().keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        # Gemma's norms are written with one added.
        torch.testing.assert_close(made.state_dict()[name], weight, rtol=0, atol=2e-7 * family.startswith("gemma"))
    torch.testing.assert_close(logits_of(made), logits_of(model), rtol=1e-5, atol=1e-5)
    assert made.generation_config.eos_token_id == [0]


WIDE = {"intermediate_size": 256}  # whole blocks of every type in rows of `down`


def random_rows(kind: gguf.GGMLQuantizationType) -> np.ndarray:
    numbers, size = gguf.GGML_QUANT_SIZES[kind]
    return np.random.default_rng(1).integers(0, 256, (HIDDEN, 256 // numbers * size), dtype=np.uint8)


@pytest.mark.parametrize("kind", Format)
def test_matrices_keep_the_bits_of_the_file(kind, tmp_path):
    kind = gguf.GGMLQuantizationType(int(kind))
    rows = random_rows(kind)
    end = "blk.0.ffn_down.weight"
    file = write_gguf(tmp_path / "x.gguf", tiny_model("llama", **WIDE), kinds={end: kind}, tensors={end: rows})
    matrix = read_gguf(file).weights.layers[0].down
    assert (int(matrix.format), matrix.inputs, matrix.outputs) == (kind, 256, HIDDEN)
    np.testing.assert_array_equal(matrix.data, rows)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(dequantised(matrix), gguf.dequantize(rows, kind))
        assert dequantised(matrix).dtype == np.float32
    assert matrix.data.ctypes.data % 32 == 0


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "IQ4_XS"])
def test_types_that_no_kernel_runs_are_dequantised_and_told_of(kind, tmp_path, caplog):
    kind = gguf.GGMLQuantizationType[kind]
    rows, ends = random_rows(kind), ("blk.0.ffn_down.weight", "blk.1.ffn_down.weight")
    file = write_gguf(
        tmp_path / "x.gguf", tiny_model("llama", **WIDE), kinds=dict.fromkeys(ends, kind),
        tensors=dict.fromkeys(ends, rows),
    )  # fmt: skip
    with np.errstate(all="ignore"):
        down = read_gguf(file).weights.layers[1].down
        assert (down.format, down.data.shape) == (Format.F32, (HIDDEN, 1024))
        np.testing.assert_array_equal(down.data.view(np.float32), gguf.dequantize(rows, kind))
    (record,) = caplog.records
    assert f"holds weights of type {kind.name}, which are not run as they are" in record.getMessage()


def test_a_type_that_nothing_reads_is_refused_before_weights_are_read(tmp_path, monkeypatch):
    end, kind = "blk.0.ffn_down.weight", gguf.GGMLQuantizationType.Q8_K
    rows = random_rows(kind)
    file = write_gguf(tmp_path / "x.gguf", tiny_model("llama", **WIDE), kinds={end: kind}, tensors={end: rows})
    monkeypatch.setattr("langchain_specdec.models.gguf.tensors._aligned", lambda size: pytest.fail("too early"))
    with pytest.raises(UnsupportedModelError, match=r"ffn_down\.weight is of type Q8_K, which is not read"):
        read_gguf(file)


def test_weights_take_no_more_memory_than_their_file(tmp_path):
    file = write_gguf(tmp_path / "x.gguf", tiny_model("llama"), kinds={"weight": gguf.GGMLQuantizationType.Q8_0})
    weights = read_gguf(file).weights
    memories = {id(base): base for layer in weights.layers if (base := layer.down.data.base) is not None}
    assert len(memories) == 1
    assert sum(memory.nbytes for memory in memories.values()) <= file.stat().st_size
    assert weights.num_bytes <= file.stat().st_size
    assert weights.head is weights.embedding or weights.head.data is not weights.embedding.data


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
def test_a_quantised_model_computes_what_it_does_dequantised(kind, tmp_path):
    file = write_gguf(tmp_path / "x.gguf", tiny_model("qwen3"), kinds={"weight": gguf.GGMLQuantizationType[kind]})
    read = read_gguf(file)
    assert read.weights.layers[0].query.format is Format[kind]
    torch.testing.assert_close(
        reference_logits(read.weights, TOKENS), logits_of(to_transformers(read)), rtol=2e-4, atol=2e-4
    )


def llama3_factors(scaling: dict[str, Any], base: float) -> np.ndarray:
    """As generate_extra_tensors of the converter."""
    factors = []
    for turn in 1.0 / base ** (np.arange(0, HEAD_DIM, 2, dtype=np.float32) / HEAD_DIM):
        length, original = 2 * np.pi / turn, scaling["original_max_position_embeddings"]
        low, high = original / scaling["low_freq_factor"], original / scaling["high_freq_factor"]
        smooth = (original / length - scaling["low_freq_factor"]) / (
            scaling["high_freq_factor"] - scaling["low_freq_factor"]
        )
        between = 1 / ((1 - smooth) / scaling["factor"] + smooth)
        factors.append(1.0 if length < high else scaling["factor"] if length > low else between)
    return np.array(factors, np.float32)


LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
SHORT, LONG = [1.0 + 0.1 * i for i in range(4)], [2.0 + i for i in range(4)]


@pytest.mark.parametrize(
    ("family", "options", "fields", "tensors"),
    [
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, {"type": "linear", "factor": 4.0}, {}),
        ("qwen2", {"rope_scaling": YARN}, {"type": "yarn", "factor": 4.0, "original_context_length": 16}, {}),
        ("llama", {"rope_scaling": LLAMA3}, {}, {"rope_freqs.weight": llama3_factors(LLAMA3, 10000.0)}),
        (
            "phi3",
            {
                "rope_scaling": {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG},
                "original_max_position_embeddings": 32,
            },
            {"attn_factor": float(np.sqrt(1 + np.log(2) / np.log(32))), "original_context_length": 32},
            {"rope_factors_short.weight": np.array(SHORT), "rope_factors_long.weight": np.array(LONG)},
        ),
    ],
)
def test_positions_are_scaled_as_the_file_says(family, options, fields, tensors, tmp_path):
    model = tiny_model(family, **options)
    fields = {f"rope.scaling.{name}": value for name, value in fields.items()}
    read = read_gguf(write_gguf(tmp_path / "x.gguf", model, fields=fields, tensors=tensors))
    expected = logits_of(model)
    torch.testing.assert_close(reference_logits(read.weights, TOKENS), expected, rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(logits_of(to_transformers(read)), expected, rtol=1e-4, atol=1e-4)
    plain = read_gguf(write_gguf(tmp_path / "y.gguf", model))
    assert (reference_logits(plain.weights, TOKENS) - expected).abs().max() > 1e-3
    # Phi-3's factors for longer texts are not read.
    assert read.config.max_position_embeddings == (32 if family == "phi3" else POSITIONS)


def test_a_part_of_each_head_may_stay_as_it_is(tmp_path):
    model = tiny_model("phi3", head_dim=16, num_attention_heads=2, partial_rotary_factor=0.5)
    file = write_gguf(tmp_path / "x.gguf", model, fields={"rope.dimension_count": 8})
    read = read_gguf(file)
    torch.testing.assert_close(reference_logits(read.weights, TOKENS), logits_of(model), rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(logits_of(to_transformers(read)), logits_of(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "left_out"), [("llama", ()), ("qwen3", ()), ("smollm3", ("attn_output.bias",))])
def test_biases_are_taken_where_there_are_some(family, left_out, tmp_path):
    model = tiny_model(family, attention_bias=True)
    read = read_gguf(write_gguf(tmp_path / "x.gguf", model, leave_out=left_out))
    for layer in model.model.layers if left_out else ():
        layer.self_attn.o_proj.bias.data.zero_()
    torch.testing.assert_close(reference_logits(read.weights, TOKENS), logits_of(model), rtol=2e-4, atol=2e-4)
    made = to_transformers(read)
    torch.testing.assert_close(logits_of(made), logits_of(model), rtol=1e-4, atol=1e-4)


def test_a_model_in_several_files_is_read_whole(tmp_path):
    model = tiny_model("llama")
    write_gguf(tmp_path / "x.gguf", model, parts=3)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [f"x-0000{part}-of-00003.gguf" for part in (1, 2, 3)]
    read = read_gguf(tmp_path / files[0])
    torch.testing.assert_close(reference_logits(read.weights, TOKENS), logits_of(model), rtol=2e-4, atol=2e-4)
    with pytest.raises(
        ModelLoadError, match=r"is a later part of a model .* Give the first, '.*x-00001-of-00003.gguf'"
    ):
        read_gguf(tmp_path / files[1])
    (tmp_path / files[1]).unlink()
    with pytest.raises(ModelLoadError, match=r"'x-00002-of-00003\.gguf' is not beside it"):
        read_gguf(tmp_path / files[0])
