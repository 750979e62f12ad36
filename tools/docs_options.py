"""Shows declared options in the reference as if each stood in a signature and had a docstring."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

import griffe


class DeclaredOptions(griffe.Extension):
    """Takes the default and the description of an option from the first two arguments of what declares it.

    Read are `name: type = _option(default, "description", ...)`, the same with `option_field`, and
    `name: Annotated[type, Option(default, "description", ...)]` in a `TypedDict`.
    """

    def on_attribute_instance(self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, **_: Any) -> None:
        """Called for each attribute."""
        if not isinstance(node, ast.AnnAssign):
            return
        call = node.value
        if isinstance(node.annotation, ast.Subscript) and isinstance(node.annotation.slice, ast.Tuple):
            annotated = node.annotation.slice.elts
            if ast.unparse(annotated[-1]).startswith("Option("):
                call = annotated[-1]
                attr.annotation = ast.unparse(annotated[0]).strip("'")
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("_option", "option_field", "Option"):
            default = ast.unparse(call.args[0])
            description = ast.literal_eval(call.args[1])
            unset = [ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg == "unset"]
            attr.value = None if default == "..." else default
            attr.docstring = griffe.Docstring(f"{description} None: {unset[0]}." if unset else description, parent=attr)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Called when a package has been read: what takes options that are declared elsewhere gets them."""
        for cls in _classes(pkg):
            for attr in cls.attributes.values():
                if str(attr.value).startswith("_declared("):
                    declared = pkg["sampling.params.SamplingParams"][attr.name]
                    attr.value, attr.docstring = declared.value, declared.docstring
            init = cls.members.get("__init__")
            if isinstance(init, griffe.Function) and cls.docstring is not None:
                _spell_out(init, cls.docstring)


def _spell_out(function: griffe.Function, docstring: griffe.Docstring) -> None:
    """Replace `**options: Unpack[Options]` by its keys, in the signature and in the docstring."""
    for parameter in list(function.parameters):
        unpacked = getattr(parameter.annotation, "slice", None)
        if not str(parameter.annotation).startswith("Unpack[") or not isinstance(unpacked, griffe.Expr):
            continue
        options = function.modules_collection[unpacked.canonical_path].all_members.values()
        del function.parameters[parameter.name]
        for option in options:
            function.parameters.add(
                griffe.Parameter(
                    option.name,
                    annotation=option.annotation,
                    kind=griffe.ParameterKind.keyword_only,
                    default=option.value,
                )
            )
        # Fields of the model are described where they are declared.
        described = [option for option in options if option.docstring is not None]
        lines = "\n".join(f"    {option.name}: {option.docstring.value}" for option in described)
        docstring.value = re.sub(rf"^ *{parameter.name}: .*$", lines, docstring.value, flags=re.MULTILINE)


def _classes(module: griffe.Module) -> Iterator[griffe.Class]:
    yield from (cls for cls in module.classes.values() if not cls.is_alias)
    for inner in module.modules.values():
        if not inner.is_alias:
            yield from _classes(inner)
