"""The stand-in's router process: logs and binds its ports as TGI's does, then serves by `tests.standin.server`."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

from tests.standin.launcher_log import Log


def main() -> None:
    """`python -m tests.standin.router SECONDS PROMETHEUS_PORT json|plain FAIL ARGUMENTS-OF-SERVER...`."""
    seconds, prometheus_port, style, fail, *arguments = sys.argv[1:]
    log = Log(is_json=style == "json", target="text_generation_router", is_router=True)
    exporter = socket.socket()
    exporter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        exporter.bind(("0.0.0.0", int(prometheus_port)))  # noqa: S104  # as TGI does
        exporter.listen()
    except OSError:
        sys.stderr.write(
            "thread 'main' panicked at router/src/server.rs:1:\nfailed to build prometheus recorder: "
            'FailedToCreateHTTPListener("Address already in use (os error 98)")\n'
        )
        sys.stderr.flush()
        os._exit(101)
    log("Warming up model")
    time.sleep(float(seconds))
    if fail.startswith("memory allocation"):
        # As Rust ends where there is no memory.
        sys.stderr.write(f"{fail}\n")
        sys.stderr.flush()
        os.abort()
    if fail:
        log(fail, "ERROR")
        sys.exit(1)
    # The tokenizer, as transformers saves it where the router runs.
    Path("out").mkdir(exist_ok=True)
    Path("out/tokenizer.json").write_text("{}")
    log(f"no pipeline tag found for model {arguments[arguments.index('--model-id') + 1]}", "WARN")
    log("Setting max batch total tokens to 32768")
    log("Using backend V3")
    hostname, port = arguments[arguments.index("--hostname") + 1], int(arguments[arguments.index("--port") + 1])
    log("Connected")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((hostname, port))
            probe.listen()
        except OSError:
            log(f"Failed to bind to {hostname}:{port}: Address already in use (os error 98)", "ERROR")
            sys.exit(1)
    from tests.standin import server

    sys.argv = ["text-generation-router", *arguments]
    server.main()


if __name__ == "__main__":
    main()
