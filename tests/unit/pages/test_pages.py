"""Pages of HTML: what stands on them is text, marks follow the drafts, and files are written whole."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from langchain_specdec.completions.events import Token
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.pages.page import (
    Answer,
    Bar,
    Chart,
    Page,
    Step,
    Table,
    positions_chart,
    summary_of,
)
from langchain_specdec.pages.render import check_page, render, write_page

EVIL = "</div><script>alert(1)</script>\"' onload=x <img src=http://localhost/x>&amp; {{ 7 * 7 }}"


class Reader(HTMLParser):
    """All tags with their attributes, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(text: str) -> Page:
    """The same text in every place that takes one."""
    step = Step(text, text, 1, 3)
    bar = Bar(text, 1.0, text, 0.5, 1.5)
    return Page(
        title=text,
        facts=[(text, text), ("command", text)],
        warnings=[text],
        charts=[Chart(text, text, [(text, [bar])], reference=1.0)],
        tables=[Table(text, [text, text], [[text, text]])],
        answers_title=text,
        answers=[Answer(text, [step], text, text)],
        notes=[text],
        document=text,
    )


def test_whatever_stands_on_a_page_is_text() -> None:
    harmless, found = Reader(render(page_of("words"))), Reader(render(page_of(EVIL)))
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in harmless.tags]
    assert [set(attributes) for _, attributes in found.tags] == [set(attributes) for _, attributes in harmless.tags]
    assert found.text.count(EVIL) == harmless.text.count("words") == 24


def test_a_page_needs_nothing_else_and_runs_nothing() -> None:
    html = render(page_of("words"))
    tags = Reader(html).tags
    assert not {"script", "link", "img", "iframe", "object", "form", "base"} & {tag for tag, _ in tags}
    assert not [name for _, attributes in tags for name in attributes if name in ("src", "href") or name[:2] == "on"]
    assert "url(" not in html
    assert "@import" not in html
    (policy,) = [a["content"] for tag, a in tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")


def test_control_characters_are_shown_as_pictures() -> None:
    text = Reader(render(Page(title="a\x1b[31m\x00\x9b\x7f\r", facts=[("b\tc", "d\ne")]))).text
    for shown in ("a␛[31m␀\ufffd␡␍", "b\tc", "d\ne"):
        assert shown in text


def test_a_command_line_that_is_no_unicode_can_be_written(tmp_path: Path) -> None:
    write_page(Page(title="t", facts=[("command", "specdec bench --workload \udcff")]), tmp_path / "p.html")
    assert r"--workload \udcff" in (tmp_path / "p.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["p.html"]


def test_a_step_is_what_was_drafted_and_then_the_model_s_own() -> None:
    tokens = [Token(1, "a ", drafted=True), Token(2, "b ", drafted=True), Token(3, "c", drafted=False)]
    step = Step.of(tokens, 5)
    assert step == Step("a b ", "c", 2, 5)
    assert step.rejected == 3
    assert Step.of(tokens[2:], 0) == Step("", "c", 0, 0)
    assert Step.of(tokens[:2], 2).rejected == 0, "a text may end within a draft"
    assert Step.of([Token(1, "a", drafted=None)], 0) == Step("", "a", 0, 0), "a server that does not tell"
    assert summary_of([step, step]) == "2 steps · 4 of 10 drafted tokens accepted"
    assert summary_of([Step("", "c", 0, 0)]) == "1 step · nothing drafted"


def test_the_text_of_an_answer_is_the_model_s_text_and_its_marks_are_none_of_it() -> None:
    steps = [Step("The  ", "cat", 1, 4), Step("", "", 0, 2), Step("", "\n sat", 0, 0)]
    html = render(Page(title="t", facts=[], answers_title="a", answers=[Answer("x", steps)]))
    (text,) = re.findall(r'<div class="text"[^>]*>(.*?)</div>', html, re.DOTALL)
    assert Reader(text).text == "The  cat\n sat"
    assert Reader(text).tags == [
        ("span", {"title": "drafted 4, accepted 1", "data-rejected": "3"}),
        ("u", {}),
        ("span", {}),
    ]


@pytest.mark.parametrize(
    ("values", "options", "shares"),
    [
        ((1.0, 2.0, 4.0), {}, ["25.00", "50.00", "100.00"]),
        ((0.5, None), {"full": 1.0}, ["50.00", "0.00"]),
        ((1.0,), {"reference": 2.0}, ["50.00"]),
        ((0.0,), {}, ["0.00"]),
        ((), {}, []),
    ],
)
def test_bars_are_as_long_as_their_values(values: tuple, options: dict, shares: list) -> None:  # type: ignore[type-arg]
    bars = [Bar(str(value), value, "") for value in values]
    chart = Chart("t", "", [("", bars)], **options)
    assert [chart.share(bar.value) for bar in bars] == shares


def test_quartiles_fit_into_a_chart() -> None:
    chart = Chart("t", "", [("", [Bar("a", 1.0, "", 0.5, 4.0)])])
    assert (chart.share(0.5), chart.share(1.0), chart.share(4.0)) == ("12.50", "25.00", "100.00")


def test_acceptance_by_position() -> None:
    chart = positions_chart([("plain", [], []), ("auto", [4, 2, 0], [3, 1, 0])])
    assert chart is not None
    ((name, bars),) = chart.groups
    assert name == "auto", "whose bars they are, where there are others"
    assert [(bar.label, bar.value, bar.text) for bar in bars] == [
        ("1", 0.75, "75% (3 of 4)"),
        ("2", 0.5, "50% (1 of 2)"),
    ]
    assert chart.share(0.75) == "75.00"
    assert positions_chart([("plain", [], [])]) is None
    long = positions_chart([("", [1] * 64, [1] * 64)])
    assert long is not None
    assert long.groups[0][0] == ""
    assert len(long.groups[0][1]) == 32


def test_a_page_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    for name in ("page.pdf", "page", "-"):
        with pytest.raises(InvalidParameterError, match=r"--html writes a file whose name ends in \.html, \.htm; got"):
            check_page(Path(name))
    check_page(tmp_path / "PAGE.HTML")
    check_page(tmp_path / "page.htm", None, tmp_path / "missing")
    assert list(tmp_path.iterdir()) == [], "nothing is written to find out"
