"""tgi-launch: its options, what it prints, and wrong input."""

import io
import json
import re
import shlex
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from tgi_launcher import TGIConfig, plan
from tgi_launcher.cli import check
from tgi_launcher.cli.app import _slip, _with_command, app
from tgi_launcher.cli.brief_log import BriefLog
from tgi_launcher.cli.reporting import with_flags
from tgi_launcher.cli.status import make_status
from tgi_launcher.command import require_launcher
from tgi_launcher.config import FLAGS
from tgi_launcher.errors import StartError
from tgi_launcher.extras import install_command
from tgi_launcher.logs import LogRecord
from tgi_launcher.ports import PortLocks

TAKE_PORT = plan.take_port
SECRET = "correct-horse-battery"  # noqa: S105  # it is none


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HF_API_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HOME", "TGI_API_KEY", "FORCE_COLOR",
                 "ATTENTION", "PREFIX_CACHING", "CUDA_GRAPHS", "CUDA_VISIBLE_DEVICES", "HOSTNAME",
                 "LOG_LEVEL"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    # As on a machine whose ports are free, without a look at them.
    monkeypatch.setattr(plan, "take_port", lambda config, locks, field: plan.FIRST_PORTS[field])


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a program on PATH that prints a text. The machine counts as one with the Hub."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def install(name, text="", code=0):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {shlex.quote(text)}\nexit {code}\n")
        (tmp_path / name).chmod(0o755)

    return install


@pytest.fixture
def medusa(tmp_path):
    folder = tmp_path / "medusa"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"medusa_num_heads": 3, "base_model_name_or_path": "owner/base"}))
    (folder / "medusa_lm_head.safetensors").touch()
    return str(folder)


def run(*arguments):
    return CliRunner().invoke(app, _with_command([str(argument) for argument in arguments]))


def printed(*arguments):
    result = run("print-command", *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout.rstrip("\n")


# What would be run

NGRAM = (
    "text-generation-launcher --model-id mistralai/Mistral-7B-Instruct-v0.3 --speculate 4 --hostname 127.0.0.1 "
    "--port 8080 --prometheus-port 9000 --master-port 29500 --usage-stats off "
    "--graceful-termination-timeout 90 --json-output"
)


def test_n_grams_for_a_7b():
    assert printed("mistralai/Mistral-7B-Instruct-v0.3", "--speculate", "4") == NGRAM


def test_medusa(medusa):
    assert "--speculate" not in printed(medusa), "left out, TGI uses all heads"
    assert f"--model-id {medusa} --speculate 2 " in printed(medusa, "--speculate", 2)
    result = run("print-command", medusa, "--speculate", 4)
    assert result.exit_code == 2
    assert "has 3 Medusa heads: at most 3" in result.stderr


def test_a_70b_on_four_gpus():
    command = printed(
        "meta-llama/Llama-3.3-70B-Instruct", "--num-shard", 4, "--devices", "0,1,2,3", "--speculate", 3,
        "--max-total-tokens", 8192, "--max-input-tokens", 7000, "--max-batch-prefill-tokens", 8000,
    )  # fmt: skip
    assert command.startswith("CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=0,1,2,3 text-generation-launcher ")
    for part in ("--num-shard 4", "--max-total-tokens 8192", "--max-batch-prefill-tokens 8000", "--speculate 3"):
        assert part in command


def test_docker(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("HF_HOME", "/cache")
    command = printed("owner/name", "--runtime", "docker", "--speculate", 4, "--devices", "1", "--port", 8085)
    assert command == (
        "docker run --rm --name tgi-8085 --label tgi-launcher=tgi-8085 --stop-timeout 188 "
        "--gpus '\"device=1\"' --shm-size 1g -p 127.0.0.1:8085:80 -v /cache:/data "
        "-e _TYPER_STANDARD_TRACEBACK=1 -e LOG_LEVEL=info -e HF_TOKEN "
        "ghcr.io/huggingface/text-generation-inference:3.3.7 --model-id owner/name --speculate 4 --hostname 0.0.0.0 "
        "--port 80 --usage-stats off --graceful-termination-timeout 90 --json-output"
    )


@pytest.mark.parametrize("command", ["print-command", "check"])
def test_docker_without_a_home_folder(monkeypatch, command):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    result = run(command, "owner/name", "--runtime", "docker")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: There is no folder to keep downloads in: ")
    assert result.stderr.endswith("Give --docker-cache, or set HF_HOME.\n")
    assert result.stderr.count("\n") == 1
    assert "-v /cache:/data" in printed("owner/name", "--runtime", "docker", "--docker-cache", "/cache")


def test_folders_on_path_are_taken_as_they_are(monkeypatch):
    monkeypatch.setenv("PATH", "~nobody-of-this-name/bin")
    with pytest.raises(StartError, match="There is no text-generation-launcher on PATH"):
        require_launcher(TGIConfig(model_id="owner/name"))


def test_the_key_comes_from_a_file_or_a_variable_and_is_masked(tmp_path, monkeypatch):
    file = tmp_path / "key"
    file.write_text(SECRET + "\n")
    assert printed("owner/name", "--api-key-file", file).startswith("API_KEY=*** text-generation-launcher ")
    monkeypatch.setenv("TGI_API_KEY", SECRET)
    assert printed("owner/name").startswith("API_KEY=*** ")
    assert SECRET not in printed("owner/name")
    monkeypatch.delenv("TGI_API_KEY")
    for engine, variable in (("vllm", "VLLM_API_KEY"), ("specdec", "SPECDEC_API_KEY")):
        monkeypatch.setenv(variable, SECRET)
        assert f"-u {variable}" not in printed("owner/name", "--engine", engine, "--port", 4000), "the key is dropped"
    monkeypatch.setenv("TGI_API_KEY", "two words")
    result = run("print-command", "owner/name")
    assert result.exit_code == 2
    assert "two words" not in result.output


def test_lists_are_taken_whole():
    command = printed(
        "o/n",
        "--cuda-graphs",
        "1, 2",
        "--cors-allow-origin",
        "a",
        "--cors-allow-origin",
        "b",
        "--env",
        "ATTENTION=paged",
    )
    for part in ("ATTENTION=paged text-gen", "--cuda-graphs 1,2", "--cors-allow-origin a --cors-allow-origin b"):
        assert part in command


# Options


def test_every_field_is_an_option():
    result = run("start", "--help")
    assert result.exit_code == 0
    options = set(re.findall(r"--[a-z][a-z-]+", result.stdout))
    fields = {f"--{name.replace('_', '-')}" for name in TGIConfig.model_fields} - {
        "--model-id",
        "--api-key",
        "--hf-token",
    }
    assert fields - options == set()
    assert "--no-docker-gpus" in options


def test_start_may_be_left_out():
    assert _with_command(["owner/name", "--speculate", "4"]) == ["start", "owner/name", "--speculate", "4"]
    assert _with_command(["--speculate", "4", "owner/name"])[0] == "start"
    for arguments in ([], ["--help"], ["check"], ["print-command", "x"]):
        assert _with_command(arguments) == arguments
    result = run("owner/name", "--runtime", "binary")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: There is no text-generation-launcher on PATH")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a/b/c"], "error: MODEL: There is no folder a/b/c."),
        (
            ["embedded", "--engine", "vllm"],
            "'embedded' is a model of specdec alone: take --engine specdec, or another model.",
        ),
        (["o/n", "--frobnicate"], "No such option: --frobnicate"),
        (["o/n", "--speculate", "-1"], "--speculate: Input should be greater than or equal to 0, got -1"),
        (["o/n", "--dtype", "float8"], "--dtype: Input should be 'float16' or 'bfloat16', got 'float8'"),
        (["o/n", "--num-shard", "0"], "--num-shard: Input should be greater than or equal to 1, got 0"),
        (["o/n", "--devices", "a"], "--devices:"),
        (["o/n", "--env", "PORT=3"], "PORT is an option of its own: set --port instead"),
        (["o/n", "--env", "API_KEY=x"], "set --api-key-file or the variable TGI_API_KEY instead"),
        (["o/n", "--env", "HF_TOKEN=x"], "HF_TOKEN is an option of its own: set the variable HF_TOKEN instead"),
        (["o/n", "--env", "HF_API_TOKEN=x"], "set the variable HF_TOKEN instead"),
        (["o/n", "--cpu", "--env", "CUDA_VISIBLE_DEVICES=3"], "With --cpu, --env may not set CUDA_VISIBLE_DEVICES"),
        (["o/n", "--cpu", "--devices", "1"], "With --cpu, --devices must be left out"),
        (["o/n", "--devices", "1", "--num-shard", "2"], "--devices must be 2 GPUs for --num-shard 2, got 1."),
        (["o/n", "--port", "90", "--prometheus-port", "90"], "--port must differ from --prometheus-port, and both"),
        (
            ["o/n", "--dtype", "float16", "--quantize", "awq"],
            "TGI takes no --quantize awq beside a numeric type: leave --",
        ),
        (["o/n", "--port", "x"], "--port: Input should be a valid integer"),
        (["o/n", "--runtime", "docker", "--launcher-path", "x"], "--launcher-path is a path of this machine"),
        (["o/n", "--env", "PORT"], "NAME=VALUE"),
        (["o/n", "--hostname", "example.org"], "--hostname must be an IP address"),
        (["o/n", "--max-input-tokens", "9", "--max-total-tokens", "9"], "must be less than"),
        (["o/n", "--speculate", "four"], "--speculate"),
        (["o/n", "--api-key", "x"], "--api-key"),
        (["o/n", "--api-key-file", "/no/such"], "/no/such"),
        ([], "MODEL"),
    ],
)
def test_wrong_input_is_said_in_words(arguments, words):
    result = run("print-command", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("engine", ["tgi", "vllm"])
def test_a_switch_that_is_on_by_default_can_be_turned_off(monkeypatch, engine):
    monkeypatch.setenv("HF_HOME", "/cache")
    options = ["owner/name", "--engine", engine, "--runtime", "docker", "--port", "4000"]
    if engine == "tgi":
        options += ["--prometheus-port", "4001", "--master-port", "4002"]
    assert "--gpus all" in printed(*options)
    assert "--gpus" not in printed(*options, "--no-docker-gpus")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("give it more by startup_timeout.", "give it more by --startup-timeout."),
        ("give launcher_path, or use runtime='docker'.", "give --launcher-path, or use --runtime docker."),
        ("use more GPUs (num_shard), quantize", "use more GPUs (--num-shard), quantize"),
        ("speculate=4, but x has 3: leave speculate out.", "--speculate 4, but x has 3: leave --speculate out."),
        ("or set docker_gpus=False.", "or set --no-docker-gpus."),
        ("give extra_args=('--rpc', 'HOST:PORT').", "give --extra-arg=--rpc --extra-arg=HOST:PORT."),
        ("cpu=True sets them", "--cpu sets them"),
        ("hostname=10.0.0.1 is no address", "--hostname 10.0.0.1 is no address"),
        ("check model_id and revision.", "check MODEL and revision."),
        ("There is no folder /a/master_port/max_batch_size.d/port=3.", None),
        ("the ports and devices of this env, which speculate", None),
    ],
)
def test_messages_name_options_as_the_command_line_does(message, shown):
    assert with_flags(message) == (shown or message)


def test_no_name_of_python_is_left_in_a_message():
    for name in (*FLAGS, "launcher_path", "docker_image", "startup_timeout", "api_key", "hf_token"):
        said = with_flags(f"set {name} to another value, or leave {name} out.")
        assert not re.search(rf"(?<![-\w]){name}\b", said), said


@pytest.mark.parametrize(("word", "command"), [("chekc", "check"), ("status", "start"), ("print_command", "print-c"),
                                                ("clean-up", "cleanup")])  # fmt: skip
def test_a_slip_of_a_command_is_no_model(word, command, tmp_path, monkeypatch):
    said = str(_slip([word, "--speculate", "3"]))
    assert said.startswith(f"There is no command {word}: use {command}")
    assert said.endswith(f"tgi-launch start {word}.")
    monkeypatch.chdir(tmp_path)
    (tmp_path / word).mkdir()
    assert _slip([word]) is None


@pytest.mark.parametrize("word", ["gpt2", "starcoder", "owner/check", "check", "start", "--help", "--speculate", None])
def test_what_is_no_slip(word):
    assert _slip([word] if word else []) is None


# What there is


@pytest.mark.server
def test_the_command_has_free_ports(monkeypatch, tmp_path):
    monkeypatch.setattr(plan, "take_port", TAKE_PORT)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with PortLocks() as locks:
        for field, first in plan.FIRST_PORTS.items():
            taken = locks.take("127.0.0.1", None, first=first, what=field)
            flag = f"--{field.replace('_', '-')}"
            command = printed("owner/name")
            shown = int(command.split(f"{flag} ")[1].split()[0])
            assert first <= taken < shown
            assert f"{flag} {taken} " in printed("owner/name", flag, taken), "what is given is shown"


@pytest.mark.process
@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no config.json that can be read"),
        ({"config.json": "[]", "model.safetensors": ""}, "no config.json that can be read"),
        ({"config.json": "{"}, "no config.json that can be read"),
        ({"config.json": "{}"}, "no weights that TGI could load"),
        ({"config.json": "{}", "model.safetensors": ""}, None),
        ({"config.json": "{}", "pytorch_model.bin": ""}, None),
        ({"adapter_config.json": "{}"}, None),
    ],
)
def test_check_looks_at_the_folder_of_a_model(install, tmp_path, files, words):
    install("text-generation-launcher")
    folder = tmp_path / "model"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    result = run("check", folder, "--cpu")
    assert result.exit_code == (1 if words else 0), result.output
    line = re.search(r"^(.) model +(.*)$", result.stdout, re.MULTILINE)
    assert line is not None
    assert line[1] == ("✗" if words else "✓")
    assert (words or "on this machine") in line[2]


@pytest.mark.process
def test_check_knows_that_nothing_is_downloaded_offline(install, monkeypatch):
    install("text-generation-launcher")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert "it will be downloaded" in run("check", "owner/name", "--cpu").stdout
    for given in (["--env", "HF_HUB_OFFLINE=1"], ["--env", "HF_HUB_OFFLINE=true"]):
        result = run("check", "owner/name", "--cpu", *given)
        assert result.exit_code == 1
        assert "✗ model" in result.stdout
        assert "HF_HUB_OFFLINE keeps it from being downloaded" in result.stdout
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run("check", "owner/name", "--cpu").exit_code == 1
    # A container gets nothing of the environment.
    assert "it will be downloaded" in run("check", "owner/name", "--cpu", "--runtime", "docker").stdout


@pytest.mark.process
def test_check_says_what_is_missing():
    result = run("check")
    assert result.exit_code == 1
    assert re.search(r"✗ runtime +There is neither text-generation-launcher nor docker", result.stdout)


@pytest.mark.process
def test_check_says_what_would_happen(install, medusa):
    install("text-generation-launcher")
    install("nvidia-smi", "0, NVIDIA L4, 23034 MiB, 22000 MiB\n1, NVIDIA L4, 23034 MiB, 100 MiB")
    result = run("check", medusa)
    assert result.exit_code == 0, result.output
    for pattern in (
        r"✓ runtime +auto: binary", r"✓ GPU 1 +NVIDIA L4, 23034 MiB, 100 MiB", r"✓ port +\d+ is free",
        r"✓ heads +3 Medusa heads for owner/base", r"✓ speculation +3 tokens per step by Medusa heads",
        r"! context +with speculation", r"  command +\S*text-generation-launcher --model-id",
    ):  # fmt: skip
        assert re.search(pattern, result.stdout), pattern
    result = run("check", "owner/name", "--num-shard", 4)
    assert result.exit_code == 1
    assert re.search(r"✗ --num-shard +4 GPUs are asked for, there are 2", result.stdout)
    assert re.search(r"! model +owner/name is not on this machine", result.stdout)


@pytest.mark.process
@pytest.mark.parametrize(("code", "exit_code", "words"), [(0, 0, "daemon 29.1"), (1, 1, "does not answer")])
def test_check_asks_docker(install, code, exit_code, words):
    install("docker", "29.1", code)
    result = run("check", "--cpu")
    assert result.exit_code == exit_code
    assert words in result.stdout


@pytest.mark.process
@pytest.mark.parametrize(("code", "exit_code", "mark"), [(0, 0, "✓"), (1, 1, "✗")])
def test_check_asks_docker_where_another_engine_is_not_installed(install, code, exit_code, mark):
    install("docker", "29.1", code)
    result = run("check", "--engine", "sglang")
    assert result.exit_code == exit_code
    assert re.search(rf"^  program +there is no sglang.*\n{mark} docker .*\n✓ runtime +auto: docker", result.stdout)


@pytest.fixture
def no_devices(monkeypatch):
    """As on a machine without any maker's device files."""
    monkeypatch.setattr(check, "_ACCELERATORS", ("no-such-device",))


@pytest.mark.process
@pytest.mark.usefixtures("no_devices")
@pytest.mark.parametrize("model", [[], ["owner/name", "--speculate", 3]])
def test_check_says_what_a_cpu_needs(install, monkeypatch, model):
    install("text-generation-launcher")
    result = run("check", *model)
    assert result.exit_code == 1
    line = re.search(r"^✗ GPUs +(.*)$", result.stdout, re.MULTILINE)
    assert line is not None
    for part in ("none found", "ATTENTION=paged", "PREFIX_CACHING=0", "--cuda-graphs 0", "--cpu"):
        assert part in line[1]
    result = run("check", *model, "--cpu")
    assert result.exit_code == 0, result.output
    assert re.search(r"✓ CPU +ATTENTION=paged PREFIX_CACHING=0 --cuda-graphs 0$", result.stdout, re.MULTILINE)
    # Set by hand, in part or whole.
    by_hand = ["check", *model, "--env", "ATTENTION=paged"]
    assert run(*by_hand).exit_code == 1
    result = run(*by_hand, "--cuda-graphs", "0")
    assert result.exit_code == 0, result.output
    monkeypatch.setenv("CUDA_GRAPHS", "0")
    assert run(*by_hand).exit_code == 0


@pytest.mark.process
def test_check_knows_that_there_are_other_makers(install, monkeypatch):
    install("text-generation-launcher")
    monkeypatch.setattr(check, "_ACCELERATORS", ("nul*",))
    result = run("check")
    assert result.exit_code == 0
    assert re.search(r"! GPUs +none found by nvidia-smi, though there is /dev/null; on a CPU", result.stdout)


def test_cpu_is_one_option():
    command = printed("owner/name", "--cpu", "--speculate", 3)
    for part in ("ATTENTION=paged", "PREFIX_CACHING=0", "--cuda-graphs 0", "--num-shard 1"):
        assert part in command
    command = printed("owner/name", "--cpu", "--runtime", "docker")
    assert "--gpus" not in command
    assert ":3.3.7-intel-cpu --model-id owner/name" in command
    result = run("print-command", "owner/name", "--cpu", "--devices", "0")
    assert result.exit_code == 2
    assert result.stderr == "error: With --cpu, --devices must be left out: they are GPUs.\n"


def test_check_takes_options_without_a_model():
    result = run("check", "--num-shard", 2, "--cpu")
    assert result.exit_code == 2
    assert "--num-shard must be 1" in result.stderr


def test_check_refuses_heads_that_tgi_cannot_load(tmp_path):
    file = {"model_type": "mlp_speculator", "n_predict": 3, "architectures": ["MLPSpeculatorPreTrainedModel"]}
    (tmp_path / "config.json").write_text(json.dumps(file))
    result = run("check", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "weights that are not tied" in result.stderr


@pytest.mark.process
def test_without_typer_it_says_what_to_install():
    code = (
        "import sys; sys.modules['typer'] = None\n"
        "from tgi_launcher.cli import main; main()"
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 1
    assert done.stderr.strip() == f"The command line needs typer and rich: {install_command('cli')}"


START = "from tgi_launcher.cli import main; main()"


@pytest.mark.process
@pytest.mark.parametrize("moment", ["tgi_launcher.cli.app", "tgi_launcher.plan"])
def test_ctrl_c_before_anything_runs_is_one_word(moment):
    code = (
        "import importlib.abc, sys\n"
        "class Interrupting(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == '{moment}': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code + START], capture_output=True, text=True, check=False)  # noqa: S603
    assert (done.returncode, done.stderr) == (130, "Interrupted.\n")


def test_ctrl_c_in_a_command_is_one_word(monkeypatch):
    monkeypatch.setattr("tgi_launcher.engines.tgi.preview_command", interrupt)
    result = run("print-command", "owner/name")
    assert (result.exit_code, result.stderr) == (130, "Interrupted.\n")


def interrupt(*_):
    raise KeyboardInterrupt


# What start shows in a terminal


def test_names_and_log_lines_are_shown_as_they_are(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    status = make_status()
    texts = ["[red]waiting[/x] for :cat:", "models[/x]/:cat: is ready", "ERROR shard:warning: [bold]no[/]"]
    status.show(texts[0])
    status.say(texts[1])
    status.log(texts[2])
    status.close()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    for text in texts:
        assert text in plain


def brief(*records):
    """What is shown of these records, given as (level, message)."""
    shown: list[str] = []
    log = BriefLog(shown.append)
    for level, message in records:
        for line in LogRecord(message, level).lines():
            log.add(line)
    log.flush(is_over=True)
    return shown


def test_an_error_is_shown_with_what_it_comes_to():
    traceback = (
        'Download encountered an error: \nTraceback (most recent call last):\n  File "x.py", line 1, in f\n    f()\n'
        "OSError: inner\n\nDuring handling of the above exception, another exception occurred:\n"
        "ConnectionError: outer\n  it says more"
    )
    records = [("INFO", "Starting"), ("ERROR", traceback), ("", "Error: DownloadError"), ("ERROR", "Shard 0 crashed")]
    assert brief(*records) == ["ERROR Download encountered an error: ConnectionError: outer", "ERROR Shard 0 crashed"]
    assert brief(("ERROR", "Headline.\nno exception\nlast words")) == ["ERROR Headline: last words"]
    assert brief(("INFO", "Args\nx"), ("WARN", "Odd tokenizer detected")) == ["WARN Odd tokenizer detected"]


@pytest.mark.parametrize(
    "message",
    [
        "Cannot determine GPU compute capability: ModuleNotFoundError: No module named 'torch'",
        "Could not import Mamba: No module named 'mamba_ssm'",
        "Prefill chunking does not support speculation yet. Prefill chunking will be turned off",
        'Tokenizer_config None - Some("/models/x/tokenizer_config.json")',
        "no pipeline tag found for model /models/x",
    ],
)
def test_warnings_that_mean_nothing_are_not_shown(message):
    assert brief(("WARN", message)) == []


def test_what_was_shown_is_not_told_again():
    log = BriefLog(lambda line: None)
    records = [
        LogRecord("Starting", "INFO"),
        LogRecord("It failed:\nValueError: x", "ERROR"),
        LogRecord("Error: E", ""),
    ]
    lines = [line for record in records for line in record.lines()]
    for line in lines:
        log.add(line)
    assert log.untold(lines) == ["INFO Starting", "Error: E"]
    assert log.untold(lines[2:]) == ["Error: E"]


def test_an_error_is_shown_before_the_next_line_comes(monkeypatch):
    monkeypatch.setattr("tgi_launcher.cli.brief_log._RECORD_SECONDS", -1)
    shown: list[str] = []
    log = BriefLog(shown.append)
    log.add("ERROR it")
    log.flush()
    log.flush()
    assert shown == ["ERROR it"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--engine", "sglang", "--speculation-method", "suffix"], "SGLang does not speculate by suffixes"),
        (["--speculation-method", "suffix"], "TGI does not speculate by suffixes: it has ngram"),
        (["--speculation-method", "medusa", "--draft-model", "a/b"], "TGI has no draft models"),
        (["--speculation-method", "ngram", "--speculate", "0"], "--speculate 0 is no speculation"),
        (["--draft-model", "a/b"], "tgi has no option --draft-model"),
        (["--engine", "vllm", "--max-batch-size", "5"], "vllm has no option --max-batch-size"),
        (["--engine", "vllm", "--speculation-method", "eagle3"], "needs its model: give --draft-model"),
        (["--engine", "vlm"], "There is no engine vlm: use tgi, vllm, sglang, llama-cpp, specdec"),
        (["--engine", "vllm", "--speculation-method", "guess"], "--speculation-method: Input should be 'ngram'"),
    ],
)
def test_what_an_engine_lacks_is_refused_in_one_line(arguments, says):
    result = run("print-command", "owner/model", *arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("method", "config", "has"), [("medusa", {}, "no"), ("ngram", {"medusa_num_heads": 3}, "Medusa")]
)
def test_tgi_speculates_by_what_the_model_has(tmp_path, method, config, has):
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    result = run("print-command", tmp_path, "--speculation-method", method)
    assert result.exit_code == 2
    assert f"has {has} heads: leave --speculation-method out." in result.stderr


def test_the_command_of_another_engine_is_printed():
    others = ["--port", "4000", "--speculate", "3", "--extra-arg=-q"]
    result = run("print-command", "owner/model", "--engine", "vllm", *others)
    assert result.exit_code == 0
    assert "vllm serve owner/model --host 127.0.0.1 --port 4000 --speculative-config" in result.stdout
    assert result.stdout.endswith(" -q\n")
    result = run("print-command", "owner/model", "--speculation-method", "ngram", "--runtime", "binary")
    assert "--speculate 4" in result.stdout


def test_another_engine_is_checked(monkeypatch):
    monkeypatch.setattr(check, "take_engine_port", lambda config, locks: config.port)
    result = run("check", "owner/model", "--engine", "vllm", "--port", "4000", "--launcher-path", "/no/such/vllm")
    assert result.exit_code == 1
    assert "there is no /no/such/vllm: install it" in result.stdout
    assert "! speculation  the engine's own choice" in result.stdout
