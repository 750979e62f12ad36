"""Reads source code by its syntax: imports, circles among them, parameters of functions and methods of classes."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Import(NamedTuple):
    """One imported module and where the import stands."""

    name: str
    line: int
    for_types_only: bool


class Count(NamedTuple):
    """How much a function or class has of something, and where it stands."""

    name: str
    line: int
    number: int


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def imports_of(source: str, module: str, *, is_package: bool) -> Iterator[Import]:
    """Every import of a module, also those inside functions or for types only, by absolute name.

    `from package import name` counts as an import of `package.name` where that is a module of ours.
    """
    tree = _parsed(source)
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
                yield Import(full if is_module(full) else base, node.lineno, id(node) in typing_only)


def imports_in(path: Path) -> Iterator[Import]:
    source = path.read_text(encoding="utf-8")
    return imports_of(source, module_name(path), is_package=path.name == "__init__.py")


def circles(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """Modules that import each other in a circle: each imports the next, and the last one is the first.

    Args:
        imports: The modules that each module imports.
    """
    left = {module: set(imported) for module, imported in imports.items()}
    circles = []
    while circle := _first_circle(left):
        circles.append(circle)
        left[circle[0]].discard(circle[1])
    return circles


def _first_circle(imports: Mapping[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        return circle[::-1]
    return []


@cache
def _parsed(source: str) -> ast.Module:
    return ast.parse(source)


def _definitions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.AST]]:
    """Every function and class, also inner ones, by its qualified name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield f"{prefix}.{node.name}", node
            yield from _definitions(node, f"{prefix}.{node.name}")
        else:
            yield from _definitions(node, prefix)


def parameter_counts(source: str, module: str) -> Iterator[Count]:
    """The parameters of every function; `self` and `cls` are not counted, `*args` and `**kwargs` are one each."""
    for name, node in _definitions(_parsed(source), module):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            a = node.args
            named = [arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg)))]
            yield Count(name, node.lineno, len(named) - (named[:1] in (["self"], ["cls"])))


def public_method_counts(source: str, module: str) -> Iterator[Count]:
    """The public methods of every class. Properties are not counted, nor is `ainvoke` beside `invoke`."""
    for name, node in _definitions(_parsed(source), module):
        if isinstance(node, ast.ClassDef):
            functions = [inner for inner in node.body if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef))]
            methods = {
                function.name
                for function in functions
                if not function.name.startswith("_")
                and not any(
                    ast.unparse(decorator).endswith(("property", ".setter", ".deleter"))
                    for decorator in function.decorator_list
                )
            }
            twins = {f"a{method}" for method in methods}
            yield Count(name, node.lineno, len(methods - twins))
