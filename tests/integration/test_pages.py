"""Pages of `--html` as a person sees them: opened from a file in Debian's Chromium, with no network and no script."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from langchain_specdec.pages.page import Answer, Bar, Chart, Page, Step, Table, positions_chart
from langchain_specdec.pages.render import write_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page as Tab

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.process,
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a chromium, as `apt-get install chromium` brings it"),
]

TEXT = "The cat\n  sat on <b>the</b> mat."
STEPS = [
    Step("The", " cat", 1, 4),
    Step("", "\n", 0, 0),
    Step("  sat on <b>the</b>", " mat", 5, 5),
    Step("", ".", 0, 2),
]
SCRIPT = (
    "<script>document.title = 'taken'; alert(1)</script><img src=x onerror=\"document.title='taken'\">"
    "</div></details><style>body { display: none }</style><meta http-equiv=refresh content='0;url=http://localhost/'>"
)
LONG = "a_name_without_any_place_to_break_it_" * 8


def page(extra: str = "") -> Page:
    """A page with everything on it, and some text more in every place that takes text from elsewhere."""
    seconds = [
        Bar(f"plain{extra}", 4.0, "4.00 s (3.00 – 5.00 s)", 3.0, 5.0),
        Bar(f"auto{extra}", 2.0, "2.00 s", is_ours=True),
        Bar("none", None, "–"),
    ]
    positions = positions_chart([(f"auto{extra}", [8, 4], [6, 1]), ("other", [2], [1])])
    assert positions is not None
    ratios = [("qa", [Bar("auto", 2.0, "2.00×", is_ours=True)]), ("math", [Bar("auto", 0.5, "0.50×", is_ours=True)])]
    return Page(
        title=f"Benchmark of a model{extra}",
        facts=[("command", f"specdec bench{extra}"), ("machine", f"a processor{extra}")],
        warnings=[f"Interrupted.{extra}"],
        charts=[
            Chart("Time by contestant", "Seconds.", [("", seconds)]),
            Chart("Speed", "Times plain.", ratios, reference=1.0),
            positions,
        ],
        tables=[
            Table("All prompts", ["", *(f"contestant {i}" for i in range(9))], [["tokens per step", *"123456789"]])
        ],
        answers_title="The texts",
        answers=[Answer(f"prompt {n}{extra}", STEPS, f"Why?{extra}", "4 steps") for n in range(5)],
        notes=[f"A note.{extra}"],
        document=f"The document.{extra}",
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests here."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    # Chromium's sandbox does not start for root, as whom tests run in a container.
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] if is_root else [])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Any]:
    """Opens a page from a file; the test fails where it asks for anything else, complains, or runs anything."""
    contexts: list[Any] = []
    wrong: list[str] = []

    def dismiss(dialog: Any) -> None:
        wrong.append(dialog.message)
        dialog.dismiss()

    def opens(shown: Page, **options: Any) -> Tab:
        path = tmp_path / "page.html"
        write_page(shown, path)
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("dialog", dismiss)
        tab.on("request", lambda request: None if request.url == path.as_uri() else wrong.append(request.url))
        tab.goto(path.as_uri())
        return tab

    yield opens
    for context in contexts:
        context.close()
    assert wrong == []


def style(tab: Tab, selector: str, name: str) -> str:
    return str(tab.locator(selector).first.evaluate(f"element => getComputedStyle(element).{name}"))


def luminance(color: str) -> float:
    """Relative luminance, as WCAG defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    red, green, blue = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_texts_are_the_model_s_with_the_drafts_marked(opened: Any) -> None:
    tab = opened(page())
    assert tab.title() == tab.locator("h1").inner_text() == "Benchmark of a model"
    assert tab.locator(".text").first.inner_text() == TEXT, "line breaks and spaces too"
    assert tab.locator(".text").first.locator("u").all_inner_texts() == ["The", "  sat on <b>the</b>"]
    # Told apart by colour, and without it.
    assert style(tab, ".text u", "backgroundColor") != style(tab, ".text", "backgroundColor")
    assert "underline" in style(tab, ".text u", "textDecorationLine")
    assert style(tab, ".text", "textDecorationLine") == "none"
    # Legend and marks look the same.
    assert style(tab, ".legend u", "backgroundColor") == style(tab, ".text u", "backgroundColor")
    # Only the first few of many texts are open.
    assert [text.is_visible() for text in tab.locator("#none, .text").all()][:5] == [True, True, True, False, False]
    tab.locator("summary").nth(4).click()
    assert tab.locator(".text").nth(4).is_visible()


def test_a_step_is_one_run_on_hover(opened: Any) -> None:
    tab = opened(page())
    step = tab.locator(".text span").nth(2)
    assert step.inner_text() == "  sat on <b>the</b> mat"
    assert step.get_attribute("title") == "drafted 5, accepted 5"
    before = step.evaluate("element => getComputedStyle(element).backgroundColor")
    step.hover()
    assert step.evaluate("element => getComputedStyle(element).backgroundColor") != before
    assert step.evaluate("element => getComputedStyle(element).outlineStyle") == "solid"
    assert tab.locator(".text span").nth(0).evaluate("e => getComputedStyle(e).outlineStyle") == "none"


def test_rejected_drafts_are_shown_on_request_and_are_no_part_of_the_text(opened: Any) -> None:
    tab = opened(page())

    def marks() -> list[str]:
        return [
            span.evaluate("element => getComputedStyle(element, '::after').content").replace('" "', "")
            for span in tab.locator(".text").first.locator("span").all()
        ]

    assert marks() == ["none"] * 4
    tab.get_by_label("show how many draft tokens were rejected").check()
    assert marks() == ['"✕3"', "none", "none", '"✕2"']
    assert tab.locator(".text").first.inner_text() == TEXT


def test_bars_are_as_long_as_the_numbers_beside_them(opened: Any) -> None:
    tab = opened(page())

    def widths(chart: int, selector: str = ".bar") -> list[float]:
        boxes = [bar.bounding_box() for bar in tab.locator("table.bars").nth(chart).locator(selector).all()]
        return [box["width"] for box in boxes if box]

    plain, auto = widths(0)
    assert plain / auto == pytest.approx(2.0, rel=0.02)
    (quartiles,) = widths(0, ".quartiles")
    assert quartiles / plain == pytest.approx(0.5, rel=0.03)
    fast, slow = widths(1)
    assert fast / slow == pytest.approx(4.0, rel=0.03)
    line, bar = (tab.locator("table.bars").nth(1).locator(s).first.bounding_box() for s in (".reference", ".bar"))
    assert line["x"] - bar["x"] == pytest.approx(fast / 2, abs=2)
    first, second, _ = widths(2)
    (track, *_) = widths(2, ".track")
    assert first / track == pytest.approx(0.75, rel=0.02)
    assert second / track == pytest.approx(0.25, rel=0.03)
    rows = tab.locator("table.bars").first.locator("tr").all_inner_texts()
    assert [row.split() for row in rows] == [
        ["plain", "4.00", "s", "(3.00", "–", "5.00", "s)"], ["auto", "2.00", "s"], ["none", "–"],
    ]  # fmt: skip
    # Who is who does not hang on colour, which differs all the same.
    bars = tab.locator("table.bars").first.locator(".bar").all()
    assert len({bar.evaluate("element => getComputedStyle(element).backgroundColor") for bar in bars}) == 2


def test_text_from_elsewhere_runs_nothing_and_changes_nothing(opened: Any) -> None:
    tab = opened(page(SCRIPT))
    assert tab.title() == f"Benchmark of a model{SCRIPT}"
    assert tab.locator("h1").is_visible()
    assert tab.locator("script, img, b").count() == 0
    assert tab.locator("style").count() == 1
    assert tab.locator("h1").inner_text().endswith(SCRIPT)
    assert tab.locator("blockquote").first.inner_text() == f"Why?{SCRIPT}"


def test_what_would_slip_through_is_stopped_by_the_page_s_own_policy(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_page(page(), path)
    slipped = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", f"{slipped}</body>"), encoding="utf-8")
    tab, told = browser.new_page(), []
    tab.on("console", lambda message: told.append(message.text))
    tab.goto(path.as_uri())
    assert tab.title() == "Benchmark of a model"
    tab.close()
    assert sum("Content Security Policy" in text for text in told) >= 2, told


@pytest.mark.parametrize("extra", ["", LONG])
def test_a_narrow_screen_is_not_scrolled_sideways(opened: Any, extra: str) -> None:
    tab = opened(page(extra), viewport={"width": 375, "height": 700})
    assert tab.evaluate("document.documentElement.scrollWidth") == 375
    # The wide table scrolls by itself, by keys too.
    assert tab.locator(".wide").evaluate("element => element.scrollWidth > element.clientWidth")
    assert tab.locator(".wide").get_attribute("tabindex") == "0"


def test_long_names_leave_room_for_bars_on_a_wide_screen(opened: Any) -> None:
    tab = opened(page(LONG), viewport={"width": 1000, "height": 700})
    assert tab.evaluate("document.documentElement.scrollWidth") == 1000
    assert tab.locator(".track").first.bounding_box()["width"] > 150


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read_in_light_and_dark(opened: Any, scheme: str) -> None:
    tab = opened(page(), color_scheme=scheme)
    paper = style(tab, "body", "backgroundColor")
    assert (luminance(paper) < 0.1) == (scheme == "dark")
    for selector in ("h1", "dd", "dt", ".text", ".note", ".value", "blockquote", "summary .summary"):
        assert contrast(style(tab, selector, "color"), paper) >= 4.5, selector
    assert contrast(style(tab, ".text u", "color"), style(tab, ".text u", "backgroundColor")) >= 4.5
    assert contrast(style(tab, ".bar.ours", "backgroundColor"), paper) >= 3
    tab.locator(".text span").nth(2).hover()
    assert contrast(style(tab, ".text", "color"), style(tab, ".text span:hover", "backgroundColor")) >= 4.5


def test_print_is_black_on_white_with_all_texts(opened: Any) -> None:
    tab = opened(page(), color_scheme="dark")
    tab.emulate_media(media="print")
    assert style(tab, "body", "backgroundColor") == "rgb(255, 255, 255)"
    assert style(tab, "body", "color") == "rgb(0, 0, 0)"
    assert style(tab, ".bar", "printColorAdjust") == "exact"
    # Those that are closed on a screen as well.
    assert all(text.bounding_box()["height"] > 10 for text in tab.locator(".text").all())
    assert tab.locator("input").is_hidden()
    assert tab.pdf(format="A4").startswith(b"%PDF")
