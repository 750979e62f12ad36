"""Typed dictionaries as Pydantic classes, on every version of Python."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import UnionType
from typing import Annotated, Any, ForwardRef, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, Field, create_model
from pydantic.fields import FieldInfo
from typing_extensions import NotRequired, ReadOnly, Required, is_typeddict

from langchain_specdec.errors import InvalidParameterError

Descriptions = tuple[str | None, dict[str, str]]
"""What a typed dictionary is for, and its keys."""


def docstring_of(typed_dict: Any) -> Descriptions:
    """The docstring up to its arguments."""
    return typed_dict.__doc__ and inspect.cleandoc(typed_dict.__doc__).partition("\n\nArgs:")[0], {}


class TypedDicts:
    """Typed dictionaries as Pydantic classes, also where they hold each other.

    Pydantic takes `typing.TypedDict` from Python 3.12 on only, and does not know LangChain's way to describe a key:
    `Annotated[kind, default, "description"]`, where `...` is no default.

    Args:
        describe: Reads the descriptions of a typed dictionary and of its keys.
    """

    def __init__(self, describe: Callable[[Any], Descriptions] = docstring_of) -> None:
        self._describe = describe
        self._names: dict[Any, str] = {}
        self._models: dict[str, type[BaseModel]] = {}

    def model(self, typed_dict: Any) -> type[BaseModel]:
        """The class of a typed dictionary, complete."""
        name = self._name(typed_dict)
        for model in self._models.values():
            model.model_rebuild(_types_namespace=self._models)
        return self._models[name]

    def _name(self, typed_dict: Any) -> str:
        """The name of its class, which is made where it is new."""
        if typed_dict in self._names:
            return self._names[typed_dict]
        taken = set(self._names.values())
        name: str = typed_dict.__name__
        while name in taken:
            name += "_"
        self._names[typed_dict] = name
        try:
            hints = get_type_hints(typed_dict, include_extras=True)
        except (NameError, TypeError) as error:
            msg = f"The types of {typed_dict.__name__} cannot be read: {error}"
            raise InvalidParameterError(msg) from error
        doc, described = self._describe(typed_dict)
        fields: dict[str, Any] = {}
        for key, hint in hints.items():
            is_required = key in typed_dict.__required_keys__
            # What the dictionary itself knows is wrong where its annotations are texts (`from __future__`).
            while (qualifier := get_origin(hint)) in (Required, NotRequired, ReadOnly):
                is_required = is_required if qualifier is ReadOnly else qualifier is Required
                (hint,) = get_args(hint)
            default: Any = ... if is_required else None
            description = described.get(key)
            if get_origin(hint) is Annotated:
                kind, *notes = get_args(hint)
                if notes and not isinstance(notes[0], FieldInfo) and (notes[0] is ... or len(notes) == 2):
                    hint, default = kind, notes[0] if is_required else None
                    description = description or (notes[1] if len(notes) > 1 else None)
                elif len(notes) == 1 and isinstance(notes[0], str):
                    hint, description = kind, description or notes[0]
            extra: dict[str, Any] = {"description": description} if isinstance(description, str) else {}
            extra |= {"default_factory": lambda: None} if default is None else {"default": default}
            # Names that Pydantic keeps for itself are keys all the same.
            fields[f"key{len(fields)}"] = (self._replaced(hint), Field(alias=key, **extra))
        self._models[name] = create_model(name, __doc__=doc, **fields)
        return name

    def _replaced(self, hint: Any) -> Any:
        """A type in which typed dictionaries are names of their classes."""
        if is_typeddict(hint):
            return ForwardRef(self._name(hint))
        arguments = get_args(hint)
        if not arguments or not any(self._holds(argument) for argument in arguments):
            return hint
        origin: Any = get_origin(hint)
        replaced = tuple(self._replaced(argument) for argument in arguments)
        if origin is Annotated:
            annotated = replaced[0], *arguments[1:]
            return Annotated[annotated]
        if origin in (Union, UnionType):
            return Union[replaced]  # noqa: UP007 - of names
        return hint.copy_with(replaced) if hasattr(hint, "copy_with") else origin[replaced]

    def _holds(self, hint: Any) -> bool:
        return is_typeddict(hint) or any(self._holds(argument) for argument in get_args(hint))
