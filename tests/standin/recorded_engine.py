"""`vllm serve` and `sglang serve` as processes without a model: their logs, endpoints, figures and child processes.

The lines of the logs and the names of the figures are those of vLLM 0.32 and SGLang 0.5.23. A request for `/count/N` is
as if somebody had had N tokens generated, three of four of them drafted. STANDIN_FAULT is one of
`slow` (it never becomes ready), `memory`, `options`, `dies` (when it is asked for anything but its health) and
`stubborn` (it ignores SIGTERM).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml  # type: ignore[import-untyped]

_LOGS = {
    "vllm": (
        "(APIServer pid=71) INFO 11-26 10:00:00 [utils.py:325] non-default args: {'model_tag': 'fake'}",
        "(EngineCore pid=72) INFO 11-26 10:00:01 [model_runner.py:90] Starting to load model fake...",
        "(EngineCore pid=72) WARNING 11-26 10:00:02 [cpu.py:11] Something to think of",
        "(EngineCore pid=72) INFO 11-26 10:00:03 [core.py:210] init engine (profile, create kv cache) took 1.00 s",
        "",
        "(APIServer pid=71) INFO 11-26 10:00:04 [launcher.py:40] Starting vLLM API server 0 on http://127.0.0.1",
        "(APIServer pid=71) INFO:     Application startup complete.",
    ),
    "sglang": (
        "[2026-11-26 10:00:00] server_args=ServerArgs(model_path='fake')",
        "[2026-11-26 10:00:01 TP0] Load weight begin. avail mem=9.00 GB",
        "[2026-11-26 10:00:02 TP0] Load weight end. elapsed=1.00 s",
        "",
        "[2026-11-26 10:00:03] INFO:     Uvicorn running on http://127.0.0.1 (Press CTRL+C to quit)",
        "[2026-11-26 10:00:04] The server is fired up and ready to roll!",
    ),
}
_MEMORY = {
    "vllm": "(EngineCore pid=72) ERROR 11-26 10:00:03 [core.py:900] ValueError: No available memory for the cache "
    "blocks. Try increasing `gpu_memory_utilization` when initializing the engine.",
    "sglang": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
}


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def metrics(engine: str, num_tokens: int) -> str:
    """What it counts after so many tokens for one request; three of four were drafted, and as many were refused."""
    labels = '{engine="0",model_name="fake"}' if engine == "vllm" else '{model_name="fake",tp_rank="0"}'
    accepted = num_tokens * 3 // 4
    counts = {
        "vllm": {
            "vllm:generation_tokens_total": num_tokens,
            "vllm:request_success_total": min(1, num_tokens),
            "vllm:spec_decode_num_drafts_total": num_tokens // 4,
            "vllm:spec_decode_num_draft_tokens_total": 2 * accepted,
            "vllm:spec_decode_num_accepted_tokens_total": accepted,
            "vllm:num_requests_running": 0,
            "vllm:num_requests_waiting": 0,
        },
        "sglang": {
            "sglang:generation_tokens_total": num_tokens,
            "sglang:num_requests_total": min(1, num_tokens),
            "sglang:spec_verify_calls_total": max(0, num_tokens - accepted - 1),
            "sglang:num_running_reqs": 0,
            "sglang:num_queue_reqs": 0,
        },
    }[engine]
    return "".join(f"{name}{labels} {float(count)}\n" for name, count in counts.items())


class _Server(ThreadingHTTPServer):
    def __init__(self, engine: str, port: int, key: str | None) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.engine = engine
        self.key = key
        self.num_tokens = 0


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        key = self.server.key
        if self.path != "/health" and os.environ.get("STANDIN_FAULT") == "dies":
            _say("ERROR: a client sent: torch.OutOfMemoryError: CUDA out of memory")
            os._exit(3)
        if self.path.startswith("/v1/") and key and self.headers["Authorization"] != f"Bearer {key}":
            return self._answer("", 401)
        if self.path.startswith("/count/"):
            self.server.num_tokens = int(self.path.removeprefix("/count/"))
        if self.path == "/v1/models":
            return self._answer(json.dumps({"object": "list", "data": [{"id": "fake", "max_model_len": 2048}]}))
        return self._answer(metrics(self.server.engine, self.server.num_tokens) if self.path == "/metrics" else "")

    def _answer(self, text: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: object) -> None:
        pass


def _key(arguments: list[str]) -> str | None:
    """Its key: vLLM's is in the environment, SGLang's in a file."""
    if "--config" not in arguments:
        return os.environ.get("VLLM_API_KEY")
    given = yaml.safe_load(Path(arguments[arguments.index("--config") + 1]).read_text(encoding="utf-8"))
    return str(given["api-key"])


def main() -> None:
    """Start as the engine that the first argument names, with the arguments of its command line behind it."""
    engine, command, *arguments = sys.argv[1:]
    fault = os.environ.get("STANDIN_FAULT", "")
    if command != "serve" or fault == "options":
        _say(f"{engine}: error: unrecognized arguments: --speculative-config")
        sys.exit(2)
    # The engine's core is a process of its own, in a group of its own, which notices nothing of the end of this one.
    core = subprocess.Popen([sys.executable, "-c", "import time\nwhile True: time.sleep(1)"], start_new_session=True)

    def end(*_: object) -> None:
        if fault != "stubborn":
            core.kill()
            os._exit(0)

    signal.signal(signal.SIGTERM, end)
    # The empty line stands for the end of loading.
    log = iter(_LOGS[engine])
    for line in iter(log.__next__, ""):
        _say(line)
    if fault == "memory":
        _say(_MEMORY[engine])
        core.kill()
        sys.exit(1)
    while fault == "slow":
        time.sleep(1)
    server = _Server(engine, int(arguments[arguments.index("--port") + 1]), _key(arguments))
    for line in log:
        _say(line)
    server.serve_forever()


if __name__ == "__main__":
    main()
