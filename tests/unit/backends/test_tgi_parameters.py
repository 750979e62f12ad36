"""What is sent to a TGI server: what would end it, hold it up or make noise is refused, or sent as something safe."""

from __future__ import annotations

import contextlib
import json
import re
import urllib.request
from typing import Any

import pytest
from pydantic import BaseModel, FileUrl, HttpUrl, PostgresDsn, TypeAdapter, create_model

from langchain_specdec import Grammar, SamplingParams
from langchain_specdec.backends.remote.prompt_tokenizer import VocabularySize
from langchain_specdec.backends.tgi import grammars
from langchain_specdec.backends.tgi.grammars import MAX_DEPTH, MAX_SIZE, served
from langchain_specdec.backends.tgi.parameters import GenerateParameters, check_honoured
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.errors import GenerationError, InvalidParameterError, SpecDecError
from langchain_specdec.grammar.formats import PATTERNS
from langchain_specdec.grammar.text_check import text_check
from tests.standin.clients import CLIENTS
from tests.standin.models import FakeModel
from tests.standin.raw_server import EVENTS, RawServer, answer, raw
from tests.standin.server import ServerThread
from tests.support.tiny_models import byte_tokenizer

JSON = {"Content-Type": "application/json"}


def params(**given: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 1.0, **given})


def sent(given: SamplingParams, vocabulary: VocabularySize | None = None) -> GenerateParameters:
    check_honoured(given, vocabulary)
    return GenerateParameters.from_params(given, 1, None, vocabulary)


# top_k


@pytest.mark.parametrize("top_k", [257, 49153, 1_000_000, 2**31 - 1, 2**31])
def test_top_k_above_what_any_vocabulary_has_is_refused(top_k: int) -> None:
    with pytest.raises(InvalidParameterError, match=rf"top_k={top_k} .* at most 256.* tokenizer="):
        check_honoured(params(top_k=top_k))


def test_top_k_is_sent_up_to_the_vocabulary_and_means_all_above() -> None:
    vocabulary = VocabularySize(1000, 1010)
    assert [sent(params(top_k=k), vocabulary).top_k for k in (1, 999, 1000, 1010, 2**31)] == [1, 999, 1000, None, None]
    with pytest.raises(InvalidParameterError, match=r"top_k=1001 .* at most 1000"):
        check_honoured(params(top_k=1001), vocabulary)
    assert [sent(params(top_k=k)).top_k for k in (None, 0, 1, 256)] == [None, None, 1, 256]
    # Greedy requests send none.
    assert sent(params(top_k=10**6, temperature=0.0)).top_k is None


# Numbers in 32 and in 16 bits


@pytest.mark.parametrize("name", ["temperature", "repetition_penalty"])
@pytest.mark.parametrize("value", [5e-324, 1e-40, 1e-10, 0.0099])
def test_numbers_too_small_to_divide_by_are_refused(name: str, value: float) -> None:
    with pytest.raises(InvalidParameterError, match=rf"{name} cannot be honoured by a TGI server \(below 0\.01 "):
        check_honoured(params(**{name: value}))
    check_honoured(params(**{name: 0.01}))


@pytest.mark.server
@pytest.mark.transformers
@pytest.mark.parametrize("client", CLIENTS)
def test_top_p_close_to_0_and_to_1_are_taken(client, make_backend) -> None:
    with ServerThread(FakeModel()) as server:
        backend = make_backend(server.url, client=client)
        for top_p in (5e-324, 1e-50, 1 - 1e-9, 1 - 2**-53):
            assert backend.complete([CompletionRequest("Hi", params(top_p=top_p, max_new_tokens=2))])


# What ends a server


@pytest.mark.server
@pytest.mark.transformers
@pytest.mark.parametrize("client", CLIENTS)
def test_no_parameters_of_a_user_end_the_server(client, make_backend) -> None:
    with ServerThread(FakeModel()) as server:
        backends = [make_backend(server.url, client=client, tokenizer=t) for t in (None, byte_tokenizer())]
        for backend in backends:
            for given in (
                {"top_k": 258},
                {"top_k": 10**6},
                {"grammar": Grammar(regex="(" * 100 + "a" + ")" * 100)},
                {"grammar": Grammar(regex="(?:" * 3000 + "a" + ")" * 3000)},
            ):
                with contextlib.suppress(InvalidParameterError):
                    backend.complete([CompletionRequest("Hi", params(**given))])
            assert backend.complete([CompletionRequest("Hi", SamplingParams(max_new_tokens=2))])
        assert not server.standin.is_model_dead


@pytest.mark.server
@pytest.mark.parametrize("deadly", [{"top_k": 258}, {"grammar": {"type": "regex", "value": "(" * 90 + "a" + ")" * 90}}])
def test_the_stand_in_ends_as_tgi_does(deadly: dict[str, Any]) -> None:
    def ask(server: ServerThread, **given: Any) -> str:
        body = json.dumps({"inputs": "Hi", "parameters": {"max_new_tokens": 2, **given}}).encode()
        request = urllib.request.Request(f"{server.url}/generate_stream", body, JSON)  # noqa: S310
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
            return str(response.read().decode())

    with ServerThread(FakeModel()) as server:
        assert "error" not in ask(server, top_k=257)
        assert '"error_type":"generation"' in ask(server, **deadly)
        assert "error trying to connect" in ask(server)


# Grammars


class Leaf(BaseModel):
    """Nothing below."""

    value: int


class Node(BaseModel):
    """Itself below."""

    below: list[Node]


class Left(BaseModel):
    """One of two that hold each other."""

    right: Right | None


class Right(BaseModel):
    """The other."""

    left: dict[str, Left]


def refusal(grammar: Grammar) -> str:
    with pytest.raises(InvalidParameterError) as caught:
        served(grammar)
    return str(caught.value)


def of_type(kind: Any) -> Grammar:
    return Grammar(schema=kind)


def of(*properties: Any, **more: Any) -> Grammar:
    names = [f"p{index}" for index in range(len(properties))]
    schema = {"type": "object", "properties": dict(zip(names, properties, strict=True)), "required": names}
    return Grammar(schema={**schema, **more})


@pytest.mark.parametrize(
    ("grammar", "name"),
    [
        (of_type(Node), "Node"),
        (of_type(Left), "Left"),
        (of_type(Right), "Right"),
        (of_type(create_model("Top", a=(Leaf, ...), b=(Node, ...))), "Node"),
        (of({"$ref": "#"}), "the whole of it"),
        (of({"$ref": "#"}, title="List"), "List"),
        (of({"anyOf": [{"type": "null"}, {"$ref": "#/properties/p0"}]}), "p0"),
        (of({"$ref": "#/$defs/A"}, **{"$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}}), "A"),
        (of({"$ref": "#/definitions/A"}, definitions={"A": {"items": {"$ref": "#/definitions/A"}}}), "A"),
        (of({"$ref": "#/$defs/A"}, **{"$defs": {"A": {"$ref": "#/$defs/A"}}}), "A"),
    ],
)
def test_recursion_is_refused_by_its_name(grammar: Grammar, name: str) -> None:
    assert f"recursive ({name} holds itself)" in refusal(grammar)
    assert "LocalBackend" in refusal(grammar)


def test_references_without_recursion_are_taken() -> None:
    served(of_type(create_model("M", a=(Leaf, ...), b=(list[Leaf], ...), c=(dict[str, Leaf] | None, ...))))
    unused = {"Used": {"type": "null"}, "Loop": {"items": {"$ref": "#/$defs/Loop"}}}
    served(of({"$ref": "#/$defs/Used"}, {"$ref": "#/properties/p0"}, **{"$defs": unused}))
    # Data is no schema.
    served(of({"const": {"$ref": "#"}}, {"enum": [{"$ref": "#"}]}))


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar(regex="(?:" * (MAX_DEPTH + 1) + "a" + ")" * (MAX_DEPTH + 1)),
        Grammar(regex="(a|" * 9000 + "a" + ")" * 9000),
        of({"type": "string", "pattern": "(a" * 90 + ")?" * 90}),
        *(
            Grammar(
                schema={
                    **dict(of({"$ref": "#/$defs/d0"}).schema or {}),
                    "$defs": {f"d{i}": {"properties": {"x": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(depth)}
                    | {f"d{depth}": {"type": "null"}},
                }
            )
            for depth in (60, 2000)
        ),
    ],
)
def test_what_is_nested_too_deep_is_refused(grammar: Grammar) -> None:
    assert f"more than {MAX_DEPTH} may end a TGI server" in refusal(grammar)


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar(regex=".{0,2000}"),
        Grammar(regex="(?:(?:ab{99}){99}){99}"),
        of({"type": "string", "maxLength": 5000}),
        of(*[{"type": "string", "maxLength": 400}] * 5),
        of({"type": "array", "items": {"type": "string", "maxLength": 50}, "maxItems": 50}),
        of({"type": "object"}, {"type": "object"}, {"type": "object"}, {"type": "object"}),
        Grammar(schema={"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(10)}}),
        of_type(create_model("Deep", x=(eval("list[" * 11 + "str" + "]" * 11), ...))),  # noqa: S307
    ],
)
def test_what_takes_the_server_minutes_is_refused(grammar: Grammar) -> None:
    assert f"at most {MAX_SIZE}" in refusal(grammar)


def test_grammars_of_ordinary_size_are_taken() -> None:
    for regex in ("[a-z]{200}", "(left|right) [0-9]{2}", r"\([(]{3}\)", "(a{2}){3}|b{0,4}", "(" * 40 + "a" + ")" * 40):
        served(Grammar(regex=regex))
    served(of(*[{"type": "string", "maxLength": 60}] * 9, {"type": "array", "items": {"type": "number"}}))
    served(of({}, {}, *[{"type": "string"}] * 20))
    served(of({"type": "object"}, {"type": "array"}))
    for name in PATTERNS:
        served(of(*[{"type": "string", "format": name}] * 5))
    served(of(*[{"anyOf": [{"type": "string"}, {"type": "null"}]}] * 40))


@pytest.mark.parametrize(
    ("regex", "words"),
    [
        ("(", "unterminated"),
        ("[a", "unterminated"),
        ("*", "nothing to repeat"),
        ("a{3,1}", "min repeat"),
        ("[z-a]", "bad character range"),
        ("^ab$", r"the anchor \^"),
        (r"a\b", r"the escape \\b"),
        (r"(a)\1", r"the escape \\1"),
        (r"\u0041", r"the escape \\u"),
        ("(?<=a)b", "lookbehind"),
        ("(?<!a)b", "lookbehind"),
        ("(?m)a", r"the flags \(\?m\)"),
        ("(?x:a)", r"the flags \(\?x:"),
        (r"[\u00e9]", r"the escape \\u"),
        (r"(?P<n>a)(?P=n)", r"the group \(\?P="),
        ("a(?#b)", "a comment"),
    ],
)
def test_expressions_that_tgi_does_not_know_are_found_before(regex: str, words: str) -> None:
    with pytest.raises(InvalidParameterError, match=f"The regular expression (is not valid|has).*{words}"):
        check_honoured(params(grammar=Grammar(regex=regex)))
    if regex != "^ab$":
        with pytest.raises(InvalidParameterError, match=f"A pattern of the JSON schema (is not valid|has).*{words}"):
            served(of({"type": "string", "pattern": f"^{regex}$"}))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("regex", "meant"),
    [("[[a]+", r"[\[a]+"), ("[a&&b]", r"[a\&\&b]"), ("[a--b]", r"[a\-\-b]"), ("[]a]", r"[\]a]"), ("a{", r"a\{")],
)
def test_what_libraries_read_in_two_ways_has_to_be_spelled_clearly(regex: str, meant: str) -> None:
    for grammar in (Grammar(regex=regex), of({"type": "string", "pattern": regex})):
        assert "unclear" in refusal(grammar)
    assert served(Grammar(regex=meant))["value"] == meant


@pytest.mark.parametrize("regex", ["a(?=b)", "a{,3}", r"[\b]", r"\101"])
def test_what_only_tgi_reads_is_told_as_not_checked(regex: str) -> None:
    told = refusal(Grammar(regex=regex))
    assert told.startswith("Answers could not be checked here against the regular expression")
    assert "cannot be followed" not in told


def test_each_grammar_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Grammar] = []
    monkeypatch.setattr(grammars, "text_check", looks.append)
    grammar = of({"type": "integer", "minimum": 4711})
    for _ in range(3):
        sent(params(grammar=grammar))
    assert looks == [grammar]


# Schemas in TGI's words


def words(schema: Any) -> Any:
    return served(of(schema))["value"]["properties"]["p0"]


def pattern(regex: str, **more: Any) -> str:
    return str(words({"type": "string", "pattern": regex, **more})["pattern"])


@pytest.mark.parametrize(
    ("regex", "right", "wrong"),
    [
        ("^a|b$", ["a", "b"], ["ax", "xb"]),
        ("^a|b", ["a", "axx", "b"], []),
        ("b$", ["b"], ["bx"]),
        (r"^\d+ \$", ["1 $", "1 $ each"], ["1 ", "1 e"]),
        (r"^\d+\\$", ["1" + "\\" * 2], ["1", "1\\", "1\\$"]),
        ("^[^@]+@[^@]+$", ["a@b", "é@b"], ['a"@b', "a@\n", "a@b\\"]),
        ('^say "[a-z]+"$', ['say \\"hi\\"'], ['say "hi"']),
        ("^.+$", ["aé"], ['a"', "a\\", "\t"]),
        (r"^\S+$", ["aé"], ['"', "a\u3000", "a\xa0"]),
        (r"^\W$", ["-"], ["é", '"', "a"]),
        (r"^[^\w-]$", [".", " "], ["é", "-", '"', "\x1f"]),
        (r"^\s$", [" ", "\\n"], ["\n", "\xa0", "\\"]),
        ("^[ -~]$", ["a", '\\"', "\\\\"], ['"', "\\", "é"]),
        (r"^[\S]\D$", ["aé"], ['"a', "a1"]),
        ("^(?i:ab)$", ["aB"], []),
    ],
)
def test_a_pattern_holds_for_a_string_as_it_is_written(regex: str, right: list[str], wrong: list[str]) -> None:
    written = pattern(regex)
    assert written.startswith("^(?:")
    assert written.endswith("$")
    for text in right:
        assert re.search(written, text)
        assert re.search(regex, json.loads(f'"{text}"'))
    for text in wrong:
        assert not re.search(written, text)


def test_a_pattern_that_no_string_can_hold_is_refused() -> None:
    assert "no string of TGI's JSON can hold" in refusal(of({"type": "string", "pattern": r"^a\x00$"}))
    assert "(?i:...)" in refusal(of({"type": "string", "pattern": "(?i)a"}))


def test_texts_are_asked_for_in_words_that_are_read_alike() -> None:
    for regex, right, wrong in ((r"\W", "-", "é"), (r"\S+", "é", "\u3000"), (r"[^\w]", "-", "é")):
        value = served(Grammar(regex=regex))["value"]
        assert re.fullmatch(value, right, re.ASCII)
        assert not re.fullmatch(value, wrong, re.ASCII)
    assert served(Grammar(regex=r"\\W[a\\S]\d"))["value"] == r"\\W[a\\S]\d"


def test_a_length_never_stands_in_for_a_pattern() -> None:
    for schema in (
        {"type": "string", "pattern": "^a$", "maxLength": 200, "minLength": 1},
        {"type": "string", "format": "date", "maxLength": 20},
        {"type": "string", "format": "uuid", "minLength": 1},
    ):
        assert not words(schema).keys() & {"minLength", "maxLength"}
    assert words({"type": "string", "maxLength": 3})["maxLength"] == 3
    # It counts as what it is.
    assert "too large" in refusal(of({"type": "string", "pattern": "^[a-z]{1500}$", "maxLength": 3}))


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (HttpUrl, ["https://example.org/x?y=1", "http://localhost:80"], ["http:", "https:// x", "ftp://example.org"]),
        (FileUrl, ["file:///tmp/x"], ["file:", "http://example.org"]),
        (PostgresDsn, ["postgresql://u:p@a,b/d"], ["postgresql:", "http://a"]),
    ],
)
def test_addresses_with_some_schemes_are_whole(kind: Any, right: list[str], wrong: list[str]) -> None:
    written = served(of_type(create_model("M", a=(kind, ...))))["value"]["properties"]["a"]
    assert written.keys().isdisjoint({"minLength", "maxLength", "format"})
    for text in right:
        assert re.fullmatch(written["pattern"], text)
        TypeAdapter(kind).validate_python(text)
    for text in wrong:
        assert not re.fullmatch(written["pattern"], text)


@pytest.mark.parametrize("schema", [{}, True, {"description": "anything"}, {"minLength": 2}])
def test_any_value_is_told_by_its_types(schema: Any) -> None:
    kinds = [part["type"] for part in words(schema)["anyOf"]]
    assert kinds == ["string", "number", "boolean", "null", "array", "object"]
    assert words({"type": "array", "items": schema})["items"] == words(schema)
    check = text_check(of(schema))
    for value in ('"ab"', "0", "true", "null", "[1, [2]]", '{"a": {}}'):
        assert check.fit(f'{{"p0": {value}}}').is_whole


def test_types_in_a_list_are_told_one_by_one() -> None:
    found = words({"type": ["string", "null"], "maxLength": 400})
    assert [part["type"] for part in found["anyOf"]] == ["string", "null"]
    assert "too large" in refusal(of({"type": ["string", "null"], "maxLength": 5000}))
    assert words({"type": "object", "additionalProperties": False})["properties"] == {}
    named = {"type": "object", "patternProperties": {"^a": {"type": "null"}}, "additionalProperties": False}
    assert words(named)["additionalProperties"] == {"type": "null"}


@pytest.mark.server
@pytest.mark.transformers
@pytest.mark.parametrize("is_in_stream", [True, False])
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("", "does not say why"),
        ("The vocabulary does not allow us to build a sequence that matches the input", "It says: The vocabulary"),
        ("Flag a is not implemented", "It says: Flag a is not"),
    ],
)
def test_a_grammar_that_the_server_refuses_is_a_wrong_parameter(
    client: str,
    make_backend: Any,
    said: str,
    words: str,
    is_in_stream: bool,
) -> None:
    body = {"error": f"Request failed during generation: Server error: {said}", "error_type": "generation"}
    data = f"data: {json.dumps(body)}\n\n".encode()
    with RawServer({"/": raw(EVENTS + data) if is_in_stream else answer(body, "424 Oh")}) as server:
        backend = make_backend(server.url, client=client, max_retries=0)
        for grammar, what in ((Grammar(regex="a|b"), "regular expression"), (of({"type": "null"}), "JSON schema")):
            with pytest.raises(InvalidParameterError, match=f"refuses the {what} of the request. .*{words}"):
                backend.complete([CompletionRequest("Hi", SamplingParams(grammar=grammar))])
        # It is another's that began together with it.
        with pytest.raises(GenerationError):
            backend.complete([CompletionRequest("Hi", SamplingParams())])


@pytest.mark.server
@pytest.mark.transformers
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("grammar", [None, Grammar(regex="a|b")])
def test_what_the_model_fails_at_is_sent_again_twice_at_most(
    client: str,
    make_backend: Any,
    grammar: Grammar | None,
) -> None:
    body = {"error": "Request failed during generation: Server error: ", "error_type": "generation"}
    with RawServer({"/": answer(body, "424 Oh")}) as server:
        backend = make_backend(server.url, client=client, max_retries=8)
        with pytest.raises(SpecDecError):
            backend.complete([CompletionRequest("Hi", SamplingParams(grammar=grammar))])
        assert len([request for request in server.requests if request.startswith(b"POST / ")]) == 3


@pytest.mark.server
@pytest.mark.transformers
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("said", ["CUDA out of memory", "transport error", "CANCELLED", "index 5 is out of bounds"])
def test_a_model_that_fails_is_no_wrong_grammar(client: str, make_backend: Any, said: str) -> None:
    body = {"error": f"Request failed during generation: Server error: {said}", "error_type": "generation"}
    with RawServer({"/": raw(EVENTS + f"data: {json.dumps(body)}\n\n".encode())}) as server:
        backend = make_backend(server.url, client=client, max_retries=0)
        with pytest.raises(SpecDecError) as caught:
            backend.complete([CompletionRequest("Hi", SamplingParams(grammar=Grammar(regex="ab")))])
        assert not isinstance(caught.value, InvalidParameterError)
