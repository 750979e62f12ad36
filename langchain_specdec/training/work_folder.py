"""The folder that a draft is made in: what is done stays there, so that a run that was ended goes on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.paths import write_own

_WORK = "work"
_SETTINGS = "settings.json"
# Prompts and answers may be private.
_MODE = 0o600


def check_out(out: Path, *, goes_on: bool) -> None:
    """Raise unless a draft can be begun in a folder, or gone on with. See `WorkFolder`.

    Raises:
        InvalidParameterError: It cannot.
    """
    try:
        if out.exists() and not out.is_dir():
            msg = f"{out} is no folder. Give one that is empty, or that does not exist."
            raise InvalidParameterError(msg)
        inside = sorted(path.name for path in out.iterdir()) if out.exists() else []
        if (out / _WORK / _SETTINGS).exists():
            if _has_results(out / _WORK) and not goes_on:
                msg = f"{out} holds a draft that is not finished. Go on with it by --resume, or give another folder."
                raise InvalidParameterError(msg)
            return
    except OSError as error:
        msg = f"{out} cannot be read: {error.strerror or error}. Give a folder of yours."
        raise InvalidParameterError(msg) from error
    if inside:
        what = "a finished draft" if "model.safetensors" in inside else f"something else ({', '.join(inside[:3])})"
        msg = f"{out} holds {what}. Give a folder that is empty, or that does not exist."
        raise InvalidParameterError(msg)
    if goes_on:
        msg = f"There is nothing in {out} to go on with. Leave out --resume to begin."
        raise InvalidParameterError(msg)


def _has_results(work: Path) -> bool:
    """Whether a model wrote or computed anything; a run that was refused leaves settings and a choice of prompts."""
    return any(path.suffix != ".json" for path in work.iterdir())


class WorkFolder:
    """Files of work below the folder that a draft is written to. They are the user's alone, and go at the end.

    A run that was refused before a model wrote or computed anything is no work to go on with: another takes its place.

    Args:
        out: Where the draft is to be. It is made, and must be empty unless a run there is to go on.
        facts: Settings, the model and the prompts. What differs cannot go on.
        goes_on: Whether to go on with a run that was ended.

    Raises:
        InvalidParameterError: The folder holds something else, a draft, work that is not to go on, or work of other
            settings; or there is nothing to go on with; or it cannot be written.
    """

    def __init__(self, out: Path, facts: Mapping[str, Any], *, goes_on: bool) -> None:
        self.out = out
        self.path = out / _WORK
        check_out(out, goes_on=goes_on)
        known = self._known()
        if known is not None and not _has_results(self.path):
            self.remove()
            known = None
        if known is None:
            self._begin(facts)
            return
        facts = json.loads(json.dumps(facts))
        changed = [name for name in {**known, **facts} if known.get(name) != facts.get(name)]
        if changed:
            name = changed[0]
            msg = (
                f"{out} was begun with {name} {known.get(name)!r}, and not {facts.get(name)!r}. Give what it was begun "
                f"with, or another folder."
            )
            raise InvalidParameterError(msg)

    def _known(self) -> dict[str, Any] | None:
        """The facts that work here was begun with; None where none was."""
        try:
            known = json.loads((self.path / _SETTINGS).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            msg = f"{self.path / _SETTINGS} cannot be read: {error}. Give another folder."
            raise InvalidParameterError(msg) from error
        return known if isinstance(known, dict) else None

    def _begin(self, facts: Mapping[str, Any]) -> None:
        try:
            self.path.mkdir(mode=0o700, parents=True)
            write_own(self.path / _SETTINGS, json.dumps(facts, indent=1).encode(), mode=_MODE)
        except OSError as error:
            msg = f"{self.out} cannot be written: {error.strerror or error}. Give a folder of yours."
            raise InvalidParameterError(msg) from error

    def rows(self, name: str) -> list[Any]:
        """The rows of a file of JSON lines; none where it is not there. A line that was cut off is taken away."""
        path = self.path / name
        if not path.exists():
            return []
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(path, len(whole))
        return [json.loads(line) for line in whole.splitlines()]

    def append(self, name: str, row: Any) -> None:
        """Write a row behind those of a file of JSON lines."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
        with open(os.open(self.path / name, flags, _MODE), "ab", buffering=0) as file:  # noqa: PTH123 - a descriptor
            file.write(json.dumps(row).encode() + b"\n")

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        write_own(self.path / name, content, mode=_MODE)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file, whole or not at all."""
        self.write(name, json.dumps(value).encode())

    def read(self, name: str) -> Any:
        """What a JSON file holds; None where it is not there."""
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def files(self, pattern: str) -> Iterator[Path]:
        """The files of a pattern, by name."""
        return iter(sorted(self.path.glob(pattern)))

    def free_bytes(self) -> int:
        """Room on its disk."""
        return shutil.disk_usage(self.path).free

    def remove(self) -> None:
        """Take the work away; the draft stays."""
        shutil.rmtree(self.path)
