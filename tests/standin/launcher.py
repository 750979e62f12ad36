"""The stand-in for `text-generation-launcher`: its options, its log, its processes, its exit codes; no GPU, no Rust.

As with the original, options come from the command line or from environment variables, every child lives in a process
group of its own, and a launcher that is killed leaves its children behind. Faults are asked for by the environment
variable STANDIN_FAULT, as `name[:key=value]...`, comma-separated: those below, and those of `standin.faults`, which go
to the HTTP server. STANDIN_SECONDS is how long each stage of the start takes (default 0.1).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from tests.standin.faults import REQUEST_FAULTS, START_FAULTS
from tests.standin.launcher_log import Log

_HEADS = "Speculate is set to `{n}` but this medusa models only has `{heads}` heads, please make them match"
FAULTS = {
    "model-not-found": "the download fails, as for a model that does not exist",
    "gated": "the download fails, as for a model whose licence was not accepted",
    "offline": "the download fails, as with HF_HUB_OFFLINE",
    "unreachable": "the download fails, as without a network",
    "no-weights": "the download fails, as for a folder without weights",
    "disk-full": "the download fails for want of space",
    "endless-download": "the download never ends",
    "no-server": "text-generation-server is not on PATH",
    "out-of-memory": "a shard fails to load",
    "heads": "a shard fails because there are fewer than --speculate heads: `heads` (default 3)",
    "no-speculator": "a shard fails because its class cannot speculate",
    "killed-while-loading": "a shard is killed while it loads, as by the system out of memory: `signal` (default 9)",
    "no-gpu": "a shard fails to load unless it is set for a CPU, as where there is no GPU",
    "crash-while-loading": "a shard fails to load with an exception that nobody knows",
    "endless-loading": "a shard never becomes ready",
    "warm-up-out-of-memory": "the router fails because memory does not suffice",
    "warm-up-malloc": "the router ends because main memory does not suffice",
    "no-router": "text-generation-router is not on PATH",
    "launcher-dies-loading": "the launcher is killed while its shards load",
    "no-flash": "the model runs without flash attention, so that --speculate does nothing, without a word",
    "ignore-sigterm": "nobody but the router reacts to SIGTERM",
    "boxed-key": "a shard fails with the API key in a traceback, in a box of 80 columns unless plain ones are set",
    "debug-key": "the API key is logged a few more times, in other forms",
}
_DOWNLOAD_ERRORS = {
    "model-not-found": "huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error.\nRepository Not Found",
    "gated": "huggingface_hub.errors.GatedRepoError: 403 Client Error.\nAccess to model is restricted",
    "offline": "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find the requested files in the disk cache",
    "unreachable": "requests.exceptions.ConnectionError: (MaxRetryError('HTTPSConnectionPool: Max retries exceeded'))",
    "no-weights": "FileNotFoundError: No local weights found in /models/x with extension .bin",
    "disk-full": "OSError: [Errno 28] No space left on device",
}
_SHARD_ERRORS = {
    "out-of-memory": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 224.00 MiB.",
    "no-speculator": "NotImplementedError: Speculator decoding is not enabled for AutoModel",
    "crash-while-loading": "ValueError: Unsupported model type flubber",
}
_FOREVER = 100.0
# (name, type, default); `bool` is a switch, `list` may be repeated. As in launcher/src/main.rs of TGI 3.3.
_OPTIONS: tuple[tuple[str, type, Any], ...] = (
    ("model_id", str, "bigscience/bloom-560m"), ("revision", str, None), ("validation_workers", int, 2),
    ("sharded", str, None), ("num_shard", int, None), ("quantize", str, None), ("speculate", int, None),
    ("dtype", str, None), ("kv_cache_dtype", str, None), ("trust_remote_code", bool, False),
    ("max_concurrent_requests", int, 128), ("max_best_of", int, 2), ("max_stop_sequences", int, 4),
    ("max_top_n_tokens", int, 5), ("max_input_tokens", int, None), ("max_input_length", int, None),
    ("max_total_tokens", int, None), ("waiting_served_ratio", float, 0.3), ("max_batch_prefill_tokens", int, None),
    ("max_batch_total_tokens", int, None), ("max_waiting_tokens", int, 20), ("max_batch_size", int, None),
    ("cuda_graphs", str, None), ("hostname", str, "0.0.0.0"), ("port", int, 3000), ("prometheus_port", int, 9000),  # noqa: S104
    ("shard_uds_path", str, "/tmp/text-generation-server"), ("master_addr", str, "localhost"),  # noqa: S108
    ("master_port", int, 29500), ("huggingface_hub_cache", str, None), ("weights_cache_override", str, None),
    ("disable_custom_kernels", bool, False), ("cuda_memory_fraction", float, 1.0), ("rope_scaling", str, None),
    ("rope_factor", float, None), ("json_output", bool, False), ("otlp_endpoint", str, None),
    ("otlp_service_name", str, "text-generation-inference.router"), ("cors_allow_origin", list, None),
    ("api_key", str, None), ("watermark_gamma", float, None), ("watermark_delta", float, None), ("ngrok", bool, False),
    ("ngrok_authtoken", str, None), ("ngrok_edge", str, None), ("tokenizer_config_path", str, None),
    ("disable_grammar_support", bool, False), ("max_client_batch_size", int, 4), ("lora_adapters", str, None),
    ("usage_stats", str, "on"), ("payload_limit", int, 2000000), ("enable_prefill_logprobs", bool, False),
    ("graceful_termination_timeout", int, 90),
)  # fmt: skip


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # clap's words and exit code.
        sys.stderr.write(f"error: unexpected argument or value: {message}\n\nFor more information, try '--help'.\n")
        sys.exit(2)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options from the command line, else from the environment, else defaults."""
    parser = _Parser(prog="text-generation-launcher", allow_abbrev=False)
    for name, kind, default in _OPTIONS:
        given = os.environ.get(name.upper())
        flag = f"--{name.replace('_', '-')}"
        if kind is bool:
            parser.add_argument(flag, action="store_true", default=given is not None and given.lower() != "false")
        elif kind is list:
            parser.add_argument(flag, action="append", default=[given] if given else [])
        else:
            # argparse passes a default that is a string through `type`.
            parser.add_argument(flag, type=kind, default=default if given is None else given)
    return parser.parse_args(arguments)


class LauncherError(Exception):
    """Ends the launcher with exit code 1; the text is what Rust's Debug makes of the original."""


def _traceback(text: str) -> str:
    """As typer draws it: without a terminal, in a box of 80 columns, and the exception below cut to them too."""
    if os.environ.get("_TYPER_STANDARD_TRACEBACK"):
        return f"Traceback (most recent call last):\n  File ...\n{text}"
    inner = [text[i : i + 76] for i in range(0, len(text), 76)]
    outer = [text[i : i + 80] for i in range(0, len(text), 80)]
    box = [f"╭{' Traceback (most recent call last) ':─^78}╮", *(f"│ {line:76} │" for line in inner), f"╰{'─' * 78}╯"]
    return "\n".join([*box, *outer])


class Launcher:
    """The launcher's life, stage by stage."""

    def __init__(self, options: argparse.Namespace, faults: dict[str, dict[str, str]]) -> None:
        self.options = options
        self.faults = faults
        self.log = Log(is_json=options.json_output)
        self.seconds = float(os.environ.get("STANDIN_SECONDS", "0.1"))
        self.running = True
        self.shards: list[subprocess.Popen[bytes]] = []
        self.num_shard = options.num_shard or 1

    def run(self) -> None:
        """From the options to the end."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        self._dump_arguments()
        attention = os.environ.get("ATTENTION", "flashinfer")
        prefix_caching = os.environ.get("PREFIX_CACHING", "0" if attention == "paged" else "true")
        self.log(f"Using attention {attention} - Prefix caching {prefix_caching}")
        self._check_arguments()
        if self.num_shard > 1:
            self.log(f"Sharding model on {self.num_shard} processes")
        self._download()
        if not self.running:
            return
        try:
            self._load()
            if self.running:
                self._serve()
        finally:
            self._shut_down_shards()

    def _on_signal(self, number: int, frame: object) -> None:
        if "ignore-sigterm" not in self.faults:
            self.running = False

    def _dump_arguments(self) -> None:
        def debug(value: Any) -> str:
            if isinstance(value, bool) or value is None or isinstance(value, (int, float)):
                return str(value).lower() if isinstance(value, bool) else str(value)
            return json.dumps(value) if isinstance(value, str) else str(value)

        optional = {name for name, kind, default in _OPTIONS if default is None and kind is not list}
        lines = []
        for name, value in vars(self.options).items():
            is_some = name in optional and value is not None
            lines.append(
                f"    {name}: " + (f"Some(\n        {debug(value)},\n    )," if is_some else f"{debug(value)},")
            )
        self.log("Args {\n" + "\n".join(lines) + "\n}")
        if "debug-key" in self.faults:
            key = self.options.api_key
            self.log(f"key {key!r} {json.dumps(key)} Bearer {key}", "ERROR")
            sys.stderr.write(f"api_key={key}\n")

    def _check_arguments(self) -> None:
        options = self.options
        if options.sharded == "true" and options.num_shard is not None and options.num_shard <= 1:
            raise LauncherError('ArgumentValidation("`sharded` is true but `num_shard` <= 1")')
        if options.quantize == "exl2" and self.num_shard > 1:
            raise LauncherError('ArgumentValidation("Sharding is currently not supported with `exl2` quantization")')
        longest, total = options.max_input_tokens, options.max_total_tokens
        if longest and total and longest >= total:
            text = f"`max_input_tokens`({longest}) must be < `max_total_tokens`({total})"
            raise LauncherError(f'ArgumentValidation("{text}")')
        if options.validation_workers == 0:
            raise LauncherError('ArgumentValidation("`validation_workers` must be > 0")')
        if total and options.max_batch_total_tokens and total > options.max_batch_total_tokens:
            text = "`max_total_tokens` must be <= `max_batch_total_tokens`"
            raise LauncherError(f'ArgumentValidation("{text}")')

    def _child(self, *arguments: Any, script: str = "shard.py") -> subprocess.Popen[bytes]:
        path = Path(__file__).with_name(script)
        # -S and -E: starts in a third of the time.
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-S", "-E", str(path), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: os.setpgid(0, 0),
        )

    def _download(self) -> None:
        model, span = self.options.model_id, {"name": "download"}
        self.log(f"Starting check and download process for {model}", **span)
        if "no-server" in self.faults:
            self.log("text-generation-server not found in PATH", "ERROR", **span)
            self.log("Please install it with `make install-server`", "ERROR", **span)
            raise LauncherError("DownloadError")
        fault = next((name for name in _DOWNLOAD_ERRORS if name in self.faults), None)
        arguments = ["--fail", _DOWNLOAD_ERRORS[fault]] if fault else []
        child = self._child(_FOREVER if "endless-download" in self.faults else self.seconds, *arguments)
        while self.running and child.poll() is None:
            time.sleep(0.02)
        if not self.running:
            self._terminate("download", child, 10)
        elif child.returncode:
            error = child.communicate()[1].decode()
            self.log(f"Download encountered an error: \n{error}", "ERROR", **span)
            raise LauncherError("DownloadError")
        else:
            self.log(f"Successfully downloaded weights for {model}", **span)
        child.communicate()

    def _load(self) -> None:
        paths = [Path(f"{self.options.shard_uds_path}-{rank}") for rank in range(self.num_shard)]
        for rank, path in enumerate(paths):
            path.unlink(missing_ok=True)
            self.log("Starting shard", name="shard-manager", rank=rank)
            self.shards.append(self._child(*self._shard_arguments(rank, path)))
            threading.Thread(target=self._relay_shard, args=(rank, self.shards[-1]), daemon=True).start()
        if "launcher-dies-loading" in self.faults:
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)
        started = waited = time.monotonic()
        ready: set[int] = set()
        while self.running and len(ready) < self.num_shard:
            for rank, path in enumerate(paths):
                if path.exists() and rank not in ready:
                    ready.add(rank)
                    took = time.monotonic() - started
                    self.log(f"Shard ready in {took:.9f}s", name="shard-manager", rank=rank)
            self._check_shards("failed to start", "ShardCannotStart")
            if time.monotonic() - waited > 10:
                waited = time.monotonic()
                self.log("Waiting for shard to be ready...", name="shard-manager", rank=0)
            time.sleep(0.02)

        self._warn_of_chunking()

    def _warn_of_chunking(self) -> None:
        # TGI says one of these at nearly every start, and nothing follows from it.
        if self.options.speculate:
            text = "Prefill chunking does not support speculation yet. Prefill chunking will be turned off"
        elif os.environ.get("ATTENTION") == "paged":
            kinds = "`flashinfer` or `flashdecoding` or `flashdecoding-ipex`"
            text = f"Prefill chunking is only supported with {kinds} attention types."
        else:
            return
        self.log(text, "WARN", name="shard-manager", rank=0)

    def _shard_arguments(self, rank: int, path: Path) -> list[Any]:
        arguments: list[Any] = [_FOREVER if "endless-loading" in self.faults else self.seconds, "--uds-path", path]
        if self.num_shard > 1 and rank == 0:
            arguments += ["--master-port", self.options.master_port]
        if "ignore-sigterm" in self.faults:
            arguments.append("--ignore-sigterm")
        if rank:
            return arguments
        for fault, text in _SHARD_ERRORS.items():
            if fault in self.faults:
                arguments += ["--fail", f"Traceback (most recent call last):\n  File ...\n{text}"]
        if "boxed-key" in self.faults:
            arguments += ["--fail", _traceback(f"ValueError: {self.options.api_key} is no key")]
        heads = int(self.faults.get("heads", {}).get("heads", "3"))
        if "heads" in self.faults and (self.options.speculate or 0) > heads:
            arguments += ["--fail", "RuntimeError: " + _HEADS.format(n=self.options.speculate, heads=heads)]
        if "no-gpu" in self.faults:
            if os.environ.get("ATTENTION", "flashinfer") == "flashinfer":
                arguments += ["--fail", "ModuleNotFoundError: No module named 'flashinfer'"]
            elif self.options.cuda_graphs != "0":
                arguments += ["--fail", "RuntimeError: CUDA driver version is insufficient for CUDA runtime version"]
        if "killed-while-loading" in self.faults:
            arguments += ["--uds-path", os.devnull + "/" + "x"]
        return arguments

    def _relay_shard(self, rank: int, shard: subprocess.Popen[bytes]) -> None:
        if "killed-while-loading" in self.faults and rank == 0:
            shard.send_signal(int(self.faults["killed-while-loading"].get("signal", "9")))
        assert shard.stdout is not None
        for line in shard.stdout:
            with contextlib.suppress(ValueError):
                self.log(json.loads(line)["text"], name="shard-manager", rank=rank)

    def _check_shards(self, what: str, error: str) -> None:
        for rank, shard in enumerate(self.shards):
            if (returncode := shard.poll()) is not None:
                assert shard.stderr is not None
                span = {"name": "shard-manager", "rank": rank}
                self.log(f"Shard complete standard error output:\n\n{shard.stderr.read().decode()}", "ERROR", **span)
                if returncode < 0:
                    self.log(f"Shard process was signaled to shutdown with signal {-returncode}", "ERROR", **span)
                self.log(f"Shard {rank} {what}", "ERROR")
                raise LauncherError(error)

    def _serve(self) -> None:
        self.log("Starting Webserver")
        if "no-router" in self.faults:
            self.log("text-generation-router not found in PATH", "ERROR")
            raise LauncherError("WebserverCannotStart")
        router = self._start_router()
        error = None
        while self.running:
            if router.poll() is not None:
                time.sleep(0.1)  # what it said is on its way
                self.log("Webserver Crashed", "ERROR")
                raise LauncherError("WebserverFailed")
            try:
                self._check_shards("crashed", "ShardFailed")
            except LauncherError as failure:
                error = failure
                break
            time.sleep(0.02)
        self._terminate("webserver", router, self.options.graceful_termination_timeout)
        if error is not None:
            raise error

    def _start_router(self) -> subprocess.Popen[bytes]:
        options = self.options
        passed = ("hostname", "port", "model_id", "speculate", "max_concurrent_requests", "max_input_tokens",
                  "max_total_tokens", "max_stop_sequences", "max_top_n_tokens", "max_best_of",
                  "max_client_batch_size")  # fmt: skip
        arguments = [
            text
            for name in passed
            if getattr(options, name) is not None
            for text in (f"--{name.replace('_', '-')}", str(getattr(options, name)))
        ]
        if "no-flash" in self.faults and "--speculate" in arguments:
            del arguments[(at := arguments.index("--speculate")) : at + 2]
        if options.disable_grammar_support:
            arguments.append("--disable-grammar-support")
        for name, values in self.faults.items():
            if name not in FAULTS:
                arguments += ["--fault", ":".join([name, *(f"{key}={value}" for key, value in values.items())])]
        fail = (
            "Not enough memory to handle 4096 prefill tokens. You need to decrease `--max-batch-prefill-tokens`"
            if "warm-up-out-of-memory" in self.faults
            else "memory allocation of 8589934592 bytes failed"
            if "warm-up-malloc" in self.faults
            else ""
        )
        style = "json" if options.json_output else "plain"
        # The original puts the key on its router's command line; the stand-in's reads it from the environment.
        env = {**os.environ, **({"API_KEY": options.api_key} if options.api_key else {})}
        router = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "tests.standin.router", str(self.seconds), str(options.prometheus_port), style, fail,
             *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            preexec_fn=lambda: os.setpgid(0, 0),
        )  # fmt: skip
        threading.Thread(target=self._relay_router, args=(router,), daemon=True).start()
        return router

    def _relay_router(self, router: subprocess.Popen[bytes]) -> None:
        # Standard error comes only after standard output has ended, as with the original.
        for stream in (router.stdout, router.stderr):
            assert stream is not None
            for line in stream:
                sys.stdout.write(line.decode("utf-8", "replace"))
                sys.stdout.flush()

    def _terminate(self, name: str, process: subprocess.Popen[bytes], seconds: float) -> None:
        self.log(f"Terminating {name}")
        process.terminate()
        self.log(f"Waiting for {name} to gracefully shutdown")
        try:
            process.wait(seconds)
            self.log(f"{name} terminated")
        except subprocess.TimeoutExpired:
            self.log(f"Killing {name}")
            process.kill()
            process.wait()
            self.log(f"{name} killed")

    def _shut_down_shards(self) -> None:
        self.log("Shutting down shards")
        for shard in self.shards:
            if shard.poll() is None:
                self._terminate("shard", shard, self.options.graceful_termination_timeout)


def read_faults(text: str) -> dict[str, dict[str, str]]:
    """`name[:key=value]...`, comma-separated."""
    faults = {}
    for part in filter(None, text.split(",")):
        name, *pairs = part.split(":")
        if name not in FAULTS and name not in START_FAULTS and name not in REQUEST_FAULTS:
            known = ", ".join([*FAULTS, *START_FAULTS, *REQUEST_FAULTS])
            sys.exit(f"STANDIN_FAULT: there is no fault {name!r}, only {known}")
        faults[name] = dict(pair.split("=") for pair in pairs)
    return faults


def main() -> None:
    """Run until a signal, or a fault."""
    options = parse(sys.argv[1:])
    launcher = Launcher(options, read_faults(os.environ.get("STANDIN_FAULT", "")))
    try:
        launcher.run()
    except LauncherError as error:
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
