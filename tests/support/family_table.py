"""The tables of model families in the documentation, written from the lists that the tests go by.

    python -m tests.support.family_table

writes them into docs/models.md, between `<!-- families -->` and `<!-- end of families -->`, and the same for those that
read images.
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.family_list import MODEL_FAMILIES, ModelFamily
from tests.support.hybrid_models import HYBRID_LABELS, HYBRIDS
from tests.support.image_models import LABELS, OF_STATES, SINCE_5

_OF_STATES = "chains only: it keeps recurrent or convolution states"
PAGE = Path(__file__).parents[2] / "docs/models.md"


def written(page: str) -> str:
    """The page with its tables as they should be."""
    for name, made in (("families", table()), ("image families", image_table())):
        page = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)",
            lambda match, made=made: f"{match[1]}\n{made}\n{match[2]}",  # type: ignore[misc]
            page,
            flags=re.DOTALL,
        )
    return page


def table() -> str:
    """A table in Markdown, a row for each family."""
    head = "| Family | `model_type` | Drafts, with the same text | On a CPU, in float32 | Tested on transformers |"
    rows = [_row(family) for family in MODEL_FAMILIES if not family.refused]
    rows += [f"| {HYBRID_LABELS[name]} | `{name}` | {_OF_STATES} | PyTorch | 5 |\n" for name in HYBRIDS]
    rows += [_row(family) for family in MODEL_FAMILIES if family.refused]
    return f"{head}\n{'| --- ' * 5}|\n" + "".join(rows)


def image_table() -> str:
    """The table of families that read images."""
    head = "| Family | `model_type` | Drafts, with the same text | Tested on transformers |"
    rows = ""
    for name, label in LABELS.items():
        drafts = _OF_STATES if name in OF_STATES else "trees"
        rows += f"| {label} | `{name}` | {drafts} | {'5' if name in SINCE_5 else '4.57 and 5'} |\n"
    return f"{head}\n{'| --- ' * 4}|\n{rows}"


def _row(family: ModelFamily) -> str:
    drafts = "chains only: " + family.chains if family.chains else "trees"
    runs_by = "native decoder" if family.is_native else "PyTorch"
    if family.refused:
        drafts, runs_by = f"refused: {family.refused}", ""
    versions = "4.57 and 5" if family.is_everywhere else "5"
    return f"| {family.label} | `{family.model_type}` | {drafts} | {runs_by} | {versions} |\n"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
