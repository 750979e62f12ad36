"""A shard of the stand-in, or its download: a process that takes its time, makes its socket, and waits.

`python shard.py SECONDS [--uds-path PATH] [--master-port PORT] [--ignore-sigterm] [--fail TEXT]`
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

# Whoever starts it may die without a word; it then ends by itself, much later than any test looks.
_LONGEST_LIFE = 120.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("seconds", type=float)
    parser.add_argument("--uds-path")
    parser.add_argument("--master-port", type=int)
    parser.add_argument("--ignore-sigterm", action="store_true")
    parser.add_argument("--fail")
    options = parser.parse_args()
    if options.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    rendezvous = socket.socket()
    if options.master_port:
        rendezvous.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            rendezvous.bind(("0.0.0.0", options.master_port))  # noqa: S104  # as torch does
            rendezvous.listen()
        except OSError as error:
            sys.exit(
                f"torch.distributed.DistNetworkError: The server socket has failed to listen: EADDRINUSE ({error})"
            )
    # PyTorch makes some while it loads, and does not remove them when it is killed.
    temporary = tempfile.mkdtemp(prefix="torchinductor_") if options.uds_path else ""
    time.sleep(options.seconds)
    if options.fail:
        sys.exit(options.fail)
    if not options.uds_path:
        return
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(options.uds_path)
    say(f"Server started at unix://{options.uds_path}")
    with contextlib.suppress(KeyboardInterrupt):
        time.sleep(_LONGEST_LIFE)
    Path(options.uds_path).unlink(missing_ok=True)
    Path(temporary).rmdir()


def say(text: str) -> None:
    # As loguru serializes; the launcher makes a record of its own of it.
    sys.stdout.write(json.dumps({"text": text, "record": {"level": {"name": "INFO"}}}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
