"""Runs on a GPU what no other machine can: parts in order of value, each in a process and a time box of its own.

    python tools/gpu_check.py --out "$OUT" --budget 190 --parts env,mask,capture,unit,text
    python tools/gpu_check.py --out "$OUT" --budget 455 --parts steps,profile,pair,flashspec,eight,embedded,batch,memory
    python tools/gpu_check.py --rehearse            # on a CPU, tiny shapes: finds typos before device minutes do

Every measurement is a line of JSON in `gpu.jsonl`, written as soon as it is made. A part that fails or hangs costs
its own box only. A rehearsal runs all parts in one process, which takes less time.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

BOXES = {  # most seconds; what is expected stands beside
    "env": 25, "mask": 35, "capture": 40, "unit": 80, "text": 40,  # 12, 25, 30, 60, 25
    "steps": 75, "profile": 25, "pair": 95, "flashspec": 60, "eight": 85,  # 55, 20, 80, 50, 70
    "embedded": 60, "batch": 40, "memory": 25,  # 45, 30, 15
}  # fmt: skip
UNIT = [
    "tests/unit/runner/cuda/test_captured_runner.py",
    "tests/unit/runner/test_verify.py",
    "tests/unit/runner/test_trees.py",
    "tests/unit/sampling/test_sampling.py",
    "tests/unit/models/test_families.py",
    "tests/unit/engine/test_lossless.py",
    "tests/unit/engine/test_steps.py",
]
UNIT_KEYS = "cuda and not any_configuration or needs_gpu or test_cuda or test_a_cuda"
REHEARSE = "--rehearse" in sys.argv


# --- Records ----------------------------------------------------------------------------------------------------------


def note(**values: Any) -> None:
    """Append one measurement."""
    values["at"] = round(time.time(), 2)
    with open(os.environ["GPU_CHECK_FILE"], "a", encoding="utf-8") as file:
        file.write(json.dumps(values, default=str) + "\n")
        file.flush()
        os.fsync(file.fileno())


def parent(arguments: argparse.Namespace) -> int:
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    os.environ["GPU_CHECK_FILE"] = str(out / "gpu.jsonl")
    os.environ["GPU_CHECK_OUT"] = str(out)
    end = time.monotonic() + arguments.budget
    results = []
    for name in [arguments.parts] if REHEARSE else arguments.parts.split(","):
        left = end - time.monotonic() - 3
        if left < 8:
            results.append((name, "skipped: no time left", 0.0))
            continue
        started = time.monotonic()
        with (out / f"{name}.log").open("wb") if arguments.logs else open(os.devnull, "wb") as log:
            child = subprocess.Popen(
                [sys.executable, __file__, "--child", name, *(["--rehearse"] if REHEARSE else [])],
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                code: Any = child.wait(min(sum(BOXES[part] for part in name.split(",")), left))
            except subprocess.TimeoutExpired:
                code = "time box"
                for number, wait in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
                    try:
                        os.killpg(child.pid, number)
                        child.wait(wait)
                        break
                    except (subprocess.TimeoutExpired, ProcessLookupError):
                        continue
        seconds = time.monotonic() - started
        status = "ok" if code == 0 else f"failed ({code})"
        note(part=name, status=status, seconds=round(seconds, 1))
        results.append((name, status, seconds))
        print(f"{name:10} {status:20} {seconds:6.1f} s", flush=True)
    return any(status != "ok" for _, status, _ in results)


# --- Help -------------------------------------------------------------------------------------------------------------


def device() -> Any:
    import torch

    return torch.device("cpu" if REHEARSE else "cuda:0")


def sync() -> None:
    import torch

    if not REHEARSE:
        torch.cuda.synchronize()


def timed(action: Any, count: int = 20, warm: int = 3) -> tuple[float, float]:
    """Median milliseconds of an action: on the host until it returns, and until the device is done."""
    for _ in range(warm):
        action()
    host, whole = [], []
    for _ in range(count):
        sync()
        started = time.perf_counter()
        action()
        host.append(time.perf_counter() - started)
        sync()
        whole.append(time.perf_counter() - started)
    return 1e3 * sorted(host)[count // 2], 1e3 * sorted(whole)[count // 2]


def shape(name: str) -> str:
    return "random:tiny" if REHEARSE else f"random:{name}"


def runner_of(
    name: str, *, slots: int, length: int, width: int, mode: str = "reduce-overhead", dtype: str = "bfloat16"
) -> Any:
    from langchain_specdec.bench.random_weights import random_model
    from langchain_specdec.bench.weights import step_bytes
    from langchain_specdec.models.loader import load_model
    from langchain_specdec.models.make_runner import make_runner

    model, tokenizer = random_model(shape(name), "float32" if REHEARSE else dtype, str(device()))
    num_bytes = step_bytes(model)
    loaded = load_model(model, tokenizer)
    options: dict[str, Any] = {"compile": "off" if REHEARSE else mode}
    return make_runner(loaded, num_slots=slots, max_length=length, max_width=width, **options), num_bytes


# --- Parts ------------------------------------------------------------------------------------------------------------


def env() -> None:
    import torch

    note(torch=torch.__version__, cuda=torch.version.cuda, python=sys.version.split()[0], cores=os.cpu_count())
    started = time.perf_counter()
    sum(i * i for i in range(3_000_000))
    note(python_loop_seconds=round(time.perf_counter() - started, 3))
    if REHEARSE:
        return
    import triton

    from langchain_specdec.bench.machine import read_bandwidth

    names = "name,driver_version,clocks.sm,clocks.mem,power.limit,temperature.gpu"
    smi = subprocess.run(
        ["nvidia-smi", f"--query-gpu={names}", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    note(cudnn=torch.backends.cudnn.version(), triton=triton.__version__, smi=smi.stdout.strip())
    note(read_bytes_per_second=read_bandwidth(device()))
    x = torch.ones(8, device=device())
    started = time.perf_counter()
    for _ in range(2000):
        x.add_(1)
    note(eager_launch_us=round(1e6 * (time.perf_counter() - started) / 2000, 2))
    for nodes in (100, 1000, 1500):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(nodes):
                x.add_(1)
        host, whole = timed(graph.replay)
        note(graph_nodes=nodes, launch_us=round(1e3 * host, 1), node_us=round(1e3 * whole / nodes, 3))
    small = torch.zeros(2, 1, 32, dtype=torch.int64, device=device())
    note(tolist_us=round(1e3 * timed(small.tolist, 200)[1], 1))
    host_buffer, place = torch.zeros(4096, dtype=torch.uint8), torch.zeros(4096, dtype=torch.uint8, device=device())
    note(pinned_copy_us=round(1e3 * timed(lambda: place.copy_(host_buffer.pin_memory(), non_blocking=True), 200)[1], 1))


def mask() -> None:
    """Is what attention must not see unseen, on every backend, for our very strides? Writes errors and times."""
    import torch
    import torch.nn.functional as F

    from langchain_specdec.runner.attention import additive_mask, slot_attention

    module: Any = torch.nn.Module()
    module.is_causal = True

    dev, dtype = device(), torch.float32 if REHEARSE else torch.bfloat16
    torch.manual_seed(0)
    backends = torch.backends.cuda

    def use(cudnn: bool, flash: bool, efficient: bool, math: bool) -> None:
        if not REHEARSE:
            backends.enable_cudnn_sdp(cudnn), backends.enable_flash_sdp(flash)
            backends.enable_mem_efficient_sdp(efficient), backends.enable_math_sdp(math)

    # 360 cases; one with a new shape takes cuDNN some 30 ms.
    ways = {"default": (True,) * 4, "no cudnn": (False, True, True, True), "math": (False, False, False, True)}
    heads = {"8b": (32, 8, 128), "1.8b": (16, 16, 128), "135m": (9, 3, 64)}
    lengths: tuple[int, ...] = (257, 1024, 2048, 8225)
    if REHEARSE:
        heads, lengths = {"135m": heads["135m"]}, (65,)
    for model, (num_heads, kv, dim) in heads.items():
        for length in lengths:
            for rows, width, is_tree in ((1, 1, False), (1, 8, False), (1, 8, True), (1, 33, True), (4, 5, True)):
                if length > 4096 and rows > 1:
                    continue
                buffer = torch.randn(2, rows + 1, kv, length + 40, dim, device=dev, dtype=dtype)
                key, value = (b[1 : rows + 1, :, :length] for b in buffer)  # strided as slots are
                query = torch.randn(rows, width, num_heads, dim, device=dev, dtype=dtype).transpose(1, 2)
                starts = torch.tensor([length - width - 7 * r for r in range(rows)], device=dev)[:, None]
                places = torch.arange(length, device=dev)
                own = torch.eye(width, dtype=torch.bool, device=dev)
                own |= torch.rand(width, width, device=dev).tril() > 0.6 if is_tree else torch.ones_like(own).tril()
                offsets = places - starts
                seen = (
                    own[:, offsets.clamp(0, width - 1)].transpose(0, 1) & (offsets < width)[:, None]
                    | (offsets < 0)[:, None]
                )
                seen = seen[:, None]
                unseen = ~seen.any(2)[:, 0]  # by no query at all: junk may stand there
                for side in (key, value):
                    side[unseen[:, None].expand(-1, kv, -1)] = 300.0
                keys, values = (x.double().repeat_interleave(num_heads // kv, 1) for x in (key, value))
                right = F.scaled_dot_product_attention(query.double(), keys, values, attn_mask=seen).transpose(1, 2)
                for way, flags in ways.items():
                    for form, given in (("bool", seen), ("numbers", additive_mask(seen, dtype))):
                        use(*flags)
                        what = {
                            "model": model,
                            "length": length,
                            "rows": rows,
                            "width": width,
                            "tree": is_tree,
                            "way": way,
                            "form": form,
                        }
                        try:
                            choice = torch._fused_sdp_choice(query, key, value, given, enable_gqa=num_heads != kv)
                            sync()
                            started = time.perf_counter()
                            found = slot_attention(module, query, key, value, given)[0]
                            sync()
                            first = time.perf_counter() - started
                            error = float((found.double() - right).abs().max() / right.abs().max())
                            host, whole = timed(lambda: slot_attention(module, query, key, value, given), 5, 1)  # noqa: B023
                            note(
                                mask=what,
                                backend=int(choice),
                                error=error,
                                ok=error < 2e-2,
                                first_ms=1e3 * first,
                                host_ms=host,
                                ms=whole,
                            )
                        except Exception as failure:
                            note(mask=what, failed=f"{type(failure).__name__}: {failure}"[:200])
                        finally:
                            use(*(True,) * 4)


def capture() -> None:
    """What graphs cost to make, and what a failed one, the collector and other threads do to the process."""
    import torch

    from langchain_specdec.runner.step_inputs import RowBatch
    from langchain_specdec.sampling.noise import Noise

    runner, _ = runner_of("qwen2.5-0.5b", slots=8, length=1024, width=33)
    if REHEARSE:
        runner.verify(RowBatch([0], [0], [[1]], None, Noise([0], [0.0])))
        note(capture="rehearsed")
        return
    store = runner.store
    for rows in (1, 2, 8):
        for width in (1, 2, 3, 5, 8, 16, 32):
            for sampled in (0.0, 0.8):
                before, started = torch.cuda.memory_reserved(), time.perf_counter()
                runner.begin_turn()
                runner.verify(
                    RowBatch(range(rows), [100] * rows, [[5] * width] * rows, None, Noise([1] * rows, [sampled] * rows))
                )
                note(
                    making={"rows": rows, "width": width, "sampled": sampled},
                    seconds=time.perf_counter() - started,
                    grown_mib=(torch.cuda.memory_reserved() - before) / 2**20,
                )
    note(
        made=store.num_made,
        rejected=list(map(str, store.rejected.values())),
        failure=store.failure,
        reserved_mib=torch.cuda.memory_reserved() / 2**20,
        allocated_mib=torch.cuda.memory_allocated() / 2**20,
    )
    child = (
        "import itertools, torch; from langchain_specdec.runner.cuda.capture import CudaCapture\n"
        "c, x, n = CudaCapture(torch.device('cuda', 0)), torch.ones(3, device='cuda'), itertools.count()\n"
        "def bad():\n    if next(n) >= 2: x.sum().item()\n    return (x + 1,)\n"
        "def say(what, f):\n"
        "    try: print(what, 'ok', f())\n"
        "    except Exception as e: print(what, 'FAILED', type(e).__name__, str(e).splitlines()[0][:150])\n"
        "say('capture', lambda: c.record(lambda: None, bad)); say('rand', lambda: torch.rand(1, device='cuda').shape)\n"
        "say('empty_cache', torch.cuda.empty_cache)\n"
        "say('again', lambda: c.record(lambda: None, lambda: (x + 1,)) and 1)\n"
        "say('rand', lambda: torch.rand(1, device='cuda').shape); m = torch.cuda.memory_reserved()\n"
        "for _ in range(300):\n"
        "    torch.zeros(1 << 20, device='cuda').cpu(); torch.zeros(4096).pin_memory().to('cuda', non_blocking=True)\n"
        "print('grown', torch.cuda.memory_reserved() - m)"
    )
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, timeout=60, check=False)
    note(after_a_failed_capture=done.stdout.splitlines(), errors=done.stderr.splitlines()[-3:])

    # Another thread that synchronizes, and graphs in cycles, while captures run.
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            torch.ones(100, device="cuda").sum().item()
            torch.cuda.synchronize()

    class Holder:
        pass

    thread = threading.Thread(target=disturb)
    thread.start()
    for width in range(1, 9):
        held: Any = Holder()
        held.itself, held.graph = held, torch.cuda.CUDAGraph()
        runner.begin_turn()
        store._seen.clear(), store._graphs.clear()
        runner.verify(RowBatch([0], [100], [[7] * width], None, Noise([1], [0.0])))
    stop.set()
    thread.join()
    gc.collect()
    note(beside_a_thread_that_synchronizes=store.failure or "no failure", made=store.num_made)


def unit() -> None:
    out = os.environ["GPU_CHECK_OUT"]
    tests = UNIT[1:3] if REHEARSE else UNIT
    select = [] if REHEARSE else ["-k", UNIT_KEYS, "-n", "6"]
    options = ["-q", "-p", "no:cacheprovider", "--timeout", "60", f"--junitxml={out}/junit.xml"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *select, *tests],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    note(unit=done.stdout.splitlines()[-40:], code=done.returncode)
    sys.exit(done.returncode)


def text() -> None:
    """The same text by every way in float32; how often it differs in bfloat16."""
    import torch

    from langchain_specdec.backends.local import LocalBackend
    from langchain_specdec.bench.random_weights import random_model
    from langchain_specdec.completions.completion import CompletionRequest
    from langchain_specdec.sampling.params import SamplingParams

    rng = torch.Generator().manual_seed(1)
    prompts = [
        torch.randint(0, 200, (int(n),), generator=rng).tolist()
        for n in torch.randint(8, 120, (2 if REHEARSE else 8,), generator=rng)
    ]
    for dtype in ("float32",) if REHEARSE else ("float32", "bfloat16"):
        written: dict[tuple[str, float], list[list[int]]] = {}
        ways: dict[str, dict[str, Any]] = {
            "plain": {"drafter": "none", "compile": "off"},
            "auto": {"compile": "off"},
            "auto, graphs": {"compile": "off" if REHEARSE else "reduce-overhead"},
            "draft model, graphs": {
                "drafter": "draft_model",
                "draft_length": 3,
                "compile": "off" if REHEARSE else "reduce-overhead",
            },
        }
        for way, options in ways.items():
            model, tokenizer = random_model(shape("qwen2.5-0.5b"), dtype, str(device()))
            if "draft" in way:
                options |= {"draft_model": model, "draft_tokenizer": tokenizer}
            backend = LocalBackend(model, tokenizer, num_slots=4, max_length=256, **options)
            for temperature in (0.0, 0.8):
                params = SamplingParams(
                    max_new_tokens=12 if REHEARSE else 48, temperature=temperature, seed=5, ignore_eos=True
                )
                done = backend.complete([CompletionRequest(p, params) for p in prompts])
                written[way, temperature] = [[t.id for t in c.tokens] for c in done]
                expected = written["plain", temperature]
                same = [a == b for a, b in zip(written[way, temperature], expected, strict=True)]
                steps = sum(c.finish.speculation.num_steps for c in done)
                store = getattr(backend.engine.runner, "store", None)
                note(
                    text=way,
                    dtype=dtype,
                    temperature=temperature,
                    same=sum(same),
                    of=len(same),
                    steps=steps,
                    failure=store.failure if store else "",
                    rejected=len(store.rejected) if store else 0,
                )
            backend.close()


def steps() -> None:
    """Milliseconds a step, eager and captured, by width and length, and as a share of what the memory allows."""
    import torch

    from langchain_specdec.bench.machine import read_bandwidth
    from langchain_specdec.runner.step_inputs import RowBatch
    from langchain_specdec.sampling.noise import Noise

    bandwidth = read_bandwidth(device()) or 1.0
    for name in ("qwen1.5-1.8b", "llama-8b", "qwen1.5-0.5b", "llama-1b", "smollm2-135m"):
        for slots in (1, 8):
            runner, num_bytes = runner_of(name, slots=slots, length=2100, width=33)
            least = 1e3 * num_bytes / bandwidth
            cases = (
                [(1, w, s) for s in (200, 1900) for w in (1, 2, 5, 8, 16, 33)]
                if slots == 1 and not REHEARSE
                else [(1, 1, 200), (1, 8, 1900), (slots, 1, 200), (slots, 8, 1900)]
            )
            for rows, width, start in cases:
                batch = RowBatch(
                    range(rows), [start] * rows, [[9] * width] * rows, None, Noise([1] * rows, [0.0] * rows)
                )
                plain = getattr(runner, "uncaptured", runner)
                eager = timed(partial(plain.verify, batch), 5, 2)
                values: dict[str, Any] = {
                    "model": name,
                    "slots": slots,
                    "rows": rows,
                    "width": width,
                    "start": start,
                    "least_ms": least,
                    "eager_ms": eager[1],
                    "eager_host_ms": eager[0],
                }
                if plain is not runner:
                    runner.begin_turn()
                    runner.verify(batch)
                    graph = timed(partial(runner.verify, batch), 20)
                    values |= {
                        "graph_ms": graph[1],
                        "graph_host_ms": graph[0],
                        "share": least / graph[1],
                        "failure": runner.store.failure,
                    }
                note(step=values)
            del runner
            gc.collect()
            if not REHEARSE:
                torch.cuda.empty_cache()
        if REHEARSE:
            return


def profile() -> None:
    import torch
    from torch.profiler import ProfilerActivity

    from langchain_specdec.runner.step_inputs import RowBatch
    from langchain_specdec.sampling.noise import Noise

    for name in ("qwen1.5-1.8b", "llama-8b"):
        runner, _ = runner_of(name, slots=8, length=1000, width=9)
        batch = RowBatch([0], [700], [[9] * 8], None, Noise([1], [0.8]))
        runner.begin_turn()
        for _ in range(3):
            runner.verify(batch)
        for way, action in (
            ("captured", partial(runner.verify, batch)),
            ("eager", partial(getattr(runner, "uncaptured", runner).verify, batch)),
        ):
            activities = [ProfilerActivity.CPU] if REHEARSE else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
            with torch.profiler.profile(activities=activities) as prof:
                for _ in range(3):
                    action()
                    sync()
            rows = [e for e in prof.key_averages() if REHEARSE or e.device_type.name == "CUDA"]
            busy = {id(e): getattr(e, "self_device_time_total", 0.0) / 3 for e in rows}
            rows.sort(key=lambda e: -busy[id(e)])
            note(
                profile=name,
                way=way,
                kernels=sum(e.count for e in rows) / 3,
                busy_us=sum(busy.values()),
                top=[(e.key[:90], e.count / 3, round(busy[id(e)], 1)) for e in rows[:25]],
            )
            if not REHEARSE and way == "captured":
                prof.export_chrome_trace(f"{os.environ['GPU_CHECK_OUT']}/{name}.trace.json.gz")
        del runner, action
        gc.collect()
        if REHEARSE:
            return


SMALL = "--device cpu --max-prompt-tokens 40 --max-new-tokens 8 --limit 1 --category summarization"
LIMITS = "--limit 1 --max-prompt-tokens 200 --max-new-tokens 128"
COMMON = LIMITS if REHEARSE else f"--dtype bfloat16 --compile reduce-overhead {LIMITS}"
TARGET = "--model random:qwen1.5-1.8b"
PAIR = f"{TARGET} --draft-model random:qwen1.5-0.5b"


def bench(name: str, options: str) -> None:
    """`specdec bench --json`; the runs go into the records."""
    words = f"{options} {SMALL}".split() if REHEARSE else options.split()
    given = ["random:tiny" if REHEARSE and word.startswith("random:") else word for word in words]
    command = [sys.executable, "-c", "from langchain_specdec.cli import main; main()", "bench", "--json", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    report = json.loads(lines[-1]) if done.stdout.strip().startswith("{") else lines
    note(bench=name, code=done.returncode, table=done.stderr.splitlines()[-40:], report=report)
    if done.returncode:
        sys.exit(done.returncode)


def pair() -> None:
    bench("pair", f"{PAIR} {COMMON} --contestants plain,plain@8,auto,draft_model:2,synthetic,hf")
    if not REHEARSE:
        few = "--category summarization --repeat 3"
        bench("pair compiled", f"{TARGET} {COMMON} {few} --contestants plain,hf-compiled")


def flashspec() -> None:
    few = "--category summarization --repeat 3"
    bench("flashspec", f"{TARGET} {COMMON} {few} --contestants plain,flashspec --baseline flashspec")


def eight() -> None:
    target, few = "--model random:llama-8b", "--category summarization --repeat 2"
    bench("eight", f"{target} --draft-model random:llama-1b {COMMON} {few} --contestants plain,synthetic,hf")
    if not REHEARSE:
        bench("eight compiled", f"{target} {COMMON} {few} --contestants plain,hf-compiled")


def embedded() -> None:
    child = (
        "import time; t = time.perf_counter(); from langchain_specdec.backends.local import LocalBackend\n"
        "from langchain_specdec.completions.completion import CompletionRequest\n"
        "from langchain_specdec.sampling.params import SamplingParams\n"
        "b = LocalBackend('embedded', dtype='bfloat16'); print('loaded', time.perf_counter() - t)\n"
        "for i in range(4):\n"
        "    t = time.perf_counter()\n"
        "    s = b.stream(CompletionRequest('The sea is', SamplingParams(max_new_tokens=64)))\n"
        "    next(s); f = time.perf_counter() - t; list(s)\n"
        "    print('request', i, 'first', f, 'all', time.perf_counter() - t)\n"
        "b.close()"
    )
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=False)
    note(cold_engine=done.stdout.splitlines(), errors=done.stderr.splitlines()[-3:])
    workload = "--workload .gpu/spec_bench.jsonl" if Path(".gpu/spec_bench.jsonl").exists() else ""
    for dtype in ("bfloat16", "float32"):
        options = f"--dtype {dtype} --compile reduce-overhead --limit 1 --max-prompt-tokens 900 --max-new-tokens 96"
        contestants = "plain,auto,auto@8,hf,hf-prompt-lookup:10"
        bench(f"embedded {dtype}", f"{workload} {options} --contestants {contestants}")


def batch() -> None:
    for count in (8, 32, 64):
        contestants = f"plain@1,plain@{count},auto@{count},hf@{count}"
        bench(f"batch {count}", f"{TARGET} {COMMON} --batch {count} --ignore-eos --contestants {contestants}")


def memory() -> None:
    bench("memory", f"--memory {TARGET} {COMMON} --category summarization --contestants plain,auto,hf")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default=os.environ.get("OUT", "gpu_check"))
    parser.add_argument("--budget", type=float, default=455.0)
    parser.add_argument("--parts", default=",".join(BOXES))
    parser.add_argument("--logs", action="store_true", help="Keep the parts' output; there is room for 8 files.")
    parser.add_argument("--rehearse", action="store_true", help="On a CPU, with tiny shapes.")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        import torch

        if REHEARSE:
            torch.set_num_threads(1)
        name = ""
        try:
            for name in arguments.child.split(","):
                # What runs steps outside of the engine has to do what the runner's public methods do.
                with torch.inference_mode(name in ("steps", "profile", "capture")):
                    globals()[name]()
        except Exception as error:
            note(part=name, error=f"{type(error).__name__}: {error}"[:500])
            raise
        return 0
    return int(parent(arguments))


if __name__ == "__main__":
    sys.exit(main())
