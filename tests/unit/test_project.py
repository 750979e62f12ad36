"""What holds for the project as a whole: version, typing markers, file sizes, direction of imports."""

from __future__ import annotations

import ast
import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from langchain_specdec._version import __version__
from tools.house_plan import FLOORS, PACKAGES, pages

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES = 400

MAY_IMPORT_LANGCHAIN = {"llms", "chat_models", "langchain_base", "chat", "cli"}


class Import(NamedTuple):
    """One imported module and where the import stands."""

    name: str
    line: int
    for_types_only: bool


def source_files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def imports_of(source: str, module: str, *, is_package: bool) -> Iterator[Import]:
    """Every import of a module, also those inside functions, by absolute name.

    `from package import name` counts as an import of `package.name` where that is a module of ours.
    """
    tree = ast.parse(source)
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, id(node) in typing_only)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if is_package else module.split(".")[:-1]
                package = package[: len(package) - (node.level - 1)]
                base = ".".join([*package, *filter(None, [node.module])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                name = full if base.startswith(PACKAGES) and is_module(full) else base
                yield Import(name, node.lineno, id(node) in typing_only)


def imports_in(path: Path) -> Iterator[Import]:
    source = path.read_text(encoding="utf-8")
    return imports_of(source, module_name(path), is_package=path.name == "__init__.py")


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def room_of(module: str) -> str:
    """The first name below langchain_specdec; "__init__" for langchain_specdec itself."""
    return module.partition(".")[2].partition(".")[0] or "__init__"


def floor_of(room: str) -> int:
    for floor, rooms in enumerate(FLOORS):
        if room in rooms:
            return floor
    pytest.fail(f"langchain_specdec/{room} has no place in FLOORS of tools/house_plan.py: give it one")


def report(problems: list[str]) -> None:
    assert not problems, "\n" + "\n".join(dict.fromkeys(problems))


def test_installed_version_is_the_one_in_the_source() -> None:
    installed = importlib.metadata.version("langchain-specdec")
    assert installed == __version__, (
        f"langchain-specdec {installed} is installed but _version.py says {__version__}: run make .venv"
    )


def test_pyproject_takes_the_version_from_the_source() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in pyproject, "pyproject.toml must not state a version of its own"
    assert 'path = "langchain_specdec/_version.py"' in pyproject, "pyproject.toml must read _version.py"


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_marked_as_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file(), f"{package}/py.typed is missing: its types would be ignored"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_source_file_is_too_long(package: str) -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in source_files(package)}
    report(
        [
            f"{path.relative_to(ROOT)} has {lines} lines, {MAX_LINES} is the limit: split it"
            for path, lines in lengths.items()
            if lines > MAX_LINES
        ]
    )


def test_the_plan_of_the_house_is_up_to_date() -> None:
    report(
        [
            f"{page.relative_to(ROOT)}:1 has a stale plan of the house: run make plan"
            for page, text in pages().items()
            if page.read_text(encoding="utf-8") != text
        ]
    )


def test_only_the_faces_import_langchain() -> None:
    problems = []
    for path in source_files("langchain_specdec"):
        if room_of(module_name(path)) in MAY_IMPORT_LANGCHAIN:
            continue
        problems += [
            f"{path.relative_to(ROOT)}:{line} imports {name}, but only {', '.join(sorted(MAY_IMPORT_LANGCHAIN))} may"
            for name, line, _ in imports_in(path)
            if re.match(r"lang(chain|graph|smith)(?!_specdec\b)", name)
        ]
    report(problems)


def test_imports_only_point_down() -> None:
    problems = []
    for path in source_files("langchain_specdec"):
        floor = floor_of(room_of(module_name(path)))
        for name, line, _ in imports_in(path):
            if not is_within(name, "langchain_specdec"):
                continue
            if floor_of(room_of(name)) < floor:
                problems.append(f"{path.relative_to(ROOT)}:{line} imports {name} from above: imports only point down")
    report(problems)


def test_tgi_launcher_stands_alone() -> None:
    problems = []
    for path in source_files("tgi_launcher"):
        problems += [
            f"{path.relative_to(ROOT)}:{line} imports {name}, but tgi_launcher is to work without it"
            for name, line, _ in imports_in(path)
            if re.match(r"(torch|transformers|lang(chain|graph|smith)\w*)\b", name)
        ]
    report(problems)


def test_what_depends_on_transformers_runs_on_both_versions() -> None:
    listed = re.search(r"^TESTS4 := ((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert listed is not None
    patterns = [f"{name}.py" for name in listed[1].replace("\\\n", " ").split()]
    files = sorted((ROOT / "tests/unit").rglob("test_*.py"))
    report(
        [f"TESTS4 in the Makefile: there is no tests/unit/{p}" for p in patterns if not any(f.match(p) for f in files)]
    )
    needing = ("transformers", "text_generation")
    problems = []
    for path in files:
        if any(path.match(pattern) for pattern in patterns):
            continue
        imports = imports_of(path.read_text(encoding="utf-8"), "tests.unit", is_package=False)
        problems += [
            f"tests/unit/{path.name}:{line} imports {name}: add the file to TESTS4 in the Makefile"
            for name, line, _ in imports
            if name.partition(".")[0] in needing
        ]
    report(problems)


def test_the_reader_of_imports_sees_every_form() -> None:
    source = """
import torch
from . import sampling
from ..errors import SpecDecError
from langchain_specdec import errors, __version__
if TYPE_CHECKING:
    from langchain_specdec.runner.model_runner import ModelRunner
def late():
    import langchain_core.callbacks
"""
    imports = imports_of(source, "langchain_specdec.engine.x", is_package=False)
    found = [(i.name, i.for_types_only) for i in imports]
    assert sorted(found) == [
        ("langchain_core.callbacks", False),
        ("langchain_specdec", False),
        ("langchain_specdec.engine", False),
        ("langchain_specdec.errors", False),
        ("langchain_specdec.errors", False),
        ("langchain_specdec.runner.model_runner", True),
        ("torch", False),
    ]
