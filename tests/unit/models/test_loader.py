"""Loading: what is read from where, what is passed on, and what is refused before any work starts."""

import json
import shutil
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.cache_utils import Cache
from transformers.utils import logging

from langchain_specdec import ChatSpeculative
from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.bench.random_weights import random_model
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.errors import (
    InvalidParameterError,
    ModelLoadError,
    PromptTooLongError,
    SpecDecError,
    UnsupportedModelError,
)
from langchain_specdec.models import adapters, model_source, module_runner, pretrained
from langchain_specdec.models import make_runner as make_runner_module
from langchain_specdec.models.adapters import find_parts
from langchain_specdec.models.compatibility import check_supported, common_vocabulary
from langchain_specdec.models.devices import default_device
from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.models.loader import load_model
from langchain_specdec.models.make_runner import make_runner, token_budget
from langchain_specdec.models.memory import free_memory
from langchain_specdec.models.private_tokenizer import PrivateTokenizer
from langchain_specdec.runner.attention import ATTENTION_NAME
from langchain_specdec.runner.model_runner import ModelRunner
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.sampling.params import SamplingParams
from tests.support import tiny_models as tiny
from tests.support.backends import make_backend

CHECKED = {"output_loading_info": True, "ignore_mismatched_sizes": True}
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("records")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model with its tokenizer, saved as any model is; its weights are bfloat16."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model = tiny.tiny_model(dtype=torch.bfloat16)
    model.generation_config.eos_token_id = [7, tiny.EOS]
    model.save_pretrained(folder)
    tiny.byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def calls(monkeypatch):
    """The arguments of every `from_pretrained`; weights are not read, a tiny model stands for them."""
    calls: dict[str, Any] = {}

    def spy(auto_class, result=None):
        original = auto_class.from_pretrained

        def from_pretrained(source, **kwargs):
            # transformers calls it again by itself, for the tokenizer.
            calls.setdefault(auto_class.__name__, kwargs)
            if result is not None:
                whole: dict[str, list[str]] = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
                return result(), whole
            passed = {key: value for key, value in kwargs.items() if key == "trust_remote_code"}
            return original(source, **passed)

        monkeypatch.setattr(auto_class, "from_pretrained", from_pretrained)

    spy(AutoConfig)
    spy(AutoTokenizer)
    spy(AutoModelForCausalLM, tiny.tiny_model)
    return calls


@pytest.fixture
def no_work(monkeypatch):
    """Fails the test where weights are read or a forward runs."""

    def forbidden(*args, **kwargs):
        pytest.fail("this is too early for work")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", forbidden)
    monkeypatch.setattr(torch.nn.Module, "__call__", forbidden)
    monkeypatch.setattr(torch.nn.Module, "to", forbidden)


# Where models come from.


@pytest.mark.parametrize("device", DEVICES)
def test_load_a_local_folder(folder, device):
    for source in (folder, str(folder)):
        loaded = load_model(source, device=device)
        assert loaded.name == str(folder)
        assert loaded.model.device.type == device
        assert not loaded.model.training
        assert loaded.model.config._attn_implementation == ATTENTION_NAME
        assert loaded.max_positions == 512
        assert loaded.tokenizer.decode(loaded.tokenizer("Grüße").input_ids) == "Grüße"


def test_load_a_relative_folder(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert load_model("tiny", device="cpu").name == "tiny"
    assert load_model("./tiny", device="cpu").name == "./tiny"


@pytest.mark.parametrize("device", DEVICES)
def test_decode_from_a_local_folder(folder, device):
    backend = LocalBackend(folder, draft_model=folder, device=device, num_slots=2)
    try:
        request = CompletionRequest("abc", SamplingParams(max_new_tokens=12, temperature=0.0, ignore_eos=True))
        (completion,) = backend.complete([request])
        prompt = backend.token_ids("abc")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=backend.model.dtype).to(device).eval()
        if device == "cpu":
            assert [t.id for t in completion.tokens] == tiny.plain_reference(model, prompt, request.params)
    finally:
        backend.close()


def test_take_a_loaded_model_and_tokenizer():
    model, tokenizer = tiny.tiny_model().train(), tiny.byte_tokenizer()
    loaded = load_model(model, tokenizer)
    assert loaded.model is model
    assert loaded.tokenizer is tokenizer
    assert loaded.name == "LlamaForCausalLM"
    assert model.training, "it is the caller's"


@pytest.mark.parametrize("model_type", ["llama", "gpt_neo"])
def test_a_loaded_model_runs_in_evaluation_mode_and_is_left_in_its_own(model_type):
    """A model that is being trained: some of its modules are in training mode, and drop out half of what they get."""
    dropout = {"attention_dropout": 0.5} | ({"resid_dropout": 0.5} if model_type == "gpt_neo" else {})
    sizes = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]} if model_type == "gpt_neo" else {}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES, **sizes, **dropout))
    params = SamplingParams(max_new_tokens=12, ignore_eos=True)
    prompt = [257, 5, 7, 5, 7, 5]
    expected = tiny.plain_reference(model.eval(), prompt, params)
    model.train()
    model.base_model.eval().get_input_embeddings().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.train()
    modes = [module.training for module in model.modules()]
    assert {True, False} == set(modes)
    backend = LocalBackend(model, tiny.byte_tokenizer(), num_slots=2, max_length=64)
    for change in (lambda: None, model.train):
        change()
        modes = [module.training for module in model.modules()]
        (completion,) = backend.complete([CompletionRequest(prompt, params)])
        assert [token.id for token in completion.tokens] == expected
        assert [module.training for module in model.modules()] == modes
    backend.close()
    assert [module.training for module in model.modules()] == modes


def test_a_loaded_model_finds_its_tokenizer_where_it_came_from(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    loaded = load_model(model)
    assert loaded.model is model
    assert loaded.tokenizer.get_vocab() == tiny.byte_tokenizer().get_vocab()


def test_a_loaded_model_without_a_name_needs_its_tokenizer():
    with pytest.raises(InvalidParameterError, match="give tokenizer="):
        load_model(tiny.tiny_model())


def test_a_tokenizer_that_is_given_is_not_read(folder, calls):
    tokenizer = tiny.byte_tokenizer()
    assert load_model(folder, tokenizer).tokenizer is tokenizer
    assert "AutoTokenizer" not in calls


@pytest.mark.parametrize(
    "missing", ["/no/such/folder", "./no/such/folder", "../folder", "~/folder", "some/where/else", "/no/such/folder/"]
)
def test_a_folder_that_is_not_there(missing):
    with pytest.raises(ModelLoadError) as caught:
        load_model(missing)
    assert f"There is no folder {missing!r}" in str(caught.value)
    assert "config.json" in str(caught.value)
    assert "Hugging Face Hub" in str(caught.value)


def test_a_missing_path_is_a_folder_whatever_its_name(tmp_path):
    with pytest.raises(ModelLoadError, match="There is no folder"):
        load_model(tmp_path / "missing")


def test_a_file_in_place_of_its_folder(folder):
    with pytest.raises(ModelLoadError, match=r"model\.safetensors' is a file\. Give the folder that holds"):
        load_model(folder / "model.safetensors")


@pytest.mark.parametrize("is_downloaded", [True, False])
def test_the_hub_is_not_asked_whether_a_downloaded_model_is_an_adapter(monkeypatch, tmp_path, is_downloaded):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    if is_downloaded:
        repository = tmp_path / "models--somebody--something"
        snapshot = repository / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("abc")
    asked = []
    monkeypatch.setattr(adapters, "find_adapter_config_file", lambda *_, **options: asked.append(options))
    assert adapters.find_parts("somebody/something", "something", None, None, None).adapter is None
    assert [options["local_files_only"] for options in asked] == [is_downloaded]


def test_a_model_id_that_cannot_be_read(monkeypatch):
    def from_pretrained(*args, **kwargs):
        raise OSError("We could not connect to the hub.\nSecond line")

    monkeypatch.setattr(AutoConfig, "from_pretrained", from_pretrained)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelLoadError, match="somebody/something: it is not on this machine, and HF_HUB_OFFLINE"):
        load_model("somebody/something")
    # As of one that was found, and went meanwhile.
    monkeypatch.setattr(pretrained, "check_source", lambda name, **__: (name, None))
    # It asks the hub too.
    monkeypatch.setattr(adapters, "find_adapter_config_file", lambda *_, **__: None)
    with pytest.raises(ModelLoadError) as caught:
        load_model("somebody/something")
    message = str(caught.value)
    assert message.startswith("Cannot load somebody/something: We could not connect to the hub. Give a local folder")
    assert "HF_HUB_OFFLINE is set" in message
    assert "Second line" not in message
    assert isinstance(caught.value, OSError)


def test_the_hub_is_left_alone_where_it_is_out_of_reach(monkeypatch, folder, calls, tmp_path):
    """Each file would be asked for, for ten seconds."""
    snapshot = tmp_path / "models--somebody--something" / "snapshots" / "abc"
    shutil.copytree(folder, snapshot)
    (tmp_path / "models--somebody--something" / "refs").mkdir()
    (tmp_path / "models--somebody--something" / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(model_source, "is_out_of_reach", lambda *_: True)
    sources = []

    def find(source, *rest):
        sources.append(source)
        return find_parts(source, *rest)

    monkeypatch.setattr(pretrained, "find_parts", find)
    loaded = load_model("somebody/something", device="cpu")
    assert sources == [str(snapshot)]
    assert loaded.name == "somebody/something"


@pytest.mark.parametrize("name", ["draft.gguf", "https://huggingface.co/a/b"])
def test_a_draft_model_and_an_adapter_are_looked_at_before_anything_is_read(folder, name, no_work):
    for options in ({"draft_model": name}, {"adapter": name}):
        with pytest.raises(ModelLoadError, match=r"There is no file|Give the model's id, 'a/b'"):
            LocalBackend(folder, device="cpu", **options)


def test_a_folder_without_weights(tmp_path):
    tiny.tiny_model().config.save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=f"Cannot load {tmp_path}: .*safetensors"):
        load_model(tmp_path)


def test_a_folder_without_a_tokenizer(tmp_path, records):
    tiny.tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=f"Cannot load the tokenizer of {tmp_path}"):
        load_model(tmp_path, device="cpu")
    # transformers speaks of its older tokenizers while it tries them.
    records.clear()


def test_a_model_of_a_type_that_transformers_does_not_know(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nonsense"}))
    with pytest.raises(ModelLoadError, match="nonsense"):
        load_model(tmp_path)


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(folder, tmp_path, monkeypatch):
    """A model that comes with code of its own."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    copied = tmp_path / "own_model"
    shutil.copytree(folder, copied)
    config = json.loads((copied / "config.json").read_text())
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (copied / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": own}))
    (copied / "own.py").write_text(OWN_CODE)
    yield copied
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


def test_own_code_of_a_model_does_not_run_unless_asked_for(own_code):
    with pytest.raises(ModelLoadError, match="read that code, and pass trust_remote_code=True if you trust it"):
        load_model(own_code)
    assert not any(name.startswith("transformers_modules.own") for name in sys.modules)


def test_own_code_of_a_model_runs_when_asked_for(own_code, monkeypatch):
    compared = []
    monkeypatch.setattr(module_runner, "check_cached_forward", lambda runner, name: compared.append(name))
    loaded = load_model(own_code, tiny.byte_tokenizer(), device="cpu", trust_remote_code=True)
    assert type(loaded.model).__name__ == "OwnModel"
    assert loaded.model.config._attn_implementation == ATTENTION_NAME
    make_runner(loaded, num_slots=2, max_length=64, max_width=2)
    assert compared == [str(own_code)]


# What is passed on to transformers.


def test_what_is_passed_on_by_default(folder, calls):
    load_model(str(folder), device="cpu")
    assert calls == {
        "AutoConfig": {"trust_remote_code": False},
        "AutoModelForCausalLM": {
            "trust_remote_code": False,
            "dtype": torch.float32,
            "attn_implementation": ATTENTION_NAME,
            **CHECKED,
        },
        "AutoTokenizer": {"trust_remote_code": False, "revision": "main", "token": None},
    }


@pytest.fixture
def as_on_hub(monkeypatch):
    """A folder stands for a model of the Hub, of which alone there are revisions."""
    monkeypatch.setattr(pretrained, "check_source", lambda source, *, revision, token: (source, revision))


@pytest.mark.usefixtures("as_on_hub")
def test_what_is_passed_on_when_given(folder, calls):
    quantization = SimpleNamespace(bits=4)
    loaded = load_model(
        str(folder),
        device="cpu",
        dtype="bfloat16",
        revision="v1.0",
        attn_implementation="eager",
        quantization=quantization,
        trust_remote_code=True,
        token="secret",
    )
    hub = {"trust_remote_code": True, "revision": "v1.0", "token": "secret"}
    weights = {"dtype": torch.bfloat16, "attn_implementation": "eager", "quantization_config": quantization}
    assert calls == {
        "AutoConfig": hub,
        "AutoModelForCausalLM": hub | weights | CHECKED | {"device_map": {"": torch.device("cpu")}},
        "AutoTokenizer": hub,
    }
    assert loaded.model.config._attn_implementation == "eager"


def test_device_map_is_passed_on(folder, calls):
    load_model(str(folder), device_map="auto")
    assert calls["AutoModelForCausalLM"]["device_map"] == "auto"


@pytest.mark.usefixtures("as_on_hub")
def test_backend_passes_on_what_it_is_given(folder, calls):
    backend = LocalBackend(
        str(folder), revision="v2", attn_implementation="sdpa", dtype="float32", device="cpu", max_length=64
    )
    backend.close()
    assert calls["AutoModelForCausalLM"]["revision"] == "v2"
    assert calls["AutoModelForCausalLM"]["attn_implementation"] == "sdpa"
    assert calls["AutoModelForCausalLM"]["trust_remote_code"] is False


# Parameters.


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("auto", torch.float32),
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("torch.float16", torch.float16),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_dtypes(folder, dtype, expected):
    assert load_model(folder, device="cpu", dtype=dtype).model.dtype == expected


@pytest.mark.parametrize("dtype", ["int8", "nonsense", "Tensor", "", None, 16])
def test_unknown_dtypes(folder, dtype, no_work):
    with pytest.raises(InvalidParameterError, match="dtype must be 'auto', 'float32'"):
        load_model(folder, dtype=dtype)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", 1.5])
def test_unknown_devices(folder, device, no_work):
    with pytest.raises(InvalidParameterError, match="device"):
        load_model(folder, device=device)


def test_device_and_device_map_contradict_each_other(folder, no_work):
    with pytest.raises(InvalidParameterError, match="device or device_map, not both"):
        load_model(folder, device="cpu", device_map="auto")


def test_unknown_attention(folder, no_work):
    with pytest.raises(InvalidParameterError, match="'specdec', 'sdpa', 'eager' or None, got 'flash_attention_2'"):
        load_model(folder, attn_implementation="flash_attention_2")


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("dtype", "bfloat16"),
        ("device_map", "auto"),
        ("quantization_config", SimpleNamespace(bits=4)),
        ("quantization", "int8"),
    ],
)
def test_a_loaded_model_is_not_loaded_again(parameter, value, no_work):
    with pytest.raises(InvalidParameterError, match=rf"LlamaForCausalLM is loaded already.* late for {parameter}\."):
        LocalBackend(make_tiny(), tiny.byte_tokenizer(), **{parameter: value})


@pytest.mark.parametrize("dtype", ["auto", "float32", torch.float32])
def test_a_loaded_model_that_is_what_was_asked_for(dtype):
    model = tiny.tiny_model()
    assert load_model(model, tiny.byte_tokenizer(), dtype=dtype).model.dtype == torch.float32


def test_parameters_that_do_not_exist(folder, no_work):
    with pytest.raises(InvalidParameterError, match="load_in_4bit"):
        LocalBackend(folder, load_in_4bit=True)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="max_tokens"):
        SamplingParams(max_tokens=5)  # type: ignore[call-arg]


def make_tiny():
    # Without `.to`, which the fixture no_work forbids.
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES))


# Models that the engine cannot run.

SIZES = {
    "vocab_size": tiny.VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 257,
    "eos_token_id": tiny.EOS,
    "pad_token_id": 0,
}
LINEAR = ["linear_attention", "full_attention"]
UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "mamba": ({}, "recurrent state"),
    "mamba2": ({}, "recurrent state"),
    "zamba2": ({}, "recurrent state"),
    "recurrent_gemma": ({}, "recurrent"),
    "minimax": ({"num_hidden_layers": 2, "layer_types": LINEAR}, "layers of kind linear_attention"),
    "llama4": ({}, "chunked"),
    "llama4_text": ({}, "chunked"),
    "t5": ({}, "encoder-decoder"),
    "bart": ({}, "encoder-decoder"),
    "whisper": ({}, "encoder-decoder"),
    "gemma3_text": ({"use_bidirectional_attention": True}, "see those that come after them"),
    "vit": ({}, "no causal language model of this type"),
}
if not hasattr(Cache, "get_conv_state"):
    # Layers go on from a state by single tokens there.
    UNSUPPORTED |= {
        "jamba": ({}, "a newer transformers"),
        "bamba": ({}, "a newer transformers"),
        "falcon_h1": ({}, "a newer transformers"),
        "qwen3_next": ({"num_hidden_layers": 2, "layer_types": LINEAR}, "a newer transformers"),
        "lfm2": ({"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}, "a newer transformers"),
    }


def quiet_config(model_type, **sizes):
    """A configuration; some are warned of, which is not what is tested here."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return AutoConfig.for_model(model_type, **sizes)
    finally:
        logging.set_verbosity(level)


@pytest.mark.parametrize("model_type", UNSUPPORTED)
def test_unsupported_models_are_refused_before_their_weights_are_read(model_type, tmp_path, no_work):
    sizes, reason = UNSUPPORTED[model_type]
    quiet_config(model_type, **sizes).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        load_model(tmp_path)
    assert "Use transformers or a TGI server for it" in str(caught.value)


def test_configurations_of_several_texts_are_refused():
    config = SimpleNamespace(is_encoder_decoder=True, model_type="musicgen")
    with pytest.raises(UnsupportedModelError, match="'musicgen': it is an encoder-decoder model"):
        check_supported(config, None)


def test_own_code_may_bring_a_model_that_transformers_does_not_know():
    config = AutoConfig.for_model("vit")
    config.auto_map = {"AutoModelForCausalLM": "own.Model"}
    check_supported(config, None)


@pytest.mark.parametrize("model_type", ["mamba", "recurrent_gemma", "t5", "llama4_text"])
def test_unsupported_loaded_models_are_refused_before_any_forward(model_type, monkeypatch, records):
    sizes = {
        "mamba": {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1},
        "recurrent_gemma": SIZES | {"lru_width": 32, "num_hidden_layers": 3},
        "t5": {"vocab_size": 300, "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2},
        "llama4_text": SIZES | {"intermediate_size_mlp": 32, "num_local_experts": 1, "head_dim": 8},
    }
    config = quiet_config(model_type, **sizes[model_type])
    model = (AutoModel if model_type == "t5" else AutoModelForCausalLM).from_config(config)
    # Mamba asks for kernels when it is made.
    records.clear()
    monkeypatch.setattr(type(model), "forward", lambda *args, **kwargs: pytest.fail("a forward ran"))
    attention = model.config._attn_implementation
    with pytest.raises(UnsupportedModelError, match=model_type):
        load_model(model, tiny.byte_tokenizer())
    assert model.config._attn_implementation == attention


# Pairs of models.


def bpe(merges=(), normalizer=None, order=None):
    """A byte-level tokenizer with merges; `order` says which id each byte gets."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = order or range(len(alphabet))
    merged = sorted({first + second for first, second in merges})
    vocab = dict(zip(alphabet, ids, strict=True)) | {entry: 300 + i for i, entry in enumerate(merged)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def loaded(tokenizer, name, vocab_size=400):
    return LoadedModel(tiny.tiny_model(vocab_size=vocab_size), PrivateTokenizer(tokenizer), name, ())


LEFT, RIGHT = [("l", "a"), ("a", "z")], [("a", "z"), ("l", "a")]


def test_pairs_with_one_tokenizer_have_all_in_common():
    assert common_vocabulary(loaded(bpe(LEFT), "big"), loaded(bpe(LEFT), "small")) is None
    assert common_vocabulary(loaded(bpe(LEFT), "big"), loaded(bpe(LEFT), "small", vocab_size=302)) is None


def with_marks(*marks, **special):
    """The same tokenizer with marks after its own entries."""
    tokenizer = bpe(LEFT)
    tokenizer.add_special_tokens({"additional_special_tokens": marks, **special})
    return tokenizer


def test_marks_that_one_of_a_pair_lacks_or_calls_otherwise_make_no_difference():
    plain, one, other = bpe(LEFT), with_marks("<|end|>", "<|call|>"), with_marks("<|end|>", "<|unused|>")
    for ours, theirs in ((one, plain), (plain, one), (one, other)):
        assert common_vocabulary(loaded(ours, "big"), loaded(theirs, "small", vocab_size=303)) is None
    # But those that they share have one number, and a model writes badly without the one that begins its texts.
    for theirs in (with_marks("<|call|>", "<|end|>"), with_marks(bos_token="<|begin|>")):
        assert common_vocabulary(loaded(one, "big"), loaded(theirs, "small")) is not None
    plain.add_tokens(["lazy"])
    assert common_vocabulary(loaded(plain, "big"), loaded(bpe(LEFT), "small")) is not None


@pytest.mark.parametrize(
    ("other", "vocab_size"),
    [
        (bpe(LEFT, order=[*range(1, 256), 0]), 400),
        (bpe(LEFT[:1]), 400),
        # One vocabulary, which splits the same text differently.
        (bpe(RIGHT), 400),
        (bpe(LEFT, normalizer=normalizers.Lowercase()), 400),
        (bpe(LEFT, normalizer=normalizers.NFD()), 400),
        # A model that lacks a token of its tokenizer.
        (bpe(LEFT), 301),
    ],
)
def test_pairs_with_two_tokenizers_have_in_common_what_they_spell_alike(other, vocab_size):
    common = common_vocabulary(loaded(bpe(LEFT), "big"), loaded(other, "small", vocab_size=vocab_size))
    assert common is not None
    assert len(common) >= 255


def test_a_draft_with_a_shorter_context_is_refused():
    def make(**kwargs):
        tokenizer = tiny.byte_tokenizer()
        draft = tiny.tiny_model(max_position_embeddings=100)
        return LocalBackend(tiny.tiny_model(), tokenizer, draft_model=draft, draft_tokenizer=tokenizer, **kwargs)

    with pytest.raises(InvalidParameterError, match=r"for 100 positions, but a slot has 512\. Set max_length=100"):
        make(max_length=512)
    backend = make(max_length=100)
    assert backend.engine.runner.max_length == 100
    backend.close()


# Positions.


def test_max_length_beyond_the_positions_of_the_model():
    with pytest.raises(InvalidParameterError, match=r"made for 512 positions at most\. Set max_length=512"):
        make_runner(tiny.loaded(tiny.tiny_model()), num_slots=1, max_length=513, max_width=4)
    assert make_runner(tiny.loaded(tiny.tiny_model()), num_slots=1, max_length=512, max_width=4).max_length == 512


@pytest.mark.parametrize(
    ("positions", "free", "slots", "is_lazy", "expected"),
    [
        (512, 2**40, 4, True, 512),
        (100_000, 2**40, 4, True, 100_000),
        (100_000, 2**40, 4, False, 8192),
        # A position takes 2 layers * keys and values * 2 heads * 8 numbers * 4 bytes = 256 bytes of each slot.
        (100_000, 2 * 256 * 1000, 4, True, 1000),
        (100_000, 2 * 4 * 256 * 1000, 4, False, 1000),
        (100_000, 2 * 4 * 256 * 1000, 8, False, 500),
        (100_000, 0, 1, True, 1),
        (100_000, 0, 1, False, 1),
    ],
)
def test_default_max_length_fits_the_model_and_the_memory(monkeypatch, positions, free, slots, is_lazy, expected):
    monkeypatch.setattr(make_runner_module, "free_memory", lambda device: free)
    monkeypatch.setattr(make_runner_module, "is_memory_lazy", lambda: is_lazy)
    target = tiny.loaded(tiny.tiny_model(max_position_embeddings=positions))
    runner = make_runner(target, num_slots=slots, max_length=None, max_width=4)
    assert runner.max_length == expected
    if expected == 1000:
        runner.prefill(RowBatch([0], [0], [[1]]))
        spare = 4 / 1000
        assert runner.cache.num_bytes == pytest.approx((slots if is_lazy else 1) * free / 2 * (1 + spare))


def test_a_draft_model_bounds_the_default_max_length():
    backend = LocalBackend(
        tiny.tiny_model(max_position_embeddings=9000),
        tiny.byte_tokenizer(),
        draft_model=tiny.tiny_model(max_position_embeddings=100),
        draft_tokenizer=tiny.byte_tokenizer(),
    )
    assert backend.max_length == 100
    backend.close()


def test_the_slots_hold_together_what_half_of_the_memory_has_room_for(monkeypatch):
    monkeypatch.setattr(make_runner_module, "free_memory", lambda device: 2 * 256 * 1000)
    monkeypatch.setattr(make_runner_module, "is_memory_lazy", lambda: True)
    make = partial(make_runner, tiny.loaded(tiny.tiny_model()), num_slots=4, max_width=4)
    assert token_budget(make(max_length=100)) == 1000
    # A draft model of the same size holds as much again.
    assert token_budget(make(max_length=100), make(max_length=100)) == 500
    # Slots of that length were asked for.
    monkeypatch.setattr(make_runner_module, "free_memory", lambda device: 256)
    assert token_budget(make(max_length=400)) == 400
    monkeypatch.setattr(make_runner_module, "is_memory_lazy", lambda: False)
    assert token_budget(make(max_length=400)) is None


def test_the_gpu_with_the_least_room_for_its_layers_decides(monkeypatch):
    model = tiny.tiny_model(max_position_embeddings=100_000, num_hidden_layers=4)
    # One layer on the first GPU, three on the second, as accelerate places them.
    for layer, place in zip(model.model.layers, [0, 1, "cuda:1", torch.device("cuda", 1)], strict=True):
        layer._hf_hook = SimpleNamespace(execution_device=place)
    # A position of a layer takes 128 bytes of each slot.
    free = {torch.device("cuda", 0): 2 * 128 * 700, torch.device("cuda", 1): 2 * 128 * 900}
    monkeypatch.setattr(make_runner_module, "free_memory", lambda device: free[device])
    assert make_runner(tiny.loaded(model), num_slots=1, max_length=None, max_width=4).max_length == 300


def test_embeddings_that_are_on_no_device_are_refused():
    model = tiny.tiny_model()
    model.model.embed_tokens.to("meta")
    with pytest.raises(UnsupportedModelError, match="embeddings of LlamaForCausalLM are kept off the devices"):
        load_model(model, tiny.byte_tokenizer())


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "device must be one that PyTorch knows, such as 'cpu', 'cuda' or 'cuda:1', got 'gpu'"),
        (7.5, "device must be one that PyTorch knows"),
        ("cuda:63", r"There is no device 'cuda:63' here\. PyTorch .* sees cpu"),
        ("mps", r"There is no device 'mps' here\. PyTorch .* sees cpu.*\. Name one, or leave device out"),
        ("meta", "Nothing can run on the device 'meta'.* sees cpu"),
        # torch has no module for these.
        ("hpu", "There is no device 'hpu' here"),
        ("xpu:1", "There is no device 'xpu:1' here"),
        ("CUDA", "device must be one that PyTorch knows.*got 'CUDA'"),
        ("", "device must be one that PyTorch knows.*got ''"),
    ],
)
def test_devices_that_are_not_here_are_refused_before_anything_is_read(folder, no_work, device, message):
    for place in (lambda: load_model(folder, device=device), lambda: random_model("random:tiny", "auto", device)):
        with pytest.raises(InvalidParameterError, match=message):
            place()


@pytest.mark.parametrize("device_map", ["mps", "cuda:63", {"": "mps"}, {"model": "cpu", "lm_head": "hpu"}])
def test_a_device_map_of_devices_that_are_not_here(folder, no_work, device_map):
    with pytest.raises(InvalidParameterError, match=r"There is no device '(mps|cuda:63|hpu)' here"):
        load_model(folder, device_map=device_map)


def test_the_default_device_is_cuda_where_there_is_one_and_never_mps(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for has_cuda, expected in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_cuda=has_cuda: has_cuda)
        assert default_device() == torch.device(expected)


@pytest.mark.parametrize("max_length", [None, 64])
@pytest.mark.parametrize("positions", ["many", [1], {"a": 1}])
def test_configurations_that_say_nonsense_are_refused(positions, max_length):
    model = tiny.tiny_model()
    object.__setattr__(model.config, "max_position_embeddings", positions)
    with pytest.raises(UnsupportedModelError, match=r"cannot run tiny: .*its config.json says what does not fit"):
        make_runner(tiny.loaded(model), num_slots=2, max_length=max_length, max_width=4)


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError, KeyboardInterrupt])
def test_a_machine_without_memory_is_no_fault_of_the_model(error, monkeypatch):
    model = tiny.tiny_model()
    monkeypatch.setattr(model.config, "model_type", "untested")

    def forward(*args, **kwargs):
        raise error

    monkeypatch.setattr(type(model), "forward", forward)
    monkeypatch.setattr(type(model.base_model), "forward", forward)
    with pytest.raises(error):
        make_runner(tiny.loaded(model), num_slots=2, max_length=64, max_width=4)


@pytest.mark.parametrize("is_lazy", [False, True])
def test_a_default_max_length_that_memory_cuts_is_told(monkeypatch, caplog, is_lazy):
    monkeypatch.setattr(make_runner_module, "is_memory_lazy", lambda: is_lazy)
    target = tiny.loaded(tiny.tiny_model(max_position_embeddings=4096))
    for free, told in (
        (10 * 2**30, []),
        (4096 * 256 * (1 if is_lazy else 2), ["max_length is 2048 positions"]),
    ):
        monkeypatch.setattr(make_runner_module, "free_memory", lambda device, free=free: free)
        make_runner(target, num_slots=2, max_length=None, max_width=4)
        messages = caplog.messages
        assert len(messages) == len(told)
        assert all(start in message for start, message in zip(told, messages, strict=True))
    assert ("not 4096: one slot of so many fits" if is_lazy else "not 4096: 2 slots of so many fit") in messages[0]
    assert ("Give max_length, or free" if is_lazy else "Give max_length, or fewer num_slots, or free") in messages[0]


def test_free_memory_is_known_for_this_machine():
    for device in DEVICES:
        assert 2**20 < free_memory(torch.device(device)) < 2**50


@pytest.fixture
def backend(monkeypatch):
    backend = LocalBackend(tiny.tiny_model(), tiny.byte_tokenizer(), max_length=64)
    monkeypatch.setattr(ModelRunner, "verify", lambda *args, **kwargs: pytest.fail("a forward ran"))
    monkeypatch.setattr(ModelRunner, "prefill", lambda *args, **kwargs: pytest.fail("a forward ran"))
    yield backend
    assert backend.engine.num_running == backend.engine.num_waiting == 0
    backend.close()


@pytest.mark.parametrize(
    ("prompt", "params", "error", "message"),
    [
        (
            "x" * 60,
            {"max_new_tokens": 5},
            PromptTooLongError,
            "60 tokens and max_new_tokens is 5, together 65, but max_length is 64",
        ),
        ("x" * 100, {"max_new_tokens": 1}, PromptTooLongError, "100 tokens"),
        ("x", {"max_new_tokens": 64}, PromptTooLongError, "Lower max_new_tokens to 63 or less"),
        ("x", {"logit_bias": {258: 1.0}}, InvalidParameterError, r"Token id 258 .*\(0 to 257\)"),
    ],
)
def test_requests_that_cannot_be_run_are_refused_before_any_forward(backend, prompt, params, error, message):
    params = SamplingParams(**{"max_new_tokens": 4} | params)
    with pytest.raises(error, match=message):
        backend.complete(
            [CompletionRequest("fine", SamplingParams(max_new_tokens=4)), CompletionRequest(prompt, params)]
        )


@pytest.mark.parametrize("tokens", [[], [258], [-1]])
def test_prompts_of_no_or_unknown_tokens_are_refused(backend, tokens):
    with pytest.raises(InvalidParameterError, match=r"is empty" if not tokens else r"Token id"):
        backend.engine.submit(tokens, SamplingParams(max_new_tokens=4))


def test_an_empty_prompt_of_a_tokenizer_without_a_first_token_is_refused(monkeypatch):
    tokenizer = tiny.byte_tokenizer()
    tokenizer.bos_token = None
    backend = LocalBackend(tiny.tiny_model(), tokenizer, max_length=64)
    try:
        with pytest.raises(InvalidParameterError, match="The prompt is empty"):
            backend.complete([CompletionRequest("", SamplingParams(max_new_tokens=4))])
    finally:
        backend.close()


# Tokens that end a text.


@pytest.mark.parametrize(
    ("generation", "expected"), [(None, (256,)), (256, (256,)), (9, (9, 256)), ([9, 256, 3], (3, 9, 256))]
)
def test_tokens_that_end_a_text(generation, expected):
    model = tiny.tiny_model()
    model.generation_config.eos_token_id = generation
    assert load_model(model, tiny.byte_tokenizer()).eos_token_ids == expected


def test_tokens_that_end_a_text_are_read_from_the_folder(folder):
    assert load_model(folder, device="cpu").eos_token_ids == (7, tiny.EOS)


def test_a_tokenizer_without_a_last_token():
    tokenizer = tiny.byte_tokenizer()
    tokenizer.eos_token = None
    model = tiny.tiny_model()
    model.generation_config.eos_token_id = None
    assert load_model(model, tokenizer).eos_token_ids == ()


def test_all_errors_of_loading_are_errors_of_this_package():
    for error in (ModelLoadError, UnsupportedModelError, InvalidParameterError, PromptTooLongError):
        assert issubclass(error, SpecDecError)


@pytest.mark.parametrize("given", ["gpt2", 5, object()])
def test_what_is_no_tokenizer_is_refused_before_anything_is_read(folder, calls, given):
    hint = r"AutoTokenizer.from_pretrained\('gpt2'\)" if given == "gpt2" else f"got {type(given).__name__}"
    for load in (
        lambda: LocalBackend(folder, given),
        lambda: LocalBackend(tiny.tiny_model(), given),
        lambda: ChatSpeculative(backend=make_backend(), tokenizer=given),
    ):
        with pytest.raises(InvalidParameterError, match=f"tokenizer must be a loaded tokenizer.*{hint}"):
            load()
    assert calls == {}


@pytest.mark.parametrize("option", ["model", "draft_model", "adapter"])
def test_what_is_no_model_is_told_by_its_type(folder, option):
    options: Any = {"model": folder, option: make_backend()}
    with pytest.raises(InvalidParameterError, match=r"as an id, a local folder or .* got LocalBackend\."):
        LocalBackend(options.pop("model"), **options)
