"""Text files that a command is given; what is no text is told in one sentence that says what to do."""

from __future__ import annotations

import shlex
from pathlib import Path

from langchain_specdec.cli.standard_input import read_text
from langchain_specdec.errors import InvalidParameterError

_MOST_BYTES = 2**26
# What a file begins with that people take for text.
_KINDS = {
    b"%PDF-": "is a PDF. Extract its text first: pdftotext {file} - | {command} -",
    b"PK\x03\x04": "is an archive or an office document. Save its text as a .txt file first.",
    b"\xd0\xcf\x11\xe0": "is an office document. Save its text as a .txt file first.",
    b"\xff\xfe": "is UTF-16. Convert it first: iconv -f UTF-16 -t UTF-8 {file} | {command} -",
    b"\xfe\xff": "is UTF-16. Convert it first: iconv -f UTF-16 -t UTF-8 {file} | {command} -",
}


def name_of(path: Path) -> str:
    """What a file is called in messages; `-` is standard input."""
    return "Standard input" if str(path) == "-" else str(path).encode("utf-8", "replace").decode()


def read_file(path: Path, command: str = "specdec summarize") -> str:
    """The text of a file, or of standard input where it is `-`.

    Args:
        path: The file.
        command: What the user can call with another file behind it, for errors.

    Raises:
        InvalidParameterError: It cannot be read, has no text, or is of another kind.
    """
    name = name_of(path)
    text = read_text() if str(path) == "-" else _decoded(_bytes_of(path, name, command), name, command)
    if not text.strip():
        msg = f"{name} is empty. Give text to summarise."
        raise InvalidParameterError(msg)
    return text


def _bytes_of(path: Path, name: str, command: str) -> bytes:
    if path.is_dir():
        inside = shlex.quote(f"{name.rstrip('/')}/notes.txt")
        msg = f"{name} is a folder. Name a file in it, such as: {command} {inside}"
        raise InvalidParameterError(msg)
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except FileNotFoundError as error:
        msg = f"There is no file {name}. Check its name and the folder that you are in."
        raise InvalidParameterError(msg) from error
    except (OSError, ValueError) as error:
        msg = f"{name} cannot be read: {getattr(error, 'strerror', None) or error}."
        raise InvalidParameterError(msg) from error
    if len(data) > _MOST_BYTES:
        msg = f"{name} has more than {_MOST_BYTES >> 20} MB. Summarise it in parts."
        raise InvalidParameterError(msg)
    return data


def _decoded(data: bytes, name: str, command: str) -> str:
    file = shlex.quote(name)
    for begin, problem in _KINDS.items():
        if data.startswith(begin):
            raise InvalidParameterError(f"{name} {problem.format(file=file, command=command)}")
    if b"\0" in data:
        msg = f"{name} is a binary file. Only text can be summarised."
        raise InvalidParameterError(msg)
    try:
        # Some editors begin a text with a byte order mark.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        msg = (
            f"{name} is not UTF-8 text (byte {error.start}). Convert it first, from Latin-1 for example: "
            f"iconv -f LATIN1 -t UTF-8 {file} | {command} -"
        )
        raise InvalidParameterError(msg) from error
