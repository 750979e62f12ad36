"""Makes HTML of a page. Whatever stands on it is text from elsewhere, so all of it is escaped, by Jinja."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_specdec.pages.page import Page
from langchain_specdec.paths import check_output, write_output

if TYPE_CHECKING:
    from jinja2 import Template

SUFFIXES = (".html", ".htm")
_TEMPLATE = "page.html.jinja"
# HTML has no form for most control characters, so their pictures stand for them.
_CONTROLS = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
_CONTROLS |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def check_page(path: Path, *inputs: Path | None) -> None:
    """Raise unless a page can be written there.

    Args:
        path: Where to.
        inputs: Files that must not be overwritten.

    Raises:
        InvalidParameterError: It cannot be written.
    """
    check_output("--html", path, SUFFIXES, inputs)


def render(page: Page) -> str:
    """The page as HTML."""
    return _template().render(page=page)


def write_page(page: Page, path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    # What a command line holds that is no Unicode is shown as escapes.
    write_output(path, render(page).encode("utf-8", "backslashreplace"))


@cache
def _template() -> Template:
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_shown)
    text = resources.files("langchain_specdec.pages").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(text)


def _shown(value: Any) -> Any:
    return value.translate(_CONTROLS) if type(value) is str else value
