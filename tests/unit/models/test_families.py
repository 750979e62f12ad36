"""Model families on the engine's cache: their logits and their text against their own uncached forward."""

import copy
import dataclasses
import random
import re
from contextlib import closing
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.drafters.base import Drafter
from langchain_specdec.drafters.draft_model import DraftModelDrafter
from langchain_specdec.drafters.lookup_tree import LookupTreeDrafter
from langchain_specdec.drafters.prompt_lookup import PromptLookupDrafter
from langchain_specdec.engine.engine import Engine
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.errors import InvalidParameterError, UnsupportedModelError
from langchain_specdec.models import module_runner
from langchain_specdec.models.loader import load_model
from langchain_specdec.models.make_runner import make_runner
from langchain_specdec.runner.attention import ATTENTION_NAME, slot_attention
from langchain_specdec.runner.model_config import max_positions
from langchain_specdec.runner.model_runner import ModelRunner
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.sampling.params import SamplingParams
from tests.support import family_table
from tests.support import image_models as images
from tests.support import tiny_models as tiny
from tests.support.family_list import MODEL_FAMILIES
from tests.support.hybrid_models import HYBRIDS
from tests.support.model_families import (
    CASES,
    CHAINS,
    FAMILIES,
    FAMILY_OF,
    MAX_WIDTH,
    POSITIONS,
    REFUSED,
    SIZES,
    TEXT_CASES,
    WINDOW,
    WITHOUT_SDPA,
    load,
    make_config,
    make_model,
    params,
    reference_logits,
    reference_text,
)

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("records"), pytest.mark.slow]


def assert_close(logits, expected):
    scale = float(expected.abs().max())
    assert float((logits - expected).abs().max()) < 1e-4 * scale


class Slots:
    """Random texts in the slots of a runner, and the logits that the model itself gives for them."""

    def __init__(self, name, device, runner):
        self.name, self.device, self.runner = name, device, runner
        self.rng = random.Random(name)
        self.texts = {}

    def random_tokens(self, number):
        return [self.rng.randrange(256) for _ in range(number)]

    def prefill(self, lengths):
        """Fill slots with new texts, in ragged chunks."""
        texts = {slot: self.random_tokens(length) for slot, length in lengths.items()}
        done = dict.fromkeys(texts, 0)
        while rows := [slot for slot in texts if done[slot] < len(texts[slot])]:
            chunks = [texts[slot][done[slot] :][: self.rng.randint(1, 8)] for slot in rows]
            self.runner.prefill(RowBatch(rows, [done[slot] for slot in rows], chunks))
            for slot, chunk in zip(rows, chunks, strict=True):
                done[slot] += len(chunk)
        self.texts |= texts

    def verify(self, slots, width):
        """Run rows of up to `width` tokens, compare, and forget the end of every row."""
        sizes = [self.rng.randint(1, width) for _ in slots]
        sizes[self.rng.randrange(len(slots))] = width
        tokens = [self.random_tokens(size) for size in sizes]
        logits = self.runner.verify(RowBatch(slots, [len(self.texts[slot]) for slot in slots], tokens)).logits
        for row, slot in enumerate(slots):
            whole = self.texts[slot] + tokens[row]
            expected = reference_logits(self.name, self.device, whole)[-sizes[row] :]
            assert_close(logits[row, : sizes[row]], expected)
            room = POSITIONS - MAX_WIDTH - len(self.texts[slot])
            self.texts[slot] += tokens[row][: min(self.rng.randint(0, sizes[row]), room)]

    def verify_trees(self, slots, parents):
        """Run a tree in every row and compare each node with the text that leads to it."""
        tokens = [self.random_tokens(len(row)) for row in parents]
        logits = self.runner.verify(RowBatch(slots, [len(self.texts[slot]) for slot in slots], tokens, parents)).logits
        for row, slot in enumerate(slots):
            for node in range(len(parents[row])):
                path: list[int] = []
                at = node
                while at >= 0:
                    path.insert(0, tokens[row][at])
                    at = parents[row][at]
                expected = reference_logits(self.name, self.device, self.texts[slot] + path)[-1]
                assert_close(logits[row, node], expected)


def check_logits(target, name, device):
    """Ragged rows after chunked prefill and rollbacks, neighbouring slots and others, chains and trees."""
    runner = make_runner(target, num_slots=5, max_length=POSITIONS, max_width=MAX_WIDTH)
    slots = Slots(name, device, runner)
    slots.prefill({4: 19, 1: 30, 3: 11})
    for width in range(1, MAX_WIDTH + 1):
        slots.verify([1, 3, 4], width)
    slots.prefill({2: 9, 4: 3})
    for width in (MAX_WIDTH, 3, 1):
        slots.verify([1, 2, 3], width)
        slots.verify(slots.rng.sample([1, 2, 3, 4], 2), width)
        slots.verify([slots.rng.choice([1, 2, 3, 4])], width)
    branching = [-1, 0, 0, 1, 2, 4]
    slots.verify_trees([3], [branching])
    slots.verify_trees([1, 4], [branching, [-1, 0, 1, 1]])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "attention"), CASES)
def test_logits_equal_the_uncached_forward(name, attention, device):
    target = load(name, device, attention)
    check_logits(target, name, device)
    if attention is None:
        # The engine may lay out the weights anew of a model that nobody else uses.
        check_logits(dataclasses.replace(target, is_owned=True), name, device)


@pytest.mark.parametrize("name", ["gpt2", "llama-dynamic-rope", "phi3-long-rope"])
def test_padding_past_the_last_position_changes_nothing(name):
    target = load(name, "cpu")
    runner = make_runner(target, num_slots=3, max_length=POSITIONS, max_width=MAX_WIDTH)
    slots = Slots(name, "cpu", runner)
    slots.prefill({0: POSITIONS - 1, 2: 20})
    long, short = slots.random_tokens(1), slots.random_tokens(MAX_WIDTH)
    logits = runner.verify(RowBatch([0, 2], [POSITIONS - 1, 20], [long, short])).logits
    assert_close(logits[0, 0], reference_logits(name, "cpu", slots.texts[0] + long)[-1])
    assert_close(logits[1], reference_logits(name, "cpu", slots.texts[2] + short)[-MAX_WIDTH:])


def test_trees_deeper_than_the_window_see_what_their_paths_see():
    target = load("mistral", "cpu")
    runner = make_runner(target, num_slots=2, max_length=POSITIONS, max_width=24)
    slots = Slots("mistral", "cpu", runner)
    slots.prefill({0: 12, 1: 3})
    two_chains = [-1, *(max(node - 2, 0) for node in range(1, 24))]
    slots.verify_trees([0, 1], [two_chains, two_chains[:20]])


def test_attention_that_another_owner_of_the_model_changes_in_between():
    target = load("mistral", "cpu")
    runner = make_runner(target, num_slots=2, max_length=POSITIONS, max_width=MAX_WIDTH)
    slots = Slots("mistral", "cpu", runner)
    slots.prefill({0: 12, 1: 3})
    for attention in ("eager", "sdpa", ATTENTION_NAME):
        load_model(target.model, target.tokenizer, attn_implementation=attention)
        slots.verify([0, 1], 3)


@pytest.mark.parametrize("name", params([*FAMILIES, *CHAINS]))
def test_slots_have_the_positions_that_a_model_was_made_for(name):
    assert max_positions(make_config(name).get_text_config()) == POSITIONS


def test_positions_end_where_rotary_frequencies_would_change():
    target = load("phi3-long-rope", "cpu")
    assert target.max_positions == POSITIONS
    assert make_runner(target, num_slots=1, max_length=None, max_width=2).max_length == POSITIONS
    with pytest.raises(InvalidParameterError, match=f"made for {POSITIONS} positions at most"):
        make_runner(target, num_slots=1, max_length=POSITIONS + 1, max_width=2)


NUM_TOKENS = 16
PROMPT_LENGTHS = (POSITIONS - NUM_TOKENS, 33, 9)


def make_drafter(kind, target, device, name):
    if kind == "lookup":
        return PromptLookupDrafter(3)
    if kind == "tree":
        return LookupTreeDrafter(3)
    if kind == "itself":
        draft = load(name, device)
        runner = make_runner(draft, num_slots=3, max_length=POSITIONS, max_width=MAX_WIDTH)
        return DraftModelDrafter(runner, target.model.config.get_text_config().vocab_size, 16)
    return Drafter()


def prompts_for(name):
    rng = random.Random(name)
    words = [[rng.randrange(256) for _ in range(4)] for _ in range(3)]
    long = [token for _ in range(20) for token in rng.choice(words)]
    return [tuple(long[:length]) for length in PROMPT_LENGTHS]


def decode(engine, prompts, num_tokens, temperature=0.0):
    params = SamplingParams(max_new_tokens=num_tokens, temperature=temperature, seed=7, ignore_eos=True)
    streams = [engine.submit(prompt, params) for prompt in prompts]
    return [[token.id for token in tiny.read(stream)[0]] for stream in streams]


@pytest.mark.parametrize("name", params([*FAMILIES, *CHAINS]))
def test_what_slots_take_is_known(name):
    runner = make_runner(load(name, "cpu"), num_slots=2, max_length=POSITIONS, max_width=MAX_WIDTH)
    runner.prefill(RowBatch([0], [0], [[1, 2, 3]]))
    known = 2 * (POSITIONS + MAX_WIDTH) * runner.bytes_per_token
    # Layers that share keys have none of their own, and other versions of DeepSeek keep what keys are made of.
    if name.startswith(("gemma3n", "gemma4", "deepseek")):
        assert runner.cache.num_bytes <= known
    else:
        assert runner.cache.num_bytes == known


@pytest.mark.parametrize("name", params(["gpt2", "llama", *CHAINS]))
def test_a_short_row_at_the_end_of_its_slot_beside_a_long_one(name):
    """The padding of the short one lies past the last position, where MPT has no distances."""
    runner = make_runner(load(name, "cpu"), num_slots=2, max_length=POSITIONS, max_width=MAX_WIDTH)
    slots = Slots(name, "cpu", runner)
    slots.prefill({0: POSITIONS - 2, 1: 20})
    rows = [slots.random_tokens(2), slots.random_tokens(MAX_WIDTH)]
    logits = runner.verify(RowBatch([0, 1], [POSITIONS - 2, 20], rows)).logits
    for slot, tokens in enumerate(rows):
        expected = reference_logits(name, "cpu", slots.texts[slot] + tokens)[-len(tokens) :]
        assert_close(logits[slot, : len(tokens)], expected)


@pytest.mark.one_version
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "attention"), TEXT_CASES)
def test_text_equals_plain_decoding_up_to_the_last_position(name, attention, device):
    prompts = prompts_for(name)
    expected = [reference_text(name, device, prompt, NUM_TOKENS) for prompt in prompts]
    assert len({tuple(text) for text in expected}) == 3
    assert sum(len(set(text)) for text in expected) >= 10
    target = load(name, device, attention)
    for kind in ("lookup", "itself"):
        runner = make_runner(target, num_slots=3, max_length=POSITIONS, max_width=MAX_WIDTH)
        engine = Engine(
            runner,
            make_drafter(kind, target, device, name),
            target.tokenizer,
            target.eos_token_ids,
            max_draft_tokens=MAX_WIDTH - 1,
            prefill_chunk=16,
            step_cost=StepCost.flat(),
        )
        try:
            assert decode(engine, prompts, NUM_TOKENS) == expected, kind
        finally:
            engine.close()


@pytest.mark.one_version
@pytest.mark.parametrize("name", params([*FAMILIES, *CHAINS]))
def test_text_equals_plain_decoding_with_drafts_that_may_branch(name, monkeypatch):
    batches, verify = [], ModelRunner.verify

    def watched(self, batch):
        batches.append(batch)
        return verify(self, batch)

    monkeypatch.setattr(ModelRunner, "verify", watched)
    prompts = prompts_for(name)
    target = load(name, "cpu")

    def start(kind):
        return Engine(
            make_runner(target, num_slots=3, max_length=POSITIONS, max_width=MAX_WIDTH),
            make_drafter(kind, target, "cpu", name),
            target.tokenizer,
            target.eos_token_ids,
            max_draft_tokens=MAX_WIDTH - 1,
            max_tree_nodes=MAX_WIDTH - 1,
            step_cost=StepCost.flat(),
        )

    expected = [reference_text(name, "cpu", prompt, NUM_TOKENS) for prompt in prompts]
    with closing(start("none")) as plain:
        assert decode(plain, prompts, NUM_TOKENS) == expected
        sampled = decode(plain, prompts, NUM_TOKENS, temperature=1.0)
    batches.clear()
    with closing(start("tree")) as engine:
        # The second time what followed is known, and so is what else might have; the prompts are in the slots already.
        for _ in range(2):
            assert decode(engine, prompts, NUM_TOKENS) == expected
            assert decode(engine, prompts, NUM_TOKENS, temperature=1.0) == sampled
        longest, _ = max(zip(prompts, expected, strict=True), key=lambda pair: len(pair[0]))
        alone = engine.submit(longest, SamplingParams(max_new_tokens=1))
        assert tiny.read(alone)[1].cached_tokens == len(longest) - 1
    assert any(not batch.is_chain for batch in batches) == (name not in CHAINS)


@pytest.mark.parametrize("name", params(["mpt"]))
def test_that_drafts_do_not_branch_is_told(name, caplog):
    tokenizer = tiny.byte_tokenizer()
    with closing(LocalBackend(make_model(name), tokenizer, max_length=POSITIONS)):
        assert "MptForCausalLM takes a token's place in memory for its position" in caplog.text
    caplog.clear()
    with closing(LocalBackend(make_model(name), tokenizer, max_length=POSITIONS, max_tree_nodes=0)):
        assert caplog.text == ""


class PlaceForPosition(LlamaForCausalLM):
    """Takes a token's place in its slot for its position, whatever it is told."""

    def forward(self, input_ids, position_ids=None, **kwargs):
        if position_ids is not None:
            position_ids = position_ids[:, :1] + torch.arange(position_ids.shape[1])
        return super().forward(input_ids=input_ids, position_ids=position_ids, **kwargs)


@pytest.mark.parametrize("width", [3, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_that_are_right_for_chains_only_are_found(dtype, width):
    for model_class in (PlaceForPosition, LlamaForCausalLM):
        torch.manual_seed(0)
        config = OddConfig(**SIZES)
        config.initializer_range = 0.2
        model = model_class(config).eval().to(dtype)
        target = load_model(model, tiny.byte_tokenizer())
        runner = make_runner(target, num_slots=3, max_length=POSITIONS, max_width=width)
        assert runner.takes_trees == (model_class is LlamaForCausalLM)


def generate(model):
    """Greedy text by transformers itself, for two prompts of different lengths."""
    long, short = (list(prompt) for prompt in prompts_for("generate")[1:])
    padding = len(long) - len(short)
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([long, [0] * padding + short], device=device)
    mask = torch.tensor([[1] * len(long), [0] * padding + [1] * len(short)], device=device)
    return model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None
    ).tolist()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", params(FAMILIES))
def test_the_users_own_generate_goes_on_as_before(name, device):
    model = make_model(name, device)
    before = generate(model)
    target = load_model(model, tiny.byte_tokenizer())
    assert target.model is model
    engine = tiny.make_engine(model, PromptLookupDrafter(3), max_length=POSITIONS)
    try:
        prompts = prompts_for(name)
        assert decode(engine, prompts, 4) == [reference_text(name, device, prompt, 4) for prompt in prompts]
        assert generate(model) == before
    finally:
        engine.close()


@pytest.mark.parametrize("device", DEVICES)
def test_image_encoders_go_on_as_before(device):
    model = make_model("gemma3-with-images", device)
    images = torch.rand(1, 3, 8, 8, device=device)
    with torch.inference_mode():
        before = model.model.vision_tower(images).last_hidden_state
        load_model(model, tiny.byte_tokenizer())
        assert_close(model.model.vision_tower(images).last_hidden_state, before)


@pytest.mark.parametrize(("softcap", "sinks"), [(None, None), (20.0, None), (None, [0.5, -1.0])])
def test_attention_without_a_mask_is_causal_unless_told_otherwise(softcap, sinks):
    query, key, value = torch.randn(3, 1, 2, 4, 8).unbind(0)
    causal = torch.ones(4, 4, dtype=torch.bool).tril()[None, None]

    def attend(module, mask, **kwargs):
        s_aux = None if sinks is None else torch.tensor(sinks)
        return slot_attention(module, query, key, value, mask, softcap=softcap, s_aux=s_aux, **kwargs)[0]

    text, image = SimpleNamespace(), SimpleNamespace(is_causal=False)
    torch.testing.assert_close(attend(text, None), attend(text, causal))
    torch.testing.assert_close(attend(text, None, is_causal=False), attend(text, torch.ones_like(causal)))
    torch.testing.assert_close(attend(image, None), attend(text, torch.ones_like(causal)))
    torch.testing.assert_close(attend(image, None, is_causal=True), attend(text, causal))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sinks_take_their_share_of_each_head(dtype):
    query, sinks = torch.randn(2, 4, 3, 8, dtype=dtype), torch.randn(4, dtype=dtype)
    key, value = torch.randn(2, 2, 2, 5, 8, dtype=dtype).unbind(0)
    mask = torch.ones(1, 1, 3, 5, dtype=torch.bool).tril(2)
    found = slot_attention(torch.nn.Identity(), query, key, value, mask, s_aux=sinks)[0]
    # Heads 0 and 1 have the first key's, and so on.
    scores = (query @ key.repeat_interleave(2, 1).transpose(2, 3) / 8**0.5).masked_fill(~mask, -torch.inf).exp()
    weights = scores / (scores.sum(-1, keepdim=True) + sinks.exp()[:, None, None])
    expected = (weights @ value.repeat_interleave(2, 1)).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    # As masks for a GPU are, for queries that share keys.
    on_gpu = slot_attention(torch.nn.Identity(), query, key, value, mask.repeat(1, 1, 2, 1), s_aux=sinks)[0]
    torch.testing.assert_close(on_gpu, expected)


def test_which_attention_a_family_gets():
    assert load("llama", "cpu").model.config._attn_implementation == ATTENTION_NAME
    assert load("gpt2", "cpu").model.config._attn_implementation == ATTENTION_NAME
    # Only GPT-2's own attention knows these in every version of transformers.
    assert load("gpt2-layer-scaling", "cpu").model.config._attn_implementation == "eager"
    images = load("gemma3-with-images", "cpu").model.config
    assert images.text_config._attn_implementation == ATTENTION_NAME


@pytest.mark.parametrize("name", params(WITHOUT_SDPA))
def test_attention_that_lacks_what_the_model_needs_is_refused(name):
    model = make_model(name)
    with pytest.raises(InvalidParameterError, match=r"attn_implementation of a .* must be one of 'eager' or None"):
        load_model(model, tiny.byte_tokenizer(), attn_implementation="sdpa")
    assert model.config._attn_implementation == "eager"


def test_attention_that_cannot_be_changed_any_more_is_refused():
    class Fixed(LlamaForCausalLM):
        @classmethod
        def _can_set_attn_implementation(cls):
            return False

    model = Fixed(LlamaConfig(**{**SIZES, "attn_implementation": "eager"}))
    with pytest.raises(UnsupportedModelError, match="'eager' that it was loaded with"):
        load_model(model, tiny.byte_tokenizer(), attn_implementation="sdpa")
    assert load_model(model, tiny.byte_tokenizer(), attn_implementation="eager").model is model


# What is not among the tested families is compared with its own forward when it is loaded.


@pytest.mark.parametrize("name", params([*FAMILIES, *CHAINS]))
def test_only_what_is_not_tested_is_compared_when_loaded(name, monkeypatch):
    compared = []
    monkeypatch.setattr(module_runner, "check_cached_forward", lambda runner, name: compared.append(name))
    make_runner(load(name, "cpu"), num_slots=2, max_length=POSITIONS, max_width=2)
    assert len(compared) == (name in CHAINS)


def test_code_that_comes_with_a_checkpoint_is_compared_when_loaded(monkeypatch):
    compared = []
    monkeypatch.setattr(module_runner, "check_cached_forward", lambda runner, name: compared.append(name))
    brought = type("Brought", (LlamaForCausalLM,), {"__module__": "transformers_modules.owner.name.modeling_llama"})
    target = dataclasses.replace(load("llama", "cpu"), model=brought(LlamaConfig(**SIZES)).eval())
    make_runner(target, num_slots=2, max_length=POSITIONS, max_width=2)
    assert len(compared) == 1


def test_the_families_that_are_not_compared_are_those_of_the_list():
    assert {FAMILY_OF[name].model_type for name in FAMILIES} == module_runner.TESTED_FAMILIES


def test_the_table_in_the_documentation_is_that_of_the_list():
    page = family_table.PAGE.read_text(encoding="utf-8")
    assert page == family_table.written(page), "run: python -m tests.support.family_table"
    assert page.count("\n| ") == len(MODEL_FAMILIES) + len(HYBRIDS) + 2 + len(images.FAMILIES) + 2


@pytest.mark.parametrize("name", params(REFUSED))
def test_what_cannot_run_is_refused_with_its_reason(name):
    with pytest.raises(UnsupportedModelError, match=re.escape(FAMILY_OF[name].refused)) as refused:
        load(name, "cpu")
    assert str(refused.value).count(". ") == 1, "the reason, and what to do"


class OddConfig(LlamaConfig):
    model_type = "odd"


class Forgetful(LlamaForCausalLM):
    """Ignores the cache."""

    config_class = OddConfig

    def forward(self, input_ids, position_ids=None, **kwargs):
        return super().forward(input_ids=input_ids, use_cache=False)


class Reckless(LlamaForCausalLM):
    """Takes every row to end where the longest one does."""

    config_class = OddConfig

    def forward(self, input_ids, attention_mask=None, **kwargs):
        if attention_mask is not None:
            length, width = attention_mask.shape[-1], attention_mask.shape[-2]
            rows = torch.arange(length - width, length)[:, None]
            attention_mask = attention_mask.masked_fill(torch.arange(length) <= rows - 20, -torch.inf)
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)


class Failing(LlamaForCausalLM):
    config_class = OddConfig

    def forward(self, input_ids, **kwargs):
        if kwargs.get("past_key_values") is not None or kwargs.get("cache") is not None:
            raise KeyError("no caches here")
        return super().forward(input_ids=input_ids, **kwargs)


@pytest.mark.parametrize(
    ("model_class", "message"),
    [
        (Forgetful, "computes other logits on the engine's cache"),
        (Reckless, "computes other logits on the engine's cache"),
        (Failing, r"cannot run Failing: its forward fails on the engine's cache.*\(KeyError: 'no caches here'\)"),
    ],
)
def test_models_that_do_not_work_with_the_cache_are_refused(model_class, message):
    torch.manual_seed(0)
    model = model_class(OddConfig(**SIZES)).eval()
    target = load_model(model, tiny.byte_tokenizer())
    with pytest.raises(UnsupportedModelError, match=message):
        make_runner(target, num_slots=3, max_length=POSITIONS, max_width=MAX_WIDTH)
    if model_class is Reckless:
        # Rows of their own it can run.
        make_runner(target, num_slots=1, max_length=POSITIONS, max_width=MAX_WIDTH)


def test_windows_that_only_reach_back_from_the_longest_row_are_refused():
    config = AutoConfig.for_model(
        "gpt_neo",
        vocab_size=tiny.VOCAB,
        bos_token_id=257,
        eos_token_id=tiny.EOS,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=WINDOW,
        max_position_embeddings=POSITIONS,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0 if parameter.ndim > 1 else 1.0)
    target = load_model(model, tiny.byte_tokenizer())
    with pytest.raises(UnsupportedModelError, match="computes other logits"):
        make_runner(target, num_slots=2, max_length=POSITIONS, max_width=2)
    make_runner(target, num_slots=1, max_length=POSITIONS, max_width=2)


def test_the_comparison_leaves_nothing_behind():
    target = load("olmo2", "cpu")
    reference = copy.deepcopy(target.model)
    runner = make_runner(target, num_slots=2, max_length=POSITIONS, max_width=2)
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        expected = reference(input_ids=ids, use_cache=False).logits[0]
    assert_close(runner.verify(RowBatch([1], [0], [[1, 2, 3]])).logits[0], expected)
