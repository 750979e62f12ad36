"""The folder for a machine with a GPU: cut, joined and checked there, and the commands that are printed are right."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.source_code import ROOT
from tools.gpu_check import install
from tools.gpu_check.install import missing
from tools.gpu_check.parts import PARTS
from tools.gpu_pack import PACKAGES, instructions, main, split


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file that is longer than a piece."""
    made = tmp_path / "gpu-check"
    (made / "wheels").mkdir(parents=True)
    (made / "wheels/a.whl").write_bytes(bytes(range(256)) * 200)
    (made / "run.sh").write_text("#!/bin/sh\n", encoding="utf-8")
    (made / "run.sh").chmod(0o755)
    return made


def join(pieces: Sequence[Path]) -> subprocess.CompletedProcess[str]:
    """Run what is printed for it where the pieces are."""
    printed = instructions(Path("gpu-check"), pieces).splitlines()
    command = next(line.strip() for line in printed if "sha256sum" in line)
    shell = ["/bin/bash", "-c", command]
    return subprocess.run(shell, cwd=pieces[0].parent, check=False, capture_output=True, text=True)  # noqa: S603


def test_pieces_are_numbered_and_no_larger_than_asked_for(folder: Path, tmp_path: Path) -> None:
    pieces = split(folder, tmp_path / "pieces", 20_000)
    assert [path.name for path in pieces] == [f"gpu-check.tar.{number:03}" for number in range(len(pieces))]
    *full, last = [path.stat().st_size for path in pieces]
    assert set(full) == {20_000}
    assert 0 < last <= 20_000
    checksums = (tmp_path / "pieces/pieces.sha256").read_text(encoding="utf-8")
    assert [line.split()[1] for line in checksums.splitlines()] == [path.name for path in pieces]


@pytest.mark.process
def test_the_printed_command_joins_the_pieces(folder: Path, tmp_path: Path) -> None:
    assert join(split(folder, tmp_path / "pieces", 20_000)).returncode == 0
    joined = tmp_path / "pieces/gpu-check"
    assert (joined / "wheels/a.whl").read_bytes() == (folder / "wheels/a.whl").read_bytes()
    assert (joined / "run.sh").stat().st_mode & 0o100


@pytest.mark.process
def test_a_piece_that_was_damaged_is_not_unpacked(folder: Path, tmp_path: Path) -> None:
    pieces = split(folder, tmp_path / "pieces", 20_000)
    pieces[1].write_bytes(b"\0" + pieces[1].read_bytes()[1:] + b"\0")
    done = join(pieces)
    assert done.returncode != 0
    assert "gpu-check.tar.001: FAILED" in done.stdout
    assert not (tmp_path / "pieces/gpu-check").exists()


def test_the_commands_of_both_phases_are_printed(folder: Path) -> None:
    assert instructions(folder).splitlines() == [
        f"Take {folder} there.",
        "Phase A, 195 s at most:",
        "    gpu-check/run.sh --budget 195 --parts env,mask,capture,unit,text",
        "Phase B, 25 s at most:",
        "    gpu-check/run.sh --budget 25 --parts env",
        "Phase B, 455 s at most:",
        "    gpu-check/run.sh --budget 455 --parts steps,profile,pair,flashspec,eight,embedded,batch,memory",
        "Read what phase A found before phase B. Records are in gpu-check-out/gpu.jsonl.",
    ]


def test_every_package_that_goes_along_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert set(PACKAGES) - pinned == set()


def test_only_packages_that_are_not_there_or_too_old_are_installed(tmp_path: Path) -> None:
    for name in ("pydantic_core-2.1.0-cp312-cp312-linux_x86_64", "numpy-99.10.1-cp312-cp312-linux_x86_64",
                 "there_is_no_such_package-1.0-py3-none-any"):  # fmt: skip
        (tmp_path / f"{name}.whl").touch()
    assert [wheel.name.split("-")[0] for wheel in missing(tmp_path)] == ["numpy", "there_is_no_such_package"]


@pytest.mark.process
def test_what_cannot_be_installed_is_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there_is_no_such_package-1.0-cp12-cp12-linux_x86_64.whl").touch()
    monkeypatch.setattr(sys, "argv", ["install", str(tmp_path), str(tmp_path / "site")])
    with pytest.raises(SystemExit, match=r"pip could not install them in .*site\. They are for Python 3\.12"):
        install.main()
    assert "is not a supported wheel on this platform" in capfd.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="has no torch and no transformers: set PYTHON to the interpreter that has"):
        install.main()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--workload", "/nowhere.jsonl"], "there is no file /nowhere.jsonl"),
        (["--split", "-5"], "pieces have to have at least one byte, got -5"),
    ],
)
def test_what_cannot_be_packed_is_refused_before_anything_is_removed(
    options: list[str], told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--to", str(folder), *options])
    assert told in capsys.readouterr().err
    assert (folder / "run.sh").exists()


@pytest.mark.process
def test_the_script_sets_the_environment_and_hands_its_options_on(folder: Path, tmp_path: Path) -> None:
    (folder / "tree").mkdir()
    (folder / "workload.jsonl").touch()
    script = folder / "run.sh"
    script.write_text((ROOT / "tools/gpu_check/run.sh").read_text(encoding="utf-8"), encoding="utf-8")
    python = tmp_path / "python"
    names = "PWD PYTHONPATH HF_HUB_OFFLINE PYTHONUNBUFFERED TORCHINDUCTOR_CACHE_DIR CUDA_MODULE_LOADING"
    python.write_text(
        f'#!/bin/bash\necho "$@"\nfor name in {names} GPU_CHECK_WORKLOAD; do echo "$name=${{!name}}"; done\n'
        '[ "$2" != tools.gpu_check ] || exit 7\n',
        encoding="utf-8",
    )
    python.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(python), "GPU_CHECK_WORK": str(tmp_path / "work")}
    command = [str(script), "--parts", next(iter(PARTS))]
    done = subprocess.run(  # noqa: S603
        command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 7, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"-m tools.gpu_check.install {folder}/wheels {tmp_path}/work/site"
    assert f"-m tools.gpu_check --out {tmp_path}/gpu-check-out --parts env" in lines
    assert lines[-7:] == [
        f"PWD={folder}/tree",
        f"PYTHONPATH={tmp_path}/work/site:{folder}/model:{folder}/tree",
        "HF_HUB_OFFLINE=1",
        "PYTHONUNBUFFERED=1",
        f"TORCHINDUCTOR_CACHE_DIR={tmp_path}/work/inductor",
        "CUDA_MODULE_LOADING=LAZY",
        f"GPU_CHECK_WORKLOAD={folder}/workload.jsonl",
    ]
