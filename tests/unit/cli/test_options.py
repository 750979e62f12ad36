"""Options of commands: every declared option has its flag or a reason, and errors name what was written."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from langchain_specdec import Grammar, LocalBackend, SamplingParams
from langchain_specdec.backends.local_options import OPTIONS
from langchain_specdec.cli.app import app
from langchain_specdec.cli.options import FLAG_NAMES, FLAGS
from langchain_specdec.cli.reporting import flag_of, reported
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.options import options_of
from tests.support import option_tables
from tests.support.backends import ScriptedBackend
from tests.support.thinking import QWEN3, thinking_tokenizer

PROMPT = "the cat sat on the mat, the cat sat on the"
# What a command line cannot give: objects of Python, and a secret that every user of the machine would read.
NO_FLAGS = {"adapters", "draft_tokenizer", "quantization_config", "progress", "step_cost", "token"}


def specdec(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a command loads and asks for, on a model that says what it is told to."""
    seen: dict[str, Any] = {}

    def load(model: str, **options: Any) -> ScriptedBackend:
        seen.update(options, model=model, backend=ScriptedBackend("One."))
        backend: ScriptedBackend = seen["backend"]
        return backend

    for command in ("generate", "chat"):
        monkeypatch.setattr(f"langchain_specdec.cli.{command}.load_backend", load)
    return seen


def params_of(asked: dict[str, Any]) -> SamplingParams:
    params: SamplingParams = asked["backend"].requests[-1].params
    return params


def test_a_backend_s_signature_names_every_option() -> None:
    keywords = list(inspect.signature(LocalBackend).parameters.values())[2:]
    assert {keyword.name: keyword.default for keyword in keywords} == {n: o.default for n, o in OPTIONS.items()}
    assert all(keyword.kind is inspect.Parameter.KEYWORD_ONLY for keyword in keywords)
    with pytest.raises(InvalidParameterError, match=r"'max_lenght'\. Did you mean 'max_length'"):
        LocalBackend("x", max_lenght=3)  # type: ignore[call-arg]


def test_every_option_has_its_flag() -> None:
    assert OPTIONS.keys() - FLAGS.keys() == NO_FLAGS
    assert options_of(SamplingParams).keys() - FLAGS.keys() == {"logit_bias", "grammar"}, "-o, and --schema or --regex"
    for command in ("generate", "chat"):
        words = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "300"}).stdout.replace(",", " ").split()
        for name in FLAGS.keys() - {"named", "logprobs" if command == "chat" else "stop_in_reasoning"}:
            assert flag_of(name) in words, f"{command} has no {flag_of(name)}"
        assert {"-m", "-s", "-o"} <= set(words)


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_flags_of_the_engine_reach_it(asked: dict[str, Any], command: str) -> None:
    given = {
        "drafter": "prompt_lookup", "draft_length": 3, "max_draft_tokens": 4, "max_tree_nodes": 5, "num_slots": 2,
        "prompt_lookup_max_ngram": 6, "max_length": 700, "prefill_chunk": 8, "dtype": "float32", "device": "cpu",
        "device_map": "auto", "revision": "v1", "draft_revision": "v2", "attn_implementation": "eager",
        "compile": "off", "quantization": "int4",
    }  # fmt: skip
    flags = [word for name, value in given.items() for word in (flag_of(name), value)]
    arguments = [command, *(["x"] if command == "generate" else []), "-m", "some/model"]
    result = specdec(*arguments, *flags, "--no-shared-lookup", "--trust-remote-code")
    assert result.exit_code == 0, result.output
    expected = {**given, "shared_lookup": False, "trust_remote_code": True, "draft_model": None, "model": "some/model"}
    assert {name: asked[name] for name in expected} == expected
    asked.clear()
    assert specdec(*arguments).exit_code == 0
    defaults = {name: option.default for name, option in OPTIONS.items() if name not in NO_FLAGS}
    assert {name: asked[name] for name in defaults} == {**defaults, "num_slots": 1}


def test_the_draft_model_has_bits_of_its_own(asked: dict[str, Any]) -> None:
    result = specdec("generate", "x", "-m", "m", "--draft-model", "some/draft", "--draft-quantization", "int8")
    assert result.exit_code == 0, result.output
    assert (asked["quantization"], asked["draft_quantization"]) == (None, "int8")


def test_any_sampling_parameter_can_be_named(asked: dict[str, Any]) -> None:
    named = {"logit_bias": '{"5": 2}', "stop": "END", "max_tokens": 7, "ignore_eos": "true", "temperature": 0.5}
    words = [word for name, value in named.items() for word in ("-o", name, value)]
    result = specdec("generate", "x", *words, "--option", "seed", 3)
    assert result.exit_code == 0, result.output
    expected: dict[str, Any] = {
        "logit_bias": {5: 2},
        "stop": ("END",),
        "max_new_tokens": 7,
        "ignore_eos": True,
        "temperature": 0.5,
    }
    assert params_of(asked) == SamplingParams(**expected, seed=3)


def test_a_system_message_comes_before_the_prompt(asked: dict[str, Any], folder: str) -> None:
    assert specdec("generate", "x", "-s", "Be brief.").exit_code == 0
    assert asked["backend"].prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nx<|im_end|>")
    assert "--system has no place in a raw prompt" in specdec("generate", "x", "-s", "Be brief.", "--raw").stderr


def test_a_system_message_needs_a_chat_format(folder: str) -> None:
    result = specdec("generate", "x", "-s", "Be brief.", "-m", folder)
    assert result.exit_code == 2
    assert "has no chat format. Leave --system out" in result.stderr


def test_the_form_of_the_text(asked: dict[str, Any], tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(schema), encoding="utf-8")
    for command in (["generate", "x"], ["chat"]):
        for given in (path, json.dumps(schema)):
            assert CliRunner().invoke(app, [*command, "--schema", str(given)], input="x\n").exit_code == 0
            assert params_of(asked).grammar == Grammar(schema=schema)
        assert CliRunner().invoke(app, [*command, "--regex", "[ab]+"], input="x\n").exit_code == 0
        assert params_of(asked).grammar == Grammar(regex="[ab]+")


def test_forms_and_biases_hold_for_the_text(folder: str) -> None:
    flags = ("-m", folder, "--max-new-tokens", 6, "--json")
    text = json.loads(specdec("generate", PROMPT, *flags, "--regex", "[xy]{4}").stdout)["text"]
    assert len(text) == 4
    assert set(text) <= {"x", "y"}
    with closing(LocalBackend(folder, num_slots=1)) as backend:
        expected = backend.complete([CompletionRequest(PROMPT, SamplingParams(max_new_tokens=6, logit_bias={65: 100}))])
    named = specdec("generate", PROMPT, *flags, "-o", "logit_bias", '{"65": 100}')
    assert json.loads(named.stdout)["text"] == expected[0].text
    assert len(set(expected[0].text)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--max-new-tokens", 0), "--max-new-tokens must be a whole number from 1, got 0."),
        (("--max-new-tokens", "many"), "--max-new-tokens must be a whole number from 1, got 'many'."),
        (("--temperature", "nan"), "--temperature must be a number from 0 (greedy) to 100, got nan."),
        (("--top-k", -1), "--top-k must be a whole number from 1, got -1."),
        (("--top-p", 7), "--top-p must be a number above 0 and at most 1, got 7.0."),
        (("--seed", -1), "--seed must be a whole number from 0 to 2**64 - 1, got -1."),
        (("--drafter", "draft_model"), "--drafter draft_model needs a draft model: give --draft-model."),
        (
            ("--drafter", "none", "--draft-model", "x"),
            "--drafter none would never use the draft model. Leave it out, or take 'auto' or 'draft_model'.",
        ),
        (("--draft-length", 11), "--draft-length must be 'auto' or a whole number from 0 to 10, got 11."),
        (("--draft-length", "x"), "--draft-length must be 'auto' or a whole number from 0 to 10, got 'x'."),
        (("--max-length", 1), "--max-length must be a whole number from 2 to 16777216, got 1."),
        (("--compile", "yes"), "--compile must be one of 'auto', 'off', 'reduce-overhead', 'max-autotune', got 'yes'."),
        (("-o", "max_tokens", 0), "--max-new-tokens must be a whole number from 1, got 0."),
        (("-o", "temperature", "hot"), "--temperature must be a number from 0 (greedy) to 100, got 'hot'."),
        (("-o", "logit_bias", 5), "-o logit_bias must map token ids to numbers, got 5."),
        (("-o", "logit_bias", '{"a": 1}'), "-o logit_bias: the token id must be a whole number from 0, got 'a'."),
        (("-o", "top_k", 5, "--top-k", 6), "--top-k is given by -o too: give only one of them."),
        (("-o", "top_k"), "Option '-o' requires 2 arguments."),
        (("--regex", ""), "--regex must be a regular expression that is not empty, got ''."),
        (("--regex", "a", "--schema", "{}"), "--schema and --regex are two forms for one text: give only one of them."),
        (
            ("--regex", "a", "--ignore-eos"),
            "--ignore-eos and --schema or --regex contradict each other: after an answer of that form only an end may "
            "follow.",
        ),
        (("--warmth", 3), "No such option: --warmth"),
    ],
    ids=str,
)
@pytest.mark.parametrize("command", [("generate", "x"), ("chat",)])
def test_errors_are_one_line_that_names_the_flag(
    command: tuple[str, ...], arguments: tuple[object, ...], message: str
) -> None:
    result = specdec(*command, *arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"error: {message}\n")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("generate", "x", "-o", "warmth", 3), "Unknown parameter 'warmth'. Known are: frequency_penalty, ignore_eos"),
        (("generate", "x", "-o", "grammar", "a"), "Unknown parameter 'grammar'"),
        (("chat", "-o", "logprobs", 3), "Unknown parameter 'logprobs'"),
        (("generate", "x", "--schema", "none.json"), "--schema must be a JSON schema, or a file that holds one: "),
        (("generate", "x", "--schema", "{"), "--schema must be a JSON schema, or a file that holds one: "),
        (("generate", "x", "--schema", '{"a": ' * 9999), "--schema must be a JSON schema, or a file that holds one: "),
        (("generate", "x", "-o", "seed", "[" * 9999), "seed must be a whole number"),
        (("generate", "x", "y"), "unexpected extra argument"),
        (("demo", "--rounds", 11), "--rounds must be a whole number from 1 to 10, got 11."),
        (("demo", "--top-p", 2), "--top-p must be a number above 0 and at most 1, got 2.0."),
        (("bench", "--batch", "x"), "--batch must be a whole number from 1, got 'x'."),
        (("bench", "--step-cost", "x"), "--step-cost must be one of 'measured', 'flat', got 'x'."),
        (("bench", "--max-tree-nodes", 65), "--max-tree-nodes must be a whole number from 0 to 64, got 65."),
        (("bench", "--contestants", "hf", "--max-tree-nodes", 3), "--max-tree-nodes can be given for this engine only"),
        (("summon",), "No such command 'summon'."),
    ],
    ids=lambda value: str(value)[:60],
)
def test_other_wrong_use_is_one_line_too(arguments: tuple[object, ...], part: str) -> None:
    result = specdec(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert part in result.stderr


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("max_length is 513. Set max_length=512 or less.", "--max-length is 513. Set --max-length 512 or less."),
        ("Give device or device_map, not both.", "Give --device or --device-map, not both."),
        ("Leave compile at 'auto' or set it to 'off'.", "Leave --compile at 'auto' or set it to 'off'."),
        ("pass trust_remote_code=True if you trust it", "pass --trust-remote-code if you trust it"),
        ("a device of the model", "a device of the model"),
        ("In m: model.bin is not there. Give model.", "In m: model.bin is not there. Give --model."),
        ("Give its key as api_key=. It", "Give its key as the variable SPECDEC_API_KEY. It"),
        ("base_url must be an address.", "--server must be an address."),
        ("models/max_length/x and 'max_length'", "models/max_length/x and 'max_length'"),
    ],
)
def test_options_in_a_message_become_flags(capsys: pytest.CaptureFixture[str], message: str, shown: str) -> None:
    with pytest.raises(typer.Exit), reported(flags=FLAG_NAMES):
        raise InvalidParameterError(message)
    assert capsys.readouterr().err == f"error: {shown}\n"


def test_the_tables_of_the_quickstart_are_the_declarations() -> None:
    page = option_tables.PAGE.read_text(encoding="utf-8")
    assert page.count("<!-- options: ") == len(option_tables.DECLARED)
    assert page == option_tables.written(page), "run: python -m tests.support.option_tables"


@pytest.mark.process
def test_the_package_runs_as_the_command_does() -> None:
    command = [sys.executable, "-m", "langchain_specdec", "generate", "x", "--top-k", "-1"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert (ran.returncode, ran.stderr) == (2, "error: --top-k must be a whole number from 1, got -1.\n")


@pytest.fixture
def thinker(monkeypatch: pytest.MonkeyPatch) -> ScriptedBackend:
    """A model that thinks, to `specdec generate` and `chat`."""
    backend = ScriptedBackend("<think>Hm.</think>Yes.")
    backend.tokenizer = thinking_tokenizer(QWEN3)
    for command in ("generate", "chat"):
        monkeypatch.setattr(f"langchain_specdec.cli.{command}.load_backend", lambda *args, **kwargs: backend)
    return backend


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_thinking_is_switched_and_limited(command: str, thinker: ScriptedBackend) -> None:
    def run(*flags: object) -> Any:
        prompt = ["x"] if command == "generate" else []
        return CliRunner().invoke(app, [command, *prompt, *map(str, flags)], input="x\n")

    assert "Yes." in run().stdout
    assert thinker.prompt.endswith("<|im_start|>assistant\n")
    assert "Yes." in run("--reasoning", "off").stdout
    assert thinker.prompt.endswith("<think>\n\n</think>\n\n")
    assert "Yes." in run("--max-reasoning-tokens", 7).stdout
    thoughts = thinker.requests[-1].thoughts
    assert thoughts is not None
    assert (thoughts.max_tokens, thoughts.closing, thoughts.has_stops) == (7, "\n</think>", command == "generate")
    for flags, words in (
        (("--reasoning", "low"), "--reasoning low is beyond the chat template"),
        (("--max-reasoning-tokens", -1), "--max-reasoning-tokens must be a whole number from 0"),
        (("--max-reasoning-tokens", "few"), "--max-reasoning-tokens must be a whole number from 0"),
    ):
        refused = run(*flags)
        assert refused.exit_code == 2
        assert words in " ".join(refused.output.split())


def test_options_of_thinking_are_refused_where_nothing_is_thought(thinker: ScriptedBackend, asked: Any) -> None:
    for flags, words in (
        (("--raw", "--reasoning", "on"), "no place in a raw prompt"),
        (("--regex", "yes", "--reasoning", "on"), "the text has that form from its beginning"),
        (("--regex", "yes", "--max-reasoning-tokens", 5), "the text has that form from its beginning"),
    ):
        refused = specdec("generate", "x", *flags)
        assert refused.exit_code == 2
        assert words in " ".join(refused.output.split())
    assert not thinker.requests
    assert "backend" not in asked
    assert specdec("generate", "x", "--regex", "yes", "--reasoning", "off").exit_code == 0
    # The template of this model knows no thoughts.
    refused = specdec("generate", "x", "--max-reasoning-tokens", 5)
    assert refused.exit_code == 2
    assert "limits thoughts, and the chat template knows none" in " ".join(refused.output.split())
