"""`specdec make-draft`: a draft from nothing, a run that is killed and goes on, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.cli.app import app
from langchain_specdec.completions.completion import CompletionRequest, collect
from langchain_specdec.models.heads.load_head import load_head
from langchain_specdec.models.loader import load_model
from langchain_specdec.sampling.params import SamplingParams
from langchain_specdec.training import verdict
from tests.support.tiny_models import byte_tokenizer, tiny_model
from tgi_launcher.extras import install_command

pytestmark = pytest.mark.transformers

SMALL = ("--own-prompts", 8, "--max-new-tokens", 12, "--epochs", 12, "--batch-tokens", 256, "--checkpoint-steps", 3)

UNMEASURED = verdict.Verdict((0.5,), 1.5, 1.25, 1.2, (3, 1), (5, 2), 10.0, 11.0, 12.5)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "target"
    tiny_model(num_hidden_layers=4).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return str(path)


def chat_tokenizer() -> Any:
    """Bytes, with a chat format."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</end>\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return tokenizer


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """No speed is measured."""
    monkeypatch.setattr(verdict, "measure", lambda *_: UNMEASURED)


def write_prompts(file: Path, rows: list[Any]) -> Path:
    file.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return file


def make_draft(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["make-draft", *map(str, arguments)])


def test_a_draft_from_prompts_of_a_file_and_of_the_model(target, tmp_path):
    file, out = tmp_path / "prompts.jsonl", tmp_path / "draft"
    odd = [{"prompt": "Half of a pair: \ud800"}, {"messages": [{"role": "user", "content": "x"}]}]
    write_prompts(file, [*({"prompt": f"Question {n}?"} for n in range(9)), {"turns": ["Question 0?", "x"]}, *odd])
    result = make_draft(target, "--out", out, "--prompts", file, *SMALL, "--own-prompts", 3, "--json")
    assert result.exit_code == 0, result.stderr
    assert "12 prompts, 3 of the model's own, 1 held out" in result.stderr
    # The model has no chat format.
    assert "later turns" not in result.stderr
    assert "Prompts that are left out: 2. The prompt is not valid Unicode text" in result.stderr
    assert "Training, steps: 1 of 48\n" in result.stderr
    told = json.loads(result.stdout)
    assert told == {"draft": str(out), **json.loads((out / "verdict.json").read_text(encoding="utf-8"))}
    assert told["observed_gain"] == told["speed"] / told["plain"]
    stood = told["accepted_by_source"].get("eagle3", 0)
    assert told["pays"] == (stood > 0 and told["speed"] > max(told["plain"], told["without"]))
    assert (len(told["acceptance"]), told["step_cost"] > 1, told["tokens_per_step"] >= 1) == (4, True, True)
    # The work is taken away: prompts may be private.
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors", "verdict.json"]
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert config["eagle_aux_hidden_state_layer_ids"] == [1, 2, 3]
    assert config["speculators_config"]["verifier"]["name_or_path"] == target
    head = load_head(out, load_model(target))
    assert head.target_ids is not None
    assert head.draft_vocab_size == config["draft_vocab_size"] == len(head.target_ids)


def test_a_pruned_model_runs_anywhere_and_drafts(target, tmp_path):
    out = tmp_path / "draft"
    umask = os.umask(0o027)
    try:
        result = make_draft(target, "--out", out, *SMALL, "--kind", "pruned", "--keep-layers", 3, "--json")
    finally:
        os.umask(umask)
    assert result.exit_code == 0, result.stderr
    assert "The draft keeps 3 of 4 layers (0, " in result.stderr
    told = json.loads(result.stdout)
    assert told == {"draft": str(out), **json.loads((out / "verdict.json").read_text(encoding="utf-8"))}
    assert (len(told["acceptance"]), told["tokens_per_step"] >= 1, told["draft_quantization"]) == (4, True, None)
    assert not (out / "work").exists()
    if os.name == "posix":
        modes = {path.name: path.stat().st_mode & 0o777 for path in out.iterdir()}
        assert set(modes.values()) == {0o640}, modes
    model, weights = AutoModelForCausalLM.from_pretrained(out), load_file(out / "model.safetensors")
    assert (model.config.num_hidden_layers, {weight.dtype for weight in weights.values()}) == (3, {torch.bfloat16})
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert model(tokenizer("Is it so?", return_tensors="pt").input_ids).logits.isfinite().all()
    plain = LocalBackend(target, drafter="none", num_slots=1, max_length=128)
    drafting = LocalBackend(target, drafter="draft_model", draft_model=out, draft_length=4, num_slots=1, max_length=128)
    for temperature in (0.0, 1.0):
        params = SamplingParams(max_new_tokens=24, temperature=temperature, seed=3)
        request = CompletionRequest(plain.prompt_ids("Is it so?"), params)
        expected, found = (collect(backend.start([request])[0]) for backend in (plain, drafting))
        assert [token.id for token in found.tokens] == [token.id for token in expected.tokens]
        assert found.finish.speculation.drafted_tokens > 0
    plain.close()
    drafting.close()


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.usefixtures("unmeasured")
def test_a_run_that_is_killed_goes_on_to_the_same_weights(target, tmp_path):
    through, killed = tmp_path / "through", tmp_path / "killed"
    assert make_draft(target, "--out", through, *SMALL).exit_code == 0
    command = [sys.executable, "-m", "langchain_specdec", "make-draft", target, "--out", str(killed)]
    # Sums depend on how many threads share them.
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([*command, *map(str, SMALL)], stderr=subprocess.DEVNULL, env=threads)  # noqa: S603
    try:
        deadline = time.monotonic() + 120
        while not (killed / "work/checkpoints/checkpoint-9/trainer_state.json").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    # What was done is not done again.
    answers = killed / "work/answers.jsonl"
    before = answers.stat().st_mtime_ns
    other = make_draft(target, "--out", killed, *SMALL, "--resume", "--seed", 1)
    assert "was begun with seed 0, and not 1" in other.stderr
    assert answers.stat().st_mtime_ns == before
    result = make_draft(target, "--out", killed, *SMALL, "--resume")
    assert result.exit_code == 0, result.stderr
    assert "Answering" not in result.stderr
    weights, expected = (load_file(folder / "model.safetensors") for folder in (killed, through))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)


@pytest.mark.usefixtures("unmeasured")
def test_ctrl_c_leaves_a_checkpoint_from_which_it_goes_on_to_the_same_weights(target, tmp_path, monkeypatch):
    through, out = tmp_path / "through", tmp_path / "draft"
    given = (*SMALL, "--kind", "pruned")
    assert make_draft(target, "--out", through, *given).exit_code == 0
    from langchain_specdec.cli.progress import Lines

    tell = Lines.tell

    def press(self: Lines, what: str, done: int, total: int) -> None:
        tell(self, what, done, total)
        if what == "Training, steps" and done == 5:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Lines, "tell", press)
    result = make_draft(target, "--out", out, *given)
    assert result.exit_code == 130
    assert "Ending after this step" in result.stderr
    assert f"What is done stays in {out}. Go on by: specdec" in result.stderr
    assert (out / "work/checkpoints/checkpoint-5/trainer_state.json").exists()
    assert "Go on with it by --resume" in make_draft(target, "--out", out, *given).stderr
    monkeypatch.undo()
    monkeypatch.setattr(verdict, "measure", lambda *_: UNMEASURED)
    assert make_draft(target, "--out", out, *given, "--resume").exit_code == 0
    assert (out / "model.safetensors").read_bytes() == (through / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("unmeasured")
def test_later_turns_are_answered_and_a_run_ended_among_them_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    from langchain_specdec.cli.progress import Lines

    tiny_model(num_hidden_layers=4).save_pretrained(tmp_path / "target")
    chat_tokenizer().save_pretrained(tmp_path / "target")
    file, through, out = tmp_path / "prompts.jsonl", tmp_path / "through", tmp_path / "draft"
    write_prompts(file, [*({"turns": [f"{n}?", "And?"]} for n in range(4)), {"turns": ["4?", "x" * 600, "So?"]}])
    given = (*SMALL, "--prompts", file, "--own-prompts", 0, "--epochs", 1)
    told, tell = [], Lines.tell

    def press(self: Lines, what: str, done: int, total: int) -> None:
        tell(self, what, done, total)
        if what == "Answering prompts":
            told.append((done, total))
            if len(told) == 7:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Lines, "tell", press)
    ended = make_draft(tmp_path / "target", "--out", out, *given)
    answers = out / "work/answers.jsonl"
    before = answers.read_bytes()
    assert (ended.exit_code, before.count(b"\n")) == (130, told[-1][0])
    result = make_draft(tmp_path / "target", "--out", out, *given, "--resume")
    assert result.exit_code == 0, result.stderr
    assert (
        "5 prompts, 0 of the model's own, 1 held out to measure on. Up to 3 later turns are answered" in result.stderr
    )
    assert "Later turns that are left out: 2. The model has no room" in result.stderr
    # Four first turns, and the second ones of three of them.
    assert (told[0], told[-1]) == ((0, 9), (7, 7))
    assert make_draft(tmp_path / "target", "--out", through, *given).exit_code == 0
    assert (out / "model.safetensors").read_bytes() == (through / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--epochs", 0], "--epochs must be a whole number from 1"),
        (["--own-prompts", 0], "leave nothing to train on"),
        (["--prompts", "none.txt"], "none.txt cannot be read"),
        (["--learning-rate", "x"], "--learning-rate must be a number above 0"),
        (["--draft-vocab-size", 1], "--draft-vocab-size must be"),
        (["--kind", "x"], "--kind must be one of 'head', 'pruned'"),
        (["--keep-layers", 2], "--keep-layers is for --kind pruned"),
        (["--kind", "pruned", "--draft-vocab-size", 100], "--draft-vocab-size is for --kind head"),
        (["--kind", "pruned", "--unroll", 2], "--unroll is for --kind head"),
        (["--resume"], "to go on with. Leave out --resume to begin"),
    ],
)
def test_what_is_wrong_is_told_before_a_model_is_loaded(arguments, said, tmp_path, monkeypatch):
    monkeypatch.setattr("langchain_specdec.cli.make_draft.load_backend", lambda *_, **__: pytest.fail("loaded"))
    result = make_draft("embedded", "--out", tmp_path / "draft", *arguments)
    assert (result.exit_code, said in result.stderr) == (2, True), result.stderr
    assert not (tmp_path / "draft").exists()


def test_a_draft_of_which_nothing_stood_does_not_pay():
    found = verdict.Verdict((0.5,), 1.5, 1.25, 1.2, (3,), (5,), 10.0, 11.0, 12.5, {"eagle3": 5}, {"lookup": 3})
    assert not found.pays
    for source in ("eagle3", "draft_model"):
        assert dataclasses.replace(found, accepted_by_source={source: 1}).pays


def test_what_is_missing_is_told_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("langchain_specdec.cli.make_draft.load_backend", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert install_command("train") in make_draft("embedded", "--out", tmp_path / "draft").stderr


def test_what_cannot_be_is_refused(target, tmp_path, monkeypatch):
    def refused(*arguments: object) -> str:
        result = make_draft(target, "--out", tmp_path / "draft", *SMALL, *arguments)
        assert result.exit_code != 0
        return str(result.stderr)

    assert "has no chat format" in refused("--chat")
    told = refused("--kind", "pruned", "--keep-layers", 4)
    assert "--keep-layers is 4" in told and "Give a number from 2 to 3." in told
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "x"}]}), encoding="utf-8")
    assert "is given plain text" in _fresh(tmp_path, lambda: refused("--prompts", file))
    file.write_text("x" * 600, encoding="utf-8")
    told = _fresh(tmp_path, lambda: refused("--prompts", file, "--own-prompts", 0))
    assert "has room for 0 prompts to train on and 0 others to measure on" in told
    write_prompts(file, [{"prompt": "x"}] * 3 + [{"prompt": f"{n}"} for n in range(4)])
    told = _fresh(tmp_path, lambda: refused("--prompts", file, "--eval-prompts", file, "--own-prompts", 0))
    assert "has room for 0 prompts to train on and 5 others to measure on" in told
    monkeypatch.setattr("langchain_specdec.training.work_folder.WorkFolder.free_bytes", lambda _: 1000)
    given = ("--prompts", write_prompts(file, [{"prompt": f"{n}"} for n in range(4)]), "--own-prompts", 0)
    assert "the disk has 0.0 GB free" in _fresh(tmp_path, lambda: refused(*given))
    # What was refused is not in the way of other settings.
    assert "the disk has 0.0 GB free" in refused(*given, "--epochs", 3)


def test_a_model_of_one_layer_gains_nothing_from_a_head(tmp_path):
    tiny_model(num_hidden_layers=1).save_pretrained(tmp_path / "one")
    byte_tokenizer().save_pretrained(tmp_path / "one")
    assert "It gains nothing from one" in make_draft(tmp_path / "one", "--out", tmp_path / "draft").stderr


def _fresh(tmp_path: Path, act: Callable[[], str]) -> str:
    """What something says with a folder that holds nothing."""
    import shutil

    shutil.rmtree(tmp_path / "draft", ignore_errors=True)
    return act()


def test_a_chat_model_writes_what_a_person_might(tmp_path):
    from langchain_specdec.training.prompt_tokens import PromptFormat

    backend = LocalBackend(tiny_model(), chat_tokenizer(), num_slots=1, max_length=64)
    begin, stop = PromptFormat(backend).opened_turn
    assert backend.private_tokenizer.decode(begin) == "<user>"
    assert stop == ("</end>",)
    backend.close()
