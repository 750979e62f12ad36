"""LocalBackend: what it refuses, how it names itself and reads prompts, and many callers at once."""

from __future__ import annotations

import asyncio
import copy
import functools
import pickle
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from langchain_specdec import LocalBackend, SamplingParams, SpeculativeLLM
from langchain_specdec.backends.base import Backend
from langchain_specdec.completions.completion import Completion, CompletionRequest
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.errors import InvalidParameterError, PromptTooLongError
from langchain_specdec.grammar.constraint import Constraint, GrammarCompiler
from langchain_specdec.grammar.grammar import Grammar
from tests.support.backends import PROMPTS, lasting, make_backend, make_drafting_backend
from tests.support.tiny_models import EOS, byte_tokenizer, loaded, tiny_model

CALLS: list[tuple[str, dict[str, Any]]] = [
    (f"{prompt} {i}", {"temperature": 1.0, "seed": i} if i % 2 else {}) for i, prompt in enumerate(PROMPTS * 2)
]


@pytest.fixture(scope="module")
def backend():
    with lasting(make_backend(drafter="none", num_slots=8)) as backend:
        yield backend


@pytest.fixture(scope="module")
def drafting():
    with lasting(make_drafting_backend(num_slots=8)) as backend:
        yield backend


def request(prompt, **params):
    return CompletionRequest(prompt, SamplingParams(**{"max_new_tokens": 8, **params}))


# What it takes and refuses


@pytest.mark.transformers
def test_it_is_a_backend(backend):
    assert isinstance(backend, Backend)
    (completion,) = backend.complete([request("hello")])
    assert isinstance(completion, Completion)
    assert (len(completion.tokens), completion.finish.completion_tokens) == (8, 8)
    assert completion.text == "".join(token.text for token in completion.tokens)
    assert "logprobs" not in completion.info()
    assert backend.complete([]) == []


@pytest.mark.transformers
@pytest.mark.parametrize(
    "options, message",
    [
        ({"drafter": "guess"}, "drafter must be one of 'auto', 'prompt_lookup', .*'mtp', 'none', got 'guess'"),
        ({"drafter": "draft_model"}, "needs a draft model"),
        ({"drafter": "none", "draft_model": "x"}, "would never use the draft model"),
        ({"max_draft_tokens": 65}, "max_draft_tokens must be a whole number from 1 to 64, got 65"),
        ({"max_draft_tokens": True}, "max_draft_tokens"),
        ({"draft_length": 11}, "draft_length must be 'auto' or a whole number from 0 to 10, got 11"),
        ({"draft_length": "long"}, "draft_length"),
        ({"prompt_lookup_max_ngram": 0}, "prompt_lookup_max_ngram"),
        ({"num_slots": 0}, "num_slots"),
        ({"max_length": 1}, "max_length"),
        ({"prefill_chunk": 1.5}, "prefill_chunk"),
        ({"device": "cpu", "device_map": "auto"}, "not both"),
        ({"attn_implementation": "magic"}, "attn_implementation"),
    ],
    ids=str,
)
def test_it_refuses_before_it_loads(options, message):
    with pytest.raises(InvalidParameterError, match=message):
        LocalBackend("no/such-model", **options)


@pytest.mark.transformers
def test_it_refuses_what_does_not_fit_together():
    with pytest.raises(InvalidParameterError, match="give tokenizer="):
        LocalBackend(tiny_model())
    with pytest.raises(InvalidParameterError, match="made for 512 positions"):
        make_backend(max_length=513)


def test_a_list_of_requests_is_checked_as_a_whole_before_any_starts(backend):
    before = backend.engine.num_target_forwards
    with pytest.raises(PromptTooLongError):
        backend.complete([request("hello"), request("x" * 300)])
    with pytest.raises(InvalidParameterError, match="must be a string"):
        backend.complete([request("hello"), request(5)])
    with pytest.raises(InvalidParameterError, match="regular expression cannot be followed"):
        backend.complete([request("hello"), request("hello", grammar=Grammar(regex="(unclosed"))])
    assert (backend.engine.num_target_forwards, backend.engine.num_waiting) == (before, 0)


async def test_a_grammar_is_prepared_once_for_each_request(backend, monkeypatch):
    prepared = []
    compile_grammar, shortest = GrammarCompiler.compile, Constraint.shortest

    def counted_compile(self, grammar, max_new_tokens):
        prepared.append(("compile", grammar.regex))
        return compile_grammar(self, grammar, max_new_tokens)

    def counted_shortest(self, limit):
        prepared.append(("shortest", limit))
        return shortest(self, limit)

    monkeypatch.setattr(GrammarCompiler, "compile", counted_compile)
    monkeypatch.setattr(Constraint, "shortest", counted_shortest)
    requests = [request("hello", grammar=Grammar(regex=regex), seed=1) for regex in ("[ab]{3}", "[cd]{3}", "[ab]{3}")]
    expected = [step for r in requests for step in (("compile", r.params.grammar.regex), ("shortest", 8))]
    texts = [completion.text for completion in backend.complete(requests)]
    assert all(re.fullmatch(r.params.grammar.regex, text) for r, text in zip(requests, texts, strict=True))
    assert prepared == expected
    prepared.clear()
    assert [completion.text for completion in await backend.acomplete(requests)] == texts
    assert prepared == expected


# Its name


@pytest.mark.transformers
def test_identity_tells_models_apart(tmp_path):
    model, tokenizer = tiny_model(), byte_tokenizer()
    first = make_backend(0).identity
    assert first == make_backend(0, drafter="none", num_slots=2).identity == make_drafting_backend(0).identity
    assert first != make_backend(1).identity
    assert first != LocalBackend(tiny_model().double(), tokenizer, max_length=64).identity
    other_tokenizer = byte_tokenizer()
    other_tokenizer.add_tokens(["<other>"])
    assert first != LocalBackend(model, other_tokenizer, max_length=64).identity
    model.generation_config.eos_token_id = [EOS, 65]
    assert first != LocalBackend(model, tokenizer, max_length=64).identity


def test_identity_of_a_model_id_follows_the_revision_that_was_read():
    identities = [loaded(tiny_model(seed)).identity("some/model", None, is_own_tokenizer=True) for seed in (0, 0, 1)]
    assert identities[0] == identities[1] != identities[2]


@pytest.mark.transformers
@pytest.mark.parametrize("is_tied", [False, True])
def test_identity_on_the_model_of_another_backend(tmp_path, is_tied):
    def second_identity(factor):
        model = tiny_model(tie_word_embeddings=is_tied)
        # One matrix, as an adapter changes it. Others are packed with it, or beside it.
        name = "model.embed_tokens" if is_tied else "model.layers.1.mlp.up_proj"
        with torch.no_grad():
            model.get_parameter(f"{name}.weight").mul_(factor)
        model.save_pretrained(tmp_path)
        byte_tokenizer().save_pretrained(tmp_path)
        first = LocalBackend(tmp_path, num_slots=1, max_length=64, device="cpu", compile="off")
        second = LocalBackend(first.model, first.tokenizer, num_slots=1, max_length=64, compile="off")
        identity = second.identity
        second.close()
        first.close()
        return identity

    assert second_identity(1) == second_identity(1)
    assert second_identity(1) != second_identity(1.5)


@pytest.mark.transformers
def test_identity_of_a_folder_follows_its_content(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    identities = []
    for seed in (0, 0, 1):
        tiny_model(seed).save_pretrained(tmp_path)
        backend = LocalBackend(tmp_path, max_length=64, device="cpu")
        assert backend.model_name == str(tmp_path)
        identities.append(backend.identity)
    assert identities[0]["model"] == str(tmp_path)
    assert identities[0] == identities[1] != identities[2]
    text = SpeculativeLLM(backend=backend, max_new_tokens=4).invoke("hello")
    with lasting(make_backend(1)) as same:
        assert SpeculativeLLM(backend=same, max_new_tokens=4).invoke("hello") == text
    backend.close()


def test_a_secret_stays_out_of_sight():
    llm = SpeculativeLLM(backend=make_backend(token="hf_do_not_tell"))
    for shown in (repr(llm), str(llm), str(vars(llm.backend)), str(llm.backend.identity), str(llm._serialized)):
        assert "hf_do_not_tell" not in shown


def test_copies_share_the_backend_and_pickles_are_refused(backend):
    llm = SpeculativeLLM(backend=backend, max_new_tokens=4, stop=["zz"])
    for twin in (copy.copy(llm), copy.deepcopy(llm), llm.model_copy(), llm.model_copy(deep=True)):
        assert twin.backend is backend
        assert twin.stop == ["zz"]
        assert twin.invoke("hello") == llm.invoke("hello")
    chain: Any = copy.deepcopy(llm | str.upper)
    assert chain.first.backend is backend
    with pytest.raises(TypeError, match="running model cannot be pickled"):
        pickle.dumps(llm)


@pytest.mark.process
def test_the_package_is_imported_without_torch():
    code = (
        "import sys, langchain_specdec; print(sorted({'torch', 'transformers', 'langchain_core'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)  # noqa: S603
    assert done.stdout.strip() == "[]"


# Prompts


def prompt_ids(backend, text):
    """What the engine is given for a prompt."""
    with mock.patch.object(backend.engine, "submit_all", return_value=[]) as submit:
        backend.start([request(text)])
    return submit.call_args.args[0][0].prompt


@pytest.mark.transformers
def test_prompts_are_read_as_the_tokenizer_reads_them(backend):
    tokenizer = byte_tokenizer()
    for text in ("hello", "Grüße, 東京 \U0001f600", "a\x00b", " \n\t", "<eos>", "é\u0301"):
        assert prompt_ids(backend, text) == backend.token_ids(text) == tokenizer(text).input_ids
    assert prompt_ids(backend, "") == [tokenizer.bos_token_id]
    assert backend.token_ids("") == []


@pytest.mark.transformers
@pytest.mark.parametrize("text", ["\ud800", "a\udcffb"], ids=ascii)
def test_text_that_is_not_unicode_raises(backend, text):
    with pytest.raises(InvalidParameterError, match="not valid Unicode"):
        backend.token_ids(text)
    with pytest.raises(InvalidParameterError, match="not valid Unicode"):
        SpeculativeLLM(backend=backend).invoke(text)


@pytest.mark.transformers
def test_the_token_that_begins_a_text_is_not_doubled():
    tokenizer = byte_tokenizer()
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    backend = LocalBackend(tiny_model(), tokenizer, max_length=64)
    assert tokenizer("<bos>hi").input_ids == [bos, *prompt_ids(backend, "hi")]
    assert prompt_ids(backend, "hi") == prompt_ids(backend, "<bos>hi")
    assert prompt_ids(backend, "hi<bos>")[0] == prompt_ids(backend, "hi<bos>")[-1] == bos
    assert prompt_ids(backend, "<bos><bos>hi") == tokenizer("<bos>hi").input_ids
    # Of a text by itself, nothing is counted that a prompt gets in front.
    assert backend.token_ids("hi") == prompt_ids(backend, "hi")[1:]
    assert SpeculativeLLM(backend=backend).get_num_tokens("") == 0


@pytest.mark.transformers
def test_an_empty_prompt_needs_a_token_that_begins_a_text(backend):
    assert backend.complete([request("")])[0].finish.prompt_tokens == 1
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    bare = LocalBackend(tiny_model(), tokenizer, max_length=64)
    assert bare.token_ids("") == []
    with pytest.raises(InvalidParameterError, match="prompt is empty"):
        bare.complete([request("")])


# Many callers


@pytest.fixture(scope="module")
def one_by_one(backend, drafting):
    """Per backend: the texts of all calls, one after the other, and how many forwards that took."""
    return {False: run_one_by_one(backend), True: run_one_by_one(drafting)}


def run_one_by_one(backend):
    llm = SpeculativeLLM(backend=backend, max_new_tokens=30)
    before = backend.engine.num_target_forwards
    texts = [llm.invoke(prompt, **kwargs) for prompt, kwargs in CALLS]
    assert len(set(texts)) == len(CALLS)
    return texts, backend.engine.num_target_forwards - before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["threads", "tasks", "both", "streams"])
@pytest.mark.parametrize("drafts", [False, True], ids=["plain", "drafting"])
async def test_callers_at_once_share_batches_and_get_their_own_text(backend, drafting, one_by_one, drafts, kind):
    backend = drafting if drafts else backend
    texts, alone = one_by_one[drafts]
    llm = SpeculativeLLM(backend=backend, max_new_tokens=30)
    barrier = threading.Barrier(len(CALLS))

    def in_thread(prompt, kwargs, *, wait=True):
        if wait:
            barrier.wait(30)
        return llm.invoke(prompt, **kwargs)

    async def stream(prompt, kwargs):
        return "".join([piece async for piece in llm.astream(prompt, **kwargs)])

    before = backend.engine.num_target_forwards
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(len(CALLS)) as pool:
        work: list[Any]
        if kind == "threads":
            work = [loop.run_in_executor(pool, in_thread, *call) for call in CALLS]
        elif kind == "tasks":
            work = [llm.ainvoke(prompt, **kwargs) for prompt, kwargs in CALLS]
        elif kind == "streams":
            work = [stream(*call) for call in CALLS]
        else:
            half = [loop.run_in_executor(pool, functools.partial(in_thread, *c, wait=False)) for c in CALLS[::2]]
            work = [w for pair in zip(half, (stream(*call) for call in CALLS[1::2]), strict=True) for w in pair]
        assert await asyncio.gather(*work) == texts
    together = backend.engine.num_target_forwards - before
    assert together < 0.6 * alone  # with 8 slots, 16 calls need not take more than about a quarter


def test_a_batch_shares_forwards(backend):
    llm = SpeculativeLLM(backend=backend, max_new_tokens=30)
    prompts = [prompt for prompt, _ in CALLS[:8]]
    before = backend.engine.num_target_forwards
    texts = llm.batch(prompts)
    assert backend.engine.num_target_forwards - before == 30
    assert texts == [llm.invoke(prompt) for prompt in prompts]


def test_two_backends_do_not_disturb_each_other(backend, drafting):
    with lasting(make_backend(3)) as other:
        llms = [SpeculativeLLM(backend=b, max_new_tokens=20) for b in (backend, drafting, other)]
        expected = [llm.batch(PROMPTS[:4]) for llm in llms]
        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(lambda llm: llm.batch(PROMPTS[:4]), llms)) == expected
    assert expected[0] == expected[1] != expected[2]


@pytest.mark.transformers
def test_measured_costs_give_the_same_text():
    measured = LocalBackend(tiny_model(), byte_tokenizer(), max_length=128)
    given = LocalBackend(tiny_model(), byte_tokenizer(), max_length=128, step_cost=StepCost.flat(), draft_length=3)
    texts = [SpeculativeLLM(backend=b, max_new_tokens=40).batch(["abcabcabc", "aaaaaaa"]) for b in (measured, given)]
    assert texts[0] == texts[1]
    measured.close()
    given.close()


def test_a_model_elsewhere_than_on_the_cpu_gives_text(device):
    model = tiny_model(device=device)
    with lasting(LocalBackend(model, byte_tokenizer(), max_length=64)) as backend:
        assert backend.engine.runner.device.type == torch.device(device).type
        assert len(backend.complete([request("hello")])[0].tokens) == 8
