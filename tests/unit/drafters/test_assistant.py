"""Gemma 4's assistants draft from the keys that stand in their target's slots."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.cli.doctor_pair import findings
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.drafters.assistant import AssistantDrafter
from langchain_specdec.engine.engine import Engine
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.errors import SpecDecError, UnsupportedModelError
from langchain_specdec.models.heads.make_head_runner import make_assistant_runner
from langchain_specdec.models.make_runner import make_runner
from langchain_specdec.runner.attention import ATTENTION_NAME
from langchain_specdec.runner.cuda.captured_runner import CapturedRunner
from langchain_specdec.runner.model_runner import ModelRunner
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.sampling.params import SamplingParams
from tests.support.gemma4_assistants import WINDOW, assistant, gemma4, knowing_pair
from tests.support.oracle_heads import successors
from tests.support.recorded_graphs import RecordedCapture
from tests.support.tiny_models import (
    FakeRequest,
    References,
    byte_tokenizer,
    loaded,
    perturbed,
    random_prompt,
    read,
    tiny_model,
    token_ids,
)

pytestmark = [
    pytest.mark.transformers,
    pytest.mark.skipif("gemma4_assistant" not in CONFIG_MAPPING, reason="this version of transformers lacks Gemma 4"),
]
GREEDY = SamplingParams(max_new_tokens=16, ignore_eos=True)


@torch.inference_mode()
def by_transformers(model: Any, draft: Any, text: Sequence[int], path: Sequence[int]) -> Tensor:
    """Logits after a text and after each token drafted so far, as transformers' own generation asks for them."""
    base = model.model
    read = base(torch.tensor([text[:-1]]), use_cache=False, return_shared_kv_states=True)
    state, found = read.last_hidden_state[:, -1:], []
    for token in [text[-1], *path]:
        embedded = base.embed_tokens(torch.tensor([[token]]))
        given = draft(
            inputs_embeds=torch.cat([embedded, state], -1), position_ids=torch.tensor([[len(text) - 1]]),
            attention_mask=None, shared_kv_states=dict(read.shared_kv_states), use_cache=False,
        )  # fmt: skip
        state = given.last_hidden_state
        found.append(given.logits[0, 0])
    return torch.stack(found)


@pytest.mark.parametrize(
    ("centroids", "is_for_gpu"), [(0, False), (6, False), (0, True)], ids=["all tokens", "centroids", "masks for a GPU"]
)
def test_it_computes_what_transformers_does(centroids: int, is_for_gpu: bool) -> None:
    model, draft = gemma4(), assistant(centroids=centroids)
    target = loaded(model)
    runner = make_runner(target, num_slots=3, max_length=64, max_width=8)
    own = copy.deepcopy(draft)
    own.set_attn_implementation(ATTENTION_NAME)
    head: Any = make_assistant_runner(own, target, runner, 8)
    head.is_for_gpu = is_for_gpu
    runner.tap(head.tap_points)
    rng = random.Random(1)
    # One shorter than the window, and one longer; in slots that are no neighbours, and in ones that are.
    texts = [[rng.randrange(256) for _ in range(length)] for length in (WINDOW - 2, 3 * WINDOW)]
    paths = [[4, 9], [200, 31]]
    for slots in ([2, 0], [1, 2], [1]):
        hidden = []
        for slot, text in zip(slots, texts, strict=False):
            runner.prefill(RowBatch([slot], [0], [text[:-1]]))
            hidden.append(head.condense(runner.tapped()[0, -1:]))
        starts, found = [len(text) - 1 for text in texts[: len(slots)]], []
        for step in range(3):
            tokens = [[*text, *path][len(text) - 1 + step] for text, path in zip(texts, paths, strict=True)]
            # A sibling in the first row changes nothing.
            rows = [[token, 77][: 2 - row] for row, token in enumerate(tokens[: len(slots)])]
            states = [torch.cat([each, each])[: len(row)] for each, row in zip(hidden, rows, strict=True)]
            logits, following = head.run(RowBatch(slots, starts, rows), states)
            hidden = [following[row, :1] for row in range(len(slots))]
            found.append(logits[:, 0])
        for row in range(len(slots)):
            expected, got = by_transformers(model, draft, texts[row], paths[row]), torch.stack(found)[:, row]
            if centroids:
                # What is left out is lowest there, and has no chance here.
                expected = expected.masked_fill(expected == expected.amin(-1, keepdim=True), -math.inf)
                assert int(got.isfinite().sum()) == 3 * 2 * 258 // centroids
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def answers(backend: LocalBackend, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> list[Any]:
    requests = [CompletionRequest(prompt, each) for prompt, each in zip(prompts, params, strict=True)]
    ended = [read(stream) for stream in backend.start(requests)]
    return [(token_ids(tokens), end.speculation) for tokens, end in ended]


def backend_of(model: Any, draft: Any, folder: Path, **options: Any) -> LocalBackend:
    draft.save_pretrained(folder)
    options = {"num_slots": 4, "max_length": 200, "step_cost": StepCost.flat(draft=0.05), **options}
    return LocalBackend(copy.deepcopy(model), byte_tokenizer(), draft_model=str(folder), device="cpu", **options)


@pytest.mark.parametrize("options", [{}, {"max_tree_nodes": 0}, {"drafter": "draft_model"}], ids=str)
def test_texts_are_those_of_plain_decoding(options: dict[str, Any], tmp_path: Path) -> None:
    model = gemma4()
    rng, references, drafted = random.Random(4), References(model), 0
    kinds = [GREEDY, replace(GREEDY, temperature=0.8, seed=3), replace(GREEDY, repetition_penalty=1.3)]
    with closing(backend_of(model, assistant(centroids=6), tmp_path, **options)) as backend:
        for _ in range(2):  # the second time in slots that hold earlier texts
            prompts = [random_prompt(rng) for _ in kinds]
            for prompt, params, (text, stats) in zip(prompts, kinds, answers(backend, prompts, kinds), strict=True):
                assert text == references(prompt, params)
                drafted += stats.drafted_by_source.get("assistant", 0)
    assert drafted > 0


def test_texts_of_captured_steps() -> None:
    model, draft = knowing_pair(successors())
    target = loaded(perturbed(model, 0.1))
    runner = CapturedRunner(ModelRunner(target.model, 4, 120, 17), RecordedCapture(), "reduce-overhead")
    target.model.set_attn_implementation(ATTENTION_NAME)
    draft.set_attn_implementation(ATTENTION_NAME)
    drafter = AssistantDrafter(runner, make_assistant_runner(draft, target, runner, 17), "assistant", 64)
    options: Any = {"step_cost": StepCost.flat(draft=0.05), "max_draft_tokens": 6, "max_tree_nodes": 16}
    with closing(Engine(runner, drafter, target.tokenizer, (256,), **options)) as engine:
        prompts, references = [[5, 9, 3], [200, 7, 1, 1, 4]], References(target.model)
        params = replace(GREEDY, max_new_tokens=60)
        for prompt, stream in [(prompt, engine.submit(prompt, params)) for prompt in prompts]:
            tokens, end = read(stream)
            assert token_ids(tokens) == references(prompt, params)
            assert end.speculation.accepted_by_source["assistant"] > 20
    assert runner.store.num_made > 0


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("nodes", [0, 16], ids=["chain", "tree"])
def test_one_that_knows_takes_few_steps(nodes: int, temperature: float, tmp_path: Path) -> None:
    model, draft = knowing_pair(successors())
    params = SamplingParams(max_new_tokens=25, ignore_eos=True, temperature=temperature, seed=1)
    how: Any = {"step_cost": StepCost.flat(), "max_draft_tokens": 3, "max_tree_nodes": nodes}
    with closing(backend_of(model, draft, tmp_path, **how)) as backend:
        prompt = [5, 9, 3]
        for _ in range(2):
            [(text, stats)] = answers(backend, [prompt], [params])
            assert text == References(model)(prompt, params)
            assert stats.num_steps <= 1 + math.ceil(24 / 4), stats
            assert stats.accepted_by_source["assistant"] >= 12, stats
            prompt = [*prompt, *text, 7]  # goes on from the text


def test_a_forward_in_half_precision_is_timed() -> None:
    model, draft = gemma4().bfloat16(), assistant().bfloat16()
    target = loaded(model)
    draft.set_attn_implementation(ATTENTION_NAME)
    runner = make_runner(target, num_slots=1, max_length=64, max_width=8)
    drafter = AssistantDrafter(runner, make_assistant_runner(draft, target, runner, 8), "assistant", 64)
    runner.prefill(RowBatch([0], [0], [[5, 9]]))
    assert drafter.measure_step(FakeRequest(0, [5, 9, 3])) > 0


def test_what_it_does_not_fit_is_told(tmp_path: Path) -> None:
    fits, wide = tmp_path / "fits", tmp_path / "wide"
    assistant().save_pretrained(fits)
    assistant(backbone=64).save_pretrained(wide)
    unified, heads = tmp_path / "unified", gemma4(head_dim=16)
    assistant().save_pretrained(unified)
    config = json.loads((unified / "config.json").read_text())
    (unified / "config.json").write_text(json.dumps(config | {"model_type": "gemma4_unified_assistant"}))
    cases: list[tuple[Any, Path, type[SpecDecError], str]] = [
        (tiny_model(), fits, UnsupportedModelError, "drafts for models of type 'gemma4_text', .* type 'llama'"),
        (gemma4(), wide, UnsupportedModelError, r"it reads states of 64 numbers, and the model's have 32\. Each size"),
        (gemma4(vocab=300), fits, UnsupportedModelError, "it drafts from 258 tokens, and the model has 300"),
        (heads, fits, UnsupportedModelError, "layer of kind sliding_attention reads keys of 8 numbers .* have 16"),
        (gemma4(), unified, UnsupportedModelError, "of type 'gemma4_unified_text'"),
    ]
    for model, folder, error, message in cases:
        with pytest.raises(error, match=message):
            LocalBackend(model, byte_tokenizer(), draft_model=str(folder), device="cpu")
    with pytest.raises(UnsupportedModelError, match="which drafts for a model and writes nothing by itself"):
        LocalBackend(str(fits), byte_tokenizer(), device="cpu")


def test_the_doctor_tells_whether_it_fits(tmp_path: Path) -> None:
    for name, model in {"model": gemma4(), "fits": assistant(), "wide": assistant(backbone=64)}.items():
        model.save_pretrained(tmp_path / name)
    told = {name: findings(str(tmp_path / "model"), str(tmp_path / name))[-1] for name in ("fits", "wide")}
    assert (told["fits"].name, told["fits"].status) == ("fits", "ok")
    assert told["wide"].status == "error"
    assert "states of 64 numbers" in told["wide"].advice
