"""What tgi_launcher decides before anything runs: options, commands, environment, ports, restarts."""

import errno
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from tgi_launcher import Backoff, Reason, ServerInfo, SpeculationInactiveWarning, StartError, TGIConfig, TGIServer
from tgi_launcher.command import Addresses, binary_command, find_launcher, launcher_flags
from tgi_launcher.config import FLAGS
from tgi_launcher.docker_tgi import docker_command
from tgi_launcher.environment import clean_environment
from tgi_launcher.model_info import ModelInfo, find_model_info
from tgi_launcher.plan import choose_runtime, make_plan, preview_command
from tgi_launcher.ports import PortLocks
from tgi_launcher.restart import RestartPolicy

ADDRESSES = Addresses(port=8081, prometheus_port=9001, master_port=29501, shard_uds_path="/run/x/shard")
SECRET = "correct-horse-battery"  # noqa: S105  # it is none
# An MLP speculator that TGI can load.
MLP = {"model_type": "mlp_speculator", "n_predict": 3, "architectures": ["MLPSpeculatorPreTrainedModel"],
       "tie_weights": True}  # fmt: skip

# Every option of `text-generation-launcher` 3.3 (launcher/src/main.rs) that a field may stand for.
TGI_FLAGS = {
    "model_id", "revision", "validation_workers", "sharded", "num_shard", "quantize", "speculate", "dtype",
    "kv_cache_dtype", "trust_remote_code", "max_concurrent_requests", "max_best_of", "max_stop_sequences",
    "max_top_n_tokens", "max_input_tokens", "max_input_length", "max_total_tokens", "waiting_served_ratio",
    "max_batch_prefill_tokens", "max_batch_total_tokens", "max_waiting_tokens", "max_batch_size", "cuda_graphs",
    "hostname", "port", "prometheus_port", "shard_uds_path", "master_addr", "master_port", "huggingface_hub_cache",
    "weights_cache_override", "disable_custom_kernels", "cuda_memory_fraction", "rope_scaling", "rope_factor",
    "json_output", "otlp_endpoint", "otlp_service_name", "cors_allow_origin", "api_key", "tokenizer_config_path",
    "disable_grammar_support", "max_client_batch_size", "lora_adapters", "usage_stats", "payload_limit",
    "enable_prefill_logprobs", "graceful_termination_timeout",
}  # fmt: skip


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch, tmp_path):
    for name in ("API_KEY", "HF_TOKEN", "HF_API_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HOME", "HF_HUB_CACHE",
                 "ATTENTION", "PREFIX_CACHING", "CUDA_GRAPHS", "CUDA_VISIBLE_DEVICES", "HOSTNAME",
                 "LOG_LEVEL"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def model_folder(tmp_path):
    def make(**config):
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        return str(folder)

    return make


def config(**options):
    return TGIConfig(**{"model_id": "owner/name", **options})


def binary(**options):
    return binary_command(config(**options), ADDRESSES, launcher="/bin/tgl")


def docker(**options):
    return docker_command(config(runtime="docker", **options), ADDRESSES.port, "docker", name="box")


def value_of(argv, flag):
    return argv[argv.index(flag) + 1]


# Stands alone


@pytest.mark.process
def test_importing_it_brings_neither_torch_nor_langchain():
    code = (
        "import sys, tgi_launcher, tgi_launcher.cli.app\n"
        "print([m for m in ('torch', 'transformers', 'langchain_core', 'langchain_specdec') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "[]"


def test_info_of_every_release_is_read():
    old = {"model_id": "owner/name", "max_concurrent_requests": 128, "max_input_length": 7, "waiting_served_ratio": 1.2}
    info = ServerInfo.model_validate(old)
    assert (info.max_input_tokens, info.max_total_tokens, info.version) == (7, None, None)
    assert info.model_dump()["waiting_served_ratio"] == 1.2
    assert ServerInfo.model_validate({**old, "max_input_tokens": 8}).max_input_tokens == 8
    with pytest.raises(ValidationError):
        ServerInfo.model_validate({"version": "3"})


# TGIConfig


def test_every_flag_is_one_of_tgi():
    assert set(FLAGS) <= TGI_FLAGS
    # Those that are not fields: superseded, decided by us, or secret.
    left_out = {"sharded", "max_input_length", "master_addr", "json_output", "api_key"}
    assert TGI_FLAGS - set(FLAGS) == left_out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_input_tokens": 100, "max_total_tokens": 100}, ["max_input_tokens (100)", "less than"]),
        ({"max_total_tokens": 200, "max_batch_total_tokens": 100}, ["max_batch_total_tokens (100)"]),
        ({"max_batch_prefill_tokens": 200, "max_batch_total_tokens": 100}, ["max_batch_prefill_tokens (200)"]),
        ({"speculate": 2, "max_input_tokens": 200, "max_batch_prefill_tokens": 100}, ["With speculation", "(100)"]),
        ({"validation_workers": 0}, ["greater than or equal to 1"]),
        ({"num_shard": 0}, ["greater than or equal to 1"]),
        ({"num_shard": 2, "quantize": "exl2"}, ["exl2", "num_shard must be 1"]),
        ({"dtype": "float16", "quantize": "awq"}, ["leave dtype out"]),
        ({"quantize": "int3"}, ["awq"]),
        ({"speculate": -1}, ["greater than or equal to 0"]),
        ({"hostname": "example.org"}, ["IP address", "example.org"]),
        ({"port": 8080, "prometheus_port": 8080}, ["must differ"]),
        ({"port": 0}, ["greater than or equal to 1"]),
        ({"devices": (0, 0)}, ["different"]),
        ({"devices": (0,), "num_shard": 2}, ["num_shard=2"]),
        ({"shard_uds_path": "/x" * 60}, ["too long"]),
        ({"model_id": ""}, ["model_id"]),
        ({"model_id": "--port"}, ["model_id"]),
        ({"model_id": "/no/such/folder"}, ["no folder"]),
        ({"model_id": "a b"}, ["owner/name"]),
        ({"max_input_length": 5}, ["use max_input_tokens"]),
        ({"bogus": 5}, ["Extra inputs"]),
        ({"env": {"MAX_TOTAL_TOKENS": "5"}}, ["set max_total_tokens"]),
        ({"env": {"API_KEY": "5"}}, ["set api_key"]),
        ({"env": {"HUGGING_FACE_HUB_TOKEN": "5"}}, ["set hf_token"]),
        ({"env": {"A B": "5"}}, ["environment variable"]),
        ({"shm_size": "lots"}, ["shm_size"]),
        ({"runtime": "docker", "weights_cache_override": "/x"}, ["container"]),
        ({"cuda_memory_fraction": 1.5}, ["less than or equal to 1"]),
    ],
)
def test_what_tgi_would_refuse_is_refused_before_anything_starts(options, words):
    with pytest.raises(ValidationError) as caught:
        config(**options)
    for word in words:
        assert word in str(caught.value)


def test_what_tgi_takes_is_taken():
    config(dtype="float16", quantize="bitsandbytes-nf4", speculate=0, max_input_tokens=5000, max_batch_prefill_tokens=9)
    config(num_shard=1, quantize="exl2", devices=(3, 1), hostname="::", env={"ATTENTION": "paged"})


def test_localhost_does_not_open_the_server_to_the_network():
    assert config(hostname="localhost").hostname == "127.0.0.1"
    assert config().hostname == "127.0.0.1"


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "ünicode", ""])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(key):
    with pytest.raises(ValidationError) as caught:
        config(api_key=key)
    assert "visible ASCII" in str(caught.value)
    assert not key or key not in str(caught.value)


def test_secrets_do_not_show_in_the_config():
    made = config(api_key=SECRET, hf_token=SECRET)
    assert SECRET not in repr(made)
    assert SECRET not in str(made.model_dump())
    assert SECRET not in made.model_dump_json()
    assert SECRET not in repr(TGIServer(made))


# Speculation heads


@pytest.mark.parametrize(
    ("file", "kind", "heads"),
    [
        ({"medusa_num_heads": 3, "base_model_name_or_path": "b"}, "Medusa", 3),
        ({**MLP, "n_predict": 4}, "MLP-speculator", 4),
    ],
)
def test_heads_are_picked_up_from_the_model(model_folder, file, kind, heads):
    folder = model_folder(**file)
    if kind == "MLP-speculator":
        with pytest.raises(ValidationError, match="its folder has no tokenizer"):
            TGIConfig(model_id=folder)
        (Path(folder) / "tokenizer.json").touch()
    made = TGIConfig(model_id=folder)
    assert (made.model_info.speculator, made.num_speculative_tokens) == (kind, heads)
    assert TGIConfig(model_id=folder, speculate=0).num_speculative_tokens == 0
    assert TGIConfig(model_id=folder, speculate=heads).num_speculative_tokens == heads
    with pytest.raises(ValidationError, match=f"at most {heads}"):
        TGIConfig(model_id=folder, speculate=heads + 1)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ({**MLP, "tie_weights": False}, "weights that are not tied"),
        ({**MLP, "n_predict": 1, "tie_weights": None}, "weights that are not tied"),
        ({"model_type": "mlp_speculator", "n_predict": 3, "architectures": MLP["architectures"]}, "are not tied"),
        ({**MLP, "architectures": ["LlamaForCausalLM"]}, "does not say `architectures"),
        ({**MLP, "architectures": []}, "does not say `architectures"),
        ({"model_type": "mlp_speculator", "n_predict": 3, "tie_weights": True}, "does not say `architectures"),
        ({"medusa_num_heads": 3, "architectures": ["LlamaForCausalLM"]}, "may not have `architectures`"),
        ({"medusa_num_heads": 3, "architectures": None}, "may not have `architectures`"),
    ],
)
@pytest.mark.parametrize("speculate", [None, 0])
def test_heads_that_tgi_cannot_load_are_refused(model_folder, file, words, speculate):
    folder = model_folder(**file)
    with pytest.raises(ValidationError) as caught:
        TGIConfig(model_id=folder, speculate=speculate)
    (problem,) = caught.value.errors()
    assert problem["msg"].startswith(f"Value error, TGI cannot load {folder}: ")
    assert words in problem["msg"]


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
@pytest.mark.parametrize("base", ["base", "./base"])
def test_a_base_model_by_a_relative_path_is_refused(model_folder, tmp_path, monkeypatch, name, base):
    """TGI would look for it where it runs, and then on the Hub."""
    monkeypatch.chdir(tmp_path)
    Path("base").mkdir()
    heads = {"medusa_num_heads": 3} if name == "config.json" else {}
    folder = Path(model_folder(**heads))
    (folder / "config.json").rename(folder / name)

    def write(base):
        (folder / name).write_text(json.dumps({**heads, "base_model_name_or_path": base}))

    write(base)
    with pytest.raises(ValidationError, match=f'in its {name} is "{base}", a relative path.*write the absolute path'):
        TGIConfig(model_id="model")
    for fine in (str(tmp_path / "base"), "owner/base"):
        write(fine)
        assert TGIConfig(model_id="model").model_info.problem is None


# CPUs


def test_cpu_sets_what_tgi_needs_there(monkeypatch):
    monkeypatch.setenv("ATTENTION", "flashdecoding-ipex")  # as Intel's image, which crashes with speculation
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    command = binary(cpu=True, speculate=3)
    assert {name: command.env.get(name) for name in ("ATTENTION", "PREFIX_CACHING", "CUDA_VISIBLE_DEVICES")} == {
        "ATTENTION": "paged", "PREFIX_CACHING": "0", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    assert (value_of(command.argv, "--cuda-graphs"), value_of(command.argv, "--num-shard")) == ("0", "1")
    assert str(command).startswith("ATTENTION=paged CUDA_VISIBLE_DEVICES='' PREFIX_CACHING=0 /bin/tgl ")
    command = docker(cpu=True, speculate=3)
    assert "ghcr.io/huggingface/text-generation-inference:3.3.7-intel-cpu" in command.argv
    assert "--gpus" not in command.argv
    for setting in ("ATTENTION=paged", "PREFIX_CACHING=0", "HUGGINGFACE_HUB_CACHE=/data/hub"):
        assert setting in command.argv
    argv = docker(cpu=True, docker_image="mine").argv
    assert argv[argv.index("--model-id") - 1] == "mine"


@pytest.mark.parametrize("value", [1, "true", "yes"])
def test_cpu_by_any_word_that_is_taken_for_true(value):
    assert config(cpu=value) == config(cpu=True)
    assert config(cpu=0) == config()
    with pytest.raises(ValidationError, match="cpu"):
        config(cpu="perhaps")


def test_cpu_survives_another_look():
    made = config(cpu=True, env={"ATTENTION": "paged", "A": "b"}, cuda_graphs=(0,), num_shard=1, quantize="gptq")
    again = TGIConfig.model_validate({**dict(made), "runtime": "docker"})
    assert again.env == made.env == {"ATTENTION": "paged", "PREFIX_CACHING": "0", "A": "b"}
    assert dict(config()) == dict(config(cpu=False))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"devices": (0,)}, "devices must be left out"),
        ({"num_shard": 2}, "num_shard must be 1, got 2"),
        ({"cuda_graphs": (1, 2)}, "cuda_graphs must be 0"),
        ({"cuda_memory_fraction": 0.5}, "cuda_memory_fraction is of GPUs"),
        ({"kv_cache_dtype": "fp8_e5m2"}, "kv_cache_dtype='fp8_e5m2' needs a GPU"),
        ({"quantize": "bitsandbytes"}, "quantize='bitsandbytes' needs a GPU: only awq and gptq"),
        ({"docker_gpus": True}, "docker_gpus must be off"),
        ({"env": {"ATTENTION": "flashinfer"}}, "env may not set ATTENTION to 'flashinfer': it has to be paged"),
        ({"env": {"PREFIX_CACHING": "1"}}, "env may not set PREFIX_CACHING"),
    ],
)
def test_what_a_cpu_cannot_do_is_refused(options, words):
    with pytest.raises(ValidationError) as caught:
        config(cpu=True, **options)
    assert f"With cpu, {words}" in str(caught.value)


def test_a_model_in_the_cache_is_found_by_its_id(tmp_path, monkeypatch):
    repository = tmp_path / "hub" / "models--owner--name"
    for commit, heads in (("aaa", 2), ("bbb", 5)):
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "config.json").write_text(json.dumps({"medusa_num_heads": heads}))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("aaa")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert find_model_info("owner/name").num_heads == 2
    assert find_model_info("owner/name", revision="bbb").num_heads == 5
    assert find_model_info("owner/other") == ModelInfo()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"medusa_num_heads": "many"}', '{"architectures": 3}'])
def test_a_strange_config_file_is_no_obstacle(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    assert find_model_info(str(tmp_path)).num_heads is None
    (tmp_path / "config.json").write_text("[" * 9999, encoding="utf-8")
    assert find_model_info(str(tmp_path)) == ModelInfo()


# Commands


def test_flags_are_those_that_were_given():
    command = binary(
        speculate=4, max_total_tokens=8192, trust_remote_code=True, cuda_graphs=(1, 2), cors_allow_origin=("a", "b")
    )
    assert command.argv == (
        "/bin/tgl", "--model-id", "owner/name", "--speculate", "4", "--trust-remote-code", "--max-total-tokens", "8192",
        "--cuda-graphs", "1,2", "--hostname", "127.0.0.1", "--port", "8081", "--prometheus-port", "9001",
        "--master-port", "29501", "--shard-uds-path", "/run/x/shard", "--cors-allow-origin", "a", "--cors-allow-origin",
        "b", "--usage-stats", "off", "--graceful-termination-timeout", "90", "--json-output",
    )  # fmt: skip
    assert "--speculate" in binary(speculate=0).argv, "0 turns heads off, so it must be said"
    assert "-p" not in command.argv, "TGI has -p twice"


def test_a_medusa_model_is_started_by_its_own_folder(model_folder):
    folder = model_folder(medusa_num_heads=3)
    argv = binary(model_id=folder, speculate=2).argv
    assert (value_of(argv, "--model-id"), value_of(argv, "--speculate")) == (folder, "2")


def test_a_70b_on_four_gpus():
    command = binary(model_id="meta-llama/Llama-3.3-70B-Instruct", num_shard=4, devices=(0, 1, 2, 3), speculate=3)
    assert value_of(command.argv, "--num-shard") == "4"
    assert command.env["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    assert "CUDA_VISIBLE_DEVICES=0,1,2,3" in str(command)


def test_stray_variables_that_tgi_would_read_are_kept_out(monkeypatch):
    for name in ("PORT", "API_KEY", "DTYPE", "REVISION", "MASTER_PORT", "HOSTNAME", "SHARDED", "NGROK", "LOG_LEVEL"):
        monkeypatch.setenv(name, "stray")
    for name in ("PATH", "HF_TOKEN", "CUDA_VISIBLE_DEVICES", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "/meant")
    env = binary().env
    assert "stray" not in env.values()
    for name in ("PATH", "HF_TOKEN", "CUDA_VISIBLE_DEVICES", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"):
        assert env[name] == "/meant"
    assert env["LOG_LEVEL"] == "info"


def test_tracebacks_are_plain_unless_somebody_wants_boxes():
    assert binary().env["_TYPER_STANDARD_TRACEBACK"] == "1"
    assert binary(env={"_TYPER_STANDARD_TRACEBACK": ""}).env["_TYPER_STANDARD_TRACEBACK"] == ""


def test_what_an_image_sets_for_its_machine_is_passed_on_and_shown(monkeypatch):
    image = {"ATTENTION": "flashdecoding-ipex", "PREFIX_CACHING": "1", "PREFILL_CHUNKING": "1", "CUDA_GRAPHS": "0"}
    for name, text in {**image, "PORT": "80"}.items():
        monkeypatch.setenv(name, text)
    command = binary()
    assert {name: command.env.get(name) for name in (*image, "PORT")} == {**image, "PORT": None}
    shown = str(command)
    assert shown.startswith(
        "env -u PORT ATTENTION=flashdecoding-ipex CUDA_GRAPHS=0 PREFILL_CHUNKING=1 PREFIX_CACHING=1"
    )
    command = binary(cuda_graphs=(1, 2), env={"ATTENTION": "paged"})
    assert value_of(command.argv, "--cuda-graphs") == "1,2"
    assert (command.env["ATTENTION"], command.env.get("CUDA_GRAPHS")) == ("paged", None)
    assert str(command).startswith("env -u CUDA_GRAPHS -u PORT ATTENTION=paged PREFILL_CHUNKING=1 ")


def test_paths_mean_the_same_where_tgi_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("model", "adapter", "bin"):
        Path(name).mkdir()
    Path("template.json").touch()
    Path("bin/launcher").write_text("#!/bin/sh")
    Path("bin/launcher").chmod(0o755)
    monkeypatch.setenv("PATH", "bin:/usr/bin:")
    monkeypatch.setenv("LD_LIBRARY_PATH", ":lib")
    monkeypatch.setenv("LD_PRELOAD", "libtcmalloc.so:./mine.so")
    monkeypatch.setenv("HF_HOME", "../cache")
    options = {
        "model_id": "model", "tokenizer_config_path": "template.json", "shard_uds_path": "sockets/s",
        "huggingface_hub_cache": "~/hub", "weights_cache_override": "./weights", "launcher_path": "bin/launcher",
        "lora_adapters": "owner/one, two=adapter@main,adapter",
    }  # fmt: skip
    made = config(**options, env={"TORCH_HOME": "torch", "NAME": "./kept"})
    monkeypatch.chdir("/")
    argv, env = binary_command(made, ADDRESSES, "/bin/tgl").argv, binary_command(made, ADDRESSES, "/bin/tgl").env
    assert value_of(argv, "--model-id") == f"{tmp_path}/model"
    assert value_of(argv, "--tokenizer-config-path") == f"{tmp_path}/template.json"
    assert value_of(argv, "--huggingface-hub-cache") == str(Path("~/hub").expanduser())
    assert value_of(argv, "--weights-cache-override") == f"{tmp_path}/weights"
    adapters = f"owner/one,two={tmp_path}/adapter@main,adapter={tmp_path}/adapter"
    assert value_of(argv, "--lora-adapters") == adapters
    assert (made.shard_uds_path, made.launcher_path) == (f"{tmp_path}/sockets/s", f"{tmp_path}/bin/launcher")
    monkeypatch.chdir(tmp_path)
    env = binary_command(made, ADDRESSES, "/bin/tgl").env
    assert env["PATH"] == f"{tmp_path}/bin:/usr/bin:"
    assert env["LD_LIBRARY_PATH"] == f":{tmp_path}/lib"
    assert env["LD_PRELOAD"] == f"libtcmalloc.so:{tmp_path}/mine.so"
    assert env["HF_HOME"] == str(tmp_path.parent / "cache")
    assert (env["TORCH_HOME"], env["NAME"]) == (f"{tmp_path}/torch", "./kept")
    assert find_launcher(config(launcher_path="launcher")) == f"{tmp_path}/bin/launcher"
    with pytest.raises(ValidationError, match="docker_cache must not be empty"):
        config(docker_cache=" ")


def test_any_variable_that_names_what_is_here_means_the_same_where_tgi_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("some").mkdir()
    Path("some/file").touch()
    monkeypatch.setenv("NOBODY_THOUGHT_OF_IT", "some/file")
    monkeypatch.setenv("OTHER", "some/text")
    monkeypatch.setenv("WORD", "some")
    monkeypatch.setenv("XDG_DATA_HOME", "data")
    env = binary().env
    assert env["NOBODY_THOUGHT_OF_IT"] == f"{tmp_path}/some/file"
    assert env["XDG_DATA_HOME"] == f"{tmp_path}/data"
    assert (env["OTHER"], env["WORD"]) == ("some/text", "some")


@pytest.mark.server
def test_a_temporary_folder_of_the_config_is_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("tgl").write_text("#!/bin/sh")
    Path("tgl").chmod(0o755)
    with PortLocks() as locks:
        for env in ({}, {"TMPDIR": "mine"}):
            plan = make_plan(config(launcher_path="./tgl", env=env), locks)
            assert plan.command.env["TMPDIR"] == (str(tmp_path / "mine") if env else plan.folder.temporary)
            plan.folder.lock.release()
            shutil.rmtree(plan.folder.path)


@pytest.mark.parametrize("field", ["model_id", "docker_cache", "huggingface_hub_cache", "launcher_path",
                                   "lora_adapters"])  # fmt: skip
def test_a_home_folder_of_nobody_is_said(field):
    with pytest.raises(ValidationError, match="~no-such-user/x begins with a user's home folder that is not known"):
        config(**{field: "~no-such-user/x"})


def test_docker_sees_adapters_by_mounts(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("my adapter").mkdir()
    command = docker(lora_adapters="owner/one,two=my adapter@main")
    assert value_of(command.argv, "--lora-adapters") == "owner/one,two=/adapters/1-my_adapter@main"
    assert f"{tmp_path}/my adapter:/adapters/1-my_adapter:ro" in command.argv


def test_every_variable_of_tgi_is_known():
    machine = {"huggingface_hub_cache", "cuda_graphs", "cuda_memory_fraction", "disable_custom_kernels"}
    environ = {name.upper(): "stray" for name in TGI_FLAGS}
    assert clean_environment(config(), environ).keys() == {name.upper() for name in machine}
    chosen = config(cuda_graphs=(0,), cuda_memory_fraction=0.5, disable_custom_kernels=True, huggingface_hub_cache="/c")
    assert clean_environment(chosen, environ) == {}, "a field wins"


def test_a_given_token_wins_over_every_other(monkeypatch):
    monkeypatch.setenv("HF_API_TOKEN", "old")  # TGI would prefer it
    env = binary(hf_token=SECRET).env
    assert env["HF_TOKEN"] == SECRET
    assert "HF_API_TOKEN" not in env


@pytest.mark.parametrize("make", [binary, docker])
def test_secrets_go_by_environment_and_are_masked(make):
    command = make(api_key=SECRET, hf_token="hf_token_x")
    assert (command.env["API_KEY"], command.env["HF_TOKEN"]) == (SECRET, "hf_token_x")
    for text in (*command.argv, str(command), repr(command)):
        assert SECRET not in text
        assert "hf_token_x" not in text
    assert str(command).startswith("API_KEY=*** HF_TOKEN=*** ")


@pytest.mark.parametrize("make", [binary, docker])
def test_secrets_among_more_variables_are_masked_too(make):
    more = {"AWS_SECRET_ACCESS_KEY": SECRET, "TOKENIZERS_PARALLELISM": "false", "USE_KEY": "1"}
    command = make(env=more)
    assert command.env["AWS_SECRET_ACCESS_KEY"] == SECRET
    assert command.secrets == (SECRET,)
    for text in (*command.argv, str(command), repr(command), repr(config(env=more))):
        assert SECRET not in text
    assert "AWS_SECRET_ACCESS_KEY=***" in str(command)
    for setting in ("TOKENIZERS_PARALLELISM=false", "USE_KEY=1"):
        assert setting in str(command)


@pytest.mark.parametrize("make", [binary, docker])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, SECRET)
            for name in ("DB_PASS", "APIKEY", "MY_PASSPHRASE", "PGPASS_PWD", "AUTHORIZATION", "SENTRY_DSN")
        ),
        ("DATABASE", f"postgres://me:{SECRET}@db/x"),
        ("ALL_PROXY", f"http://:{SECRET}@proxy:3128"),
    ],
)
def test_what_may_be_a_secret_is_taken_for_one(make, name, value):
    command = make(env={name: value})
    assert command.env[name] == value
    for text in (*command.argv, str(command), repr(command)):
        assert SECRET not in text


def test_docker_command(monkeypatch):
    monkeypatch.setenv("HF_HOME", "/cache/hf")
    monkeypatch.setenv("HF_TOKEN", "from-environment")
    command = docker(speculate=4, num_shard=2, graceful_termination_timeout=20, env={"ATTENTION": "paged"})
    assert command.argv == (
        "docker", "run", "--rm", "--name", "box", "--label", "tgi-launcher=box", "--stop-timeout", "48",
        "--gpus", "all", "--shm-size", "1g", "-p", "127.0.0.1:8081:80", "-v", "/cache/hf:/data",
        "-e", "_TYPER_STANDARD_TRACEBACK=1", "-e", "ATTENTION=paged", "-e", "LOG_LEVEL=info", "-e", "HF_TOKEN",
        "ghcr.io/huggingface/text-generation-inference:3.3.7", "--model-id", "owner/name", "--speculate", "4",
        "--num-shard", "2", "--hostname", "0.0.0.0", "--port", "80", "--usage-stats", "off",  # noqa: S104
        "--graceful-termination-timeout", "20", "--json-output",
    )  # fmt: skip
    assert command.env["HF_TOKEN"] == "from-environment"  # noqa: S105
    assert command.stop == ("docker", "stop", "-t", "48", "box")
    assert command.remove == ("docker", "rm", "-f", "box")


def test_docker_sees_a_local_model_by_a_mount(model_folder):
    folder = model_folder()
    assert f"{folder}:/model/model" in docker(model_id=folder).argv, "TGI may have to convert the weights there"
    (Path(folder) / "model.safetensors").touch()
    command = docker(model_id=folder)
    assert f"{folder}:/model/model:ro" in command.argv
    assert value_of(command.argv, "--model-id") == "/model/model"


def test_docker_gets_devices_and_values_with_spaces_whole():
    command = docker(devices=(1, 3), otlp_service_name="a b", hostname="::1", docker_gpus=True)
    assert value_of(command.argv, "--gpus") == '"device=1,3"'
    assert "[::1]:8081:80" in command.argv
    assert "--otlp-service-name" not in command.argv, "the image would split the value at its space"
    assert "OTLP_SERVICE_NAME=a b" in command.argv
    assert "--gpus" not in docker(docker_gpus=False).argv


def test_what_there_is_decides_the_runtime(tmp_path):
    with pytest.raises(StartError) as caught:
        choose_runtime(config())
    assert caught.value.reason is Reason.LAUNCHER_NOT_FOUND
    for name, runtime in (("docker", "docker"), ("text-generation-launcher", "binary")):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
        assert choose_runtime(config()) == runtime
    assert choose_runtime(config(runtime="docker")) == "docker"


@pytest.mark.parametrize(
    ("runtime", "reason"), [("binary", Reason.LAUNCHER_NOT_FOUND), ("docker", Reason.DOCKER_NOT_FOUND)]
)
def test_a_runtime_that_is_missing_is_said(runtime, reason):
    with pytest.raises(StartError) as caught:
        TGIServer(config(runtime=runtime)).start()
    assert caught.value.reason is reason
    assert "\n" not in caught.value.summary


@pytest.mark.parametrize("is_on_path", [True, False])
def test_a_launcher_that_cannot_be_run_is_not_called_absent(tmp_path, is_on_path):
    launcher = tmp_path / "text-generation-launcher"
    launcher.write_text("")
    options = {} if is_on_path else {"launcher_path": str(launcher)}
    with PortLocks() as locks, pytest.raises(StartError, match=f"^{launcher} is not executable: run chmod") as caught:
        make_plan(config(runtime="binary", **options), locks)
    assert caught.value.reason is Reason.LAUNCHER_NOT_FOUND


def test_a_folder_is_no_launcher(tmp_path):
    with PortLocks() as locks, pytest.raises(StartError, match="is a folder, not a program"):
        make_plan(config(runtime="binary", launcher_path=str(tmp_path)), locks)


@pytest.mark.parametrize(("name", "words"), [("x.gguf", "does not read GGUF"), ("model.safetensors", "is a file")])
def test_a_file_is_no_model(tmp_path, monkeypatch, name, words):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / name).touch()
    monkeypatch.chdir(tmp_path)
    for model_id in (str(tmp_path / "models" / name), f"models/{name}", f"./models/{name}"):
        with pytest.raises(ValidationError, match=words):
            config(model_id=model_id)
    # A file beside it that is named like a model of the Hub is none of ours.
    (tmp_path / "gpt2").touch()
    assert config(model_id="gpt2").model_id == "gpt2"


@pytest.mark.server
def test_preview_needs_nothing_installed():
    command = str(preview_command(config(speculate=4)))
    assert command.startswith("text-generation-launcher --model-id owner/name --speculate 4")
    assert str(preview_command(config(runtime="docker"))).startswith("docker run")


def test_flags_can_be_replaced():
    assert "--port" not in launcher_flags(config(port=5), port=None)


# Ports


@pytest.mark.server
def test_a_user_without_a_name_can_lock_ports(monkeypatch):
    # As in a container that is run under any number.
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    with PortLocks() as locks:
        assert locks.take("127.0.0.1", None, first=20080, what="Port") >= 20080


@pytest.mark.server
def test_two_servers_get_different_ports():
    with PortLocks() as one, PortLocks() as two:
        ports = [locks.take("127.0.0.1", None, first=20080, what="Port") for locks in (one, two, one)]
        assert len(set(ports)) == 3
        with pytest.raises(StartError) as caught:
            two.take("127.0.0.1", ports[0], first=1, what="Port")
        assert caught.value.reason is Reason.PORT_TAKEN
    with PortLocks() as three:
        assert three.take("127.0.0.1", ports[0], first=1, what="Port") == ports[0], "released with their owner"


@pytest.mark.server
@pytest.mark.parametrize("hostname", ["192.0.2.7", "2001:db8::7"])
def test_an_address_of_another_machine_is_no_taken_port(hostname):
    with PortLocks() as locks, pytest.raises(StartError, match="is no address of this machine") as caught:
        locks.take(hostname, 8080, first=8080, what="Port")
    assert caught.value.reason is Reason.INVALID_ARGUMENTS


@pytest.mark.server
@pytest.mark.parametrize(
    ("number", "words"), [(errno.EACCES, "may not bind port 80"), (errno.ENOBUFS, "cannot be bound: No buffer space")]
)
def test_a_port_that_nobody_may_bind_is_no_taken_port(monkeypatch, number, words):
    def bind(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket, "socket", type("Socket", (socket.socket,), {"bind": bind}))
    with PortLocks() as locks, pytest.raises(StartError, match=words):
        locks.take("127.0.0.1", 80, first=8080, what="Port")


@pytest.mark.server
def test_a_port_somebody_listens_on_is_taken():
    with socket.socket() as other, PortLocks() as locks:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(StartError) as caught:
            locks.take("127.0.0.1", port, first=1, what="Port")
        assert caught.value.summary.startswith(f"Port {port} on 127.0.0.1 is taken")
        assert locks.take("127.0.0.1", None, first=port, what="Port") != port


@pytest.mark.server
def test_everything_that_two_servers_could_share_differs(tmp_path):
    launcher = tmp_path / "text-generation-launcher"
    launcher.write_text("#!/bin/sh\n")
    launcher.chmod(0o755)
    with PortLocks() as one, PortLocks() as two:
        plans = [make_plan(config(), locks) for locks in (one, two)]
    first, second = (plan.addresses for plan in plans)
    different = {"port", "prometheus_port", "master_port", "shard_uds_path"}
    assert {name for name in different if getattr(first, name) != getattr(second, name)} == different
    assert plans[0].command.env["TMPDIR"] != plans[1].command.env["TMPDIR"]
    assert plans[0].command.folder != plans[1].command.folder
    for plan in plans:
        assert len(str(plan.addresses.shard_uds_path)) < 100
        plan.folder.lock.release()
        shutil.rmtree(plan.folder.path)


# Restarts


def test_waits_grow_and_end():
    policy = RestartPolicy("on-failure", Backoff(first_seconds=1, factor=3, max_seconds=20, max_restarts=4))
    waits = [policy.next_wait(Reason.SHARD_FAILED, 0.0) for _ in range(5)]
    assert waits == [1, 3, 9, 20, None]


def test_a_stable_server_starts_counting_anew():
    policy = RestartPolicy("on-failure", Backoff(max_restarts=1, stable_seconds=60))
    assert policy.next_wait(Reason.SHARD_FAILED, 0.0) == 1.0
    assert policy.next_wait(Reason.SHARD_FAILED, 59.0) is None
    assert policy.next_wait(Reason.SHARD_FAILED, 61.0) == 1.0


@pytest.mark.parametrize("reason", [Reason.STOPPED, Reason.MODEL_NOT_FOUND, Reason.SPECULATE_EXCEEDS_HEADS])
def test_no_restart_where_it_cannot_help(reason):
    assert RestartPolicy("on-failure", Backoff()).next_wait(reason, 0.0) is None


def test_no_restart_unless_asked_for():
    assert RestartPolicy("never", Backoff()).next_wait(Reason.SHARD_FAILED, 0.0) is None
    with pytest.raises(ValueError, match="on-failure"):
        TGIServer(config(), restart="always")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="negative"):
        Backoff(max_restarts=-1)


def test_very_many_restarts_do_not_overflow():
    assert Backoff(max_restarts=10**6).seconds_before(10**6) == 60.0


# Errors


def test_a_warning_that_is_made_an_error_is_logged_once_where_nobody_can_catch_it(caplog, monkeypatch):
    server = TGIServer(config(speculate=3))

    def warn():
        server._has_warned = True
        raise SpeculationInactiveWarning("it does nothing")

    monkeypatch.setattr(server, "speculation", warn)
    for _ in range(2):
        server._check_speculation()
    assert [record.getMessage() for record in caplog.records] == ["it does nothing"]
    assert not server._has_warned, "a call of the user's may raise it"


def test_a_start_error_survives_pickling():
    error = pickle.loads(pickle.dumps(StartError(Reason.TIMEOUT, "Why.", log_tail=["a", "b"], returncode=1)))  # noqa: S301
    assert (error.reason, error.summary, error.log_tail, error.returncode) == (Reason.TIMEOUT, "Why.", ("a", "b"), 1)
    assert str(error) == "Why.\nThe last lines of the log:\n  | a\n  | b"


def test_a_key_is_handed_on_as_a_secret():
    assert TGIServer(config(api_key=SECRET)).api_key == SecretStr(SECRET)
