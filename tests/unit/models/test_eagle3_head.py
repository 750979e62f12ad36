"""EAGLE-3 heads: the paper's forward for every variant, out of every layout of the files."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from langchain_specdec.errors import ModelLoadError, UnsupportedModelError
from langchain_specdec.models.heads.eagle3_config import Eagle3Config
from langchain_specdec.models.heads.eagle3_head import Eagle3Head
from langchain_specdec.models.heads.head_source import find_head
from langchain_specdec.models.heads.head_weights import weight_shapes
from langchain_specdec.models.heads.load_head import load_head
from langchain_specdec.models.heads.rotary_frequencies import rotary_frequencies
from langchain_specdec.models.heads.save_head import save_head
from langchain_specdec.models.loader import load_model
from tests.support import gguf_files
from tests.support.eagle3_folders import TinyHead, target_of, write_files
from tests.support.reference_eagle3 import Entry, reference_logits
from tests.support.tiny_models import loaded

pytestmark = pytest.mark.transformers

_LLAMA3: dict[str, Any] = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
_TABLE = torch.randn(258, 24, generator=torch.Generator().manual_seed(5))
VARIANTS = {
    "plain": TinyHead(),
    "whole vocabulary": TinyHead(draft_vocab=None),
    "the target's output layer": TinyHead(draft_vocab=None, has_output=False),
    "embeddings of its own": TinyHead(table=_TABLE),
    "norm before residual": TinyHead(norm_before_residual=True),
    "one norm before fc": TinyHead(norm_before_fc=True),
    "norms before fc": TinyHead(fc_norm=True),
    "normed output": TinyHead(norm_output=True),
    "two layers": TinyHead(layers=2),
    "biases": TinyHead(attention_bias=True, mlp_bias=True),
    "Qwen3's": TinyHead(qk_norm=True, head_dim=16, heads=2, kv_heads=1),
    "wider than its target": TinyHead(hidden=48, table=_TABLE[:, :16].contiguous()),
    "four taps": TinyHead(taps=(0, 2, 3, 5)),
    "one tap": TinyHead(taps=(5,)),
    "without fc": TinyHead(has_fc=False, taps=(5,)),
    "all at once": TinyHead(
        layers=3, fc_norm=True, norm_before_residual=True, norm_output=True, qk_norm=True, eps=1e-3,
        activation="gelu_pytorch_tanh", rope={"rope_theta": 500.0, "rope_scaling": _LLAMA3},
    ),
}  # fmt: skip
# Parents of what is drafted after a text, by level: three children of its last entry, three of theirs, one of those.
_TEXT, _LEVELS = 5, ((4, 4, 4), (5, 5, 7), (9,))


@pytest.fixture(scope="module")
def target() -> Any:
    return loaded(target_of(TinyHead()))


def _entries(head: TinyHead, seed: int) -> list[Entry]:
    """A text, and a tree that is drafted after it."""
    generator = torch.Generator().manual_seed(seed)
    points = len(head.taps or (0, 0, 0))
    tokens = torch.randint(head.vocab, (_TEXT + sum(map(len, _LEVELS)),), generator=generator).tolist()
    states = torch.randn(_TEXT, points, head.target_hidden, generator=generator)
    entries = [Entry(tokens[j], j, j - 1 if j else None, states[j]) for j in range(_TEXT)]
    for parents in _LEVELS:
        entries += [
            Entry(tokens[len(entries) + i], entries[parent].position + 1, parent) for i, parent in enumerate(parents)
        ]
    return entries


class Slots:
    """Attention over keys that are kept, one after the other, each entry seeing those on its path."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        count = len(entries)
        self.sees = torch.eye(count, dtype=torch.bool)
        for number, entry in enumerate(entries):
            if entry.parent is not None:
                self.sees[number] |= self.sees[entry.parent]
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if layer in self.kept:
            key, value = (torch.cat([old, new], dim=2) for old, new in zip(self.kept[layer], (key, value), strict=True))
        self.kept[layer] = key, value
        stop = key.shape[2]
        mask = self.sees[stop - query.shape[2] : stop, :stop]
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)


def _drafted(head: Eagle3Head, texts: Sequence[Sequence[Entry]]) -> Tensor:
    """Logits of each entry of each text, level by level, `[texts, entries, draft_vocab]`."""
    attend = Slots(texts[0])
    tokens = torch.tensor([[entry.token for entry in text] for text in texts])
    positions = torch.tensor([[entry.position for entry in text] for text in texts])
    tapped = torch.stack([torch.stack([entry.tapped for entry in text[:_TEXT]]) for text in texts])  # type: ignore[misc]
    carried: list[Tensor] = []
    logits: list[Tensor] = []
    hidden, start = head.condense(tapped), 0
    for stop in (_TEXT, *(_TEXT + sum(map(len, _LEVELS[: i + 1])) for i in range(len(_LEVELS)))):
        if start:
            parents = [entry.parent for entry in texts[0][start:stop]]
            hidden = torch.cat(carried, dim=1)[:, parents]
        outputs, following = head(head.embed(tokens[:, start:stop]), hidden, positions[:, start:stop], attend)
        carried.append(following)
        logits.append(head.logits(outputs))
        start = stop
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_head_drafts_as_the_paper_has_it(variant, target, tmp_path):
    tiny = VARIANTS[variant]
    # The format of speculators has no word for a head without fc.
    layouts = ("speculators", "classic") if tiny.has_fc else ("classic",)
    heads = [load_head(tiny.write(tmp_path / layout, layout), target) for layout in layouts]
    texts = [_entries(tiny, seed) for seed in (1, 2)]
    model = target.model
    table = model.get_input_embeddings().weight if tiny.table is None else tiny.table
    rope = tiny.rope.get("rope_scaling", {}) | {"rope_theta": tiny.rope.get("rope_theta", 10000.0)}
    frequencies, scale = rotary_frequencies(rope, tiny.head_dim)
    expected = torch.stack(
        [reference_logits(tiny, text, table, model.lm_head.weight, frequencies, scale) for text in texts]
    )
    with torch.inference_mode():
        drafted = [_drafted(head, texts) for head in heads]
    torch.testing.assert_close(drafted[0].double(), expected, rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(drafted[0], drafted[-1])
    ids = heads[0].target_ids
    if tiny.draft_vocab is None:
        assert ids is None
    else:
        assert ids is not None
        assert torch.equal(tiny.weights()["t2d"].nonzero()[:, 0], ids)


@pytest.mark.parametrize("variant", [name for name, head in VARIANTS.items() if head.has_fc and head.table is None])
def test_a_head_that_is_saved_is_read_back(variant, target, tmp_path):
    tiny = VARIANTS[variant]
    head = load_head(tiny.write(tmp_path / "given"), target)
    saved = save_head(head, tmp_path / "saved", "owner/tiny", ["LlamaForCausalLM"], 4)
    again = load_head(saved, target)
    assert again.config == head.config
    state = head.state_dict()
    assert {n: w.tolist() for n, w in again.state_dict().items()} == {n: w.tolist() for n, w in state.items()}
    assert (again.target_ids is None) == (head.target_ids is None)
    texts = [_entries(tiny, 1)]
    with torch.inference_mode():
        torch.testing.assert_close(_drafted(head, texts), _drafted(again, texts))


def test_what_is_saved_is_what_others_read(target, tmp_path):
    tiny = TinyHead(taps=(2, 3, 4))
    head = load_head(tiny.write(tmp_path / "given"), target)
    save_head(head, tmp_path / "saved", "owner/tiny", ["LlamaForCausalLM"], 4)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    method = config["speculators_config"]["proposal_methods"][0]
    assert (config["architectures"], config["speculators_model_type"]) == (["Eagle3Speculator"], "eagle3")
    assert "model_type" not in config  # with it, neither vLLM nor SGLang reads it as a head
    assert (config["draft_vocab_size"], config["eagle_aux_hidden_state_layer_ids"]) == (60, [2, 3, 4])
    assert config["speculators_config"]["verifier"] == {
        "architectures": ["LlamaForCausalLM"],
        "name_or_path": "owner/tiny",
    }
    assert (method["proposal_type"], method["speculative_tokens"]) == ("greedy", 4)
    given = tiny.speculators_config()
    layer, theirs = config["transformer_layer_config"], given["transformer_layer_config"]
    assert {name: layer[name] for name in theirs} == theirs
    with pytest.raises(UnsupportedModelError, match="none without fc"):
        bare = load_head(VARIANTS["without fc"].write(tmp_path / "bare", "classic"), target)
        save_head(bare, tmp_path / "no", "owner/tiny", [], 4)


@pytest.mark.parametrize("files", ["sharded", "bin"])
def test_other_files_hold_the_same(files, target, tmp_path):
    heads = [load_head(TinyHead().write(tmp_path / name, "classic", name), target) for name in ("safetensors", files)]
    state, other = (head.state_dict() for head in heads)
    assert state.keys() == other.keys()
    assert all(torch.equal(weight, other[name]) for name, weight in state.items())


def test_copies_of_the_target_s_weights_are_not_kept(target, tmp_path):
    """DeepSpec's heads come with both, and name their layers by what leaves them."""
    tiny, model = TinyHead(draft_vocab=None, qk_norm=True), target.model
    table, output = (layer.weight.detach() for layer in (model.get_input_embeddings(), model.get_output_embeddings()))
    config = tiny.classic_config() | {
        "architectures": ["Qwen3Eagle3Model"], "target_layer_ids": [0, 2, 4], "draft_vocab_size": None,
        "eagle_config": None, "target_hidden_size": None,
    }  # fmt: skip
    (tmp_path / "head").mkdir()
    weights = tiny.weights() | {"embed_tokens.weight": table, "lm_head.weight": output}
    write_files(tmp_path / "head", config, weights, "safetensors")
    head = load_head(tmp_path / "head", target)
    assert (head.tap_points, head.config.has_embedding, head.config.has_output) == ((1, 3, 5), False, False)
    assert torch.equal(head.embed(torch.tensor([3])), table[[3]])
    torch.testing.assert_close(head.logits(torch.ones(1, 32)), output.sum(dim=1)[None])


def test_a_head_on_a_cpu_is_in_float32_whatever_its_target_is(tmp_path):
    target = loaded(target_of(TinyHead(), dtype=torch.bfloat16))
    tiny = TinyHead(draft_vocab=None, has_output=False)
    head = load_head(tiny.write(tmp_path / "head"), target)
    states = torch.randn(1, 1, 3, 32, dtype=torch.bfloat16)
    made = head.embed(torch.tensor([[3]])), head.condense(states), head.logits(torch.ones(1, 1, 32))
    assert {each.dtype for each in made} == {torch.float32}


def test_a_head_of_the_whole_vocabulary_may_say_so(target, tmp_path):
    tiny = TinyHead(draft_vocab=None)
    maps = {"d2t": torch.zeros(258, dtype=torch.int64), "t2d": torch.ones(258, dtype=torch.bool)}
    (tmp_path / "head").mkdir()
    write_files(tmp_path / "head", tiny.classic_config(), tiny.weights() | maps, "safetensors")
    assert load_head(tmp_path / "head", target).target_ids is None


def test_names_of_older_versions_and_leftovers(target, tmp_path):
    tiny = TinyHead(fc_norm=True)
    weights = {f"model.{n}" if n.startswith(("norm", "fc.")) else n: w for n, w in tiny.weights().items()}
    for number, name in enumerate(("low", "mid", "high")):
        weights[f"aux_norm_{name}.weight"] = weights.pop(f"fc_norm.{number}.weight")
    weights |= {"midlayer.self_attn.rotary_emb.inv_freq": torch.ones(4), "verifier_norm.weight": torch.ones(32)}
    (tmp_path / "old").mkdir()
    write_files(tmp_path / "old", {**tiny.classic_config(), "use_aux_norm": True}, weights, "safetensors")
    head, same = load_head(tmp_path / "old", target), load_head(tiny.write(tmp_path / "new"), target)
    assert all(torch.equal(weight, same.state_dict()[name]) for name, weight in head.state_dict().items())


def test_biases_of_qwen2_s_kind(target, tmp_path):
    tiny = TinyHead(attention_bias=True)
    weights = {name: weight for name, weight in tiny.weights().items() if name != "layers.0.self_attn.o_proj.bias"}
    (tmp_path / "head").mkdir()
    write_files(tmp_path / "head", tiny.speculators_config(), weights, "safetensors")
    assert load_head(tmp_path / "head", target).state_dict()["layers.0.self_attn.o_proj.bias"].tolist() == [0.0] * 32


@pytest.mark.parametrize(
    ("layout", "taps", "read"),
    [
        ("speculators", None, (2, 6, 9)),
        ("classic", None, (2, 6, 9)),
        ("classic", (1, 5, 8), (2, 6, 9)),
        ("speculators", (1, 5, 8), (2, 6, 9)),  # lmsys's heads as they were converted
        ("classic", (1, 4, 7), (2, 5, 8)),
        ("classic", (2, 4, 12), (2, 4, 12)),
        ("speculators", (1, 4, 7), (1, 4, 7)),
    ],
)
def test_taps_are_the_states_that_enter_layers(layout, taps, read, tmp_path):
    target = loaded(target_of(TinyHead(), num_hidden_layers=12))
    assert load_head(TinyHead(taps=taps).write(tmp_path / "head", layout), target).tap_points == read


def test_positions_of_each_kind_turn_as_transformers_has_it():
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    yarn: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    kinds: list[dict[str, Any]] = [
        {"rope_type": "linear", "factor": 4.0},
        _LLAMA3,
        yarn,
        yarn | {"attention_factor": 1.5, "beta_fast": 16.0, "beta_slow": 2.0},
        yarn | {"mscale": 0.7, "mscale_all_dim": 0.5},
    ]
    sizes: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 2, "max_position_embeddings": 256}
    for scaling in kinds:
        config = LlamaConfig(**sizes | {"rope_theta": 500.0, "rope_scaling": dict(scaling)})
        theirs, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"))
        ours, scale = rotary_frequencies(scaling | {"rope_theta": 500.0}, 32)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
        assert math.isclose(scale, factor, rel_tol=1e-9)
    half, _ = rotary_frequencies({"rope_theta": 100.0, "partial_rotary_factor": 0.5}, 8)
    assert half.tolist() == pytest.approx([1, 0.1])


def test_a_head_of_a_gguf_file_s_model(tmp_path):
    tiny = TinyHead(vocab=gguf_files.VOCAB, taps=(0, 2, 4), draft_vocab=None, has_output=False)
    model = gguf_files.tiny_model("llama", tie_word_embeddings=False)
    path = gguf_files.write_gguf(tmp_path / "model.gguf", model)
    target = load_model(path)
    head = load_head(tiny.write(tmp_path / "head"), target)
    tokens = torch.tensor([[3, 5], [7, 1]])
    torch.testing.assert_close(head.embed(tokens), model.get_input_embeddings()(tokens), rtol=1e-2, atol=1e-2)
    states = torch.randn(1, 2, 32)
    torch.testing.assert_close(head.logits(states), model.lm_head(states), rtol=1e-2, atol=5e-2)


def test_it_trains_and_runs_in_other_types():
    config = Eagle3Config((2, 3, 5), 32, 32, 32, 48, 4, 2, 8, 258, 60, has_embedding=True, fc_norm=True)
    head = Eagle3Head(config, torch.arange(60))
    texts = [_entries(TinyHead(), 1)]
    _drafted(head, texts).logsumexp(-1).sum().backward()
    assert all(weight.grad is not None for weight in head.parameters())
    states = texts[0][0].tapped
    assert states is not None
    assert head.bfloat16().condense(states.bfloat16()).dtype == torch.bfloat16
    assert head._frequencies.dtype == torch.float32


def test_what_is_a_head_is_told_by_its_config_alone(tmp_path, target):
    head = find_head(TinyHead().write(tmp_path / "head"))
    assert head is not None
    assert head.here("model.safetensors") == tmp_path / "head" / "model.safetensors"
    oldest = {"architectures": ["LlamaForCausalLM"], "draft_vocab_size": 60, "model_type": "llama"}
    for name, config, is_head in (
        ("oldest", oldest, True),
        ("medusa", {"medusa_num_heads": 2}, True),
        ("dflash", {"architectures": ["DFlashDraftModel"], "model_type": "qwen3"}, True),
        ("model", {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "draft_vocab_size": None}, False),
        ("eagle-vl", {"architectures": ["Eagle2_5_VLForConditionalGeneration"]}, False),
        ("list", ["no object"], False),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        assert (find_head(tmp_path / name) is not None) is is_head, name
    assert find_head("embedded") is None
    (tmp_path / "list" / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"config\.json is damaged"):
        find_head(tmp_path / "list")
    with pytest.raises(ModelLoadError, match="There is no folder"):
        find_head(str(tmp_path / "none"))
    with pytest.raises(ModelLoadError, match="no weights"):
        load_head(tmp_path / "oldest", target)
    with pytest.raises(UnsupportedModelError, match="is a model of its own"):
        load_head(tmp_path / "model", target)


def test_a_head_by_its_id_is_taken_from_what_was_downloaded(tmp_path, target, monkeypatch):
    repository = tmp_path / "models--owner--head"
    TinyHead().write(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    head = find_head("owner/head")
    assert head is not None
    shapes = weight_shapes(head)
    assert shapes is not None
    assert shapes["fc.weight"] == (32, 96)
    assert load_head("owner/head", target).tap_points == (2, 3, 5)
    (repository / "snapshots" / "abc" / "model.safetensors").unlink()
    assert weight_shapes(head) is None
    with pytest.raises(ModelLoadError, match="no weights"):
        load_head(head, target)


_OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "peagle": ({"speculators_model_type": "peagle"}, "of kind 'peagle', and it drafts several tokens in one forward"),
    "dflash": ({"architectures": ["DFlashDraftModel"], "dflash_config": {"x": 1}}, "of kind 'dflash'"),
    "medusa": ({"architectures": ["MedusaModel"], "medusa_num_heads": 2}, "of kind 'medusa', and it works otherwise"),
    "eagle": ({"architectures": ["EagleLlamaForCausalLM"], "model_type": "eagle"}, "of kind 'eagle'"),
    "activation": ({"hidden_act": "relu2"}, "the activation 'relu2'; silu,"),
    "window": ({"layer_types": ["sliding_attention"]}, "a sliding window"),
    "rope": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "of kind 'dynamic'; default, linear, llama3, yarn"),
    "half a rope": ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "gives no low_freq_factor, high_freq"),
    "heads": ({"num_attention_heads": 5}, "5 heads of queries"),
    "head_dim": ({"head_dim": 16}, "4 heads of queries, and of head_dim 16"),
}


@pytest.mark.parametrize("case", _OTHERS)
def test_what_does_not_run_is_refused(case, target, tmp_path):
    changes, told = _OTHERS[case]
    tiny = TinyHead()
    (tmp_path / "head").mkdir()
    config = tiny.classic_config() | {"architectures": ["LlamaForCausalLM"]} | changes
    write_files(tmp_path / "head", config, tiny.weights(), "safetensors")
    with pytest.raises(UnsupportedModelError, match=told):
        load_head(tmp_path / "head", target)


_MISFITS = {
    "hidden size": (TinyHead(target_hidden=16), "speculators", "reads states of 16 numbers, and the model's have 32"),
    "fc": (TinyHead(target_hidden=16, hidden=16, head_dim=4), "speculators", "its fc reads 48 numbers at a time"),
    "taps": (TinyHead(taps=(2, 16, 29)), "speculators", "enter the layers 2, 16, 29, and the model has 5 layers"),
    "vocabulary": (TinyHead(vocab=300), "classic", "made for a model of 300 tokens, and this one has 258"),
    "embeddings": (TinyHead(table=torch.ones(300, 32), draft_vocab=None), "classic", "300 tokens, and this one"),
    "output": (
        TinyHead(has_output=False, hidden=48, table=_TABLE), "classic", "no output layer of its own",
    ),
    "no fc": (TinyHead(has_fc=False, taps=(5,), hidden=48, table=_TABLE), "classic", "takes states of 48 numbers, and"),
}  # fmt: skip


@pytest.mark.parametrize("case", _MISFITS)
def test_what_does_not_fit_is_refused_in_numbers(case, target, tmp_path):
    tiny, layout, told = _MISFITS[case]
    with pytest.raises(UnsupportedModelError, match=told):
        load_head(tiny.write(tmp_path / "head", layout), target)


def _rewritten(folder: Path, **changes: Tensor | None) -> Path:
    weights = {**TinyHead().weights(), **{name.replace("__", "."): weight for name, weight in changes.items()}}
    folder.mkdir()
    kept = {name: weight for name, weight in weights.items() if weight is not None}
    write_files(folder, TinyHead().speculators_config(), kept, "safetensors")
    return folder


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"d2t": torch.full((60,), 250)}, "52 of its 60 draft tokens are outside the 258 of the model"),
        ({"d2t": -torch.arange(60)}, "several of its draft tokens stand for the same one"),
        ({"d2t": None}, "it drafts 60 of the model's 258 tokens, and its files do not say which"),
        ({"d2t": torch.zeros(5)}, "its d2t numbers 5 tokens, and it drafts 60"),
        ({"norm__weight": None}, "its files lack norm.weight"),
        ({"layers__0__mlp__up_proj__weight": None}, "they lack 1 of 13 weights (layers.0.mlp.up_proj.weight)"),
        ({"fc__bias": torch.ones(32)}, "they hold others than an EAGLE-3 head of such a configuration has (fc.bias)"),
        ({"layers__0__mlp__up_proj__weight": torch.ones(8, 32)}, "up_proj.weight is [8, 32], and [48, 32] is due"),
        ({"layers__0__hidden_norm__weight": None}, "One of EAGLE-1 or EAGLE-2 reads the last layer alone"),
        ({"layers__0__self_attn__kv_a_proj_with_mqa__weight": torch.ones(1)}, "DeepSeek's kind (MLA)"),
        ({"mask_hidden": torch.ones(1)}, "it is a P-EAGLE head"),
        ({"layers__0__pre_feedforward_layernorm__weight": torch.ones(32)}, "its layer is Gemma's"),
    ],
)
def test_damaged_files_are_refused(changes, told, target, tmp_path):
    with pytest.raises(UnsupportedModelError) as caught:
        load_head(_rewritten(tmp_path / "head", **changes), target)
    assert told in str(caught.value)


def test_a_target_with_recurrent_states_is_refused(target, tmp_path):
    folder = TinyHead().write(tmp_path / "head")
    config = target.model.config.__class__(**target.model.config.to_dict() | {"layer_types": ["linear_attention"] * 5})
    with pytest.raises(UnsupportedModelError, match="the model keeps recurrent states"):
        load_head(folder, replace(target, model=type("Model", (), {"config": config})()))


def test_a_head_for_another_model_is_told_of(target, tmp_path, caplog):
    folder = TinyHead().write(tmp_path / "head")
    with caplog.at_level(logging.WARNING):
        load_head(folder, target)
        assert not caplog.messages
        load_head(folder, replace(target, name="owner/other"))
    assert "was trained for owner/tiny, and drafts for owner/other here" in caplog.messages[0]
