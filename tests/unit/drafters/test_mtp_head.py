"""MTP layers in a model's own checkpoint: what they compute, and texts that they draft for."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.errors import InvalidParameterError, SpecDecError, UnsupportedModelError
from langchain_specdec.models.heads.load_mtp import load_mtp
from langchain_specdec.models.heads.mtp_head import MtpHead
from langchain_specdec.models.heads.mtp_source import find_mtp
from langchain_specdec.runner.module_head_runner import ModuleHeadRunner
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.sampling.params import SamplingParams
from tests.support.hybrid_models import MISSING, make_hybrid
from tests.support.mtp_layers import chained_hybrid, mtp_weights, reference_logits, write_with_mtp
from tests.support.oracle_heads import successors
from tests.support.tiny_models import References, loaded, random_prompt, read, tiny_model, token_ids

pytestmark = [
    pytest.mark.transformers,
    pytest.mark.skipif("qwen3_5_text" in MISSING, reason="this version of transformers lacks the family"),
]
GREEDY = SamplingParams(max_new_tokens=16, ignore_eos=True)


def head_of(model: Any, weights: dict[str, Tensor], folder: Path) -> MtpHead:
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return load_mtp(find_mtp(folder), loaded(model))


def drafted(head: MtpHead, tokens: Sequence[int], states: Tensor) -> Tensor:
    """Logits after each entry: the first ones in pieces of a text, the others one by one, each from the one before."""
    runner = ModuleHeadRunner(head, num_slots=2, max_length=32, max_width=8)
    text, start, found, following = len(states), 0, [], states[:0]
    for stop in (text // 2, text, *range(text + 1, len(tokens) + 1)):
        beside = runner.condense(states[start:stop, None]) if stop <= text else following
        logits, hidden = runner.run(RowBatch([1], [start], [list(tokens[start:stop])]), [beside])
        found.append(logits[0])
        following, start = hidden[0, -1:], stop
    return torch.cat(found)


def test_a_layer_computes_what_its_equations_say(tmp_path: Path) -> None:
    model = make_hybrid("qwen3_5_text", rope_parameters={
        "rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0],
    })  # fmt: skip
    weights = mtp_weights(model)
    tokens = [5, 77, 3, 200, 9, 77, 31, 8]
    states = torch.randn(5, model.config.hidden_size, dtype=torch.float64)
    logits = drafted(head_of(model, weights, tmp_path), tokens, states)
    expected = reference_logits(model, weights, tokens, states)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)  # turned in float32


@pytest.mark.parametrize(
    ("family", "are_apart"),
    [("qwen3_5_text", False), ("qwen3_5_moe_text", False), ("qwen3_next", False), ("qwen3_next", True)],
    ids=["dense", "experts", "Qwen3-Next", "experts each by itself"],
)
def test_a_layer_is_one_of_its_model(family: str, are_apart: bool, tmp_path: Path) -> None:
    model = make_hybrid(family)
    weights = mtp_weights(model)
    states, tokens = torch.randn(6, model.config.hidden_size, dtype=torch.float64), [5, 77, 3, 200, 9, 77]
    written = {name: weight for name, weight in weights.items() if ".experts." not in name or not are_apart}
    if are_apart:
        gates, downs = (weights[f"mtp.layers.0.mlp.experts.{name}"] for name in ("gate_up_proj", "down_proj"))
        for number, (gate_up, down) in enumerate(zip(gates, downs, strict=True)):
            parts = zip(("gate", "up", "down"), (*gate_up.chunk(2), down), strict=True)
            written |= {f"mtp.layers.0.mlp.experts.{number}.{n}_proj.weight": w.contiguous() for n, w in parts}
    logits = drafted(head_of(model, written, tmp_path), tokens, states)

    # The same by the model's own modules.
    text, norm = model.model, type(model.model.norm)
    layer = next(each for each in text.layers if hasattr(each, "self_attn"))
    layer.load_state_dict({n.removeprefix("mtp.layers.0."): w for n, w in weights.items() if ".layers.0." in n})
    norms = {name: norm(model.config.hidden_size, model.config.rms_norm_eps).double() for name in (
        "pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm",
    )}  # fmt: skip
    with torch.no_grad():
        for name, module in norms.items():
            module.weight.copy_(weights[f"mtp.{name}.weight"])
        embedded = norms["pre_fc_norm_embedding"](text.embed_tokens(torch.tensor([tokens])))
        joined = torch.cat([embedded, norms["pre_fc_norm_hidden"](states[None])], -1)
        mask = torch.full((6, 6), torch.finfo(torch.float64).min, dtype=torch.float64).triu(1)[None, None]
        turns = text.rotary_emb(states[None], torch.arange(6)[None])
        hidden = layer(joined @ weights["mtp.fc.weight"].double().T, position_embeddings=turns, attention_mask=mask)
        torch.testing.assert_close(logits, model.lm_head(norms["norm"](hidden))[0])


def answers(backend: LocalBackend, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> list[Any]:
    """Tokens and speculation of each."""
    requests = [CompletionRequest(prompt, each) for prompt, each in zip(prompts, params, strict=True)]
    ended = [read(stream) for stream in backend.start(requests)]
    return [(token_ids(tokens), end.speculation) for tokens, end in ended]


def test_texts_are_those_of_plain_decoding(tmp_path: Path) -> None:
    model = make_hybrid("qwen3_5_text", torch.float32)
    folder = write_with_mtp(model, mtp_weights(model), tmp_path)
    rng, references, drafted = random.Random(4), References(model), 0
    kinds = [GREEDY, replace(GREEDY, temperature=0.8, seed=3), replace(GREEDY, repetition_penalty=1.3)]
    backend = LocalBackend(
        str(folder), drafter="mtp", device="cpu", num_slots=4, step_cost=StepCost.flat(draft=0.05), max_length=256
    )
    with closing(backend):
        for _ in range(2):  # the second time in slots that hold earlier texts
            prompts = [random_prompt(rng) for _ in kinds]
            for prompt, params, (text, stats) in zip(prompts, kinds, answers(backend, prompts, kinds), strict=True):
                assert text == references(prompt, params)
                drafted += stats.drafted_tokens
    assert drafted > 0


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A target, and its checkpoint with an MTP layer that knows what it writes."""
    model, weights = chained_hybrid(successors())
    return model, write_with_mtp(model, weights, tmp_path_factory.mktemp("knowing"), is_split=True)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_layer_that_knows_takes_few_steps(temperature: float, knowing: Any) -> None:
    model, folder = knowing
    params = SamplingParams(max_new_tokens=25, ignore_eos=True, temperature=temperature, seed=1)
    backend = LocalBackend(
        str(folder), drafter="mtp", device="cpu", num_slots=2, step_cost=StepCost.flat(), max_draft_tokens=3,
        max_length=256,
    )  # fmt: skip
    with closing(backend):
        prompt = [5, 9, 3]
        for _ in range(2):
            [(text, stats)] = answers(backend, [prompt], [params])
            assert text == References(model)(prompt, params)
            # The first step has no states yet of what the layer needs.
            assert stats.num_steps <= 1 + math.ceil(24 / 4), stats
            assert stats.accepted_by_source["mtp"] >= 12, stats
            prompt = [*prompt, *text, 7]  # goes on from the text


def test_what_has_no_layers_is_told(tmp_path: Path) -> None:
    model, llama = make_hybrid("qwen3_5_text", torch.float32), tiny_model()
    weights = mtp_weights(model)
    plain = tmp_path / "plain"
    model.save_pretrained(plain)
    other = write_with_mtp(llama, {"mtp.fc.weight": torch.zeros(2, 2)}, tmp_path / "llama")
    lacking = write_with_mtp(model, {k: v for k, v in weights.items() if "q_norm" not in k}, tmp_path / "lacking")
    cases: list[tuple[Any, type[SpecDecError], str]] = [
        (model, InvalidParameterError, "a loaded model has none"),
        ("embedded", InvalidParameterError, "the embedded model has none"),
        (plain, UnsupportedModelError, "has no MTP layers"),
        (other, UnsupportedModelError, "it is of type 'llama'"),
        (lacking, UnsupportedModelError, r"mtp\.layers\.0\.self_attn\.q_norm\.weight"),
    ]
    for source, error, message in cases:
        with pytest.raises(error, match=message):
            LocalBackend(source, drafter="mtp", device="cpu")
    with pytest.raises(InvalidParameterError, match="Leave one of them out"):
        LocalBackend(plain, drafter="mtp", draft_model=plain)
