"""SpeculativeLLM: its texts, its parameters, and what it reports with them."""

from __future__ import annotations

import json
import math
import random
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from langchain_core.load import dumps, loads
from langchain_core.messages import HumanMessage
from langchain_core.outputs import Generation, GenerationChunk
from pydantic import ValidationError

from langchain_specdec import ChatSpeculative, SpeculativeLLM
from langchain_specdec.backends.local_options import OPTIONS, checked_options
from langchain_specdec.errors import EngineClosedError, InvalidParameterError, PromptTooLongError
from langchain_specdec.parameter_names import ALIASES
from langchain_specdec.sampling.params import SamplingParams
from tests.support.backends import (
    PROMPTS,
    Counter,
    EchoBackend,
    ScriptedBackend,
    engine_of,
    is_idle,
    lasting,
    make_backend,
    make_drafting_backend,
)
from tests.support.tiny_models import EOS, byte_tokenizer, tiny_model

END = {"logit_bias": {EOS: 100.0}}
SAMPLED = {"temperature": 1.0, "seed": 5}


@pytest.fixture(scope="module")
def plain():
    with lasting(make_backend(drafter="none")) as backend:
        yield SpeculativeLLM(backend=backend, max_new_tokens=16)


@pytest.fixture(scope="module")
def backend():
    with lasting(make_drafting_backend()) as backend:
        yield backend


@pytest.fixture
def llm(backend):
    return SpeculativeLLM(backend=backend, max_new_tokens=16)


def info_of(llm, prompt, **kwargs):
    return llm.generate([prompt], **kwargs).generations[0][0].generation_info


async def aread(llm, prompt, **kwargs):
    return "".join([piece async for piece in llm.astream(prompt, **kwargs)])


def stop_in(text):
    """A character from within a text."""
    return next(char for char in text[2:] if char != "\ufffd")


# The text


@pytest.mark.slow
@pytest.mark.transformers
@pytest.mark.parametrize("kwargs", [{}, SAMPLED, {"repetition_penalty": 1.5, **SAMPLED}], ids=str)
async def test_every_way_to_ask_gives_the_text_of_plain_decoding(llm, plain, kwargs):
    prompts = PROMPTS[:5]
    expected = [plain.invoke(prompt, **kwargs) for prompt in prompts]
    assert len(set(expected)) == 5
    assert [llm.invoke(prompt, **kwargs) for prompt in prompts] == expected
    assert [await llm.ainvoke(prompt, **kwargs) for prompt in prompts] == expected
    assert ["".join(llm.stream(prompt, **kwargs)) for prompt in prompts] == expected
    assert [await aread(llm, prompt, **kwargs) for prompt in prompts] == expected
    assert llm.batch(prompts, **kwargs) == expected
    assert await llm.abatch(prompts, **kwargs) == expected
    assert [g[0].text for g in llm.generate(prompts, **kwargs).generations] == expected
    assert [g[0].text for g in (await llm.agenerate(prompts, **kwargs)).generations] == expected
    assert [text for _, text in sorted(llm.batch_as_completed(prompts, **kwargs))] == expected


async def test_counts_agree_however_asked(llm):
    def counts(info):
        return {k: v for k, v in info.items() if k in ("finish_reason", "prompt_tokens", "completion_tokens")}

    expected = {"finish_reason": "length", "prompt_tokens": 17, "completion_tokens": 16}
    assert counts(info_of(llm, PROMPTS[0])) == expected
    assert counts((await llm.agenerate(PROMPTS[:1])).generations[0][0].generation_info) == expected
    assert counts(list(llm._stream(PROMPTS[0]))[-1].generation_info) == expected
    assert counts([c async for c in llm._astream(PROMPTS[0])][-1].generation_info) == expected


def test_drafts_are_accepted_and_steps_saved(llm):
    speculation = info_of(llm, "hello")["speculation"]
    assert speculation["num_steps"] == 4  # 16 tokens, 5 at a time
    assert speculation["accepted_tokens"] == speculation["drafted_tokens"] == 12
    assert speculation["acceptance_rate"] == 1.0
    assert speculation["tokens_per_step"] == 4.0
    assert speculation["decode_seconds"] > 0


def test_a_batch_may_have_more_prompts_than_slots(llm, plain):
    prompts = [f"prompt {i}" for i in range(11)]
    assert llm.batch(prompts) == [plain.invoke(p) for p in prompts]
    assert llm.batch(prompts, {"max_concurrency": 3}) == llm.batch(prompts)
    assert llm.batch([]) == []
    assert llm.generate([]).generations == []


def test_max_concurrency_limits_how_many_run_at_once(backend, llm):
    seen = []

    class Watching(SpeculativeLLM):
        def _generate(self, prompts, stop=None, run_manager=None, **kwargs):
            seen.append(len(prompts))
            return super()._generate(prompts, stop, run_manager, **kwargs)

    Watching(backend=backend, max_new_tokens=4).batch(PROMPTS, {"max_concurrency": 3})
    assert seen == [3, 3, 2]


@pytest.mark.parametrize("limit", [0, -1, 1.5, "2", True])
@pytest.mark.parametrize("options", [{}, {"return_exceptions": True}])
async def test_a_concurrency_that_runs_nothing_is_refused(llm, limit, options):
    with pytest.raises(InvalidParameterError, match=r"max_concurrency must be a whole number from 1"):
        llm.batch(["a", "b"], {"max_concurrency": limit}, **options)
    with pytest.raises(InvalidParameterError, match=r"max_concurrency must be a whole number from 1"):
        await llm.abatch(["a", "b"], [{}, {"max_concurrency": limit}], **options)
    assert llm.batch([], {"max_concurrency": 1}) == await llm.abatch([], {}) == []


async def test_with_return_exceptions_each_prompt_has_its_own_outcome(llm):
    prompts = ["hello", "x" * 300, "abc", "\ud800"]
    for outcomes in (
        llm.batch(prompts, return_exceptions=True),
        llm.batch(prompts, {"max_concurrency": 1}, return_exceptions=True),
        await llm.abatch(prompts, return_exceptions=True),
        await llm.abatch(prompts, {"max_concurrency": 2}, return_exceptions=True),
    ):
        assert [outcomes[0], outcomes[2]] == llm.batch(["hello", "abc"])
        assert isinstance(outcomes[1], PromptTooLongError)
        assert isinstance(outcomes[3], InvalidParameterError)
    assert llm.batch([], return_exceptions=True) == []


def test_with_return_exceptions_prompts_still_share_batches(llm, backend):
    llm.batch(PROMPTS[:4], max_new_tokens=40)
    before = backend.engine.num_target_forwards
    llm.batch(PROMPTS[:4], max_new_tokens=40)
    together = backend.engine.num_target_forwards - before
    llm.batch(PROMPTS[:4], max_new_tokens=40, return_exceptions=True)
    assert backend.engine.num_target_forwards - before - together < 3 * together


async def test_without_return_exceptions_a_bad_prompt_raises_before_any_work(llm, backend):
    llm.invoke("x")
    before = backend.engine.num_target_forwards, backend.engine.num_prefill_tokens
    with pytest.raises(PromptTooLongError, match="300 tokens"):
        llm.batch(["hello there", "x" * 300])
    with pytest.raises(PromptTooLongError):
        await llm.abatch(["hello there", "x" * 300])
    with pytest.raises(PromptTooLongError):
        next(llm.stream("x" * 300))
    with pytest.raises(InvalidParameterError, match="258"):
        llm.invoke("hello there", logit_bias={258: 1.0})
    assert is_idle(backend)
    assert (backend.engine.num_target_forwards, backend.engine.num_prefill_tokens) == before


# Parameters


def test_parameters_can_be_given_per_call_bound_or_configured(llm, plain):
    expected = plain.invoke("hello", temperature=1.0, seed=5, max_new_tokens=7)
    assert expected != plain.invoke("hello", max_new_tokens=7)
    kwargs: dict[str, Any] = {"temperature": 1.0, "seed": 5, "max_new_tokens": 7}
    assert llm.bind(**kwargs).invoke("hello") == expected
    assert "".join(llm.bind(**kwargs).stream("hello")) == expected
    assert llm.bind(**kwargs).batch(["hello"]) == [expected]
    assert SpeculativeLLM(backend=llm.backend, **kwargs).invoke("hello") == expected
    assert llm.model_copy(update=kwargs).invoke("hello") == expected
    llm.temperature, llm.seed, llm.max_new_tokens = 1.0, 5, 7
    assert llm.invoke("hello") == expected


# What each model takes, as a field or in a call, beside the sampling parameters.
FIELDS = {SpeculativeLLM: ["streaming"], ChatSpeculative: ["streaming", "timeout", "max_retries", "api_key"]}
IN_CALLS = {
    SpeculativeLLM: [],
    ChatSpeculative: [
        "timeout",
        "tools",
        "tool_choice",
        "response_format",
        "_keep_malformed",
        "max_reasoning_tokens",
        "continue_final_message",
    ],
}
SET = {"max_new_tokens": 6, "temperature": 1.3, "seed": 9, "top_k": 4, "presence_penalty": 1.5, "ignore_eos": True}


@pytest.mark.parametrize("kind", [SpeculativeLLM, ChatSpeculative])
@pytest.mark.parametrize("given", [{}, SET], ids=["plain", "set"])
async def test_none_is_as_if_not_given(kind, given):
    """The default in place of a field, and what the model has in place of a parameter of a call."""
    backend = EchoBackend() if kind is SpeculativeLLM else ScriptedBackend("x")
    names = [*SamplingParams.__dataclass_fields__, *ALIASES]
    fields = dict.fromkeys([*names, *FIELDS[kind]])
    assert kind(backend=backend, **fields).model_dump() == kind(backend=backend).model_dump()
    emptied = kind(backend=backend).model_copy(update=dict.fromkeys(SamplingParams.__dataclass_fields__))
    emptied.invoke("x", max_new_tokens=4)
    assert backend.requests.pop().params == SamplingParams(max_new_tokens=4)

    model = kind(backend=backend, **given)
    model.invoke("x")
    expected = backend.requests[-1].params
    assert expected == SamplingParams(**given)
    nothing = dict.fromkeys([*names, *IN_CALLS[kind]])
    for asked in (model, model.bind(**nothing), model.bind(temperature=None)):
        asked.invoke("x", **nothing)
        list(asked.stream("x", **nothing))
        await asked.ainvoke("x", **nothing)
        asked.batch(["x"], **nothing)
    assert [request.params for request in backend.requests] == [expected] * 13
    assert model._get_ls_params(temperature=None, max_tokens=None) == model._get_ls_params()
    # One of two names may stand for nothing.
    model.invoke("x", max_tokens=None, max_new_tokens=3)
    assert backend.requests[-1].params.max_new_tokens == 3


def test_names_that_the_package_gives_itself_are_told_to_nobody():
    model = ChatSpeculative(backend=ScriptedBackend("x"))
    for name in ("top_q", "keep_malforme", "whole_schema"):
        with pytest.raises(InvalidParameterError, match="Known are: ") as refused:
            model.bind(**{name: 1}).invoke("x")
        known = str(refused.value).partition(". ")[2]
        assert not {"keep_malformed", "whole_schema"} & set(re.findall(r"[a-z]\w+", known))
        assert "max_reasoning_tokens" in known


def test_an_unknown_name_is_refused_with_none_too(llm):
    with pytest.raises(InvalidParameterError, match="Unknown parameter 'top_q'"):
        llm.invoke("x", top_q=None)


def test_none_is_the_default_of_every_option_of_a_backend():
    assert checked_options(dict.fromkeys(OPTIONS)) == checked_options({})
    options: dict[str, Any] = dict.fromkeys(OPTIONS.keys() - {"draft_model"})
    llm = SpeculativeLLM.from_model_id(tiny_model(), **options, tokenizer=byte_tokenizer())
    llm.close()
    server = SpeculativeLLM.from_tgi("http://127.0.0.1:9", read_timeout=None, max_retries=None, client=None)
    server.close()
    # Raised before anything is started, and not for what is None.
    options = {"port": None, "num_shard": None, "max_retries": None, "restart": None, "quantize": "no such way"}
    with pytest.raises(InvalidParameterError, match=r"started so: quantize: [^;]*$"):
        SpeculativeLLM.launch_tgi("some/model", **options)


def test_names_of_other_packages_are_understood(backend, llm):
    stop = stop_in(llm.invoke("hello"))
    expected = llm.invoke("hello", max_new_tokens=9, stop=[stop])
    assert llm.invoke("hello", max_tokens=9, stop_sequences=[stop]) == expected
    assert "".join(llm.stream("hello", max_tokens=9, stop_sequences=stop)) == expected
    assert llm.batch(["hello"], max_tokens=9, stop_sequences=[stop]) == [expected]
    other = SpeculativeLLM(backend=backend, max_tokens=9, stop_sequences=[stop])
    assert (other.max_new_tokens, other.stop, other.invoke("hello")) == (9, [stop], expected)
    for make in (SpeculativeLLM, SpeculativeLLM.from_model_id):
        args: dict[str, Any] = {"max_tokens": 9, "max_new_tokens": 9}
        args |= {"backend": backend} if make is SpeculativeLLM else {"model_id": "no/such-model"}
        with pytest.raises(InvalidParameterError, match="max_tokens and max_new_tokens are one parameter"):
            make(**args)


def test_stops_of_instance_and_call_both_apply(backend, llm):
    text = llm.invoke("hello")
    early, late = stop_in(text), stop_in(text[6:])
    before = text[: text.index(early)]
    assert llm.invoke("hello", stop=[early]) == before
    assert llm.invoke("hello", stop=early) == before
    for own, given in ((early, late), (late, early), ([early, late], None), (None, [late, early])):
        stopping = SpeculativeLLM(backend=backend, max_new_tokens=16, stop=own)
        assert stopping.invoke("hello", stop=given) == before
        assert "".join(stopping.stream("hello", stop=given)) == before
        assert stopping.batch(["hello", "abc"], stop=given)[0] == before
    stopping.stop = early  # assigned as a string it is one string, not a list of characters
    assert stopping.invoke("hello") == before
    assert info_of(stopping, "hello")["finish_reason"] == "stop_sequence"


@pytest.mark.parametrize("stop", [[""], [5], 5, [["a"]]], ids=str)
def test_what_cannot_be_a_stop_raises(backend, llm, stop):
    for act in (
        lambda: llm.invoke("x", stop=stop),
        lambda: next(llm.stream("x", stop=stop)),
        lambda: SpeculativeLLM(backend=backend, stop=stop),
    ):
        with pytest.raises(InvalidParameterError, match="stop must be"):
            act()


async def test_an_unknown_parameter_raises_with_the_known_ones(backend, llm):
    for act in (
        lambda: SpeculativeLLM(backend=backend, temprature=1),  # type: ignore[call-arg]
        lambda: SpeculativeLLM.from_model_id("no/such-model", temprature=1),  # type: ignore[call-arg]
        lambda: llm.invoke("x", temprature=1),
        lambda: llm.batch(["x", "y"], temprature=1),
        lambda: next(llm.stream("x", temprature=1)),
        lambda: llm.bind(temprature=1).invoke("x"),
        lambda: next(llm.bind(temprature=1).stream("x")),
    ):
        with pytest.raises(
            InvalidParameterError, match=r"'temprature'. Did you mean 'temperature'\? Known are: .*\bseed\b"
        ):
            act()
    with pytest.raises(ValidationError, match="'temprature'"):
        SpeculativeLLM.model_validate({"backend": backend, "temprature": 1})
    for act in (
        lambda: llm.ainvoke("x", temprature=1),
        lambda: llm.abatch(["x"], temprature=1),
        lambda: aread(llm, "x", temprature=1),
    ):
        with pytest.raises(InvalidParameterError, match="'temprature'"):
            await act()


@pytest.mark.parametrize("name, value", [("temperature", -1), ("seed", 1.5), ("top_p", 0)])
def test_a_value_out_of_range_raises(backend, llm, name, value):
    for act in (
        lambda: SpeculativeLLM(backend=backend, **{name: value}),
        lambda: SpeculativeLLM.from_model_id("no/such-model", **{name: value}),
        lambda: llm.invoke("x", **{name: value}),
        lambda: next(llm.stream("x", **{name: value})),
    ):
        with pytest.raises(InvalidParameterError, match=f"{name} must be"):
            act()


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"backend": EchoBackend()}, "model and backend were both given"),
        ({"model": "gpt2"}, "model_id and model are one parameter"),
        ({"draft_model": "gpt2", "draft_model_id": "gpt2"}, "draft_model_id and draft_model are one parameter"),
        ({"drafter": "guess"}, "drafter must be one of"),
        ({"max_draft_tokens": 0}, "max_draft_tokens"),
        ({"drafter": "draft_model"}, "give draft_model"),
    ],
    # Not the values: an object's address would make each run's test ids different.
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_from_model_id_checks_before_it_loads(kwargs, message):
    with pytest.raises(InvalidParameterError, match=message):
        SpeculativeLLM.from_model_id("no/such-model", **kwargs)


def test_from_model_id_checks_other_fields_before_it_loads():
    with pytest.raises(ValidationError, match="streaming"):
        SpeculativeLLM.from_model_id("no/such-model", streaming="please")  # type: ignore[arg-type]


@pytest.mark.transformers
def test_from_model_id_takes_a_loaded_model():
    with SpeculativeLLM.from_model_id(
        tiny_model(), tokenizer=byte_tokenizer(), drafter="none", max_length=64, max_tokens=5, tags=["t"]
    ) as llm:
        assert engine_of(llm).runner.max_length == 64
        assert llm.tags == ["t"]
        assert info_of(llm, "hello")["completion_tokens"] == 5


# What it reports


def test_finish_reasons(llm):
    text = llm.invoke("hello")
    assert info_of(llm, "hello")["finish_reason"] == "length"
    stopped = info_of(llm, "hello", stop=[stop_in(text)])
    assert stopped["finish_reason"] == "stop_sequence"
    assert 0 < stopped["completion_tokens"] < 16
    ended = llm.generate(["hello"], **END).generations[0][0]
    assert (ended.text, ended.generation_info["finish_reason"]) == ("", "eos_token")
    assert ended.generation_info["completion_tokens"] == 1
    assert info_of(llm, "hello", ignore_eos=True, **END)["finish_reason"] == "length"


async def test_a_text_of_nothing_is_still_an_answer(llm):
    assert llm.invoke("hello", **END) == ""
    assert list(llm.stream("hello", **END)) == [""]
    assert [piece async for piece in llm.astream("hello", **END)] == [""]
    assert llm.model_copy(update={"streaming": True}).invoke("hello", **END) == ""


def test_only_the_last_chunk_carries_generation_info_so_chunks_can_be_merged(llm):
    chunks = list(llm._stream("hello", logprobs=1))
    assert len(chunks) > 2
    assert all(chunk.generation_info is None for chunk in chunks[:-1])
    merged = chunks[0]
    for chunk in chunks[1:]:
        merged += chunk
    once = llm.generate(["hello"], logprobs=1).generations[0][0]
    assert merged.text == once.text

    def steady(info):
        # How it was drafted differs: the second time there is an earlier answer to draft from.
        differs = dict.fromkeys(("seed", "cached_tokens", "time_to_first_token"))
        return {**info, "speculation": set(info["speculation"]), **differs}

    assert steady(merged.generation_info) == steady(once.generation_info)


def test_chunks_know_their_tokens_and_which_were_drafted(llm):
    chunks = list(llm._stream("hello"))
    assert all(chunk.text == "".join(token.text for token in chunk.tokens) for chunk in chunks)
    assert any(token.drafted for chunk in chunks for token in chunk.tokens)
    assert "tokens" not in chunks[0].model_dump()


def test_token_usage_sums_the_batch(llm):
    result = llm.generate(["hello", "abc", "x"], max_new_tokens=5)
    assert result.llm_output == {
        "token_usage": {"prompt_tokens": 9, "completion_tokens": 15, "total_tokens": 24},
        "model_name": "LlamaForCausalLM",
    }
    assert llm.model_copy(update={"streaming": True}).generate(["abc"]).llm_output["token_usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 16,
        "total_tokens": 19,
    }


def test_a_seed_is_drawn_apart_from_the_programs_random_numbers(llm):
    seeds = set()
    for _ in range(2):
        random.seed(0)
        state = random.getstate()
        seeds.add(llm.generate(["hello"], temperature=2.0, max_new_tokens=1).generations[0][0].generation_info["seed"])
        assert random.getstate() == state
    assert len(seeds) == 2


def test_the_seed_is_reported_and_gives_the_same_text_again(llm, plain):
    first, second = (llm.generate(["hello"], temperature=2.0).generations[0][0] for _ in range(2))
    assert first.text != second.text
    for generation in (first, second):
        seed = generation.generation_info["seed"]
        assert plain.invoke("hello", temperature=2.0, seed=seed) == generation.text
    assert info_of(llm, "hello", seed=11)["seed"] == 11
    seeds = [g[0].generation_info["seed"] for g in llm.generate(["a", "b"], temperature=1.0).generations]
    assert seeds[0] != seeds[1]


@pytest.mark.transformers
@pytest.mark.parametrize("num_top", [0, 3])
def test_logprobs_are_those_of_an_uncached_forward(llm, num_top):
    generation = llm.generate(["hello"], logprobs=num_top, **SAMPLED).generations[0][0]
    entries = generation.generation_info["logprobs"]
    assert len(entries) == generation.generation_info["completion_tokens"] == 16
    assert "".join(entry["text"] for entry in entries) == generation.text
    prompt = llm.get_token_ids("hello")
    tokens = [*prompt, *(entry["token_id"] for entry in entries)]
    model = tiny_model()
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1)
    for position, entry in enumerate(entries):
        assert math.isclose(entry["logprob"], expected[position, entry["token_id"]].item(), abs_tol=1e-3)
        assert len(entry["top_logprobs"]) == num_top
        top = expected[position].topk(num_top)
        assert [other["token_id"] for other in entry["top_logprobs"]] == top.indices.tolist()
        assert [other["logprob"] for other in entry["top_logprobs"]] == pytest.approx(top.values.tolist(), abs=1e-3)


@pytest.mark.filterwarnings("ignore")  # `loads` is beta
def test_results_can_be_stored(llm):
    generation = llm.generate(["hello"], logprobs=2).generations[0][0]
    assert type(generation) is Generation
    back = loads(dumps(generation))
    assert back.text == generation.text
    assert back.generation_info and generation.generation_info
    assert back.generation_info["speculation"] == generation.generation_info["speculation"]
    # As a cache in a database keeps it.
    assert json.loads(json.dumps(generation.generation_info)) == generation.generation_info == back.generation_info
    for chunk in llm._stream("hello"):
        back = loads(dumps(chunk))
        assert type(back) is GenerationChunk
        assert (back.text, back.generation_info) == (chunk.text, chunk.generation_info)


# Callbacks


@pytest.mark.parametrize("kwargs", [{}, SAMPLED, END], ids=["greedy", "sampled", "empty"])
def test_a_stream_tells_callbacks_each_chunk_once(llm, kwargs):
    counter = Counter()
    pieces = list(llm.stream("hello", {"callbacks": [counter]}, **kwargs))
    assert counter.tokens == pieces
    assert [chunk.text for chunk in counter.chunks] == pieces
    assert (counter.starts, len(counter.ends), counter.errors) == (["hello"], 1, [])
    final = counter.ends[0].generations[0][0]
    assert final.text == "".join(pieces) == llm.invoke("hello", **kwargs)
    assert final.generation_info["completion_tokens"] == (1 if kwargs is END else 16)


def test_streaming_invoke_tells_callbacks_each_chunk_once(llm):
    expected = llm.invoke("hello")
    streaming = llm.model_copy(update={"streaming": True})
    counter = Counter()
    assert streaming.invoke("hello", {"callbacks": [counter]}) == expected
    assert "".join(counter.tokens) == expected
    assert len(counter.tokens) == len(counter.chunks) > 2
    assert None not in counter.chunks
    assert (len(counter.starts), len(counter.ends), counter.errors) == (1, 1, [])
    result = counter.ends[0]
    assert result.llm_output["token_usage"]["completion_tokens"] == 16
    assert result.generations[0][0].generation_info["finish_reason"] == "length"
    counter = Counter()
    assert llm.invoke("hello", {"callbacks": [counter]}) == expected
    assert counter.tokens == []


def test_a_batch_starts_and_ends_once_per_prompt(llm):
    counter = Counter()
    llm.batch(PROMPTS[:3], {"callbacks": [counter]})
    assert counter.starts == PROMPTS[:3]
    assert len(counter.ends) == 3
    counter = Counter()
    llm.batch(["abc", "x" * 300], {"callbacks": [counter]}, return_exceptions=True)
    assert sorted(counter.starts) == ["abc", "x" * 300]
    assert (len(counter.ends), len(counter.errors)) == (1, 1)


def test_a_failure_is_told_once(llm):
    for act in (
        lambda config: llm.invoke("x" * 300, config),
        lambda config: next(llm.stream("x" * 300, config)),
        lambda config: llm.model_copy(update={"streaming": True}).invoke("x" * 300, config),
    ):
        counter = Counter()
        with pytest.raises(PromptTooLongError):
            act({"callbacks": [counter]})
        assert (len(counter.starts), len(counter.ends), len(counter.errors)) == (1, 0, 1)


def test_a_callback_that_raises_stops_the_work(llm, backend):
    class Failing(Counter):
        raise_error = True

        def on_llm_new_token(self, token, **kwargs):
            raise RuntimeError("no more")

    streaming = llm.model_copy(update={"streaming": True, "max_new_tokens": 200})
    with pytest.raises(RuntimeError, match="no more"):
        streaming.invoke("hello", {"callbacks": [Failing()]})
    assert is_idle(backend)


# Tokens, traces, copies, the end


@pytest.mark.transformers
def test_tokens_are_counted_by_the_models_tokenizer(backend, llm):
    assert llm.get_token_ids("héllo") == list(backend.tokenizer("héllo").input_ids)
    assert llm.get_num_tokens("hello") == 5
    assert llm.get_num_tokens_from_messages([HumanMessage("hello")]) > 5
    own = SpeculativeLLM(backend=backend, custom_get_token_ids=lambda text: [1, 2])
    assert own.get_num_tokens("hello") == 2


def test_traces_tell_model_and_parameters(backend, llm):
    assert llm._get_ls_params() == {
        "ls_provider": "specdec",
        "ls_model_type": "llm",
        "ls_model_name": "LlamaForCausalLM",
        "ls_temperature": 0.0,
        "ls_max_tokens": 16,
    }
    llm.stop = ["a"]
    params = llm._get_ls_params(stop=["b"], temperature=0.5, max_tokens=3, stop_sequences="c")
    assert (params["ls_temperature"], params["ls_max_tokens"], params["ls_stop"]) == (0.5, 3, ["a", "b", "c"])
    if hasattr(llm, "_add_version"):
        assert set(llm.metadata["lc_versions"]) >= {"langchain-core", "langchain-specdec"}


def test_what_only_looks_like_a_backend_is_refused():
    double = SimpleNamespace(**{name: None for name in dir(EchoBackend) if not name.startswith("__")})
    with pytest.raises(InvalidParameterError, match="backend must be a backend such as LocalBackend"):
        SpeculativeLLM(backend=double)  # type: ignore[arg-type]


def test_a_minimal_backend_serves():
    backend = EchoBackend()
    with SpeculativeLLM(backend=backend, max_new_tokens=3) as llm:
        assert llm.invoke("a bb ccc dddd") == "a bb ccc "
        assert list(llm.stream("a bb")) == ["a ", "bb ", ""]
        assert llm.batch(["a", "bb"]) == ["a ", "bb "]
        assert llm.get_num_tokens("a bb") == 2
        assert llm._identifying_params["model"] == "echo"
        assert not backend.is_closed
    assert backend.is_closed
    assert [r.prompt for r in backend.requests] == ["a bb ccc dddd", "a bb", "a", "bb"]


async def test_a_minimal_backend_serves_an_event_loop():
    backend = EchoBackend()
    llm = SpeculativeLLM(backend=backend, stop="x")
    assert await llm.ainvoke("a bb") == "a bb "
    assert [piece async for piece in llm.astream("a bb")] == ["a ", "bb ", ""]
    assert await llm.abatch(["a", "bb"]) == ["a ", "bb "]
    assert backend.requests[0].params.stop == ("x",)


def test_using_a_closed_model_raises():
    with SpeculativeLLM(backend=make_backend(), max_new_tokens=4) as llm:
        llm.invoke("x")
    llm.close()
    for act in (
        lambda: llm.invoke("x"),
        lambda: next(llm.stream("x")),
        lambda: llm.batch(["x", "y"]),
        lambda: llm.__enter__().invoke("x"),
    ):
        with pytest.raises(EngineClosedError):
            act()
    assert llm.get_num_tokens("hello") == 5
