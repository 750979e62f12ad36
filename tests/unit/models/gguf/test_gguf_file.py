"""The form of GGUF files: what is read of it, and what is said of files that are none, damaged, or of other models."""

import os
import struct

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from langchain_specdec.errors import ModelLoadError, SpecDecError, UnsupportedModelError
from langchain_specdec.models.gguf import file as file_module
from langchain_specdec.models.gguf import model as model_module
from langchain_specdec.models.gguf import read_gguf
from langchain_specdec.models.gguf.config import read_config
from langchain_specdec.models.gguf.file import open_gguf
from langchain_specdec.runner.cpu.decoder_weights import BLOCKS, Format
from tests.support.gguf_files import FAMILIES, KV_HEADS, LAYERS, tiny_model, write_gguf

pytestmark = pytest.mark.transformers


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "x.gguf", tiny_model("llama"))


def failure(path) -> str:
    with pytest.raises((ModelLoadError, UnsupportedModelError)) as caught:
        read_gguf(path)
    message = str(caught.value)
    assert "\n" not in message
    assert repr(str(path)) in message
    assert message.endswith(".")
    return message


def test_blocks_are_those_of_the_package():
    assert {int(kind): gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(int(kind))] for kind in Format} == BLOCKS


def test_it_reads_what_the_package_reads(tmp_path):
    fields = {
        ".a.bool": True, ".a.float": 2.5, ".a.text": "日本\n", ".a.texts": ["", "é"], ".a.numbers": [-3, 4],
    }  # fmt: skip
    writer = gguf.GGUFWriter(tmp_path / "y.gguf", "llama")
    writer.add_int8("a.small", -5)
    writer.add_float64("a.double", 1e300)
    writer.add_array("a.floats", [1.5, -2.5])
    writer.add_uint64("a.big", 2**63)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    for path in (
        write_gguf(tmp_path / "x.gguf", tiny_model("phi3"), fields=fields),
        tmp_path / "y.gguf",
    ):
        reader, ours = gguf.GGUFReader(path), open_gguf(path)
        theirs = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        assert ours.fields == theirs
        assert {name: (tensor.type, tensor.shape, tensor.offset) for name, tensor in ours.tensors.items()} == {
            tensor.name: (tensor.tensor_type, tuple(map(int, tensor.shape[::-1])), tensor.data_offset)
            for tensor in reader.tensors
        }


def test_a_long_header_is_read_in_several_goes(whole, monkeypatch):
    expected = open_gguf(whole)
    monkeypatch.setattr(file_module, "_FIRST_BYTES", 16)
    assert open_gguf(whole) == expected


def test_a_file_cut_short_anywhere_is_told_of(whole, tmp_path):
    content = whole.read_bytes()
    path = tmp_path / "x.gguf"
    path.write_bytes(b"")
    assert "is no GGUF file" in failure(path)
    for length in (4, 7, 30, 200, 1000, 2000, len(content) // 2, len(content) - 100):
        path.write_bytes(content[:length])
        assert "is damaged: it ends" in failure(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.data())
def test_changed_bytes_give_an_error_of_ours_or_a_model(whole, tmp_path, data):
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 3000))
        content[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    try:
        read_gguf(path)
    except SpecDecError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"PK\x03\x04", "is no GGUF file"),
        (b"GGUF" + struct.pack("<I", 1), "of version 1. Give one of version 2 or 3"),
        (b"GGUF" + struct.pack(">I", 3), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**62), "it ends within its metadata"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**62, 0), "it ends within its metadata"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63), "it ends within its metadata"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"a", 99), "a value in its metadata is of type 99"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 8, 2**61), "it ends within its metadata"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 4, 2**61), "it ends within its metadata"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 9, 1), "a value in its metadata is of type 9"),
        (b"GGUF" + struct.pack("<IQQQ1s", 3, 0, 1, 1, b"\xff"), "its metadata cannot be read"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 1, 0, 1, b"a", 9), "a has 9 dimensions"),
    ],
)
def test_headers_that_cannot_be(tmp_path, header, words):
    path = tmp_path / "x.gguf"
    path.write_bytes(header + b"\0" * (64 if "type" in words or "read" in words or "dim" in words else 0))
    assert words in failure(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_of_others(whole, tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(whole.read_bytes())
    path.chmod(0)
    assert "Permission denied" in failure(path)


def test_a_file_that_gets_shorter_while_it_is_read(whole, tmp_path, monkeypatch):
    path = tmp_path / "x.gguf"
    path.write_bytes(whole.read_bytes())
    monkeypatch.setattr(model_module, "_LONG", 0)

    def cut(done, total):
        if done:
            os.truncate(path, 3000)

    with pytest.raises(ModelLoadError, match="is cut short: it ends within"):
        read_gguf(path, lambda _, done, total: cut(done, total))


def test_progress_is_told_in_bytes_to_the_end(whole, monkeypatch):
    read_gguf(whole, lambda *_: pytest.fail("it takes no time"))
    monkeypatch.setattr(model_module, "_LONG", 0)
    calls: list[tuple[str, int, int]] = []
    read_gguf(whole, lambda *call: calls.append(call))
    assert {description for description, *_ in calls} == {"Reading the weights"}
    done = [done for _, done, _ in calls]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, calls[0][2])


# Models.


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {".general.architecture": "mamba"},
            "its architecture is 'mamba'; GGUF files of llama, smollm3, qwen2, qwen3, phi3",
        ),
        ({".general.architecture": 3}, "its architecture is 3"),
        ({".general.type": "adapter"}, "it holds no model but an adapter"),
        ({".general.type": "mmproj"}, "it holds no model but the part of one that sees images"),
        ({"expert_count": 8}, "it is a mixture of experts"),
        ({"rope.scaling.type": "dynamic"}, "its positions are scaled by 'dynamic'; linear, yarn, longrope work"),
        (
            {"attention.head_count_kv": [KV_HEADS] * (LAYERS - 1) + [1]},
            "its layers differ (llama.attention.head_count_kv)",
        ),
    ],
)
def test_models_that_the_engine_cannot_run_are_refused_before_weights_are_read(tmp_path, monkeypatch, fields, words):
    path = write_gguf(tmp_path / "x.gguf", tiny_model("llama"), fields=fields)
    monkeypatch.setattr("langchain_specdec.models.gguf.model.read_weights", lambda *_: pytest.fail("too early"))
    with pytest.raises(UnsupportedModelError) as caught:
        read_gguf(path)
    assert str(caught.value).startswith(f"The engine cannot run {str(path)!r}: {words}")


def test_a_value_for_each_layer_is_taken_where_they_are_the_same(tmp_path):
    path = write_gguf(tmp_path / "x.gguf", tiny_model("llama"), fields={"attention.head_count_kv": [KV_HEADS] * LAYERS})
    assert read_gguf(path).config.num_key_value_heads == KV_HEADS


@pytest.mark.parametrize(
    "missing",
    [
        *("llama.block_count", "llama.attention.head_count", "llama.embedding_length", "llama.context_length"),
        *("token_embd.weight", "blk.2.attn_q.weight", "blk.0.ffn_norm.weight", "output_norm.weight"),
    ],
)
def test_what_is_missing_is_named(tmp_path, missing):
    path = write_gguf(tmp_path / "x.gguf", tiny_model("llama"), leave_out=[missing.removeprefix("llama.")])
    message = failure(path)
    assert f"is no whole model: {missing} is" in message


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"block_count": LAYERS + 1}, "blk.4.attn_q.weight is missing"),
        ({"feed_forward_length": 63}, "blk.0.ffn_gate.weight has the size (64, 32), where (63, 32) is due"),
        ({"attention.head_count": 0}, "llama.attention.head_count is 0"),
        ({"block_count": 4.0}, "llama.block_count is 4.0"),
        ({"attention.head_count": 4, "attention.head_count_kv": 3}, "do not fit 3 heads"),
        ({"rope.dimension_count": 5}, "4 heads of 16 numbers, 5 of which turn"),
        ({"rope.dimension_count": 18}, "18 of which turn"),
        ({"rope.freq_base": float("nan")}, "llama.rope.freq_base is nan"),
        ({".split.count": 3}, "Give all of them their names back, such as 'x-00001-of-00003.gguf'."),
        ({"context_length": "long"}, "llama.context_length is 'long'"),
        # What would take any time or memory to find out.
        ({"block_count": 2**32 - 1}, "llama.block_count is 4294967295, and there are 39 tensors"),
        ({"attention.key_length": 2**31}, "its heads have 2147483648 numbers; up to 512 work"),
        (
            {
                "rope.freq_base": 1.0,
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 2.0,
                "rope.scaling.original_context_length": 16,
            },
            "llama.rope.freq_base is 1.0",
        ),
    ],
)
def test_metadata_that_its_weights_do_not_fit(tmp_path, fields, words):
    assert words in failure(write_gguf(tmp_path / "x.gguf", tiny_model("llama"), fields=fields))


def test_tensors_that_share_their_bytes_are_refused(tmp_path):
    """A file of some bytes could else ask for any memory."""
    path = write_gguf(tmp_path / "x.gguf", tiny_model("llama"))
    content, tensors = bytearray(path.read_bytes()), open_gguf(path).tensors.values()
    for tensor in tensors:
        name = struct.pack("<Q", len(tensor.name)) + tensor.name.encode()
        at = content.index(name) + len(name) + 4 + 8 * len(tensor.shape) + 4
        content[at : at + 8] = bytes(8)
    start = min(tensor.offset for tensor in tensors)
    path.write_bytes(content[: start + max(tensor.num_bytes for tensor in tensors)])
    assert "its tensors take" in failure(path)


def test_a_table_of_no_tokens_is_refused(tmp_path):
    empty = np.zeros((0, 32), np.float32)
    path = write_gguf(tmp_path / "x.gguf", tiny_model("llama"), tensors={"token_embd.weight": empty})
    assert "token_embd.weight is empty" in failure(path)


@pytest.mark.parametrize("name", ["blk.0.attn_rot_embd.weight", "rope_factors_long.weight"])
def test_tensors_that_are_not_used_may_have_any_size(tmp_path, name):
    tensors = {name: np.zeros((2, 3, 4), np.float32)}
    assert read_gguf(write_gguf(tmp_path / "x.gguf", tiny_model("llama"), tensors=tensors)).weights.vocab


def test_tokens_that_are_no_list(whole):
    file = open_gguf(whole)
    file.fields["tokenizer.ggml.tokens"] = 5
    assert read_config(file).eos_token_id is None


def test_a_length_that_no_model_has_takes_no_memory(tmp_path):
    read = read_gguf(write_gguf(tmp_path / "x.gguf", tiny_model("llama"), fields={"context_length": 2**32 - 1}))
    table = read.weights.rotary[0]
    assert read.config.max_position_embeddings == len(table.cosines) == 2**20
    table.reach(1500)
    assert table.cosines[1499].all()
    # What a text does not reach takes no memory.
    assert not table.cosines[2048:].any()


def test_weights_that_no_such_model_has_are_refused(tmp_path):
    path = write_gguf(tmp_path / "x.gguf", tiny_model("qwen2"), fields={"block_count": LAYERS - 1})
    assert "it has weights that are not known in a model of its architecture (blk.3.attn_k.bias, blk.3" in failure(path)


@pytest.mark.parametrize("family", FAMILIES)
def test_configurations_say_what_transformers_says(tmp_path, family):
    config = read_gguf(write_gguf(tmp_path / "x.gguf", tiny_model(family)), with_tokenizer=False).config
    theirs = tiny_model(family).config
    assert config.get_text_config() is config
    for name in ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
        assert getattr(config, name) == getattr(theirs, name)
    for name in ("num_key_value_heads", "max_position_embeddings", "sliding_window", "tie_word_embeddings"):
        assert getattr(config, name) == getattr(theirs, name, None)
    special = {
        "smollm3": ("no_rope_layers",),
        "gemma2": ("layer_types", "attn_logit_softcapping", "final_logit_softcapping"),
        "gemma3_text": ("layer_types",),
    }
    for name in special.get(family, ()):
        assert getattr(config, name) == getattr(theirs, name)
    assert not any(name.startswith("_") for name in config.to_dict())
