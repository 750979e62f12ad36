"""Adapters by name: each text goes by the one that its call chose, alone and beside others."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, Qwen2MoeConfig, Qwen2MoeForCausalLM

from langchain_specdec import ChatSpeculative, SpeculativeLLM
from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.errors import InvalidParameterError, ModelLoadError, UnsupportedModelError
from langchain_specdec.models.loader import load_model
from langchain_specdec.runner.model_runner import ModelRunner
from langchain_specdec.sampling.params import SamplingParams
from tests.support import image_models as images
from tests.support import tiny_models as tiny
from tests.support.hybrid_models import MISSING, make_hybrid
from tests.support.lora import write_lora

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.transformers

NAMES = ("legal", "medical")
# Repeats itself, so that there is something to draft.
PROMPT = "ab ab cd ab ab cd ab ab cd ab"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.tiny_model().save_pretrained(folder / "base")
    tiny.byte_tokenizer().save_pretrained(folder / "base")
    for seed, name in enumerate(NAMES):
        targets = ["q_proj", "down_proj"] if seed else ["v_proj", "up_proj", "down_proj", "lm_head"]
        write_lora(folder / name, folder / "base", seed, targets)
    return folder


def sources(folder: Path) -> dict[str, Path]:
    return {name: folder / name for name in NAMES}


def make(folder: Path, **options: Any) -> LocalBackend:
    how = {"device": "cpu", "dtype": "float64", "num_slots": 8, "max_length": 128}
    return LocalBackend(folder / "base", adapters=sources(folder), **{**how, **options})


@pytest.fixture
def backend(folder: Path) -> Iterator[LocalBackend]:
    backend = make(folder)
    yield backend
    backend.close()


def params(adapter: str | None, **changes: Any) -> SamplingParams:
    return SamplingParams(**{"max_new_tokens": 24, "ignore_eos": True, "adapter": adapter, "seed": 3, **changes})


def texts(backend: LocalBackend, *asked: tuple[str, SamplingParams]) -> list[list[int]]:
    completions = backend.complete([CompletionRequest(*each) for each in asked])
    return [[token.id for token in completion.tokens] for completion in completions]


def by_peft(folder: Path, adapter: str | None, *, is_merged: bool) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float64).eval()
    if adapter is None:
        return model
    tuned = peft.PeftModel.from_pretrained(model, folder / adapter, autocast_adapter_dtype=False)
    return tuned.merge_and_unload() if is_merged else tuned


@pytest.mark.parametrize("is_merged", [False, True])
@pytest.mark.parametrize("adapter", [None, *NAMES])
def test_the_text_is_that_of_peft(folder: Path, backend: LocalBackend, adapter: str | None, is_merged: bool) -> None:
    model = by_peft(folder, adapter, is_merged=is_merged)
    ids = torch.tensor([backend.token_ids(PROMPT)])
    with torch.inference_mode():
        expected = model.generate(input_ids=ids, max_new_tokens=24, do_sample=False, eos_token_id=None)
    assert texts(backend, (PROMPT, params(adapter))) == [expected[0, ids.shape[1] :].tolist()]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_rows_of_one_batch_go_by_their_own(folder: Path, backend: LocalBackend, temperature: float) -> None:
    asked = [
        (PROMPT + "x" * (row % 3), params(adapter, temperature=temperature, seed=row))
        for row, adapter in enumerate((None, *NAMES, None, *reversed(NAMES), None, "legal"))
    ]
    plain = make(folder, drafter="none", num_slots=1)
    alone = [texts(plain, each)[0] for each in asked]
    plain.close()
    assert texts(backend, *asked) == alone
    assert len({tuple(text) for text in alone[:3]}) == 3, "the adapters change the text"
    # Slots hold by now what other adapters computed.
    assert texts(backend, *reversed(asked)) == alone[::-1]


def test_a_prefix_is_reused_by_the_same_adapter_only(backend: LocalBackend) -> None:
    def cached(adapter: str | None) -> int | None:
        (completion,) = backend.complete([CompletionRequest(PROMPT, params(adapter, max_new_tokens=2))])
        return completion.finish.cached_tokens

    whole = len(backend.token_ids(PROMPT)) - 1
    assert [cached(adapter) for adapter in (None, "legal", "medical")] == [0, 0, 0]
    assert [cached(adapter) for adapter in (None, "legal", "medical")] == [whole] * 3


def test_the_model_by_itself_is_the_base(backend: LocalBackend) -> None:
    def logits() -> torch.Tensor:
        with torch.inference_mode():
            found: torch.Tensor = backend.model(input_ids=torch.tensor([[1, 2, 3]])).logits
        return found

    before = logits()
    for adapters in (("legal",), (None, "legal"), (None, "medical", "legal")):
        texts(backend, *((PROMPT, params(adapter, max_new_tokens=2)) for adapter in adapters))
        assert torch.equal(logits(), before)


def test_a_call_beside_a_forward_is_the_base_too(backend: LocalBackend) -> None:
    model, ids = backend.model, torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        before = model(input_ids=ids).logits
    engine_thread: list[int] = []
    beside: list[torch.Tensor] = []

    def call() -> None:
        with torch.inference_mode():
            beside.append(model(input_ids=ids).logits)

    def within(*_: Any) -> None:
        if not engine_thread:
            engine_thread.append(threading.get_ident())
            caller = threading.Thread(target=call)
            caller.start()
            caller.join()

    alone = texts(backend, (PROMPT, params("legal", max_new_tokens=4)))
    hook = model.model.layers[0].register_forward_pre_hook(within)
    assert texts(backend, (PROMPT, params("legal", max_new_tokens=4))) == alone
    hook.remove()
    assert torch.equal(beside[0], before)


def test_calls_choose_through_langchain(folder: Path) -> None:
    options: dict[str, Any] = {"device": "cpu", "max_length": 128, "num_slots": 4}
    given = {"model": folder / "base", "adapters": sources(folder), "max_new_tokens": 12, "ignore_eos": True, **options}
    with SpeculativeLLM(**given) as llm:
        base, legal = llm.invoke(PROMPT), llm.invoke(PROMPT, adapter="legal")
        assert base != legal
        assert llm.bind(adapter="legal").invoke(PROMPT) == legal
        assert llm.batch([PROMPT, PROMPT], adapter="legal") == [legal, legal]
        assert llm.model_copy(update={"adapter": "legal"}).invoke(PROMPT) == legal
        assert llm._identifying_params["adapters"] == {name: str(folder / name) for name in NAMES}
    with SpeculativeLLM(**given, adapter="legal") as llm:
        assert llm.invoke(PROMPT) == legal
        assert llm.invoke(PROMPT, adapter="medical") != legal
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with ChatSpeculative(**given, chat_template=template) as chat:
        assert chat.invoke(PROMPT, adapter="legal").content == legal
        assert chat.invoke(PROMPT).content == base


def test_what_is_no_adapter_is_refused_before_anything_runs(folder: Path, backend: LocalBackend) -> None:
    with pytest.raises(InvalidParameterError, match=r"must be None .* or one of 'legal', 'medical', got 'x'"):
        texts(backend, (PROMPT, params("x")))
    with pytest.raises(InvalidParameterError, match="adapter must be the name"):
        params(3)  # type: ignore[arg-type]
    without = LocalBackend(folder / "base", device="cpu", max_length=64)
    with pytest.raises(InvalidParameterError, match=r"loaded without any\. Give adapters="):
        texts(without, (PROMPT, params("legal", max_new_tokens=4)))
    with pytest.raises(InvalidParameterError, match=r"loaded without any\. Give adapters="):
        SpeculativeLLM(backend=without, adapter="legal")
    without.close()
    with pytest.raises(InvalidParameterError, match=r"must be None .* or one of 'legal', 'medical', got 'x'"):
        SpeculativeLLM(backend=backend, adapter="x")
    # Before the model is looked for.
    with pytest.raises(InvalidParameterError, match=r"must be None .* or one of 'a', got 'x'"):
        SpeculativeLLM(model="/no/such/folder", adapters={"a": "b"}, adapter="x")
    wrongs: tuple[Any, ...] = ({}, [], {"": "x"}, {"x": 3})
    for wrong in wrongs:
        with pytest.raises(InvalidParameterError, match="adapters must"):
            LocalBackend(folder / "base", adapters=wrong)
    with pytest.raises(ModelLoadError, match=r"There is no folder .*gone"):
        LocalBackend(folder / "base", adapters={"x": folder / "gone"}, device="cpu")
    with pytest.raises(ModelLoadError, match=r"There is no adapter in .*base': it has no adapter_config.json"):
        LocalBackend(folder / "base", adapters={"x": folder / "base"}, device="cpu")
    with pytest.raises(UnsupportedModelError, match="adapters that another backend chooses among"):
        LocalBackend(backend.model, backend.tokenizer)
    with pytest.raises(InvalidParameterError, match="LlamaForCausalLM is loaded already, which is too late for adap"):
        LocalBackend(tiny.tiny_model(), backend.tokenizer, adapters=sources(folder))
    with pytest.raises(InvalidParameterError, match="is a GGUF file, for which there is no adapters"):
        load_model("owner/name:x.gguf", adapters=sources(folder))


@pytest.mark.parametrize(
    ("target", "changes"),
    [("q_proj", {"use_dora": True}), ("q_proj", {"modules_to_save": ["lm_head"]}), ("embed_tokens", {})],
)
def test_other_kinds_are_refused(folder: Path, tmp_path: Path, target: str, changes: dict[str, Any]) -> None:
    write_lora(tmp_path / "other", folder / "base", 0, [target], **changes)
    with pytest.raises(UnsupportedModelError, match=r"plain LoRAs of linear layers only\. Give it as adapter="):
        LocalBackend(folder / "base", adapters={"x": tmp_path / "other"}, device="cpu")


def test_a_layer_that_sees_several_texts_as_one_is_refused(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    experts: dict[str, Any] = {
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 8,
        "intermediate_size": 8,
    }
    config = Qwen2MoeConfig(vocab_size=300, shared_expert_intermediate_size=8, **sizes, **experts)
    Qwen2MoeForCausalLM(config).save_pretrained(tmp_path / "base")
    tiny.byte_tokenizer().save_pretrained(tmp_path / "base")
    for target, is_fit in (("q_proj", True), ("shared_expert_gate", False)):
        write_lora(tmp_path / target, tmp_path / "base", 0, [target])
        expected: Any = (
            nullcontext()
            if is_fit
            else pytest.raises(UnsupportedModelError, match="does not see the texts of a batch one by one")
        )
        with expected:
            load_model(tmp_path / "base", adapters={"x": tmp_path / target}, device="cpu")


@pytest.mark.skipif("qwen3_5_text" in MISSING, reason="this transformers lacks Qwen3.5")
def test_a_layer_that_keeps_a_state_is_refused(tmp_path: Path) -> None:
    make_hybrid("qwen3_5_text", torch.float32).save_pretrained(tmp_path / "base")
    tiny.byte_tokenizer().save_pretrained(tmp_path / "base")
    for target, is_fit in (("q_proj", True), ("in_proj_qkv", False)):
        write_lora(tmp_path / target, tmp_path / "base", 0, [target])
        expected: Any = nullcontext() if is_fit else pytest.raises(UnsupportedModelError, match="one by one")
        with expected:
            load_model(tmp_path / "base", adapters={"x": tmp_path / target}, device="cpu")


@pytest.mark.parametrize(("target", "is_fit"), [(r".*language_model.*\.q_proj", True), ("q_proj", False)])
def test_a_layer_of_an_encoder_of_images_is_refused(tmp_path: Path, target: str, is_fit: bool) -> None:
    """It would see the images of all texts of a batch as one."""
    images.model("gemma3").save_pretrained(tmp_path / "base")
    images.tokenizer().save_pretrained(tmp_path / "base")
    tuned = peft.get_peft_model(
        AutoModelForImageTextToText.from_pretrained(tmp_path / "base"),
        peft.LoraConfig(r=2, target_modules=target if is_fit else [target], task_type="CAUSAL_LM"),
    )
    tuned.save_pretrained(tmp_path / "lora")
    expected: Any = nullcontext() if is_fit else pytest.raises(UnsupportedModelError, match=r"vision_tower.*one by one")
    with expected:
        load_model(tmp_path / "base", adapters={"x": tmp_path / "lora"}, device="cpu")


def test_a_lora_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    write_lora(tmp_path / "other", folder / "base", 0, ["q_proj"])
    file = tmp_path / "other/adapter_model.safetensors"
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(2, 2)}, file, metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match="are not those that a LlamaForCausalLM takes"):
        LocalBackend(folder / "base", adapters={"x": tmp_path / "other"}, device="cpu")


def test_the_native_decoder_leaves_it_to_the_module(backend: LocalBackend) -> None:
    assert isinstance(backend.engine.runner, ModelRunner)
    assert backend.engine.runner.adapters is not None


def test_adapters_are_beside_quantised_weights_too(folder: Path) -> None:
    quantised = make(folder, dtype="float32", quantization="int8")
    base, legal = texts(quantised, (PROMPT, params(None)), (PROMPT, params("legal")))
    quantised.close()
    assert base != legal


def test_an_adapter_says_which_model_it_makes(folder: Path) -> None:
    loaded = load_model(folder / "base", adapters=sources(folder), device="cpu")
    other = load_model(folder / "base", adapters=dict.fromkeys(NAMES, folder / "legal"), device="cpu")
    assert json.dumps(loaded.adapter_sources) == json.dumps({name: str(folder / name) for name in NAMES})
    identities = [each.identity(folder, None, is_own_tokenizer=True) for each in (loaded, other)]
    assert identities[0]["fingerprint"] != identities[1]["fingerprint"]
