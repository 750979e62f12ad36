"""The table of model families in the documentation, written from the list that the tests go by.

    python -m tests.support.family_table

writes it into docs/models.md, between `<!-- families -->` and `<!-- end of families -->`.
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.family_list import MODEL_FAMILIES, ModelFamily
from tests.support.hybrid_models import HYBRID_LABELS, HYBRIDS

_OF_STATES = "chains only: it keeps recurrent or convolution states"
PAGE = Path(__file__).parents[2] / "docs/models.md"


def written(page: str) -> str:
    """The page with its table as it should be."""
    return re.sub(
        r"(<!-- families -->\n).*?(<!-- end of families -->)",
        lambda match: f"{match[1]}\n{table()}\n{match[2]}",
        page,
        flags=re.DOTALL,
    )


def table() -> str:
    """A table in Markdown, a row for each family."""
    head = "| Family | `model_type` | Drafts, with the same text | On a CPU, in float32 | Tested on transformers |"
    rows = [_row(family) for family in MODEL_FAMILIES if not family.refused]
    rows += [f"| {HYBRID_LABELS[name]} | `{name}` | {_OF_STATES} | PyTorch | 5 |\n" for name in HYBRIDS]
    rows += [_row(family) for family in MODEL_FAMILIES if family.refused]
    return f"{head}\n{'| --- ' * 5}|\n" + "".join(rows)


def _row(family: ModelFamily) -> str:
    drafts = "chains only: " + family.chains if family.chains else "trees"
    runs_by = "native decoder" if family.is_native else "PyTorch"
    if family.refused:
        drafts, runs_by = f"refused: {family.refused}", ""
    versions = "4.57 and 5" if family.is_everywhere else "5"
    return f"| {family.label} | `{family.model_type}` | {drafts} | {runs_by} | {versions} |\n"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
