"""Text from elsewhere on its way to a terminal.

What a model writes, a document and a template's complaint are data. Written to a terminal as they are, their control
characters would be commands to it: to hide text, to retitle the window, to answer in the user's place.
"""

from __future__ import annotations

import json
import os
from typing import Any, TextIO

from tgi_launcher.standard_streams import takes_unicode

# Unicode's category Cc, the C1 controls included: terminals take U+009B for the beginning of a sequence too.
_CONTROLS = (*range(0x20), *range(0x7F, 0xA0))
_ESCAPES = {code: f"\\x{code:02x}" for code in _CONTROLS if chr(code) not in "\n\t"}
_SURROGATES = range(0xD800, 0xE000)
_JSON_ESCAPES = {code: f"\\u{code:04x}" for code in (*_CONTROLS, *_SURROGATES) if code >= 0x7F}


def visible(text: str) -> str:
    r"""The text with its control characters shown as escapes, such as `\x1b`; line feeds and tabs stay."""
    return text.translate(_ESCAPES)


def printable(text: str, stream: TextIO) -> str:
    """What to write to a stream: `visible` text to a terminal, the text as it is to a pipe or a file."""
    return visible(text) if stream.isatty() else text


def is_drawable(stream: TextIO) -> bool:
    """Whether a stream is a terminal that something can be redrawn in, and not one that only prints."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def json_line(value: Any) -> str:
    """A value as JSON in one line: of readable Unicode, or of ASCII where standard output is not meant to be UTF-8.

    JSON itself lets some control characters stand as they are.
    """
    return json.dumps(value, ensure_ascii=not takes_unicode()).translate(_JSON_ESCAPES)
