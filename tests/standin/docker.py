"""A stand-in for Docker's client: writes down how it is called and runs the stand-in engine as a container would.

To be started under the name `docker`. STANDIN_DOCKER is a folder: `calls.jsonl` gets a line per call. What the
container runs does not die with the client, as with Docker. STANDIN_DOCKER_FAIL is a text to fail with instead, and
STANDIN_DOCKER_PS is what `docker ps` prints.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_FOLDER = Path(os.environ["STANDIN_DOCKER"])
# What an image starts, by a part of its name; what stands behind an image that is not here is started itself.
_PROGRAMS = {
    "text-generation-inference": ["text-generation-launcher"],
    "vllm-openai": ["vllm", "serve"],
    "llama.cpp": ["llama-server"],
}
_SECRETS = ("API_KEY", "HF_TOKEN", "VLLM_API_KEY", "LLAMA_API_KEY")


def main() -> None:
    arguments = sys.argv[1:]
    secrets = {name: os.environ[name] for name in _SECRETS if name in os.environ}
    with (_FOLDER / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps({"arguments": arguments, "env": secrets}) + "\n")
    if arguments[0] == "run":
        if failure := os.environ.get("STANDIN_DOCKER_FAIL"):
            sys.exit(_fail(failure))
        sys.exit(_run(arguments))
    if arguments[0] == "ps":
        sys.stdout.write(os.environ.get("STANDIN_DOCKER_PS", ""))
        return
    name = arguments[-1]
    pidfile = _FOLDER / name
    if not pidfile.exists():
        sys.stderr.write(f"Error response from daemon: No such container: {name}\n")
        sys.exit(1)
    pid = int(pidfile.read_text())
    seconds = float(arguments[arguments.index("-t") + 1]) if arguments[0] == "stop" else 0.0
    _end(pid, seconds)
    pidfile.unlink(missing_ok=True)


def _fail(text: str) -> int:
    sys.stderr.write(f"docker: {text}\n")
    return 125


def _run(arguments: list[str]) -> int:
    image = 1
    while arguments[image].startswith("-"):
        image += 1 if arguments[image] == "--rm" else 2
    options, flags = arguments[:image], arguments[image + 1 :]
    hostname, port, _ = options[options.index("-p") + 1].rsplit(":", 2)
    for flag, value in (("--hostname", hostname), ("--host", hostname), ("--port", port)):
        if flag in flags:
            flags[flags.index(flag) + 1] = value  # there is no network of the container's own
    mounts = [options[i + 1].split(":") for i, text in enumerate(options) if text == "-v"]
    inside = {target: source for source, target, *_ in mounts}
    flags = [inside.get(flag, flag) for flag in flags]  # nor are there folders of its own
    if "text-generation-inference" in arguments[image]:
        flags += ["--prometheus-port", str(int(port) + 1000), "--shard-uds-path", str(_FOLDER / "shard")]
    program = next((words for part, words in _PROGRAMS.items() if part in arguments[image]), [])
    name = options[options.index("--name") + 1]
    given = {options[i + 1] for i, text in enumerate(options) if text == "-e"}
    env = {key: value for key, value in os.environ.items() if key.startswith(("STANDIN", "PATH", "LANG"))}
    env["TMPDIR"] = str(_FOLDER)  # nor a file system of its own
    env |= {key: os.environ[key] for key in given if "=" not in key}
    env |= dict(text.split("=", 1) for text in given if "=" in text)
    words = [*program, *flags]
    words[0] = str(Path(__file__).with_name(words[0]))
    container = subprocess.Popen(words, env=env, cwd=_FOLDER, start_new_session=True)  # noqa: S603
    (_FOLDER / name).write_text(str(container.pid))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: container.send_signal(number))
    returncode = container.wait()
    (_FOLDER / name).unlink(missing_ok=True)
    return returncode if returncode >= 0 else 128 - returncode


def _end(pid: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    try:
        os.kill(pid, signal.SIGTERM if seconds else signal.SIGKILL)
        while time.monotonic() < deadline:
            os.kill(pid, 0)
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


if __name__ == "__main__":
    main()
