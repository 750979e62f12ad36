"""What holds for the project as a whole: version, typing markers, sizes, direction of imports, plan of the house."""

from __future__ import annotations

import importlib.metadata
import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest

from langchain_specdec._version import __version__
from tests.support.source_code import (
    ROOT,
    Count,
    circles,
    imports_in,
    imports_of,
    is_module,
    module_name,
    parameter_counts,
    public_method_counts,
)
from tools.house_plan import FLOORS, PACKAGES, pages

MAX_LINES = 400
MAX_ROOM_SHARE = 0.2
MAX_TOP_MODULES = 9
MAX_PARAMETERS = 12
MAX_PUBLIC_METHODS = 12

# The errors are LangChain's too, whose classes of them cost nothing to import.
MAY_IMPORT_LANGCHAIN = {
    *("llms", "chat_models", "decisions", "langchain_base", "errors"),
    *("construction", "chat", "documents", "training", "cli"),
}
# Constructors, `from_*` methods and commands, whose parameters are the declared options.
TAKES_DECLARED_OPTIONS = {
    "langchain_specdec.backends.local.LocalBackend.__init__",
    "langchain_specdec.cli.bench.bench",
    "langchain_specdec.cli.chat.chat",
    "langchain_specdec.cli.demo.demo",
    "langchain_specdec.cli.generate.generate",
    "langchain_specdec.cli.make_draft.make_draft",
    "langchain_specdec.cli.serve.serve",
}

SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def sources_of(package: str) -> list[Path]:
    return [path for path in SOURCES if path.is_relative_to(ROOT / package)]


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


def report(problems: Iterable[str]) -> None:
    problems = list(dict.fromkeys(problems))
    assert not problems, "\n" + "\n".join(problems)


def test_installed_version_is_the_one_in_the_source() -> None:
    installed = importlib.metadata.version("langchain-specdec")
    assert installed == __version__, (
        f"langchain-specdec {installed} is installed but _version.py says {__version__}: run make .venv"
    )


def test_pyproject_takes_the_version_from_the_source() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^dynamic = \[.*"version".*\]$', pyproject, re.MULTILINE), (
        "pyproject.toml must not state a version of its own"
    )
    assert 'path = "langchain_specdec/_version.py"' in pyproject, "pyproject.toml must read _version.py"


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_marked_as_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file(), f"{package}/py.typed is missing: its types would be ignored"


def too_large(lines: dict[Path, int]) -> Iterable[str]:
    """Files with too many lines, and rooms (folders without their subfolders) with too large a share of all lines."""
    rooms: Counter[Path] = Counter()
    for path, count in lines.items():
        rooms[path.parent] += count
        if count > MAX_LINES:
            yield f"{path.relative_to(ROOT)}:{MAX_LINES + 1} has {count} lines, {MAX_LINES} is the limit: split it"
    for room, count in rooms.items():
        share = count / rooms.total()
        if share > MAX_ROOM_SHARE:
            yield (
                f"{room.relative_to(ROOT)}:1 holds {share:.0%} of all lines, {MAX_ROOM_SHARE:.0%} is the limit: "
                "move what belongs together into a room of its own"
            )


def test_no_file_and_no_room_is_too_large() -> None:
    report(too_large({path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}))


def test_the_check_of_sizes_sees_long_files_and_large_rooms() -> None:
    engine = ROOT / "langchain_specdec/engine"
    lines = {engine / f"file_{i}.py": 100 for i in range(22)} | {
        ROOT / f"tgi_launcher/{i}/x.py": 400 for i in range(20)
    }
    assert list(too_large(lines | {ROOT / "tgi_launcher/long.py": 401})) == [
        "tgi_launcher/long.py:401 has 401 lines, 400 is the limit: split it",
        "langchain_specdec/engine:1 holds 21% of all lines, 20% is the limit: "
        "move what belongs together into a room of its own",
    ]


def too_many_at_the_top(paths: Iterable[Path]) -> Iterable[str]:
    top = sorted({path.stem for path in paths} - {"__init__", "__main__", "_version"})
    if len(top) > MAX_TOP_MODULES:
        yield (
            f"langchain_specdec:1 has {len(top)} modules ({', '.join(top)}), {MAX_TOP_MODULES} is the limit: "
            "move one into a room"
        )


def test_few_modules_stand_at_the_top() -> None:
    report(too_many_at_the_top((ROOT / "langchain_specdec").glob("*.py")))


def test_the_check_of_the_top_counts_modules() -> None:
    paths = [Path("__init__.py"), Path("__main__.py"), *(Path(f"module_{i}.py") for i in range(10))]
    assert list(too_many_at_the_top(paths[:-1])) == []
    (problem,) = too_many_at_the_top(paths)
    assert re.match(r"langchain_specdec:1 has 10 modules \(module_0, .*, module_9\)", problem)


def stale(texts: dict[Path, str]) -> Iterable[str]:
    for page, text in texts.items():
        if page.read_text(encoding="utf-8") != text:
            yield f"{page.relative_to(ROOT)}:1 has a stale plan of the house: run make plan"


def test_the_plan_of_the_house_is_up_to_date() -> None:
    report(stale(pages()))


def test_the_plan_of_the_house_has_every_file() -> None:
    listed, table = pages().values()
    for path in sources_of("langchain_specdec"):
        name = path.relative_to(ROOT / "langchain_specdec")
        assert path.name == "__init__.py" or (f"- `{path.name}` – " in listed and f"| `{name}` | " in table)
    contributing = ROOT / "CONTRIBUTING.md"
    assert list(stale({contributing: listed.replace("- `llms.py` – ", "- `llm.py` – ")})) == [
        "CONTRIBUTING.md:1 has a stale plan of the house: run make plan"
    ]


def test_only_the_faces_import_langchain() -> None:
    problems = []
    for path in sources_of("langchain_specdec"):
        if room_of(module_name(path)) in MAY_IMPORT_LANGCHAIN:
            continue
        problems += [
            f"{path.relative_to(ROOT)}:{line} imports {name}, but only {', '.join(sorted(MAY_IMPORT_LANGCHAIN))} may"
            for name, line, _ in imports_in(path)
            if re.match(r"lang(chain|graph|smith)(?!_specdec\b)", name)
        ]
    report(problems)


def upward_imports(source: str, path: Path) -> Iterable[str]:
    module = module_name(path)
    for name, line, for_types_only in imports_of(source, module, is_package=path.name == "__init__.py"):
        if is_within(name, "langchain_specdec") and floor_of(room_of(name)) < floor_of(room_of(module)):
            yield (
                f"{path.relative_to(ROOT)}:{line} imports {name} from above{', for types' * for_types_only}: "
                "imports only point down, so move what it needs to its own floor or below"
            )


def test_imports_only_point_down() -> None:
    report(
        problem
        for path in sources_of("langchain_specdec")
        for problem in upward_imports(path.read_text(encoding="utf-8"), path)
    )


def test_the_check_of_floors_sees_imports_for_types_too() -> None:
    source = """
from langchain_specdec.errors import SpecDecError
if TYPE_CHECKING:
    from langchain_specdec.engine import engine
def late():
    import langchain_specdec.llms
"""
    found = list(upward_imports(source, ROOT / "langchain_specdec/runner/x.py"))
    assert [problem.partition(": ")[0] for problem in found] == [
        "langchain_specdec/runner/x.py:4 imports langchain_specdec.engine.engine from above, for types",
        "langchain_specdec/runner/x.py:6 imports langchain_specdec.llms from above",
    ]


def import_circles(imports: dict[str, dict[str, str]]) -> Iterable[str]:
    """Circles among modules.

    Args:
        imports: For each module, the modules that it imports and where.
    """
    for circle in circles({module: set(imported) for module, imported in imports.items()}):
        steps = [f"{imports[module][name]} imports {name}" for module, name in pairwise(circle)]
        yield "files import each other in a circle: " + ", ".join(steps) + ": move what they share below both"


def test_no_files_import_each_other_in_a_circle() -> None:
    imports: dict[str, dict[str, str]] = {}
    for path in SOURCES:
        module = module_name(path)
        imports[module] = {
            name: f"{path.relative_to(ROOT)}:{line}"
            for name, line, _ in imports_in(path)
            if name.startswith(PACKAGES) and is_module(name) and name != module
        }
    report(import_circles(imports))


def test_the_check_of_circles_sees_each_of_them() -> None:
    imports = {"a": {"b": "a.py:1", "d": "a.py:2"}, "b": {"c": "b.py:1"}, "c": {"a": "c.py:1"}, "d": {"a": "d.py:1"}}
    found = sorted(re.findall(r"\w\.py:\d", problem) for problem in import_circles(imports | {"e": {"a": "e.py:1"}}))
    assert [sorted(places) for places in found] == [["a.py:1", "b.py:1", "c.py:1"], ["a.py:2", "d.py:1"]]


def test_tgi_launcher_stands_alone() -> None:
    problems = []
    for path in sources_of("tgi_launcher"):
        problems += [
            f"{path.relative_to(ROOT)}:{line} imports {name}, but tgi_launcher is to work without it"
            for name, line, _ in imports_in(path)
            if re.match(r"(torch|transformers|lang(chain|graph|smith)\w*)\b", name)
        ]
    report(problems)


def too_many(counts: Iterable[Count], path: Path, limit: int, what: str) -> Iterable[str]:
    for name, line, number in counts:
        if number > limit:
            yield f"{path.relative_to(ROOT)}:{line} {name} has {number} {what}, {limit} is the limit"


def test_no_function_takes_too_many_parameters() -> None:
    counts = {path: list(parameter_counts(path.read_text(encoding="utf-8"), module_name(path))) for path in SOURCES}
    unknown = TAKES_DECLARED_OPTIONS - {count.name for one in counts.values() for count in one}
    report(f"TAKES_DECLARED_OPTIONS of {Path(__file__).name}: there is no {name}, take it out" for name in unknown)
    report(
        f"{problem}: give those that belong together a class, or split the function"
        for path, one in counts.items()
        for problem in too_many(
            (count for count in one if count.name not in TAKES_DECLARED_OPTIONS), path, MAX_PARAMETERS, "parameters"
        )
    )


def test_no_class_has_too_many_public_methods() -> None:
    report(
        f"{problem}, properties and async twins not counted: split the class"
        for path in SOURCES
        for problem in too_many(
            public_method_counts(path.read_text(encoding="utf-8"), module_name(path)),
            path,
            MAX_PUBLIC_METHODS,
            "public methods",
        )
    )


def test_the_counts_of_parameters_and_methods_are_right() -> None:
    source = """
def free(a, /, b, *args, c=1, **kwargs): ...
class Model:
    def __init__(self, a, b): ...
    @property
    def name(self): ...
    @name.setter
    def name(self, value): ...
    @functools.cached_property
    def size(self): ...
    def invoke(self): ...
    async def ainvoke(self): ...
    def add(self): ...
    @classmethod
    def from_id(cls, a):
        def inner(x, y): ...
    def _private(self): ...
    if not TYPE_CHECKING:
        def late(self): ...
"""
    counts = list(parameter_counts(source, "m"))
    assert [count.number for count in counts] == [5, 2, 0, 1, 0, 0, 0, 0, 1, 2, 0, 0]
    assert counts[-3] == ("m.Model.from_id.inner", 16, 2)
    assert list(public_method_counts(source, "m")) == [("m.Model", 3, 3)]
    path = ROOT / "langchain_specdec/x.py"
    assert list(too_many(public_method_counts(source, "m"), path, 2, "public methods")) == [
        "langchain_specdec/x.py:3 m.Model has 3 public methods, 2 is the limit"
    ]


def test_what_depends_on_transformers_runs_on_both_versions() -> None:
    problems = []
    for path in sorted((ROOT / "tests/unit").rglob("test_*.py")):
        source = path.read_text(encoding="utf-8")
        if "pytest.mark.transformers" in source:
            continue
        problems += [
            f"{path.relative_to(ROOT)}:{line} imports {name}: give its tests the marker `transformers`"
            for name, line, _ in imports_of(source, "tests.unit", is_package=False)
            if name.partition(".")[0] in ("transformers", "text_generation")
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
