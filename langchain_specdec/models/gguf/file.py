"""The form of GGUF files: metadata, and where each tensor's bytes stand (https://github.com/ggml-org/ggml).

The package `gguf` has a reader too, which takes two seconds for the metadata of a small model; this one takes 0.03.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from langchain_specdec.errors import ModelLoadError
from langchain_specdec.runner.cpu.decoder_weights import BLOCKS

_SCALARS = {
    number: np.dtype(f"<{name}")
    for number, name in enumerate(("u1", "i1", "u2", "i2", "u4", "i4", "f4", "?", "", "", "u8", "i8", "f8"))
    if name
}
_STRING, _ARRAY = 8, 9
_FIRST_BYTES = 4 * 2**20
# The largest vocabularies take some 20 MB.
_MOST_HEADER_BYTES = 512 * 2**20
_MOST_DIMENSIONS = 4
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class _ShortError(Exception):
    """The bytes at hand end within the header."""


@dataclass(frozen=True)
class Tensor:
    """Where a tensor stands.

    Attributes:
        name: Its name in the file.
        type: GGML's number of its type.
        shape: Rows first: a matrix is `(outputs, inputs)`, a vector `(numbers,)`.
        path: The file.
        offset: Its first byte in the file.
    """

    name: str
    type: int
    shape: tuple[int, ...]
    path: Path
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row.

        Raises:
            ModelLoadError: A row is no whole number of blocks, or the type is not known.
        """
        numbers, size = _block(self.type)
        if not numbers or self.shape[-1] % numbers:
            damaged(self.path, f"{self.name} has rows of {self.shape[-1]} numbers, in type {self.type}")
        return self.shape[-1] // numbers * size

    @property
    def num_bytes(self) -> int:
        """Bytes of all of it."""
        return self.row_bytes * math.prod(self.shape[:-1])


@dataclass(frozen=True)
class GGUFFile:
    """A model's file or files.

    Attributes:
        path: The first file.
        fields: Its metadata, by key, as plain values.
        tensors: All tensors, by name.
    """

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, Tensor]

    def without_lists(self) -> GGUFFile:
        """The same without the lists of its tokenizer, whose texts take ten times their bytes in the file."""
        return replace(self, fields={key: value for key, value in self.fields.items() if not _is_of_tokens(key, value)})


def _is_of_tokens(key: str, value: object) -> bool:
    return key.startswith("tokenizer.") and isinstance(value, list)


def open_gguf(path: Path) -> GGUFFile:
    """Read the metadata of a GGUF file, and of all files where the model is split.

    Raises:
        ModelLoadError: It cannot be read, it is no GGUF file, it is damaged or cut short, or a part is missing.
    """
    fields, tensors = _read_header(path)
    if fields.get("split.count", 1) not in (0, 1):
        for part in _parts(path):
            tensors |= _read_header(part)[1]
        expected = fields.get("split.tensors.count", len(tensors))
        if expected != len(tensors):
            damaged(path, f"its parts hold {len(tensors)} of {expected} tensors")
    return GGUFFile(path, fields, tensors)


def shard_names(name: str) -> list[str]:
    """The names of all files of a model, by that of one of them, such as `x-00002-of-00003.gguf`."""
    match = _SHARD.fullmatch(name)
    if not match:
        return [name]
    return [f"{match[1]}-{part:05d}-of-{match[3]}.gguf" for part in range(1, int(match[3]) + 1)]


def _parts(path: Path) -> Iterator[Path]:
    names = shard_names(path.name)
    if len(names) == 1:
        raise ModelLoadError(
            f"{str(path)!r} is a part of a model that is split into several files, and its name does not say which. "
            f"Give all of them their names back, such as '{path.stem}-00001-of-00003.gguf'."
        )
    if path.name != names[0]:
        raise ModelLoadError(
            f"{str(path)!r} is a later part of a model that is split into several files. Give the first, "
            f"{str(path.with_name(names[0]))!r}."
        )
    for name in names[1:]:
        part = path.with_name(name)
        if not part.is_file():
            raise ModelLoadError(f"{str(path)!r} is a part of a model, and {name!r} is not beside it. Put it there.")
        yield part


def _read_header(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    wanted = _FIRST_BYTES
    while (header := _header(path, wanted)) is None:
        wanted = min(wanted * 8, _MOST_HEADER_BYTES)
    return header.fields, header.tensors


def _header(path: Path, wanted: int) -> _Header | None:
    """The header of a file; None where it needs more bytes than that."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            data = file.read(wanted)
        return _Header(path, data, size)
    except ModelLoadError:
        raise
    except OSError as error:
        raise ModelLoadError(f"Cannot read {str(path)!r}: {error.strerror or error}.") from error
    except (OverflowError, ValueError, TypeError) as error:
        damaged(path, f"its metadata cannot be read ({error})", error)
    except _ShortError:
        if wanted >= min(size, _MOST_HEADER_BYTES):
            damaged(path, "it ends within its metadata")
        return None


class _Header:
    """Reads a header that begins at the first byte."""

    def __init__(self, path: Path, data: bytes, file_size: int) -> None:
        self._path = path
        self._data = data
        if data[:4] != b"GGUF":
            raise ModelLoadError(f"{str(path)!r} is no GGUF file, whatever its name says. Download it anew.")
        self._at = 4
        version = self._number(_U32)
        if version not in (2, 3):
            kind = "big-endian" if version in (2 << 24, 3 << 24) else f"of version {version}"
            raise ModelLoadError(f"{str(path)!r} is a GGUF file {kind}. Give one of version 2 or 3, little-endian.")
        num_tensors, num_fields = self._number(_U64), self._number(_U64)
        self.fields: dict[str, Any] = {}
        for _ in range(num_fields):
            key = self._string()
            self.fields[key] = self._value(self._number(_U32))
        tensors = [self._tensor() for _ in range(num_tensors)]
        alignment = self.fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 2**20:
            damaged(path, f"general.alignment is {alignment!r}")
        start = -(-self._at // alignment) * alignment
        self.tensors = {name: Tensor(name, kind, shape, path, start + at) for name, kind, shape, at in tensors}
        total = 0
        for tensor in self.tensors.values():
            total += 0 if _block(tensor.type) == (0, 0) else tensor.num_bytes
            if _block(tensor.type) != (0, 0) and tensor.offset + tensor.num_bytes > file_size:
                damaged(path, f"it ends before {tensor.name}, after {file_size} bytes")
        # Else a small file could ask for any memory.
        if total > file_size:
            damaged(path, f"its tensors take {total} bytes, more than the {file_size} that it has")

    def _take(self, count: int) -> int:
        """Where the next bytes begin."""
        at, self._at = self._at, self._at + count
        if self._at > len(self._data):
            raise _ShortError
        return at

    def _number(self, form: struct.Struct) -> int:
        number: int = form.unpack_from(self._data, self._take(form.size))[0]
        return number

    def _string(self) -> str:
        length = self._number(_U64)
        at = self._take(length)
        return self._data[at : at + length].decode()

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            kind, count = self._number(_U32), self._number(_U64)
            return self._strings(count) if kind == _STRING else self._numbers(kind, count)
        return self._numbers(kind, 1)[0]

    def _numbers(self, kind: int, count: int) -> list[Any]:
        if kind not in _SCALARS:
            damaged(self._path, f"a value in its metadata is of type {kind}")
        form = _SCALARS[kind]
        numbers: list[Any] = np.frombuffer(self._data, form, count, self._take(form.itemsize * count)).tolist()
        return numbers

    def _strings(self, count: int) -> list[str]:
        # Hundreds of thousands: without a call for each.
        data, at, texts = self._data, self._at, []
        length_of, end = _U64.unpack_from, len(data)
        for _ in range(count):
            if at + 8 > end:
                raise _ShortError
            start = at + 8
            at = start + length_of(data, at)[0]
            if at > end:
                raise _ShortError
            texts.append(data[start:at].decode())
        self._at = at
        return texts

    def _tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        name = self._string()
        count = self._number(_U32)
        if not 0 < count <= _MOST_DIMENSIONS:
            damaged(self._path, f"{name} has {count} dimensions")
        shape = tuple(self._number(_U64) for _ in range(count))[::-1]
        return name, self._number(_U32), shape, self._number(_U64)


@cache
def _block(kind: int) -> tuple[int, int]:
    """Numbers of a block of a type, and its bytes; (0, 0) where no version of the package gguf here knows it."""
    if kind in BLOCKS:
        return BLOCKS[kind]
    try:
        from gguf import GGML_QUANT_SIZES
    except ImportError:
        return 0, 0
    sizes: dict[int, tuple[int, int]] = {int(known): size for known, size in GGML_QUANT_SIZES.items()}
    return sizes.get(kind, (0, 0))


def damaged(path: Path, what: str, cause: Exception | None = None) -> NoReturn:
    """Raise the `ModelLoadError` of a file that holds what no file of its kind does."""
    message = f"{str(path)!r} is damaged: {what}. Download or copy it anew."
    raise ModelLoadError(message) from cause
