"""One model in this process, behind OpenAI's interface and behind TGI's: the same tokens, ends, counts and scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_specdec import Grammar, LocalBackend, OpenAIBackend, SamplingParams, TGIBackend
from langchain_specdec.backends.base import Backend
from langchain_specdec.completions.completion import Completion, CompletionRequest
from langchain_specdec.completions.thoughts import Thoughts
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.call_grammar import CallGrammar
from langchain_specdec.grammar.call_parts import InOrder, Json, Maybe, Raw, Repeated, Text
from langchain_specdec.server.run import Server
from langchain_specdec.server.settings import ServerSettings
from tests.support.tiny_models import EOS, byte_tokenizer, tiny_model

pytestmark = pytest.mark.server

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"]}
FORMS = [
    Grammar(schema=SCHEMA),
    Grammar(schema={"enum": ["rød", "blå"]}),
    Grammar(regex="(ab|cd){2,9}e?"),
]
CALLS = CallGrammar(
    call=InOrder((Text("f("), Json(SCHEMA), Maybe(Text("!")), Repeated(Text("?"), 0, 2), Raw(")", ")", ("[a-c]*",)))),
    begin="<",
    separator=";",
    end=">",
    object={"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]},
)
THOUGHTS = Thoughts(("<t>",), "</t>", is_open=True, is_single=True, max_tokens=6, closing="\n</t>", following="\n")
TEXTS = st.text(st.sampled_from("aé€ \n😀Zx"), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def local() -> Iterator[LocalBackend]:
    backend = LocalBackend(tiny_model(), byte_tokenizer(), num_slots=2, max_length=200)
    # Its thread runs from here on.
    backend.complete([CompletionRequest("a", SamplingParams(max_new_tokens=1))])
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def url(local: LocalBackend) -> Iterator[str]:
    with Server(ServerSettings(port=0)).start(local) as server:
        yield server.url


@pytest.fixture(scope="module", params=[True, False], ids=["tokenizer", ""])
def openai(url: str, request: pytest.FixtureRequest) -> Iterator[OpenAIBackend]:
    backend = OpenAIBackend(url, tokenizer=byte_tokenizer() if request.param else None, max_retries=0)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def tgi(url: str) -> Iterator[TGIBackend]:
    backend = TGIBackend(url, tokenizer=byte_tokenizer(), max_retries=0)
    yield backend
    backend.close()


def told(completion: Completion) -> dict[str, Any]:
    """What a caller can see, and what a server can tell."""
    finish = completion.finish
    return {
        "text": completion.text,
        "ids": [token.id for token in completion.tokens],
        "end": (finish.finish_reason, finish.prompt_tokens, finish.completion_tokens, finish.grammar_error),
    }


def scores(completion: Completion) -> list[Any]:
    """Log probabilities, to as many digits as a step of another width rounds alike."""
    return [
        (
            None if token.logprob is None else pytest.approx(token.logprob, abs=1e-4),
            {other: pytest.approx(logprob, abs=1e-4) for other, logprob in (token.top_logprobs or {}).items()},
        )
        for token in completion.tokens
    ]


def assert_same(local: LocalBackend, other: Backend, *requests: CompletionRequest) -> None:
    """The same from both, alone and together."""
    asked = [replace(r, params=replace(r.params, seed=r.params.seed or 0)) for r in requests]
    expected, found = local.complete(asked), other.complete(asked)
    assert [told(completion) for completion in found] == [told(completion) for completion in expected]
    for one, completion in zip(expected, found, strict=True):
        seen = [(token.logprob, dict(token.top_logprobs or {})) for token in completion.tokens]
        assert seen == scores(one)


@st.composite
def parameters(draw: st.DrawFn, *, for_tgi: bool = False) -> SamplingParams:
    """Sampling parameters of any kind; TGI's interface has fewer."""
    chosen: dict[str, Any] = {
        "max_new_tokens": draw(st.integers(1, 24)),
        "temperature": draw(st.sampled_from([0.0, 0.3, 1.0, 2.5])),
        "top_k": draw(st.none() | st.integers(1, 40)),
        "top_p": draw(st.none() | st.sampled_from([0.25, 0.5, 0.875, 1.0])),
        "seed": draw(st.integers(0, 2**64 - 1)),
        "repetition_penalty": draw(st.none() | st.sampled_from([1.0, 1.25, 0.5])),
    }
    if not for_tgi:
        chosen |= {
            "min_p": draw(st.none() | st.sampled_from([0.0, 0.125, 0.5])),
            "presence_penalty": draw(st.sampled_from([0.0, 0.75, -0.5])),
            "frequency_penalty": draw(st.sampled_from([0.0, 0.5])),
            "logit_bias": draw(st.none() | st.dictionaries(st.integers(0, EOS), st.sampled_from([-100.0, 2.5, 9.0]))),
            "logprobs": draw(st.none() | st.integers(0, 4)),
            "ignore_eos": draw(st.booleans()),
        }
    return SamplingParams(**chosen, stop=draw(st.lists(st.text("aé <\x00q", min_size=1, max_size=2), max_size=2)))


REQUESTS = st.builds(
    CompletionRequest, TEXTS | TEXTS.map(lambda text: list(text.encode())), parameters(),
    continues_prompt=st.booleans(),
    shown_specials=st.just({}) | st.just({EOS: "<eos>"}),
    banned=st.lists(st.integers(0, 400), max_size=3, unique=True),
)  # fmt: skip


class TestOverOpenAIsInterface:
    @settings(max_examples=60)
    @given(requests=st.lists(REQUESTS, min_size=1, max_size=3))
    def test_any_requests_are_the_same(self, local, openai, requests):
        if openai.tokenizer is None:
            # Whose text goes on from the prompt is known by the server alone.
            requests = [replace(request, continues_prompt=True) for request in requests]
        assert_same(local, openai, *requests)

    @pytest.mark.parametrize("form", [*FORMS, CALLS], ids=lambda form: form.identity[1][:12])
    @settings(max_examples=10)
    @given(params=parameters())
    def test_forms_are_the_same(self, local, openai, form, params):
        params = replace(params, grammar=form, stop=(), ignore_eos=False, max_new_tokens=60, logit_bias=None)
        assert_same(local, openai, CompletionRequest([1, 2, 3], params))

    @pytest.mark.parametrize("form", [None, *FORMS, CALLS])
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    @pytest.mark.parametrize("stop", [(), ("e",), ("\n",)])
    def test_thoughts_are_the_same(self, local, openai, form, temperature, stop):
        stop = () if form is not None else stop
        params = SamplingParams(max_new_tokens=80, temperature=temperature, seed=5, grammar=form, stop=stop)
        request = CompletionRequest([1, 2, 3], params, continues_prompt=False, thoughts=THOUGHTS)
        assert_same(local, openai, request)
        (completion,) = openai.complete([request])
        assert "</t>" in completion.text

    def test_an_end_of_ones_own_is_the_same(self, local, openai):
        def make():
            texts = []

            def is_at_end(text):
                texts.append(text)
                return len("".join(texts)) >= 5

            return is_at_end

        for temperature in (0.0, 1.0):
            params = SamplingParams(max_new_tokens=40, temperature=temperature, seed=9, stop=["\x00q"])
            assert_same(local, openai, CompletionRequest("ab", params, make_end_check=make))

    @pytest.mark.parametrize("stop", [(), ("e",)])
    def test_what_speculation_did_is_told(self, local, openai, stop):
        request = CompletionRequest([65, 66] * 8, SamplingParams(max_new_tokens=30, stop=stop, ignore_eos=True))
        if not stop:
            # It may end a text, and does not.
            request = replace(request, make_end_check=lambda: lambda text: False)
        ours, theirs = local.complete([request])[0].finish, openai.complete([request])[0].finish
        assert theirs.speculation.is_reported
        assert theirs.cached_tokens is not None
        assert theirs.speculation.emitted_tokens == ours.speculation.emitted_tokens


class TestOverTGIs:
    @settings(max_examples=40)
    @given(prompt=TEXTS, params=parameters(for_tgi=True))
    def test_any_requests_are_the_same(self, local, tgi, prompt, params):
        assert_same(local, tgi, CompletionRequest(prompt, params))

    @pytest.mark.parametrize("prompt", ["ab", "é€"])
    def test_scores_are_the_same_to_32_bits(self, local, tgi, prompt):
        request = CompletionRequest(prompt, SamplingParams(max_new_tokens=12, logprobs=3))
        (ours,), (theirs,) = local.complete([request]), tgi.complete([request])
        assert [token.id for token in theirs.tokens] == [token.id for token in ours.tokens]
        assert [(token.logprob, token.top_logprobs) for token in theirs.tokens] == scores(ours)

    @pytest.mark.parametrize("form", [FORMS[0], FORMS[2]])
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_forms_are_the_same(self, local, tgi, form, temperature):
        params = SamplingParams(max_new_tokens=60, grammar=form, temperature=temperature, seed=3)
        assert_same(local, tgi, CompletionRequest("ab", params))


def test_an_adapter_that_is_not_there_is_told(openai):
    with pytest.raises(InvalidParameterError, match=r"one of the server's adapters, got 'sailor'\. It has none"):
        openai.complete([CompletionRequest("a", SamplingParams(adapter="sailor"))])
