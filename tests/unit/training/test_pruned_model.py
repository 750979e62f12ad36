"""Models of some of another's layers: the other's numbers, whatever runs it, and what cannot be pruned."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import gguf
import pytest
import torch

from langchain_specdec.errors import UnsupportedModelError
from langchain_specdec.models.gguf.model import read_gguf
from langchain_specdec.models.gguf.to_transformers import to_transformers
from langchain_specdec.models.make_runner import make_runner
from langchain_specdec.training.answers import Text
from langchain_specdec.training.layer_influence import influences, most_influential
from langchain_specdec.training.pruned_model import LayerPlan
from langchain_specdec.training.pruned_recipe import _is_in_blocks
from tests.support import gguf_files, model_families
from tests.support.tiny_models import loaded, tiny_model

pytestmark = pytest.mark.transformers

TOKENS = torch.tensor([[5, 6, 7, 8, 9, 3]])


def logits(model: Any) -> Any:
    with torch.inference_mode():
        return model(input_ids=TOKENS, use_cache=False).logits


@pytest.mark.parametrize("name", model_families.params(["llama", "qwen2-some-sliding", "gemma3", "gpt2", "phimoe"]))
def test_a_model_of_all_layers_is_the_model(name):
    whole = model_families.make_model(name)
    run = copy.deepcopy(whole)
    # Its weights go where the engine reads them faster.
    make_runner(replace(loaded(run), is_owned=True), num_slots=1, max_length=16, max_width=1).release()
    made = LayerPlan(run, name).prune(run, range(whole.config.num_hidden_layers))
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.copy_(parameter.bfloat16())
    torch.testing.assert_close(logits(made), logits(whole), rtol=1e-4, atol=1e-4)


def test_a_gguf_model_is_dequantised_layer_by_layer(tmp_path):
    kinds = {"weight": gguf.GGMLQuantizationType.Q8_0}
    whole = read_gguf(gguf_files.write_gguf(tmp_path / "x.gguf", gguf_files.tiny_model("gemma3_text"), kinds=kinds))
    made, all_of_it = LayerPlan(whole, "it").prune(whole, [0, 2, 3]), to_transformers(whole)
    assert made.config.layer_types == [whole.config.layer_types[layer] for layer in (0, 2, 3)]
    weight, expected = (model.model.layers[layer].mlp.up_proj.weight for model, layer in ((made, 1), (all_of_it, 2)))
    assert torch.equal(weight, expected.bfloat16().float())
    assert logits(made).isfinite().all()
    # A draft in bfloat16 would read more than such a model does.
    assert (_is_in_blocks(whole), _is_in_blocks(made)) == (True, False)


def test_layers_go_to_their_places_with_what_is_said_of_them():
    whole = tiny_model(num_hidden_layers=4, tie_word_embeddings=True)
    whole.config.layer_types = ["full_attention"] * 3 + ["sliding_attention"]
    plan = LayerPlan(whole, "it")
    made = plan.prune(whole, [0, 1, 3])
    assert (made.config.num_hidden_layers, made.config.layer_types) == (
        3,
        ["full_attention"] * 2 + ["sliding_attention"],
    )
    weights, expected = made.model.layers[2].mlp.up_proj.weight, whole.model.layers[3].mlp.up_proj.weight
    assert torch.equal(weights, expected.bfloat16().float())
    assert made.lm_head.weight is made.model.embed_tokens.weight
    assert plan.numbers([0, 1, 3]) == sum(parameter.numel() for parameter in made.parameters())


def test_as_many_layers_are_kept_as_read_a_fifth_of_the_weights():
    plan = LayerPlan(tiny_model(num_hidden_layers=40, hidden_size=8, vocab_size=8), "it")
    assert plan.share(range(plan.usual_count())) <= 0.2 < plan.share(range(plan.usual_count() + 1))
    # The output head alone is more than that.
    assert LayerPlan(tiny_model(num_hidden_layers=4), "it").usual_count() == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gemma3-with-images", "it is made of several models"),
        ("gemma3n", "layers read the keys and values of others"),
        ("opt", "they are in no list of all of them"),
    ],
)
def test_layers_that_cannot_be_left_out_are_refused(name, said):
    if not model_families.is_testable(name):
        pytest.skip("unknown to this version of transformers")
    with pytest.raises(UnsupportedModelError, match=f"{said}.* Take --kind head"):
        LayerPlan(model_families.make_model(name), name)


def test_a_model_of_two_layers_has_none_to_leave_out():
    with pytest.raises(UnsupportedModelError, match="has 2 layers, and the first and the last are always kept"):
        LayerPlan(tiny_model(num_hidden_layers=2), "it")


def test_the_influence_of_layers_is_how_much_they_turn_states():
    # More than are looked at in one forward.
    model = tiny_model(num_hidden_layers=11)
    texts = [Text((5, 6, 7, 8, 9, 3), 2), Text((9, 1, 2), 1)]
    angles = []
    for text in texts:
        with torch.inference_mode():
            found = model(input_ids=torch.tensor([text.tokens]), output_hidden_states=True)
        states = torch.stack(found.hidden_states[1:11])[:, 0, text.num_prompt_tokens - 1 :]
        angles.append(1 - torch.cosine_similarity(states[:-1], states[1:], dim=-1))
    expected = torch.cat(angles, 1).mean(1).tolist()
    measured = influences(loaded(model), texts, None, lambda *_: None)
    assert list(measured) == [*range(1, 10)]
    assert list(measured.values()) == pytest.approx(expected, rel=1e-2, abs=1e-3)


def test_the_first_the_last_and_the_most_influential_layers_are_kept():
    found = {1: 0.1, 2: 0.5, 3: 0.2, 4: 0.5}
    assert [most_influential(found, 6, count) for count in (2, 3, 4)] == [[0, 5], [0, 2, 5], [0, 2, 4, 5]]
