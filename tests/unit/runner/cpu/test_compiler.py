"""Which compiler CXX names, and what is said where there is none."""

from __future__ import annotations

import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from langchain_specdec.errors import SpecDecError
from langchain_specdec.progress import telling
from langchain_specdec.runner.cpu import kernels
from langchain_specdec.runner.cpu.compiler import compiler_command, compiler_program, find_compiler


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with a compiler, a launcher for it, and another compiler in a folder whose name has a blank."""
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "my tools").mkdir()
    for name in ("g++", "ccache", "my tools/g++"):
        (tmp_path / name).touch(0o755)
    return tmp_path


@pytest.mark.parametrize(
    ("cxx", "command", "program"),
    [
        (None, ("g++",), "g++"),
        ("", ("g++",), "g++"),
        (" g++ ", ("g++",), "g++"),
        ("ccache g++", ("ccache", "g++"), "g++"),
        ("g++ -m64 -DX='a b'", ("g++", "-m64", "-DX=a b"), "g++"),
        ("{here}/my tools/g++", ("{here}/my tools/g++",), "{here}/my tools/g++"),
        ("'{here}/my tools/g++' -m64", ("{here}/my tools/g++", "-m64"), "{here}/my tools/g++"),
    ],
)
def test_cxx_is_read_as_a_shell_reads_it(
    programs: Path, monkeypatch: pytest.MonkeyPatch, cxx: str | None, command: tuple[str, ...], program: str
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    if cxx is not None:
        monkeypatch.setenv("CXX", cxx.format(here=programs))
    expected = tuple(part.format(here=programs) for part in command)
    assert compiler_command() == find_compiler() == expected
    assert compiler_program() == program.format(here=programs)


@pytest.mark.parametrize("cxx", ["clang++", "ccache clang++", "sccache g++", "g++ 'open"])
def test_a_compiler_that_is_not_there(programs: Path, monkeypatch: pytest.MonkeyPatch, cxx: str) -> None:
    monkeypatch.setenv("CXX", cxx)
    assert find_compiler() is None


def test_kernels_are_compiled_by_all_that_cxx_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, programs: Path
) -> None:
    monkeypatch.setenv("CXX", "ccache g++ -m64")
    monkeypatch.setattr(kernels, "cache_folder", lambda: tmp_path / "cache")
    commands: list[list[str]] = []

    def run(command: list[str]) -> None:
        commands.append(command)
        raise OSError("far enough")

    monkeypatch.setattr(kernels, "_run", run)
    with pytest.raises(OSError, match="far enough"):
        kernels._library("panel_linear", ("-mavx2",))
    assert commands[0][:4] == ["ccache", "g++", "-m64", "-O3"]


def test_a_missing_compiler_is_told_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    monkeypatch.setattr(kernels, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(sys, "platform", "linux")

    def run(command: list[str]) -> None:
        raise FileNotFoundError(command[0])

    monkeypatch.setattr(kernels, "_run", run)
    kernels._warn_once.cache_clear()
    for name in ("panel_linear", "decode_attention", "panel_linear"):
        assert kernels.tested_kernel(name, "a purpose", lambda library: library, lambda kernel: True) is None
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert warning.startswith("There is no C++ compiler no-such-compiler -m64: the engine's own kernels")
    assert "apt install g++" in warning
    kernels._warn_once.cache_clear()


class TestACompilation:
    @pytest.fixture(autouse=True)
    def _compiler(self, programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """One that compiles nothing, to a library that loads."""
        monkeypatch.setattr(kernels, "_run", lambda command: Path(command[-1]).touch())
        monkeypatch.setattr("ctypes.CDLL", lambda path: object())
        kernels._warn_not_kept.cache_clear()

    def test_it_is_told_for_it_takes_seconds(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "langchain_specdec")
        monkeypatch.setattr(kernels, "cache_folder", lambda: tmp_path / "cache")
        told: list[tuple[str, int, int]] = []
        with telling(lambda *news: told.append(news)):
            kernels._library("panel_linear", ("-mavx2",))
            assert told == [("Compiling the kernels for this CPU", done, 1) for done in (0, 1)]
            kernels._library("panel_linear", ("-mavx2",))
        assert len(told) == 2, "the second time it is kept"
        kernels._library("decode_attention", ("-mavx2",))
        assert len(told) == 2, "nobody asked any more"
        assert [message.partition("-")[0] for message in caplog.messages] == [
            f"Compiling the kernels for this CPU, which takes some seconds and is done once: {name}"
            for name in ("panel_linear", "decode_attention")
        ]

    def test_many_that_compile_at_once_keep_one_whole(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(kernels, "cache_folder", lambda: tmp_path / "cache")
        at_once = threading.Barrier(4)

        def run(command: list[str]) -> None:
            if "-shared" in command:
                at_once.wait(60)
            Path(command[-1]).write_bytes(b"library" * 100_000)

        monkeypatch.setattr(kernels, "_run", run)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: kernels._library("panel_linear", ("-mavx2",)), range(4)))
        (kept,) = (tmp_path / "cache").iterdir()
        assert kept.read_bytes() == b"library" * 100_000

    @pytest.mark.parametrize("is_known", [True, False])
    def test_what_cannot_be_kept_is_told_once(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, is_known: bool
    ) -> None:
        def folder() -> Path:
            if not is_known:
                raise SpecDecError("The home folder is unknown.")
            return tmp_path / "file" / "cache"

        (tmp_path / "file").touch()
        monkeypatch.setattr(kernels, "cache_folder", folder)
        for _ in range(2):
            kernels._library("panel_linear", ("-mavx2",))
        (warning,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        assert "each process compiles them anew" in warning
        assert ("unknown" in warning) != is_known
        assert "XDG_CACHE_HOME" in warning
        kernels._warn_not_kept.cache_clear()
