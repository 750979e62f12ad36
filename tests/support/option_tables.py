"""The tables of options in the documentation, written from the declarations.

    python -m tests.support.option_tables

writes them into docs/quickstart.md, between `<!-- options: NAME -->` and `<!-- end of options -->`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from langchain_specdec.backends.local_options import DraftOptions, EngineOptions, LoadingOptions
from langchain_specdec.chat.reasoning_options import ReasoningOptions
from langchain_specdec.options import Option, options_of
from langchain_specdec.sampling.params import SamplingParams

PAGE = Path(__file__).parents[2] / "docs/quickstart.md"
_ALL = (DraftOptions, EngineOptions, LoadingOptions, SamplingParams, ReasoningOptions)
DECLARED = {declared.__name__: declared for declared in _ALL}


def written(page: str) -> str:
    """The page with its tables as they should be."""
    return re.sub(
        r"(<!-- options: (\w+) -->\n).*?(<!-- end of options -->)",
        lambda match: f"{match[1]}\n{table(options_of(DECLARED[match[2]]))}\n{match[3]}",
        page,
        flags=re.DOTALL,
    )


def table(options: dict[str, Option]) -> str:
    """A table in Markdown, a row for each option."""
    rows = [f"| `{name}` | {default(o)} | {allowed(o)} | {o.help} |\n" for name, o in options.items()]
    return "| Option | Default | What it may be | Meaning |\n| --- | --- | --- | --- |\n" + "".join(rows)


def default(option: Option) -> str:
    if option.default in (None, ()):
        return option.unset
    return f"`{option.default}`" if not isinstance(option.default, str) else f"`{json.dumps(option.default)}`"


def allowed(option: Option) -> str:
    text = re.sub(r"'([\w-]+)'", r'`"\1"`', option.allowed.removeprefix("one of ")).replace("2**64", "2⁶⁴")
    return re.sub(r", or None( for all tokens)?", "", text)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
