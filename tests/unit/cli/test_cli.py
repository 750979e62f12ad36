"""The command line, on tiny models: every flag, wrong input, and what goes to which stream."""

import io
import json
import random
import signal
import subprocess
import sys
from contextlib import closing, suppress
from importlib import metadata
from typing import get_args

import huggingface_hub
import pytest
import torch
import typer
from rich.console import Console
from rich.text import Text
from transformers.utils import logging
from typer.testing import CliRunner

from langchain_specdec import LocalBackend, SamplingParams, __version__
from langchain_specdec.backends.local_options import DRAFTERS
from langchain_specdec.cli import demo as demo_module
from langchain_specdec.cli import demo_chain, demo_view, doctor_checks, doctor_mtp, loading
from langchain_specdec.cli.app import app
from langchain_specdec.cli.demo_page import Record
from langchain_specdec.cli.options import FLAGS
from langchain_specdec.cli.progress import Bars
from langchain_specdec.cli.reporting import INTERRUPTED, reported
from langchain_specdec.cli.terminal_text import visible
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.events import Token
from langchain_specdec.completions.stats import SpeculationStats
from langchain_specdec.errors import InvalidParameterError, MissingDependencyError, ModelLoadError
from langchain_specdec.progress import READING_WEIGHTS
from langchain_specdec.runner.trials import CompileMode
from tests.support.eagle3_folders import TinyHead, target_of
from tests.support.hybrid_models import MISSING, make_hybrid
from tests.support.mtp_layers import mtp_weights, write_with_mtp
from tests.support.other_tokenizers import shuffled_tokenizer
from tests.support.tiny_models import byte_tokenizer, tiny_model
from tgi_launcher.extras import install_command

pytestmark = pytest.mark.transformers

PROMPT = "the cat sat on the mat, the cat sat on the"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def is_installed():
    try:
        return bool(metadata.version("langchain-specdec"))
    except metadata.PackageNotFoundError:
        return False


needs_installation = pytest.mark.skipif(not is_installed(), reason="runs from the checkout without being installed")


@pytest.fixture(autouse=True)
def as_found(monkeypatch):
    """The command line quietens the libraries for its process; here many tests share one."""
    verbosity = logging.get_verbosity()
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    # The doctor asks the Hub otherwise.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    yield
    logging.set_verbosity(verbosity)


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "chat"
    tiny_model().save_pretrained(path)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def complete(folder):
    """What the library itself makes of the prompt, to compare with."""

    def complete(**params):
        with closing(LocalBackend(folder, num_slots=1)) as backend:
            return backend.complete([CompletionRequest(PROMPT, SamplingParams(**params))])[0]

    return complete


def specdec(*arguments, stdin=None):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def run_python(code, *, check=False):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=check)  # noqa: S603


def generated(*arguments, stdin=None):
    """The JSON object that `generate` prints."""
    result = specdec("generate", "--json", *arguments, stdin=stdin)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


def expect_error(result, code, *parts):
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, "an error is one line"
    for part in parts:
        assert part in result.stderr


# The application


@pytest.mark.parametrize("command", [(), ("demo",), ("generate",), ("summarize",), ("serve",), ("doctor",)])
def test_help_of_every_command(command):
    result = specdec(*command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout
    assert "--help" in result.stdout


def test_version():
    assert specdec("--version").stdout == f"specdec {__version__}\n"


def test_an_unknown_command_or_option_is_wrong_use():
    assert specdec("summon").exit_code == 2
    assert specdec("generate", "--warmth", "3").exit_code == 2


@pytest.mark.process
def test_help_loads_none_of_the_heavy_packages():
    code = (
        "import sys; import langchain_specdec.cli.app; "
        "heavy = ('torch', 'transformers', 'langchain_core.messages', 'langsmith', 'huggingface_hub', 'rich.live'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    ran = run_python(code, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.process
@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_it_says_how_to_get_it(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from langchain_specdec.cli import main; main()"
    ran = run_python(code)
    assert ran.returncode == 1
    assert ran.stderr == f"The command line needs typer and rich: {install_command('cli')}\n"


@needs_installation
def test_the_console_script_is_installed():
    scripts = metadata.entry_points(group="console_scripts", name="specdec")
    assert [script.value for script in scripts] == ["langchain_specdec.cli:main"]


def test_the_words_offered_are_those_there_are():
    assert FLAGS["drafter"].words == DRAFTERS
    assert FLAGS["compile"].words == get_args(CompileMode)


# How commands end


def test_ctrl_c_ends_without_a_traceback(capsys):
    with pytest.raises(typer.Exit) as ended, reported():
        raise KeyboardInterrupt
    assert ended.value.exit_code == INTERRUPTED == 130
    assert capsys.readouterr().err == "Interrupted.\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InvalidParameterError("top_k is\nwrong."), 2, "error: top_k is wrong.\n"),
        (OSError("no such\n  model"), 1, "error: no such model\n"),
        (KeyError("x"), 1, "error: KeyError: 'x' (--debug shows where)\n"),
        (MissingDependencyError("No gguf.\n    pip install gguf"), 1, "error: No gguf.\n    pip install gguf\n"),
    ],
)
def test_errors_become_a_message_and_a_code(capsys, error, code, message):
    with pytest.raises(typer.Exit) as ended, reported():
        raise error
    assert ended.value.exit_code == code
    assert capsys.readouterr().err == message


def test_debug_lets_errors_through():
    with pytest.raises(KeyError), reported(debug=True):
        raise KeyError("x")


# specdec generate


def test_generate_prints_the_text_and_nothing_else(folder, complete):
    result = specdec("generate", PROMPT, "--model", folder, "--max-new-tokens", 12)
    text = complete(max_new_tokens=12).text
    assert result.exit_code == 0
    assert result.stdout == text + "\n"
    assert result.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "params"),
    [
        (("--max-new-tokens", 5), {"max_new_tokens": 5}),
        (("--temperature", 0.9, "--seed", 7), {"temperature": 0.9, "seed": 7}),
        (("--temperature", 2, "--top-k", 3, "--seed", 7), {"temperature": 2.0, "top_k": 3, "seed": 7}),
        (("--temperature", 2, "--top-p", 0.5, "--seed", 7), {"temperature": 2.0, "top_p": 0.5, "seed": 7}),
        (("--temperature", 2, "--min-p", 0.2, "--seed", 7), {"temperature": 2.0, "min_p": 0.2, "seed": 7}),
        (("--repetition-penalty", 1.5), {"repetition_penalty": 1.5}),
        (("--presence-penalty", 2), {"presence_penalty": 2.0}),
        (("--frequency-penalty", -1.5), {"frequency_penalty": -1.5}),
        (("--ignore-eos", "--max-new-tokens", 30), {"ignore_eos": True, "max_new_tokens": 30}),
    ],
)
def test_sampling_flags_reach_the_engine(folder, complete, flags, params):
    params = {"max_new_tokens": 20, **params}
    expected = complete(**params)
    got = generated(PROMPT, "--model", folder, "--max-new-tokens", 20, *flags)
    assert got["text"] == expected.text
    assert got["finish_reason"] == expected.finish.finish_reason
    assert got["completion_tokens"] == expected.finish.completion_tokens


def test_stop_may_be_repeated(folder, complete):
    text = complete(max_new_tokens=20).text
    got = generated(PROMPT, "--model", folder, "--max-new-tokens", 20, "--stop", "never there", "--stop", text[4:6])
    assert got["finish_reason"] == "stop_sequence"
    assert got["text"] == text[: text.index(text[4:6])]


def test_json_has_everything(folder):
    got = generated(PROMPT, "--model", folder, "--max-new-tokens", 8, "--seed", 3, "--logprobs", 2)
    assert got["model"] == folder
    assert got["seed"] == 3
    assert got["prompt_tokens"] == len(PROMPT)
    assert got["completion_tokens"] == len(got["logprobs"]) == 8
    assert all(len(position["top_logprobs"]) == 2 for position in got["logprobs"])
    assert set(got["speculation"]) == {
        "drafted_tokens", "accepted_tokens", "forced_tokens", "num_steps", "acceptance_rate", "tokens_per_step",
        "drafted_per_position", "accepted_per_position", "drafted_by_source", "accepted_by_source", "decode_seconds",
        "predicted_gain", "observed_gain",
    }  # fmt: skip
    assert "logprobs" not in generated(PROMPT, "--model", folder, "--max-new-tokens", 2)


def test_stats_go_to_stderr(folder):
    result = specdec("generate", PROMPT, "--model", folder, "--max-new-tokens", 8, "--seed", 3, "--stats")
    assert result.exit_code == 0
    assert result.stderr.count("\n") == 1
    for part in (f"{len(PROMPT)} prompt tokens", "8 new tokens", "tokens/s", "ended by length", "seed 3"):
        assert part in result.stderr
        assert part not in result.stdout


@pytest.mark.parametrize("drafter", ["auto", "prompt_lookup", "none"])
def test_the_drafter_never_changes_the_text(folder, complete, drafter):
    expected = complete(max_new_tokens=30).text
    flags = ("--drafter", drafter, "--max-draft-tokens", 3, "--dtype", "float32", "--device", "cpu")
    assert generated(PROMPT, "--model", folder, "--max-new-tokens", 30, *flags)["text"] == expected


def test_a_draft_model_is_used(folder, complete):
    expected = complete(max_new_tokens=30).text
    flags = ("--draft-model", folder, "--drafter", "draft_model")
    assert generated(PROMPT, "--model", folder, "--max-new-tokens", 30, *flags)["text"] == expected


def test_a_chat_format_is_used_where_there_is_one(chat_folder):
    rendered = "<user>hello<assistant>"
    flags = ("--model", chat_folder, "--max-new-tokens", 2)
    chat = generated("hello", *flags)
    assert chat["prompt_tokens"] == 1 + len(rendered), "one token begins the text, not two"
    assert generated("hello", "--chat", *flags)["prompt_tokens"] == chat["prompt_tokens"]
    assert generated(*flags, stdin="hello\n")["prompt_tokens"] == chat["prompt_tokens"]
    assert generated("hello", "--raw", *flags)["prompt_tokens"] == len("hello")


def test_wrong_parameters_end_with_code_2(folder):
    expect_error(specdec("generate", "x", "--temperature", -1), 2, "--temperature must be")
    expect_error(specdec("generate", "x", "--max-new-tokens", 0), 2, "--max-new-tokens must be")
    expect_error(specdec("generate", "x", "--logprobs", 1), 2, "--logprobs needs --json")
    expect_error(specdec("generate", "x", "--stop", ""), 2, "--stop must be")
    expect_error(specdec("generate", "x", "--model", folder, "--max-draft-tokens", 0), 2, "--max-draft-tokens must be")
    expect_error(specdec("generate", "x", "--model", folder, "--drafter", "draft_model"), 2, "needs a draft model")
    expect_error(specdec("generate", "x", "--model", folder, "--chat"), 2, "has no chat format")
    expect_error(
        specdec("generate", "x" * 600, "--model", folder), 2, "--max-length is 512. Shorten the prompt. specdec sum"
    )
    expect_error(specdec("generate", "x", "--model", folder, "--device", "abacus"), 2, "device")


def test_other_failures_end_with_code_1(tmp_path):
    expect_error(specdec("generate", "x", "--model", tmp_path / "nothing"), 1, "nothing")
    adapter = specdec("generate", "x", "--adapter", tmp_path / "nothing")
    expect_error(adapter, 1, "holds an adapter's adapter_config.json")


# specdec demo


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "document.md"
    path.write_text("# A title\n\nThe cat sat on\nthe mat.\n\n\nThe dog sat on the mat.\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("sampling", [(), ("--temperature", 1, "--seed", 5)])
def test_the_demo_is_plain_text_where_there_is_no_terminal(folder, document, sampling, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    flags = ("--model", folder, "--document", document, "--max-new-tokens", 40)
    result = specdec("demo", *flags, *sampling)
    assert result.exit_code == 0, result.output
    # The model may write an escape character; it takes a bracket to make it a code.
    assert "\x1b[" not in result.output
    assert "A title (14 words" in result.stdout
    for row in ("tokens per second", "tokens per step", "acceptance rate", "Figures of 2 runs each"):
        assert sum(line.startswith(row) for line in result.stdout.splitlines()) == 1
    assert "identical: yes" in result.stdout
    assert ("sampling" in result.stdout) == bool(sampling)
    assert result.stderr == ""


def test_the_demo_takes_the_model_flags(folder, document):
    flags = ("--model", folder, "--document", document, "--max-new-tokens", 12, "--rounds", 1)
    assert "identical: yes" in specdec("demo", *flags, "--temperature", 1).stdout, "one seed is drawn for all runs"
    assert "nothing drafted" in specdec("demo", *flags, "--drafter", "none").stdout
    assert "identical: yes" in specdec("demo", *flags, "--draft-model", folder).stdout


def test_wrong_input_of_the_demo(folder, tmp_path):
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text(" \n\n ")
    binary.write_bytes(b"\xff\xfe\x00")
    expect_error(specdec("demo", "--rounds", 0), 2, "--rounds")
    expect_error(specdec("demo", "--document", empty), 2, "is empty")
    expect_error(specdec("demo", "--document", binary), 2, "-t UTF-8", "specdec demo --document -")
    expect_error(specdec("demo", "--max-new-tokens", 0), 2, "--max-new-tokens must be")
    assert specdec("demo", "--document", tmp_path / "nothing").exit_code == 2
    expect_error(specdec("demo", "--model", tmp_path / "nothing"), 1, "nothing")


def test_the_document_that_comes_along():
    text = demo_module._read(None)
    assert 600 <= len(text.split()) <= 900
    assert text.startswith("# ")
    assert "\n" not in text.replace("\n\n", ""), "a paragraph is one line"


def test_texts_that_differ_fail(capsys):
    stats = SpeculationStats(10, 5, 10, 15, 1.0)
    runs = [demo_chain.Run("The lamp was lit.", stats), demo_chain.Run("The lamp was out.", stats)]
    record = Record("Lamps", "Lamps.", [], torch.device("cpu"), speculative=runs[:1], plain=runs[1:])
    with pytest.raises(typer.Exit) as ended:
        demo_module._conclude(demo_view.PlainView(), record, SamplingParams())
    assert ended.value.exit_code == 1
    assert "identical: no, the texts differ from character 13 on" in capsys.readouterr().out


def test_braces_of_a_chat_format_stay(folder):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = '{"role"} {{ messages | map(attribute="content") | join(" ") }} {{ "{x}" }}'
    prompt = demo_chain.prompt_template(tokenizer, "tiny").format(text="{a} b")
    assert prompt == f'{{"role"}} {demo_chain.INSTRUCTION} {{a}} b {{x}}'


def test_a_chat_format_without_system_messages():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{{ messages[0].content }}"
    )
    prompt = demo_chain.prompt_template(tokenizer, "tiny").format(text="text")
    assert prompt == f"{demo_chain.INSTRUCTION}\n\ntext"


def test_lines_that_grow_lose_nothing():
    console = Console(width=12)
    for seed in range(300):
        rng = random.Random(seed)
        pieces = ["".join(rng.choice("ab  \n-.é") for _ in range(rng.randrange(1, 6))) for _ in range(30)]
        lines, tail = [], Text()
        for piece in pieces:
            full, tail = demo_view.full_lines(tail.append(piece), console, console.width)
            lines += full
        texts = [line.plain for line in (*lines, tail)]
        assert "".join(texts).replace(" ", "") == "".join(pieces).replace(" ", "").replace("\n", "")
        assert max(len(text.rstrip()) for text in texts) <= console.width


@pytest.mark.parametrize(("no_color", "mark"), [(False, "\x1b[32m"), (True, "\x1b[4m")])
def test_drafted_tokens_are_marked_in_a_terminal(capsys, no_color, mark):
    console = Console(force_terminal=True, width=40, color_system="standard", no_color=no_color, _environ={})
    view = demo_view.TerminalView(console)
    view.begin("with speculation", is_marked=True)
    view.add([Token(1, "own ", drafted=False), Token(2, "copied\n", drafted=True)])
    view.add([Token(1, "end", drafted=False)])
    view.end()
    view.table("of one run", ("", "a"), [("b", "1")])
    output = capsys.readouterr().out
    assert f"own {mark}copied" in output
    assert f"{mark}own" not in output
    assert "tokens/step" in output, "while it is written"
    assert "tokens/step" not in output.rpartition("\x1b[2K")[2], "at the end there are the figures of the table only"
    if no_color:
        assert "\x1b[3" not in output, "no colour was wanted"


# specdec doctor


def test_doctor_reports():
    result = specdec("doctor")
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.stdout
    for name in ("python", "torch", "transformers", "langchain-core", "huggingface-hub", "CPU", "dtype", "attention"):
        assert f" {name}" in result.stdout


def test_doctor_tells_what_a_draft_model_has_in_common(tmp_path):
    folders = []
    for name, tokenizer in (("ours", byte_tokenizer()), ("theirs", shuffled_tokenizer(1, [("t", "h")]))):
        folders.append(str(tmp_path / name))
        tokenizer.save_pretrained(folders[-1])
        tiny_model(vocab_size=len(tokenizer)).save_pretrained(folders[-1])
    ours, theirs = folders
    adapter, encoder = (tmp_path / name for name in ("adapter", "encoder"))
    for folder, (name, config) in {
        adapter: ("adapter_config.json", {"base_model_name_or_path": ours, "peft_type": "LORA"}),
        encoder: ("config.json", {"model_type": "t5"}),
    }.items():
        folder.mkdir()
        (folder / name).write_text(json.dumps(config))
    for draft, told in (
        (theirs, "differ; 257 tokens in common, 100% of the target's"),
        (ours, "the same"),
        (str(adapter), "the same"),
        (str(encoder), "no pair"),
    ):
        report = json.loads(specdec("doctor", "--json", "--model", ours, "--draft-model", draft).stdout)
        assert [finding["value"] for finding in report[f"{draft} drafts for {ours}"]] == [told]
    alone = specdec("doctor", "--draft-model", ours)
    assert (alone.exit_code, "Give --model too" in alone.stderr) == (2, True)
    missing = specdec("doctor", "--model", ours, "--draft-model", str(tmp_path / "none"))
    assert missing.exit_code == 1
    assert "none" in missing.stderr


def test_doctor_tells_whether_a_head_fits(tmp_path):
    fits, other = TinyHead().write(tmp_path / "fits"), TinyHead(vocab=300).write(tmp_path / "other", "classic")
    target_of(TinyHead()).save_pretrained(tmp_path / "model")
    peagle = tmp_path / "peagle"
    peagle.mkdir()
    (peagle / "config.json").write_text(json.dumps({"speculators_model_type": "peagle"}))
    for head, told in (
        (fits, ["EAGLE-3, as of vLLM's speculators", "2, 3, 5 of 5", "60 of 258, 23.3%", "yes"]),
        (other, ["does not fit"]),
        (peagle, ["does not fit"]),
    ):
        model = str(tmp_path / "model")
        result = specdec("doctor", "--json", "--model", model, "--draft-model", str(head))
        report = json.loads(result.stdout)
        assert [finding["value"] for finding in report[f"{head} drafts for {model}"]] == told
        assert (result.exit_code == 0) == (head == fits)
    for more in ([], ["--draft-model", str(tmp_path / "model")]):
        expect_error(specdec("doctor", "--model", str(fits), *more), 1, "Give it as --draft-model, and the model that")


@pytest.mark.skipif("qwen3_5_text" in MISSING, reason="this version of transformers lacks the family")
def test_doctor_tells_what_a_model_drafts_by_for_itself(tmp_path):
    model = make_hybrid("qwen3_5_text", torch.float32)
    weights = mtp_weights(model)
    for name, target, part in (
        ("fits", model, weights),
        ("lacking", model, {k: v for k, v in weights.items() if "q_norm" not in k}),
        ("none", model, {}),
        ("llama", tiny_model(), {"mtp.fc.weight": torch.zeros(2, 2)}),
    ):
        write_with_mtp(target, part, tmp_path / name, is_split=name == "fits")
    expected = {
        "fits": ("ok", 'they fit; drafter="mtp"', ""),
        "lacking": ("warning", "do not fit", "mtp.layers.0.self_attn.q_norm.weight"),
        "none": ("info", "none; lookups draft without", ""),
        "llama": ("warning", "do not fit", "it is of type 'llama'"),
    }
    for name, (status, value, advice) in expected.items():
        folder = str(tmp_path / name)
        result = specdec("doctor", "--json", "--model", folder)
        assert result.exit_code == 0, "it runs without, too"
        [told] = json.loads(result.stdout)[f"{folder} drafts for itself"]
        assert (told["name"], told["status"]) == ("MTP layers", status)
        assert value in told["value"]
        assert advice in told.get("advice", "")
    damaged = tmp_path / "fits" / "mtp.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:50])
    expect_error(specdec("doctor", "--model", str(damaged.parent)), 1, "mtp.safetensors is damaged")
    fits = str(damaged.parent)
    pair = json.loads(specdec("doctor", "--json", "--model", fits, "--draft-model", fits).stdout)
    assert "it keeps a recurrent state" in pair[f"{fits} drafts for {fits}"][0]["advice"]


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("model.safetensors.index.json", "there are some, by its index; whether they fit"),
        ("x", "whether there are some"),
    ],
)
def test_doctor_downloads_no_weights_to_tell_of_mtp_layers(file, told, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--owner--model" / "snapshots" / "abc"
    tiny_model().config.save_pretrained(snapshot)
    (snapshot / file).write_text(json.dumps({"weight_map": {"mtp.fc.weight": "mtp.safetensors"}}))
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor_mtp, "load_config", lambda _: None)  # transformers has a cache of its own
    [finding] = doctor_mtp.findings("owner/model")
    assert finding.value == f"{told} is known once the model is downloaded"


def test_doctor_never_shows_the_token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_not_to_be_seen")
    result = specdec("doctor")
    assert "there is one" in result.stdout
    assert "hf_not_to_be_seen" not in result.output


def test_doctor_in_json():
    report = json.loads(specdec("doctor", "--json").stdout)
    assert report["ok"] is True
    versions = {finding["name"]: finding["value"] for finding in report["packages"]}
    assert versions["torch"] == metadata.version("torch")
    assert versions["langchain-specdec"].startswith(__version__)
    names = {finding["name"] for finding in report["a model would run"]}
    assert names - {"linear layers"} == {
        "device",
        "dtype",
        "attention",
        "C++ compiler",
        "native decoder",
        "quantization",
    }


@pytest.mark.parametrize(
    ("device", "described", "told"),
    [
        ("cpu", "", "int8: Q8_0; int4: IQ4_NL, embedding and head Q8_0"),
        ("mps", "", "pip install torchao accelerate"),
        ("mps", "of {} (some package)", "int8: of int8 (some package); int4: of int4 (some package)"),
    ],
)
def test_doctor_tells_what_quantised_weights_become(monkeypatch, device, described, told):
    from langchain_specdec.models import devices, gpu_quantization

    monkeypatch.setattr(devices, "default_device", lambda: torch.device(device))
    monkeypatch.setattr(gpu_quantization, "description", described.format)
    findings = json.loads(specdec("doctor", "--json").stdout)["a model would run"]
    (finding,) = (each for each in findings if each["name"] == "quantization")
    assert told in (finding["value"], finding["advice"])


@pytest.mark.parametrize("backend", ["EFFICIENT_ATTENTION", "MATH"])
def test_doctor_tells_which_attention_a_gpu_runs(monkeypatch, backend):
    from langchain_specdec.models import devices
    from langchain_specdec.runner.cuda import attention_backend

    def choose(device, dtype, *, is_prompt):
        assert (device.type, dtype) == ("cuda", torch.bfloat16)
        return "FLASH_ATTENTION" if is_prompt else backend

    monkeypatch.setattr(devices, "default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(attention_backend, "chosen_backend", choose)
    result = specdec("doctor")
    assert result.exit_code == 0
    assert f"{backend} for steps, FLASH_ATTENTION for prompts (bfloat16)" in result.stdout
    assert ("no fused attention for this GPU" in result.stdout) == (backend == "MATH")


def test_doctor_tells_of_the_native_decoder_and_its_threads(monkeypatch):
    from langchain_specdec.models import devices, memory
    from langchain_specdec.runner.cpu import decoder_trial

    monkeypatch.setattr(devices, "default_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(memory, "default_threads", lambda: 3)
    monkeypatch.setattr(decoder_trial, "native_library", object)
    assert doctor_checks._native_decoder().value.startswith("3 threads of its own")
    monkeypatch.setattr(decoder_trial, "native_library", lambda: None)
    assert "GGUF files are dequantised" in doctor_checks._native_decoder().value
    assert "g++" in doctor_checks._native_decoder().advice


@pytest.mark.parametrize(("library", "room"), [(object(), 0), (None, 0.6)])
def test_doctor_asks_for_room_only_where_the_embedded_model_is_dequantised(monkeypatch, library, room):
    from langchain_specdec.cli import doctor_hub
    from langchain_specdec.models import devices, embedded
    from langchain_specdec.runner.cpu import decoder_trial

    rooms = []
    monkeypatch.setattr(devices, "default_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(decoder_trial, "native_library", lambda: library)
    monkeypatch.setattr(embedded, "is_prepared", lambda: False)
    monkeypatch.setattr(doctor_hub, "folder", lambda *_, room: rooms.append(room))
    doctor_checks._embedded()
    assert rooms == [room]


def test_doctor_tells_how_linear_layers_run_on_a_cpu(monkeypatch):
    from langchain_specdec.models import devices
    from langchain_specdec.runner.cpu import kernel_linear as panel_linear

    monkeypatch.setattr(devices, "default_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(panel_linear, "can_use_panels", lambda dtype: True)
    assert "a kernel of this package" in specdec("doctor").stdout
    monkeypatch.setattr(panel_linear, "can_use_panels", lambda dtype: False)
    result = specdec("doctor")
    assert result.exit_code == 0
    assert "install g++" in result.stdout


@needs_installation
@pytest.mark.parametrize(
    ("name", "version", "code", "advice"),
    [
        ("torch", None, 1, 'pip install "torch>=2.6"'),
        ("transformers", "4.20.0", 1, 'pip install "transformers'),
        ("gguf", None, 0, "gguf>=0.17"),
        ("accelerate", None, 0, "pip install accelerate"),
    ],
)
def test_doctor_says_what_is_missing(monkeypatch, name, version, code, advice):
    real = metadata.version

    def fake(package):
        if package != name:
            return real(package)
        if version is None:
            raise metadata.PackageNotFoundError(package)
        return version

    monkeypatch.setattr(metadata, "version", fake)
    result = specdec("doctor")
    assert result.exit_code == code
    assert advice in result.stdout
    assert json.loads(specdec("doctor", "--json").stdout)["ok"] == (code == 0)


def test_doctor_runs_in_a_checkout_that_is_not_installed(monkeypatch):
    def nothing(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "requires", nothing)
    result = specdec("doctor")
    assert result.exit_code == 0
    assert "pip install -e ." in result.stdout


def test_doctor_tells_that_the_home_folder_is_unknown(monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    *_, finding = doctor_checks._embedded()
    assert finding.status == "warning"
    assert "XDG_CACHE_HOME" in finding.advice
    assert doctor_checks._linear_layers().status != "error"


def test_doctor_survives_a_broken_package(monkeypatch):
    def broken():
        raise ImportError("libtorch.so is gone")

    monkeypatch.setattr(doctor_checks, "_devices", broken)
    result = specdec("doctor")
    assert result.exit_code == 1
    assert "libtorch.so is gone" in result.stdout


# Preparing and loading


def test_without_a_terminal_preparing_is_told_in_lines(capsys):
    with loading.spinner("Loading embedded") as display:
        tell = loading.tell_once(display)
        for done in range(3):
            tell("Unpacking the weights", done, 1)
        tell("Writing the weights", 0, 1)
        tell(READING_WEIGHTS, 0, 1)
    assert capsys.readouterr().err == "Unpacking the weights (once)\nWriting the weights (once)\nReading the weights\n"


@pytest.mark.parametrize("name", ["[red]x", "models[/x]/y", "a\x1b[31mb :cat:"])
def test_a_model_s_name_is_shown_as_it_is(monkeypatch, name):
    monkeypatch.setenv("TERM", "xterm")
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with loading.spinner(f"Loading {name}") as display:
        assert isinstance(display, Bars)
        display.rich.refresh()
    assert f"Loading {visible(name)}" in Text.from_ansi(terminal.getvalue()).plain


@pytest.fixture
def heeds_ctrl_c():
    """Take Ctrl-C as a terminal's process does, also where this one was started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("error", [None, ImportError("broken by what was swallowed")])
def test_ctrl_c_that_an_import_swallows_still_counts(error, heeds_ctrl_c):
    with pytest.raises(KeyboardInterrupt), loading.spinner("Starting PyTorch"):
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        if error is not None:
            raise error
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(ImportError), loading.spinner("Starting PyTorch"):
        raise ImportError


@pytest.mark.process
def test_ctrl_c_while_the_program_starts():
    code = (
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'langchain_specdec.cli.app': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from langchain_specdec.cli import main\n"
        "main()"
    )
    result = run_python(code)
    assert (result.returncode, result.stderr) == (INTERRUPTED, "Interrupted.\n")


def test_a_model_of_the_hub_is_looked_for_in_words(monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(ModelLoadError):
        loading.load_backend("nobody/nothing")
    assert "Looking for nobody/nothing on the Hugging Face Hub" in capsys.readouterr().err
