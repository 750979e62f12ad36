"""Contestants on llama.cpp: what they ask it for, what they make of its answers, and which file it reads."""

from __future__ import annotations

import http.client
import importlib.util
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType

from langchain_specdec.bench.build import set_up
from langchain_specdec.bench.contestant import Prompt, parse_contestants
from langchain_specdec.bench.contestant_llama_cpp import LlamaCppContestant, LlamaCppServer
from langchain_specdec.bench.header import describe_graphs, make_header
from langchain_specdec.bench.llama_cpp_server import start
from langchain_specdec.bench.measure import grouped, measure
from langchain_specdec.bench.plan import Plan
from langchain_specdec.bench.weights import gguf_file, load_weights
from langchain_specdec.bench.workload import Question
from langchain_specdec.errors import InvalidParameterError, ModelLoadError
from langchain_specdec.models import embedded
from langchain_specdec.models.gguf.model import GGUFModel
from langchain_specdec.models.memory import default_threads
from langchain_specdec.runner.cpu.decoder_trial import native_library
from langchain_specdec.sampling.params import SamplingParams
from tests.support.gguf_files import tiny_model, write_gguf

PROMPTS = [Prompt("1", "qa", (5, 6, 7)), Prompt("2", "qa", (8, 9))]


class Server:
    """Stands in for xllamacpp and its server: it keeps what it is asked, and answers by what it is told."""

    listening_address = "http://127.0.0.1:1"
    is_closed = False

    def __init__(self) -> None:
        self.params: Any = None
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Callable[[dict[str, Any]], object] = lambda asked: [
            answer(index, range(index, index + 4)) for index, _ in reversed([*enumerate(asked["prompt"])])
        ]
        self.status = 200

    def start(self, params: Any) -> Server:
        self.params = params
        return self

    def connect(self, netloc: str) -> Any:
        assert netloc == "127.0.0.1:1"

        def request(method: str, path: str, body: str, headers: dict[str, str]) -> None:
            assert (method, path) == ("POST", "/completion")
            self.asked.append(json.loads(body))
            self.headers.append(headers)

        def respond() -> Any:
            response: Any = io.BytesIO(json.dumps(self.answer(self.asked[-1])).encode())
            response.status = self.status
            return response

        return SimpleNamespace(request=request, getresponse=respond, close=lambda: None)


class Response(io.BytesIO):
    status = 200


def answer(index: int, tokens: Any, **timings: float) -> dict[str, Any]:
    known = {"prompt_n": 3, "prompt_ms": 4.0, "predicted_ms": 0.001}
    return {"index": index, "tokens": list(tokens), "timings": {**known, **timings}}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    package = SimpleNamespace(
        CommonParams=lambda: SimpleNamespace(
            model=SimpleNamespace(), cpuparams=SimpleNamespace(), cpuparams_batch=SimpleNamespace(),
            speculative=SimpleNamespace(types=[]),
        ),
        Server=made.start,
        common_speculative_type=SimpleNamespace(COMMON_SPECULATIVE_TYPE_NGRAM_MAP_K="map-k"),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "xllamacpp", package)

    def start_here(options: dict[str, Any]) -> Any:
        server = start(json.loads(json.dumps(options)))
        return SimpleNamespace(address=server.listening_address, close=lambda: setattr(made, "is_closed", True))

    monkeypatch.setattr("langchain_specdec.bench.contestant_llama_cpp.LlamaCppServer", start_here)
    monkeypatch.setattr(http.client, "HTTPConnection", made.connect)
    monkeypatch.setattr(io, "BytesIO", Response)
    return made


def contestant(params: SamplingParams, speculation: str = "") -> LlamaCppContestant:
    return LlamaCppContestant(
        "llama-cpp", "", "m.gguf", params, num_slots=2, max_length=100, num_threads=3, speculation=speculation
    )


def test_it_gets_the_same_tokens_and_options(server: Server) -> None:
    running = contestant(SamplingParams(max_new_tokens=40, ignore_eos=True), "ngram-map-k")
    running.warm_up([PROMPTS[1:], PROMPTS])
    result = running.run(PROMPTS)
    params = server.params
    assert (params.model.path, params.n_ctx, params.n_parallel) == ("m.gguf", 200, 2)
    assert (params.cpuparams.n_threads, params.cpuparams_batch.n_threads, params.n_gpu_layers) == (3, 3, 0)
    assert params.speculative.types == ["map-k"]
    assert (params.cache_prompt, params.cache_ram_mib) == (False, 0)
    assert [asked["prompt"] for asked in server.asked] == [[[5, 6, 7], [8, 9]]] * 2
    assert [asked["n_predict"] for asked in server.asked] == [16, 40]
    assert server.asked[1]["ignore_eos"] is True
    assert (server.asked[1]["samplers"], server.asked[1]["top_k"]) == (["top_k"], 1)
    # Nobody else on this machine can use it.
    assert [server.headers[1]["Authorization"]] == [f"Bearer {key}" for key in params.api_keys]
    # In the order of the prompts, not in that of the answers.
    assert result.token_ids == ((0, 1, 2, 3), (1, 2, 3, 4))
    assert (result.num_steps, result.drafted_tokens, result.prefilled_tokens) == (8, 0, 6)
    assert result.first_seconds == pytest.approx(0.004)
    running.close()
    assert server.is_closed


FAKE = """
import http.server, sys, threading
from types import SimpleNamespace as Space

def CommonParams():
    return Space(model=Space(), cpuparams=Space(), cpuparams_batch=Space(), speculative=Space())

def Server(params):
    print("what it says itself")
    if params.model.path == "none.gguf":
        raise ValueError("there is no such file")
    return Space(listening_address=f"{params.model.path} {params.n_ctx} {'torch' in sys.modules}")
"""


@pytest.mark.process
def test_it_runs_in_a_process_without_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "xllamacpp.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    options = {"gguf": "a b.gguf", "num_slots": 2, "max_length": 50, "num_threads": 1, "speculation": "", "key": "k"}
    server = LlamaCppServer(options)
    assert server.address == "a b.gguf 100 False"
    os.kill(server.pid, 0)
    server.close()
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)
    with pytest.raises(RuntimeError, match="did not start: its process ended with code 1"):
        LlamaCppServer({**options, "gguf": "none.gguf"})


def test_its_own_clock_says_how_long_it_decoded(server: Server) -> None:
    server.answer = lambda asked: answer(0, range(10), predicted_ms=0.01, draft_n=7, draft_n_accepted=4)
    running = contestant(SamplingParams(max_new_tokens=10, temperature=0.5, seed=3))
    running.warm_up([PROMPTS[:1]])
    result = running.run(PROMPTS[:1])
    assert result.decode_seconds == pytest.approx(1e-5)
    assert (result.first_tokens, result.decode_tokens) == (1, 9)
    assert (result.num_steps, result.drafted_tokens, result.accepted_tokens) == (6, 7, 4)
    asked = server.asked[-1]
    assert (asked["samplers"], asked["temperature"], asked["seed"]) == (["temperature"], 0.5, 3)


def test_a_refusal_is_told(server: Server) -> None:
    server.status = 400
    server.answer = lambda asked: {"error": {"message": "too long"}}
    with pytest.raises(RuntimeError, match=r"llama.cpp refused the request: too long"):
        contestant(SamplingParams()).warm_up([PROMPTS])


def test_the_file_that_a_model_comes_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.gguf"
    path.touch()
    assert gguf_file(str(path)) == gguf_file(str(tmp_path)) == str(path)
    monkeypatch.setattr(embedded, "gguf_file", lambda: path)
    assert gguf_file("embedded") == str(path)
    monkeypatch.setattr(embedded, "gguf_file", lambda: None)
    (tmp_path / "config.json").write_text("{}")
    for wrong in ("embedded", "random:tiny", str(tmp_path)):
        with pytest.raises(InvalidParameterError, match=f"llama-cpp reads a GGUF file, and {wrong} is none"):
            load_weights(wrong, for_ours=True, for_peers=False, for_gguf=True, dtype="auto", device="cpu")
    with pytest.raises(ModelLoadError, match="There is no file"):
        gguf_file(str(tmp_path / "none.gguf"))


def test_it_runs_on_the_cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("langchain_specdec.bench.build.resolve_device", lambda device: torch.device("cuda"))
    with pytest.raises(InvalidParameterError, match="runs on the CPU here, and the others on cuda"):
        set_up(plan_of("m.gguf", "llama-cpp"), []).__enter__()


# GGUF files in all forms


def plan_of(model: object, *names: str) -> Plan:
    specs = parse_contestants(names, has_draft_model=False, batch=1)
    return Plan(str(model), specs, SamplingParams(max_new_tokens=8, ignore_eos=True), device="cpu", step_cost="flat")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    model = tiny_model("llama", max_position_embeddings=256)
    return write_gguf(tmp_path / "tiny.gguf", model, kinds={"_down.weight": GGMLQuantizationType.Q8_0})


@pytest.mark.transformers
def test_a_gguf_file_is_run_in_its_bits_and_dequantised_for_peers(file: Path) -> None:
    plan = plan_of(file, "plain", "auto", "hf")
    with set_up(plan, [Question("1", "qa", "a b ab a b")]) as setup:
        runs = measure(setup.contestants, grouped(setup.prompts, 1), 1).runs
        target = setup.target
    assert len({run.result.token_ids for run in runs}) == 1
    assert len(runs) == 3
    assert target.name == str(file)
    assert target.peer.config._attn_implementation == "sdpa"
    if native_library() is not None:
        assert target.ours is not None
        assert isinstance(target.ours.model, GGUFModel)
        assert target.formats == "F32, Q8_0"
        assert "native decoder, weights in F32, Q8_0" in setup.contestants[0].note
        assert describe_graphs(target.captured, target.obstacle) is None
        with pytest.raises(InvalidParameterError, match="cannot be captured: it runs on a CPU device"):
            set_up(replace(plan, compile="max-autotune"), []).__enter__()


def test_only_its_tokenizer_is_read_where_others_read_the_weights(
    file: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("langchain_specdec.models.loader.load_model", lambda *_, **__: pytest.fail("loaded"))
    with set_up(plan_of(file, "llama-cpp", "llama-cpp-lookup:ngram-map-k"), [Question("1", "qa", "a b")]) as setup:
        for contestant_ in setup.contestants:
            contestant_.warm_up([setup.prompts])
        assert (setup.target.ours, setup.target.peer, setup.target.eos_token_ids) == (None, None, (0,))
        assert server.asked[-1]["prompt"] == [list(setup.prompts[0].token_ids)]
        assert server.params.cpuparams.n_threads == default_threads()
        assert server.params.model.path == str(file)


@pytest.mark.transformers
def test_a_number_of_threads_is_everybody_s(file: Path, server: Server) -> None:
    before = torch.get_num_threads()
    plan = replace(plan_of(file, "plain", "hf", "llama-cpp"), engine={"num_threads": 3})
    with set_up(plan, [Question("1", "qa", "a b")]) as setup:
        assert torch.get_num_threads() == 3
        setup.contestants[2].warm_up([setup.prompts])
        assert server.params.cpuparams.n_threads == 3
        assert make_header(plan, setup, "", "", 1)["settings"]["num_threads"] == 3
        assert make_header(plan, setup, "", "", 1)["machine"]["threads"] == 3
    assert torch.get_num_threads() == before
    assert plan_of(file, "plain").num_threads == default_threads()


CHILD = """
import sys
from langchain_specdec.bench.build import set_up
from langchain_specdec.bench.contestant import ContestantSpec
from langchain_specdec.bench.plan import Plan
from langchain_specdec.bench.workload import Question
from langchain_specdec.sampling.params import SamplingParams
plan = Plan(sys.argv[1], [ContestantSpec(sys.argv[2], sys.argv[2])], SamplingParams(max_new_tokens=8), device="cpu")
with set_up(plan, [Question("1", "qa", "a b")]):
    print(*(name for name in sys.argv[3:] if name in sys.modules))
"""
MODEL_CODE = ("torch._dynamo", "transformers.modeling_utils", "transformers.generation")


@pytest.mark.process
@pytest.mark.parametrize(("kind", "without"), [("plain", ()), ("llama-cpp", ("langchain_specdec.engine.engine",))])
def test_a_contestant_alone_in_its_process_imports_nothing_for_others(
    file: Path, kind: str, without: tuple[str, ...]
) -> None:
    if kind == "plain" and native_library() is None:
        pytest.skip("no native decoder here")
    command = [sys.executable, "-c", CHILD, str(file), kind, *MODEL_CODE, *without]
    assert subprocess.check_output(command, text=True).strip() == ""  # noqa: S603


@pytest.mark.process
@pytest.mark.embedded
@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs xllamacpp")
def test_the_real_one_writes_about_the_same() -> None:
    plan = plan_of("embedded", "plain", "llama-cpp", "llama-cpp-lookup")
    with set_up(plan, [Question("1", "qa", "Which river flows through Paris?")]) as setup:
        measurement = measure(setup.contestants, grouped(setup.prompts, 1), 1)
    assert measurement.failures == {}
    plain, llama, lookup = (run.result for run in measurement.runs)
    for result in (llama, lookup):
        assert (result.num_tokens, result.prefilled_tokens) == (8, len(setup.prompts[0].token_ids))
        assert result.token_ids[0][0] == plain.token_ids[0][0]
        assert 0 < result.first_seconds < result.seconds
