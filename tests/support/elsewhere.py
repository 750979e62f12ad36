"""Windows played on POSIX: run as a script, it takes away what Windows lacks, and tries both packages.

What other packages do there is theirs, so those are imported before anything is taken away.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import io
import os
import pkgutil
import shutil
import signal
import sys
from types import SimpleNamespace
from typing import Any

# Modules and names that Python's documentation marks as Unix only, of those that either package may touch.
_MODULES = {"fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"}
_OS = """
    fork forkpty getuid geteuid getgid getegid getpgid getsid setsid setuid killpg wait waitid wait3 wait4
    WNOHANG O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_CLOEXEC fchmod fchown chown lchown mkfifo sched_getaffinity
    sched_setaffinity register_at_fork getloadavg sysconf statvfs uname posix_fadvise posix_spawn set_blocking
""".split()  # noqa: SIM905 - 37 names
_SIGNALS = """
    SIGKILL SIGHUP SIGCHLD SIGBUS SIGUSR1 SIGUSR2 SIGPIPE SIGALRM SIGQUIT SIGTSTP SIGCONT SIGWINCH pthread_kill
    pthread_sigmask sigwait setitimer alarm
""".split()  # noqa: SIM905


class _Refusing:
    """Refuses to import what Windows lacks."""

    def find_spec(self, name: str, *_: object) -> None:
        if name in _MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def leave_posix() -> None:
    """Take it all away, and /proc and /sys with it."""
    for name in _MODULES:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, _Refusing())
    for module, names in ((os, _OS), (signal, _SIGNALS)):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    # From Python 3.12 on it would look for programs with a function of Windows.
    vars(shutil)["sys"] = SimpleNamespace(**vars(sys))
    sys.platform = "win32"
    for module in (builtins, io):
        module.open = _without_system_files(module.open)  # type: ignore[attr-defined]


def _without_system_files(real: Any) -> Any:
    def opened(file: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, str | os.PathLike) and os.fspath(file).startswith(("/proc/", "/sys/")):
            raise FileNotFoundError(2, "No such file or directory", str(file))
        return real(file, *args, **kwargs)

    return opened


def imports() -> None:
    """Import every module of both packages."""
    names = []
    for package in ("langchain_specdec", "tgi_launcher"):
        root = importlib.import_module(package)
        names += [found.name for found in pkgutil.walk_packages(root.__path__, f"{package}.")]
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    sys.stdout.write(f"{len(names)} modules\n")


def generate() -> None:
    """Complete a prompt with a tiny model."""
    from langchain_specdec import SpeculativeLLM
    from tests.support.tiny_models import byte_tokenizer, tiny_model

    options: dict[str, Any] = {"tokenizer": byte_tokenizer(), "max_length": 128, "num_slots": 2}
    texts = [
        SpeculativeLLM.from_model_id(tiny_model(), drafter=drafter, max_new_tokens=24, **options).invoke("a b a b a b")
        for drafter in ("auto", "none")
    ]
    sys.stdout.write("same text\n" if texts[0] == texts[1] else f"{texts}\n")


def commands() -> None:
    """Ask for what cannot be done there, and for what can."""
    for name, *arguments in (
        ["tgi-launch", "start", "some/model"],
        ["tgi-launch", "check"],
        ["tgi-launch", "cleanup"],
        ["specdec", "--version"],
    ):
        sys.argv = [name, *arguments]
        package = {"specdec": "langchain_specdec.cli", "tgi-launch": "tgi_launcher.cli"}[name]
        try:
            importlib.import_module(package).main()
        except SystemExit as end:
            sys.stdout.write(f"{' '.join(sys.argv)} -> {end.code or 0}\n")


if __name__ == "__main__":
    # What others import of the system, they have.
    for other in ("asyncio", "langchain_core.runnables", "matplotlib.pyplot", "psutil", "rich.console", "torch._dynamo",
                  "transformers.generation.utils", "typer", "uvicorn"):  # fmt: skip
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(other)
    from transformers import GPT2LMHeadModel, LlamaForCausalLM  # noqa: F401

    leave_posix()
    imports()
    generate()
    commands()
