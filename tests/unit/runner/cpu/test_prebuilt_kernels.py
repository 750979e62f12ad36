"""The native decoder that a platform wheel brings: used without a compiler, never stale, fit for old systems."""

from __future__ import annotations

import logging
import platform
import re
import shutil
from pathlib import Path

import pytest
import torch

from langchain_specdec.runner.cpu import kernels
from langchain_specdec.runner.cpu.decoder_trial import is_right
from langchain_specdec.runner.cpu.kernels import recipe
from langchain_specdec.runner.cpu.native_decoder import NativeLibrary
from tests.support.source_code import ROOT
from tools import hatch_build

_CAPABILITY = torch.backends.cpu.get_cpu_capability()
_MACHINE = platform.machine()
pytestmark = pytest.mark.skipif(
    recipe.flags_of("decoder", _MACHINE, _CAPABILITY) is None, reason="there is no native decoder for this machine"
)


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine that has nothing but what the wheel brings; the folder of that."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(kernels, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(recipe, "PREBUILT", tmp_path / "prebuilt")
    (tmp_path / "prebuilt").mkdir()
    return tmp_path / "prebuilt"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the build hook makes for this processor."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(hatch_build.CAPABILITIES, _MACHINE, (_CAPABILITY,))
        (path,) = hatch_build.prebuild(ROOT, _MACHINE, tmp_path_factory.mktemp("built"))
    return path


def decoder() -> NativeLibrary | None:
    return kernels.tested_kernel("decoder", "decoding", NativeLibrary, is_right)


@pytest.mark.process
@pytest.mark.slow
def test_no_compiler_is_needed(without_compiler: Path, built: Path) -> None:
    assert decoder() is None
    shutil.copy(built, without_compiler)
    assert decoder() is not None


@pytest.mark.process
@pytest.mark.slow
def test_a_library_of_other_sources_is_not_used(
    without_compiler: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(built, without_compiler)
    changed = tmp_path / "decoder.cpp"
    changed.write_text("// Another one.\n", encoding="utf-8")
    monkeypatch.setattr(recipe, "sources_of", lambda name: [changed])
    assert decoder() is None


@pytest.mark.process
@pytest.mark.slow
def test_it_runs_on_systems_of_the_age_that_its_tag_says(built: Path) -> None:
    needed = {int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", built.read_bytes())}
    assert needed
    assert max(needed) <= int(hatch_build.MANYLINUX.rpartition("_")[2])
    # The C++ library is inside: that of a system may be older.
    assert not re.search(rb"libstdc\+\+\.so|GLIBCXX_", built.read_bytes())


def test_one_that_cannot_be_loaded_is_compiled_instead(
    without_compiler: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flags = recipe.flags_of("decoder", _MACHINE, _CAPABILITY)
    assert flags is not None
    (without_compiler / recipe.prebuilt_name("decoder", _MACHINE, flags)).write_bytes(b"not a library")
    commands: list[list[str]] = []

    def run(command: list[str]) -> None:
        commands.append(command)
        raise OSError("far enough")

    monkeypatch.setattr(kernels, "_run", run)
    with caplog.at_level(logging.INFO):
        assert decoder() is None
    assert commands[0][0] == "no-such-compiler"
    assert "that was installed cannot be loaded, so it is compiled" in caplog.text


def test_sources_flags_and_machine_make_the_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    flags = [recipe.flags_of("decoder", "x86_64", capability) for capability in ("AVX2", "AVX512")]
    names = {recipe.prebuilt_name("decoder", "x86_64", one) for one in flags if one is not None}
    names.add(recipe.prebuilt_name("decoder", "aarch64", ("-pthread",)))
    names.add(recipe.prebuilt_name("decoder", "x86_64", ("-pthread",)))
    assert len(names) == 4
    source = tmp_path / "decoder.cpp"
    monkeypatch.setattr(recipe, "sources_of", lambda name: [source])
    for text in ("a", "b"):
        source.write_text(text, encoding="utf-8")
        names.add(recipe.prebuilt_name("decoder", "x86_64", ("-pthread",)))
    assert len(names) == 6


def test_no_library_is_in_a_checkout() -> None:
    assert not recipe.PREBUILT.exists()


def test_a_machine_for_which_nothing_is_prebuilt_is_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="PREBUILD=riscv64: nothing is prebuilt for it, only for x86_64 and aarch64"):
        hatch_build.prebuild(ROOT, "riscv64", tmp_path)
    assert not list(tmp_path.iterdir())
