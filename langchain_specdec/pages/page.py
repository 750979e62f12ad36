"""What stands on a page: facts, bars, figures in tables, and texts with the marks of their drafts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from langchain_specdec.completions.events import Token
    from langchain_specdec.completions.stats import SpeculationStats

_PLOTTED_POSITIONS = 32


@dataclass(frozen=True)
class Step:
    """What one decoding step added to a text.

    Attributes:
        accepted_text: Text of the draft tokens that were accepted; they come first.
        own_text: Text of the token that the model wrote itself.
        accepted: Accepted tokens.
        drafted: Proposed tokens, the rejected ones included.
    """

    accepted_text: str
    own_text: str
    accepted: int
    drafted: int

    @classmethod
    def of(cls, tokens: Sequence[Token], drafted: int) -> Step:
        """The step that emitted some tokens, after so many were proposed."""
        accepted = sum(bool(token.drafted) for token in tokens)
        texts = [token.text for token in tokens]
        return cls("".join(texts[:accepted]), "".join(texts[accepted:]), accepted, max(drafted, accepted))

    @property
    def rejected(self) -> int:
        """Proposed tokens that did not become part of the text."""
        return self.drafted - self.accepted


@dataclass(frozen=True)
class Answer:
    """A text, step by step.

    Attributes:
        title: What it is an answer to.
        steps: How it was written.
        prompt: The beginning of what it answers; "" shows none.
        summary: Its figures, in a line.
    """

    title: str
    steps: Sequence[Step]
    prompt: str = ""
    summary: str = ""


@dataclass(frozen=True)
class Bar:
    """A value.

    Attributes:
        label: Whose it is.
        value: How long the bar is; None where there is no value.
        text: The value as text, with all that is to be read beside the bar.
        low: Lower quartile; None draws no quartiles.
        high: Upper quartile.
        is_ours: Whether it belongs to what speculates here, which has a colour of its own.
    """

    label: str
    value: float | None
    text: str
    low: float | None = None
    high: float | None = None
    is_ours: bool = False


@dataclass(frozen=True)
class Chart:
    """Bars on one scale that begins at 0.

    Attributes:
        title: What they show.
        note: How to read them.
        groups: Bars, those of a group under its name; "" is no name.
        reference: A value to compare with, drawn through all bars; None draws none.
        full: The value of a bar of full length; None is the largest there is.
    """

    title: str
    note: str
    groups: Sequence[tuple[str, Sequence[Bar]]]
    reference: float | None = None
    full: float | None = None

    def share(self, value: float | None) -> str:
        """How far along the scale a value lies, in per cent."""
        values = [v for _, bars in self.groups for bar in bars for v in (bar.value, bar.high) if v is not None]
        full = self.full or max([*values, self.reference or 0.0])
        return f"{min(100 * (value or 0.0) / full, 100.0) if full else 0:.2f}"


@dataclass(frozen=True)
class Table:
    """Figures.

    Attributes:
        title: What they are.
        head: Names of the columns; the first column holds the names of the rows.
        rows: As many cells as the head has.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass
class Page:
    """All of a page, from top to bottom.

    Attributes:
        title: Its heading.
        facts: What was run, and on what: names and values.
        warnings: What a reader must know before all figures.
        charts: Bars.
        tables: Figures.
        answers_title: What the texts are.
        answers: The texts.
        notes: What else to know, a paragraph each.
        document: What the texts are about; "" shows none.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    warnings: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    answers_title: str = ""
    answers: Sequence[Answer] = field(default_factory=list)
    notes: Sequence[str] = ()
    document: str = ""


def summary_of(steps: Sequence[Step]) -> str:
    """Counts of a text, in a line."""
    accepted, drafted = sum(step.accepted for step in steps), sum(step.drafted for step in steps)
    what = f"{accepted} of {drafted} drafted tokens accepted" if drafted else "nothing drafted"
    return f"{len(steps)} step{'' if len(steps) == 1 else 's'} · {what}"


def positions_chart(by_name: Sequence[tuple[str, Sequence[int], Sequence[int]]]) -> Chart | None:
    """How often the first token of a draft was accepted, the second, and so on; None where nothing was drafted.

    Args:
        by_name: Names with counts as in `SpeculationStats`: drafted and accepted per position.
    """
    groups = [
        (
            name if len(by_name) > 1 else "",
            [
                Bar(f"{place}", a / d, f"{a / d:.0%} ({a} of {d})", is_ours=True)
                for place, (d, a) in enumerate(zip(drafted, accepted, strict=True), start=1)
                if d and place <= _PLOTTED_POSITIONS
            ],
        )
        for name, drafted, accepted in by_name
        if any(drafted)
    ]
    note = (
        "Of the steps whose draft was so long, in how many the token at that place became part of the text. "
        "A draft ends at its first wrong token, so later places are reached less often."
    )
    return Chart("Accepted, by position in the draft", note, groups, full=1.0) if groups else None


def positions_of(stats: SpeculationStats) -> tuple[Sequence[int], Sequence[int]]:
    """The counts that `positions_chart` takes."""
    return stats.drafted_per_position, stats.accepted_per_position
