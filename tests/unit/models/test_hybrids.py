"""Hybrid families: layers with states, which speculation rolls back, against the model's own uncached forward."""

from __future__ import annotations

import copy
import gc
import random
import weakref
from contextlib import closing
from typing import Any

import pytest
import torch

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.drafters.base import Drafter
from langchain_specdec.drafters.lookup_tree import LookupTreeDrafter
from langchain_specdec.drafters.prompt_lookup import PromptLookupDrafter
from langchain_specdec.errors import InvalidParameterError, UnsupportedModelError
from langchain_specdec.models.compatibility import common_vocabulary
from langchain_specdec.models.loader import load_model
from langchain_specdec.models.make_runner import make_runner
from langchain_specdec.runner import stateful_layers
from langchain_specdec.runner.kv_cache import SlotCache
from langchain_specdec.runner.layer_states import TAIL
from langchain_specdec.runner.model_runner import ModelRunner
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.sampling.params import SamplingParams
from tests.support import tiny_models as tiny
from tests.support.hybrid_models import HYBRIDS, MISSING, make_hybrid

pytestmark = [pytest.mark.transformers, pytest.mark.slow]

needs_states = pytest.mark.skipif("qwen3_next" in MISSING, reason="this version of transformers lacks such states")
FAMILIES = [
    pytest.param(
        name, marks=pytest.mark.skipif(name in MISSING, reason="this version of transformers lacks it or its states")
    )
    for name in HYBRIDS
]
MAX_WIDTH = 9


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_after_chunks_and_rollbacks_equal_the_uncached_forward(name):
    model, rng = make_hybrid(name), random.Random(name)
    runner = make_runner(tiny.loaded(model), num_slots=5, max_length=200, max_width=MAX_WIDTH)
    assert not runner.takes_trees
    texts = {slot: [rng.randrange(256) for _ in range(150)] for slot in (0, 1, 3)}
    with torch.inference_mode():
        expected = {slot: model(input_ids=torch.tensor([text])).logits[0] for slot, text in texts.items()}
    at = {0: TAIL + 20, 1: 3, 3: 30}
    runner.prefill(RowBatch([0, 1, 3], [0, 0, 0], [texts[slot][: min(at[slot], 1 + 9 * slot)] for slot in at]))
    for slot in (0, 3):
        start = 1 + 9 * slot
        runner.prefill(RowBatch([slot], [start], [texts[slot][start : at[slot]]]))
    for _ in range(10):
        slots = sorted(rng.sample(sorted(at), rng.randint(1, 3)))
        right = {slot: rng.randint(1, MAX_WIDTH) for slot in slots}
        rows = [texts[s][at[s] : at[s] + right[s]] + [7] * rng.randint(0, MAX_WIDTH - right[s]) for s in slots]
        logits = runner.verify(RowBatch(slots, [at[slot] for slot in slots], rows)).logits
        for row, slot in enumerate(slots):
            theirs = expected[slot][at[slot] : at[slot] + right[slot]]
            assert float((logits[row, : right[slot]] - theirs).abs().max()) < 1e-4 * float(theirs.abs().max())
            at[slot] += rng.randint(1, right[slot])


def prompts_for(name, count=4):
    rng = random.Random(name)
    return [tuple(tiny.random_prompt(rng, longest)) for longest in (60, 9, 25, 40)[:count]]


def read_all(streams):
    return [tiny.token_ids(tiny.read(stream)[0]) for stream in streams]


@pytest.mark.parametrize("name", FAMILIES)
def test_text_equals_plain_decoding_and_takes_fewer_steps(name, monkeypatch):
    batches, verify = [], ModelRunner.verify

    def watched(self, batch):
        batches.append(batch)
        return verify(self, batch)

    monkeypatch.setattr(ModelRunner, "verify", watched)
    model = make_hybrid(name)
    plain, prompts = tiny.References(model), prompts_for(name, 3)
    options: Any = {"num_slots": 2, "prefill_chunk": 16, "max_tree_nodes": 10}
    with closing(tiny.make_engine(model, LookupTreeDrafter(5), **options)) as engine:
        for temperature in (0.0, 0.8):
            params = SamplingParams(max_new_tokens=12, temperature=temperature, seed=5, ignore_eos=True)
            expected = [plain(prompt, params) for prompt in prompts]
            # One slot short, and another time what followed is known.
            steps = []
            for _ in range(2):
                before = engine.num_target_forwards
                assert read_all([engine.submit(prompt, params) for prompt in prompts]) == expected
                steps.append(engine.num_target_forwards - before)
            assert steps[1] < 0.6 * steps[0]
    assert len({tuple(text) for text in expected}) == len(prompts)
    assert any(batch.width > 1 for batch in batches)
    assert all(batch.is_chain for batch in batches)


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_text_is_that_of_transformers_itself(name):
    model = make_hybrid(name)
    prompt = prompts_for(name)[0]

    def generate():
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()

    before = generate()
    params = SamplingParams(max_new_tokens=20, temperature=0.0, ignore_eos=True)
    with closing(tiny.make_engine(model, Drafter())) as engine:
        assert read_all([engine.submit(prompt, params)]) == [before]
        # And for its owner all goes on as before.
        assert generate() == before


# The main families, in all that can happen to a text.

MAIN = [family for family in FAMILIES if family.values[0] in ("qwen3_next", "qwen3_5_text")]


@needs_states
@pytest.mark.parametrize(("name", "seed"), [("qwen3_next", 0), ("qwen3_5_text", 1), ("qwen3_5_text", 2)])
def test_arrivals_and_cancelled_texts_and_oracles_of_any_quality(name, seed):
    model, rng = make_hybrid(name), random.Random(seed)
    plain = tiny.References(model)
    cases = {
        tuple(tiny.random_prompt(rng, rng.choice([8, 30, 90]))): SamplingParams(
            max_new_tokens=rng.randint(1, 20),
            temperature=rng.choice([0.0, 0.9]),
            top_p=rng.choice([None, 0.8]),
            repetition_penalty=rng.choice([1.0, 1.3]),
            seed=rng.randrange(2**32),
            ignore_eos=rng.random() < 0.5,
        )
        for _ in range(7)
    }
    known = {prompt: plain(prompt, params) for prompt, params in cases.items()}
    drafter = tiny.OracleDrafter(known, (0.3, 0.8, 1.0)[seed], seed)
    with closing(tiny.make_engine(model, drafter, num_slots=3, prefill_chunk=rng.choice([5, 16, 100]))) as engine:
        for _ in range(2):
            streams = {}
            for prompt, params in cases.items():
                streams[prompt] = engine.submit(prompt, params)
                if rng.random() < 0.3:
                    next(streams[prompt], None)
                if rng.random() < 0.2:
                    streams.pop(prompt).close()
            for prompt, stream in streams.items():
                rest = tiny.token_ids(tiny.read(stream)[0])
                assert rest == known[prompt][len(known[prompt]) - len(rest) :]
            # Whoever was cancelled, or interrupted, begins again in what is left of it.
            for prompt, params in cases.items():
                assert read_all([engine.submit(prompt, params)]) == [known[prompt]]


@pytest.mark.parametrize("name", MAIN)
def test_what_a_slot_holds_is_reused_where_its_states_allow(name):
    model, rng = make_hybrid(name, positions=512), random.Random(1)
    plain = tiny.References(model)
    params = SamplingParams(max_new_tokens=12, temperature=0.0, ignore_eos=True)
    prompt = tuple(rng.randrange(256) for _ in range(TAIL + 30))

    def ask(engine, prompt):
        tokens, finish = tiny.read(engine.submit(prompt, params))
        text = tiny.token_ids(tokens)
        assert text == plain(prompt, params)
        return text, finish.cached_tokens

    with closing(tiny.make_engine(model, LookupTreeDrafter(5), num_slots=1, max_length=512)) as engine:
        answer, reused = ask(engine, prompt)
        assert reused == 0
        # The same again goes on from the end of the prompt.
        assert ask(engine, prompt) == (answer, len(prompt) - 1)
        # A chat goes on: all that was written is there, but for its last token.
        longer = (*prompt, *answer, *range(40, 60))
        answer, reused = ask(engine, longer)
        assert reused == len(prompt) + 11
        # The template has changed what ended the prompt.
        changed = (*longer[:-7], 1, 2, 3)
        assert ask(engine, changed)[1] == len(longer) - 7
        # Too little is the same: no state stands there.
        assert ask(engine, (*prompt[:20], 5, 6, 7))[1] == 0


@pytest.mark.parametrize("name", MAIN)
def test_a_step_that_fails_is_run_again(name):
    model = make_hybrid(name)
    plain, prompts = tiny.References(model), prompts_for(name, 3)
    params = SamplingParams(max_new_tokens=24, temperature=0.0, ignore_eos=True)
    known = {prompt: plain(prompt, params) for prompt in prompts}
    calls: list[None] = []

    def fail_now_and_then(_, args):
        # Rows that run by themselves do not.
        if len(args[0]) > 1:
            calls.append(None)
            if len(calls) % 3 == 0:
                raise RuntimeError("out of memory")

    engine = tiny.make_engine(model, tiny.OracleDrafter(known, 0.4), num_slots=3)
    # In the midst of the model: layers before it have run, and those after it have not.
    hook = model.model.layers[2].register_forward_pre_hook(fail_now_and_then)
    with closing(engine):
        texts = read_all([engine.submit(prompt, params) for prompt in prompts])
    hook.remove()
    assert texts == list(known.values())
    assert len(calls) > 6


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_is_rounded_alike_by_single_tokens_and_by_several(name):
    model, rng = make_hybrid(name, torch.bfloat16), random.Random(name)
    text = [rng.randrange(256) for _ in range(40)]
    logits = {}
    for width in (1, 8):
        runner = make_runner(tiny.loaded(model), num_slots=1, max_length=64, max_width=8)
        runner.prefill(RowBatch([0], [0], [text[:16]]))
        steps = [RowBatch([0], [at], [text[at : at + width]]) for at in range(16, 40, width)]
        logits[width] = torch.cat([runner.verify(step).logits[0, :width].double() for step in steps])
    # With a form for single tokens in bfloat16, beside one for several in float32, it is 0.014 to 0.11.
    assert float((logits[1] - logits[8]).norm()) < 0.009 * float(logits[1].norm())


@needs_states
@pytest.mark.parametrize("name", ["qwen3_5_text", "jamba"])
def test_a_model_of_ones_own_weights_and_in_int8(name, tmp_path):
    model = make_hybrid(name, torch.float32)
    model.set_attn_implementation("eager")
    model.save_pretrained(tmp_path)
    prompt = prompts_for("own")[0]
    params = SamplingParams(max_new_tokens=16, temperature=0.0, ignore_eos=True)
    tokenizer = tiny.byte_tokenizer()
    expected = tiny.References(make_hybrid(name, torch.float32))(prompt, params)
    texts = {}
    for quantization in (None, "int8"):
        for drafter in ("none", "auto"):
            options: Any = {"quantization": quantization, "drafter": drafter, "max_length": 128}
            with closing(LocalBackend(str(tmp_path), tokenizer=tokenizer, **options)) as backend:
                texts[quantization, drafter] = read_all([backend.engine.submit(prompt, params)])[0]
    assert texts[None, "none"] == texts[None, "auto"] == expected
    assert texts["int8", "none"] == texts["int8", "auto"]


@needs_states
def test_copies_and_what_is_saved_of_a_model_that_runs_here_are_of_its_own_classes(tmp_path):
    model = make_hybrid("qwen3_5_text")
    kind, ids = type(model.model.layers[0].linear_attn), torch.tensor([prompts_for("copies")[0]])
    params = SamplingParams(max_new_tokens=4, temperature=0.0, ignore_eos=True)
    with closing(tiny.make_engine(model, Drafter())) as engine:
        read_all([engine.submit(prompts_for("copies")[1], params)])
    assert isinstance(model.model.layers[0].linear_attn, kind)
    torch.save(model, tmp_path / "model.pt")
    for copied in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert type(copied.model.layers[0].linear_attn) is kind
        with torch.inference_mode():
            expected = copied(input_ids=ids).logits
            copied.model.layers[0].linear_attn.out_proj.weight.mul_(2.0)
            assert not torch.equal(copied(input_ids=ids).logits, expected)
            assert torch.equal(model(input_ids=ids).logits, expected)


@needs_states
def test_a_model_goes_with_its_last_reference():
    model = make_hybrid("qwen3_5_text")
    with closing(tiny.make_engine(model, Drafter())):
        pass
    gone = weakref.ref(model.model.layers[0].linear_attn)
    gc.disable()
    try:
        del model
        assert tiny.wait_until(lambda: gone() is None, 5)
    finally:
        gc.enable()


@needs_states
def test_what_hybrid_models_cannot_do_is_told():
    model = make_hybrid("qwen3_5_text", torch.float32)
    target = load_model(tiny.tiny_model(vocab_size=tiny.VOCAB), tiny.byte_tokenizer())
    draft = load_model(model, tiny.byte_tokenizer())
    with pytest.raises(UnsupportedModelError, match="keeps a recurrent state, and a draft model has to go back"):
        common_vocabulary(target, draft)
    assert common_vocabulary(draft, target) is None
    with pytest.raises(InvalidParameterError, match=r"cannot be captured: it runs on a CPU"):
        make_runner(draft, num_slots=1, max_length=64, max_width=2, compile="reduce-overhead")


@needs_states
@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("qwen3_5_text", {"layer_types": ["linear_attention"] * 4}),
        ("lfm2", {"layer_types": ["conv"] * 4}),
        ("bamba", {"attn_layer_indices": []}),
        ("nemotron_h", {"layers_block_type": ["linear_attention", "moe"] * 2}),
    ],
)
def test_hybrids_without_attention_are_refused(name, layers):
    with pytest.raises(UnsupportedModelError, match="none of its layers is attention, and the engine runs hybrids tha"):
        load_model(make_hybrid(name, **layers), tiny.byte_tokenizer())


@needs_states
def test_layers_that_would_begin_anew_are_found(monkeypatch):
    for dtype in (torch.float32, torch.float64):
        make_runner(tiny.loaded(make_hybrid("jamba", dtype)), num_slots=2, max_length=64, max_width=4)
    monkeypatch.setattr(stateful_layers, "_STEPWISE", ())
    with pytest.raises(UnsupportedModelError, match="'jamba': it does not go on from its recurrent states where it"):
        make_runner(tiny.loaded(make_hybrid("jamba")), num_slots=2, max_length=64, max_width=4)


@needs_states
def test_drafts_of_another_model_for_a_hybrid():
    model = make_hybrid("qwen3_5_text")
    prompts = prompts_for("draft")
    params = SamplingParams(max_new_tokens=12, temperature=0.7, seed=3, ignore_eos=True)
    drafter = tiny.make_draft_drafter(tiny.tiny_model(dtype=torch.float64))
    plain = tiny.References(model)
    with closing(tiny.make_engine(model, drafter)) as engine:
        texts = read_all([engine.submit(prompt, params) for prompt in prompts])
    assert texts == [plain(prompt, params) for prompt in prompts]


@needs_states
def test_drafts_longer_than_what_is_kept_of_a_prompt():
    model = make_hybrid("qwen3_5_text", positions=512)
    prompt, length = prompts_for("long")[0], TAIL + 40
    params = SamplingParams(max_new_tokens=2 * length, temperature=0.0, ignore_eos=True)
    known = {prompt: tiny.References(model)(prompt, params)}
    for agreement in (0.9, 0.99):
        drafter = tiny.OracleDrafter(known, agreement)
        options: Any = {"max_length": 400, "max_draft_tokens": length, "draft_length": length}
        with closing(tiny.make_engine(model, drafter, **options)) as engine:
            assert read_all([engine.submit(prompt, params)]) == list(known.values())


@needs_states
def test_measured_costs_and_memory():
    model = make_hybrid("qwen3_5_text")
    prompt = prompts_for("measured")[0]
    params = SamplingParams(max_new_tokens=40, temperature=0.0, ignore_eos=True)
    engine = tiny.make_engine(model, PromptLookupDrafter(3), step_cost=None)
    # Keys and values of one layer in four, `[2, 2, 8]` in float64.
    assert engine.runner.bytes_per_token == 2 * 2 * 8 * 8
    with closing(engine):
        for _ in range(2):
            assert read_all([engine.submit(prompt, params)]) == [tiny.References(model)(prompt, params)]
        cache = engine.runner.cache
        # One slot of four is used.
        assert isinstance(cache, SlotCache)
        assert cache.states is not None
        assert 0 < cache.states.num_bytes <= engine.runner.work_bytes // 4
