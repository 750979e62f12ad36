"""Engines beside TGI: one setting of speculation as the flags of each, what each lacks, its log and its figures."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.standin.recorded_engine import metrics
from tests.support.source_code import ROOT
from tgi_launcher import EngineConfig, Method, Reason, Stage, StartError, TGIConfig
from tgi_launcher.command import Addresses, Command
from tgi_launcher.diagnosis import Evidence
from tgi_launcher.engines.arguments import write_key_file
from tgi_launcher.engines.choice import engine_of
from tgi_launcher.engines.container import container_command
from tgi_launcher.engines.program import choose_runtime, engine_command
from tgi_launcher.engines.table import ENGINES
from tgi_launcher.engines.tgi import TGI
from tgi_launcher.errors import NotRunningError
from tgi_launcher.extras import EXTRAS
from tgi_launcher.logs import LogRecord
from tgi_launcher.metrics import Metrics, parse_metrics_of
from tgi_launcher.ports import PortLocks
from tgi_launcher.server_folder import server_folders

EACH = pytest.mark.parametrize("engine", ENGINES)
METHODS = ("ngram", "suffix", "draft-model", "eagle3", "medusa")
HAS = {
    "vllm": {*METHODS},
    "sglang": {"ngram", "draft-model", "eagle3"},
    "llama-cpp": {"ngram", "draft-model", "eagle3"},
    "specdec": {"ngram", "draft-model"},
}


def config(engine: str, **options: Any) -> EngineConfig:
    return EngineConfig(**{"engine": engine, "model_id": "owner/model", **options})


def arguments(engine: str, **options: Any) -> list[str]:
    made = config(engine, **options)
    return list(engine_command(made, 4000, made.facts.program).argv)


def problem_of(engine: str, **options: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        config(engine, **options)
    return str(caught.value.errors()[0]["msg"]).removeprefix("Value error, ")


def value(argv: list[str], flag: str) -> str:
    return argv[argv.index(flag) + 1]


@EACH
def test_each_engine_takes_the_methods_that_it_has_and_refuses_the_others(engine):
    assert {method.value for method in ENGINES[engine].speculation} == HAS[engine]
    for method in METHODS:
        given: dict[str, Any] = {"speculation_method": method, "speculate": 5}
        if Method(method).needs_model:
            given["draft_model"] = "owner/draft"
        if method not in HAS[engine]:
            sentence = problem_of(engine, **given)
            assert sentence.startswith(f"{ENGINES[engine].title} does not speculate by {Method(method).words}")
            assert sentence.count(".") == 1 + ("llama.cpp" in sentence)
            assert all(has in sentence for has in HAS[engine])
            continue
        argv = arguments(engine, **given)
        assert "5" in argv or '"num_speculative_tokens": 5' in " ".join(argv)
        assert ("owner/draft" in " ".join(argv)) is Method(method).needs_model


def test_the_page_has_the_methods_of_each_engine():
    page = (ROOT / "docs/engines.md").read_text(encoding="utf-8").split("## What each speculates with")[1]
    lines = re.findall(r"^\| (?!---).*\|$", page.split("\n- ")[0], re.MULTILINE)
    head, *rows = ([cell.strip(" `") for cell in line.strip("|").split(" | ")] for line in lines)
    assert [row[0] for row in rows] == list(METHODS)
    for engine, methods in HAS.items():
        cells = {row[0]: row[head.index(engine)] for row in rows}
        assert {method for method, cell in cells.items() if cell.startswith("yes")} == methods


def test_the_page_has_the_flags_of_each_engine():
    page = (ROOT / "docs/engines.md").read_text(encoding="utf-8").split("## Options")[1]
    for facts in ENGINES.values():
        for name in facts.flags.keys() - {"dtype", "revision", "trust_remote_code"}:
            assert f"`{facts.flags[name]}`" in page
        assert facts.key_variable is None or f"`{facts.key_variable}`" in page


def test_one_setting_becomes_the_flags_of_each():
    given = {"speculation_method": "draft-model", "draft_model": "owner/draft", "speculate": 3}
    speculative = json.loads(value(arguments("vllm", **given), "--speculative-config"))
    assert speculative == {"method": "draft_model", "num_speculative_tokens": 3, "model": "owner/draft"}
    sglang = arguments("sglang", **given)
    assert value(sglang, "--speculative-algorithm") == "STANDALONE"
    # The token that is known already is counted as a draft token.
    assert [value(sglang, f"--speculative-{name}") for name in ("num-steps", "num-draft-tokens", "eagle-topk")] == [
        "3", "4", "1",
    ]  # fmt: skip
    llama = arguments("llama-cpp", **given)
    assert (value(llama, "--spec-type"), value(llama, "--spec-draft-hf")) == ("draft-simple", "owner/draft")
    assert value(arguments("specdec", **given), "--draft-model") == "owner/draft"
    ngram = json.loads(value(arguments("vllm", speculate=6), "--speculative-config"))
    assert ngram == {"method": "ngram", "num_speculative_tokens": 6, "prompt_lookup_min": 2, "prompt_lookup_max": 4}
    assert value(arguments("llama-cpp", speculate=2), "--spec-ngram-simple-size-n") == "2"
    assert value(arguments("specdec", speculate=6), "--drafter") == "prompt_lookup"


@EACH
def test_without_a_setting_the_engine_decides_and_zero_is_none(engine):
    for given in ({}, {"speculate": 0}):
        made = config(engine, **given)
        assert (made.drafts, made.num_speculative_tokens) == (None, 0)
        assert "spec" not in " ".join(arguments(engine, **given)[2:])
    assert ("none" in arguments(engine, speculate=0)) is (engine == "specdec")
    assert "speculate=0 is no speculation" in problem_of(engine, speculate=0, speculation_method="ngram")


def test_models_and_methods_that_do_not_fit_are_refused():
    assert "give draft_model" in problem_of("vllm", speculation_method="eagle3")
    assert "takes no draft_model" in problem_of("vllm", speculation_method="ngram", draft_model="owner/draft")
    assert "all GPUs that it sees" in problem_of("llama-cpp", num_shard=2)
    assert "GGUF file has its own" in problem_of("llama-cpp", dtype="bfloat16")
    assert "There is no file x.gguf" in problem_of("llama-cpp", model_id="x.gguf")
    assert "There is no folder ./x" in problem_of("vllm", model_id="./x")
    assert "must be a model id" in problem_of("vllm", model_id="--port")
    assert "a model of specdec alone" in problem_of("vllm", model_id="embedded")
    assert "must be 4 GPUs" in problem_of("vllm", num_shard=4, devices=(0, 1))
    assert "must be an IP address" in problem_of("vllm", hostname="example.org")


@pytest.mark.parametrize(
    ("engine", "options", "sentence"),
    [
        ("vllm", {"nnodes": 2}, "needs master_addr"),
        ("vllm", {"node_rank": 1}, "give nnodes, how many they are"),
        ("vllm", {"nnodes": 2, "node_rank": 2, "master_addr": "a"}, "must be from 0 to 1 for nnodes=2, got 2"),
        ("vllm", {"nnodes": 2, "master_addr": "a:1"}, "without a port"),
        ("vllm", {"data_parallel_size": 2, "num_shard": 2, "devices": (0, 1)},
         "4 GPUs for num_shard=2, data_parallel_size=2, got 2"),
        ("vllm", {"devices": ()}, "must be different GPU numbers, at least one."),
        ("vllm", {"devices": (0, 0), "num_shard": 2}, "must be different GPU numbers, at least one."),
        ("llama-cpp", {"pipeline_parallel_size": 2}, "all GPUs that it sees"),
        ("llama-cpp", {"nnodes": 2, "master_addr": "a"}, "--rpc"),
        ("specdec", {"data_parallel_size": 2}, "specdec cannot be given data_parallel_size: leave it out."),
        ("specdec", {"runtime": "docker"}, "docker build -t specdec"),
        ("sglang", {"runtime": "docker", "docker_gpus": False}, "for CPUs: give docker_image."),
        ("vllm", {"runtime": "docker", "launcher_path": "/x"}, "which a container does not see"),
        ("vllm", {"runtime": "docker", "nnodes": 2, "master_addr": "a"}, "leave nnodes out"),
        ("vllm", {"docker_cache": " "}, "must not be empty"),
        ("sglang", {"api_key": "-key"}, "begins with a hyphen"),
        ("vllm", {"shm_size": "much"}, "such as 1g"),
        ("vllm", {"docker_gpus": False, "devices": (0,)}, "gives a container no GPUs: leave devices out"),
        ("llama-cpp", {"model_id": "/"}, "model_id must be a GGUF file for llama.cpp, or a model id of the Hub, and /"),
    ],
)  # fmt: skip
def test_gpus_machines_and_containers_that_cannot_be_are_refused(engine, options, sentence):
    assert sentence in problem_of(engine, **options)


def test_a_machine_that_would_not_answer_is_not_started():
    made = config("vllm", nnodes=2, node_rank=1, master_addr="a", launcher_path=sys.executable)
    with PortLocks() as locks, pytest.raises(StartError, match="answers on the first machine only") as caught:
        engine_of(made).make_plan(locks)
    assert caught.value.reason is Reason.INVALID_ARGUMENTS


def in_docker(engine: str, **options: Any) -> Command:
    made = config(engine, runtime="docker", docker_cache="/cache", **options)
    return container_command(made, 4000, "docker", name="box", key_file="/f/key.yaml" if engine == "sglang" else None)


def test_each_engine_has_its_image(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_user")
    command = in_docker("vllm", speculate=0, num_shard=2, devices=(2, 3), api_key="correct-horse", env={"A": "b"})
    assert command.argv == (
        "docker", "run", "--rm", "--name", "box", "--label", "tgi-launcher=box", "--stop-timeout", "28",
        "--gpus", '"device=2,3"', "--shm-size", "16g", "-p", "127.0.0.1:4000:8000", "-v", "/cache:/data",
        "-e", "PYTHONUNBUFFERED=1", "-e", "VLLM_NO_USAGE_STATS=1", "-e", "HF_HOME=/data", "-e", "A=b",
        "-e", "VLLM_API_KEY", "-e", "HF_TOKEN",
        "vllm/vllm-openai:v0.32.0", "owner/model", "--host", "0.0.0.0", "--port", "8000",  # noqa: S104
        "--tensor-parallel-size", "2",
    )  # fmt: skip
    assert command.stop == ("docker", "stop", "-t", "28", "box")
    assert command.remove == ("docker", "rm", "-f", "box")
    assert (command.env["VLLM_API_KEY"], command.env["HF_TOKEN"]) == ("correct-horse", "hf_of_this_user")
    assert {"correct-horse", "hf_of_this_user"} <= set(command.secrets)
    command = in_docker("sglang", api_key="correct-horse")
    assert "correct-horse" in command.secrets
    argv = command.argv
    assert "/f/key.yaml:/api-key/key.yaml:ro" in argv
    assert argv[argv.index("lmsysorg/sglang:v0.5.23") + 1 :][:2] == ("sglang", "serve")
    assert argv[-2:] == ("--config", "/api-key/key.yaml")
    command = in_docker("llama-cpp", docker_gpus=False)
    assert "ghcr.io/ggml-org/llama.cpp:server-b11429" in command.argv
    assert "--gpus" not in command.argv
    assert "--shm-size" not in command.argv
    assert in_docker("specdec", docker_image="specdec").argv[-6:-4] == ("specdec", "owner/model")
    assert "mine:1" in in_docker("vllm", docker_image="mine:1").argv


def test_the_image_that_can_be_built_starts_the_engine():
    """Nothing is built here: its command line has to be the one that a container is given arguments for."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    (entry,) = (line.removeprefix("ENTRYPOINT ") for line in lines if line.startswith("ENTRYPOINT "))
    assert tuple(json.loads(entry)) == ENGINES["specdec"].program
    extras = re.search(r"'/source\[([\w,]+)\]'", "".join(lines))
    assert extras is not None
    assert set(extras[1].split(",")) <= EXTRAS.keys()


def test_a_container_sees_models_of_this_machine_by_mounts(tmp_path):
    (tmp_path / "a model").mkdir()
    for name in ("x-00001-of-00002.gguf", "y.gguf"):
        (tmp_path / name).touch()
    argv = in_docker("vllm", model_id=f"{tmp_path}/a model", draft_model=str(tmp_path), speculate=2).argv
    assert f"{tmp_path}/a model:/model/a_model:ro" in argv
    assert "/model/a_model" in argv
    assert f'"model": "/draft-model/{tmp_path.name}"' in " ".join(argv)
    part, whole = f"{tmp_path}/x-00001-of-00002.gguf", f"{tmp_path}/y.gguf"
    argv = in_docker("llama-cpp", model_id=part, draft_model=whole).argv
    assert f"{tmp_path}:/model/{tmp_path.name}:ro" in argv, "the other parts are needed too"
    assert value(list(argv), "--model") == f"/model/{tmp_path.name}/x-00001-of-00002.gguf"
    assert value(list(argv), "--spec-draft-model") == "/draft-model/y.gguf"


def test_a_path_that_docker_would_split_is_refused_and_leaves_no_folder(monkeypatch, tmp_path):
    (tmp_path / "docker").write_text("#!/bin/sh\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "a:b").mkdir()
    for engine, given in (("sglang", {"docker_cache": f"{tmp_path}/a:b"}), ("vllm", {"model_id": f"{tmp_path}/a:b"})):
        made = config(engine, runtime="docker", api_key="correct-horse", **given)
        before = server_folders()
        with PortLocks() as locks, pytest.raises(StartError, match="no path with a colon in it"):
            engine_of(made).make_plan(locks, earlier=Addresses(5000, 0, 0, None))
        assert server_folders() == before


def test_docker_is_taken_where_the_engine_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert choose_runtime(config("vllm")) == "binary", "there is neither"
    for name in ("docker", "vllm"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
        assert choose_runtime(config("vllm")) == ("docker" if name == "docker" else "binary")
    assert choose_runtime(config("sglang")) == "docker"
    assert choose_runtime(config("sglang", docker_gpus=False)) == "binary", "there is no image"
    assert choose_runtime(config("sglang", launcher_path="/x")) == "binary"
    assert choose_runtime(config("sglang", nnodes=2, master_addr="a")) == "binary"
    shown = str(engine_of(config("sglang", port=5000, docker_cache="/c", api_key="key")).preview_command())
    assert shown.startswith("docker run ")
    assert "-v ./key.yaml:/api-key/key.yaml:ro " in shown
    assert shown.endswith(" --config /api-key/key.yaml")


def test_a_key_that_no_variable_holds_is_in_a_file_of_this_user_alone(tmp_path):
    made = config("sglang", api_key="a:b#'c")
    path = write_key_file(made, tmp_path)
    assert path is not None
    assert Path(path).stat().st_mode & 0o777 == 0o600
    assert json.loads(Path(path).read_text()) == {"api-key": "a:b#'c"}
    command = engine_command(made, 4000, made.facts.program, key_file=path)
    assert command.argv[-2:] == ("--config", path)
    assert "a:b#'c" in command.secrets
    assert "a:b#'c" not in " ".join(command.argv) + str(command.env)
    assert arguments("sglang", api_key="key")[-2:] == ["--config", "key.yaml"], "it is only shown"
    for without in (config("sglang"), config("vllm", api_key="key")):
        assert write_key_file(without, tmp_path / "none") is None


def test_files_of_models_are_given_as_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("model.gguf", "draft.GGUF"):
        (tmp_path / name).touch()
    argv = arguments("llama-cpp", model_id="model.gguf", draft_model="draft.GGUF")
    assert value(argv, "--model") == str(tmp_path / "model.gguf")
    assert value(argv, "--spec-draft-model") == str(tmp_path / "draft.GGUF")
    assert value(arguments("llama-cpp", model_id="owner/model:Q4_K_M"), "--hf-repo") == "owner/model:Q4_K_M"


def test_several_gpus_and_machines_go_by_the_engine_s_own_flags():
    sizes = {"num_shard": 4, "pipeline_parallel_size": 2, "data_parallel_size": 3}
    vllm, sglang = arguments("vllm", **sizes), arguments("sglang", **sizes)
    for name, size in (("tensor", "4"), ("pipeline", "2"), ("data", "3")):
        assert value(vllm, f"--{name}-parallel-size") == size
        assert value(sglang, f"--{name[0]}p-size") == size
    second = {"nnodes": 2, "node_rank": 1, "master_addr": "10.0.0.1"}
    assert "--nnodes 2 --node-rank 1 --master-addr 10.0.0.1 --master-port 29501 --headless" in " ".join(
        arguments("vllm", **second)
    )
    assert "--headless" not in arguments("vllm", **{**second, "node_rank": None})
    sglang = arguments("sglang", **{**second, "master_addr": "::1", "master_port": 5000})
    assert value(sglang, "--dist-init-addr") == "[::1]:5000"
    assert "--nnodes" not in arguments("vllm", nnodes=1)
    assert arguments("vllm", extra_args=("--data-parallel-size", "2"))[-2:] == ["--data-parallel-size", "2"]
    made = config("vllm", devices=(2, 3))
    command = engine_command(made, 4000, made.facts.program)
    assert str(command).startswith("CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=2,3 vllm serve owner/model ")
    assert command.env["CUDA_VISIBLE_DEVICES"] == "2,3"


@pytest.mark.parametrize("engine", ["vllm", "llama-cpp", "specdec"])
def test_keys_go_by_the_environment_and_settings_of_others_are_kept_away(engine, monkeypatch):
    monkeypatch.setenv("LLAMA_ARG_PORT", "1")
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_user")
    variable = str(ENGINES[engine].key_variable)
    monkeypatch.setenv(variable, "of-somebody-else")
    made = config(engine, api_key="correct-horse")
    command = engine_command(made, 4000, made.facts.program)
    assert command.env[variable] == "correct-horse"
    assert "correct-horse" not in " ".join(command.argv) + str(command) + repr(command) + repr(made)
    assert {"correct-horse", "hf_of_this_user"} <= set(command.secrets)
    assert ("LLAMA_ARG_PORT" in command.env) is (engine != "llama-cpp")
    made = config(engine)
    assert variable not in engine_command(made, 4000, made.facts.program).env


LOGS = {
    "vllm": [
        ("(EngineCore pid=7) ERROR 11-26 10:00:03 [core.py:9] boom", "ERROR", "[core.py:9] boom"),
        ("\x1b[1;36m(APIServer pid=7)\x1b[0;0m WARNING 11-26 10:00:03 [a.py:9] hm", "WARN", "[a.py:9] hm"),
        ("(APIServer pid=7) INFO:     Application startup complete.", "INFO", "Application startup complete."),
        ("Traceback (most recent call last):", "", "Traceback (most recent call last):"),
    ],
    "sglang": [
        ("[2026-11-26 10:00:01 TP0] Load weight begin.", "", "Load weight begin."),
        ("[2026-11-26 10:00:01] WARNING: hm", "WARN", "hm"),
    ],
    "llama-cpp": [
        ("0.00.003.009 I srv          init: loading model", "INFO", "srv          init: loading model"),
        ("0.00.586.380 W srv          init: disabling", "WARN", "srv          init: disabling"),
    ],
    "specdec": [("error: There is no folder", "", "error: There is no folder")],
}


@EACH
def test_lines_of_a_log_become_records(engine):
    made = engine_of(config(engine))
    for line, level, message in LOGS[engine]:
        assert made.parse_line(line) == LogRecord(message, level)
    long = "x" * 10**6
    assert made.parse_line(long).message == long


@pytest.mark.parametrize(
    ("engine", "message", "stage", "serves"),
    [
        ("vllm", "Starting to load model fake", Stage.SHARDS, False),
        ("vllm", "Application startup complete.", None, True),
        ("sglang", "KV Cache is allocated. #tokens: 9", Stage.WARM_UP, False),
        ("sglang", "The server is fired up and ready to roll!", None, True),
        ("llama-cpp", "srv    load_model: loading model 'x.gguf'", Stage.SHARDS, False),
        ("llama-cpp", "srv          init: listening on http://127.0.0.1:8080", None, True),
        ("specdec", "Serving embedded on http://127.0.0.1:8000", None, True),
    ],
)
def test_records_tell_how_far_a_start_has_come(engine, message, stage, serves):
    made = engine_of(config(engine))
    record = LogRecord(message)
    assert (made.stage_of(record), made.begins_serving(record)) == (stage, serves)


@pytest.mark.parametrize(
    ("engine", "says", "reason", "sentence"),
    [
        ("vllm", "ImportError: Arctic Inference is required for suffix decoding.", Reason.SPECULATION_UNSUPPORTED,
         "pip install arctic-inference"),
        ("vllm", "ModuleNotFoundError: No module named 'flashinfer'", Reason.INCOMPLETE_INSTALLATION,
         "The installation of vLLM is incomplete: its Python has no module flashinfer."),
        ("vllm", "OSError: [Errno 98] Address already in use", Reason.PORT_TAKEN, "Port 4000 is taken"),
        ("vllm", "docker: Error response from daemon: Bind for 127.0.0.1:4000 failed: port is already allocated.",
         Reason.PORT_TAKEN, "Port 4000 is taken"),
        ("sglang", "docker: Error response from daemon: manifest for x:y not found: manifest unknown",
         Reason.DOCKER_FAILED, "check docker_image"),
        ("sglang", "huggingface_hub.errors.GatedRepoError: 403", Reason.MODEL_ACCESS_DENIED, "owner/model"),
        ("sglang", "RuntimeError: No CUDA GPUs are available", Reason.NOT_ENOUGH_GPUS, "SGLang finds fewer GPUs"),
        ("llama-cpp", "error: invalid argument: --draft-max", Reason.INVALID_ARGUMENTS, "argument: --draft-max."),
        ("llama-cpp", "llama_model_load: error loading model: missing tensor 'a'", Reason.MODEL_NOT_FOUND,
         "llama.cpp cannot load owner/model: missing tensor 'a'."),
        ("specdec", "error: There is no model 'embeded'. Did you mean 'embedded'?", Reason.MODEL_NOT_FOUND,
         "There is no model 'embeded'. Did you mean 'embedded'?"),
        ("specdec", "error: --max-length must be a whole number, got 'x'.", Reason.INVALID_ARGUMENTS,
         "--max-length must"),
        ("vllm", "RuntimeError: Engine core initialization failed.", Reason.EXITED,
         "vLLM ended with exit code 1: RuntimeError: Engine core initialization failed."),
    ],
)  # fmt: skip
def test_a_log_tells_why_a_start_failed_and_after_that_nothing(engine, says, reason, sentence):
    made = engine_of(config(engine))
    given: dict[str, Any] = {"returncode": 1, "model_id": "owner/model", "port": 4000}
    told = made.diagnose(Evidence(records=[LogRecord(says)], **given))
    assert told.reason is reason
    assert sentence in told.summary
    assert "?." not in told.summary
    # A client may have sent it.
    for was_ready in (True, False):
        record = LogRecord(says, while_serving=not was_ready)
        assert made.diagnose(Evidence(records=[record], was_ready=was_ready, **given)).reason is Reason.EXITED


@EACH
def test_exit_codes_without_a_line_of_the_log(engine):
    made = engine_of(config(engine))
    codes = {None: Reason.KILLED, -9: Reason.KILLED, 0: Reason.STOPPED, 1: Reason.EXITED, 2: Reason.INVALID_ARGUMENTS}
    for code, reason in codes.items():
        told = made.diagnose(Evidence(records=[], returncode=code, model_id="owner/model", port=4000))
        assert told.reason is reason
        assert made.title in told.summary
    for code, reason in {125: Reason.DOCKER_FAILED, 137: Reason.KILLED, 1: Reason.EXITED}.items():
        evidence = Evidence(records=[], returncode=code, model_id="owner/model", port=4000, is_docker=True)
        assert made.diagnose(evidence).reason is reason


def test_figures_are_read_by_the_names_of_the_engine():
    names, title = ENGINES["vllm"].metrics, "vLLM"
    read = parse_metrics_of(names, title, metrics("vllm", 400), time=1.0)
    report = engine_of(config("vllm", speculate=4)).report(read, Metrics(time=0.0))
    assert (report.num_tokens, report.num_skipped, report.num_drafted) == (400, 300, 600)
    assert (report.acceptance_rate, report.tokens_per_step) == (0.5, 1 + 300 / 99)
    # What is accepted past the end of an answer is not generated.
    more = "vllm:generation_tokens_total 3\nvllm:spec_decode_num_accepted_tokens_total 5\n"
    assert parse_metrics_of(names, title, more, time=1.0).skipped_sum == 3
    assert parse_metrics_of(names, title, "other 1\n", time=1.0).generated_tokens == 0
    with pytest.raises(NotRunningError, match="not vLLM's"):
        parse_metrics_of(names, title, "vllm:generation_tokens_total -1\n", time=1.0)
    with pytest.raises(NotRunningError, match="Prometheus"):
        parse_metrics_of(names, title, "{", time=1.0)


def test_speculation_that_does_nothing_is_said():
    engine = engine_of(config("vllm", speculate=4))
    text = "vllm:generation_tokens_total 200\nvllm:request_success_total 2\n"
    report = engine.report(parse_metrics_of(ENGINES["vllm"].metrics, "vLLM", text, time=1.0), Metrics(time=0.0))
    assert report.is_active is False
    assert report.warning == (
        "4 tokens are to be drafted per step by n-grams, but none of 198 decode steps yielded more than one token. "
        "Without speculation nothing would be lost."
    )


def test_a_config_of_tgi_has_tgi_for_its_engine():
    assert isinstance(engine_of(TGIConfig(model_id="owner/model")), TGI)
