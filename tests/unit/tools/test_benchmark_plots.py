"""The plots of docs/benchmarks.md show the measurements that are committed beside them."""

from __future__ import annotations

import dataclasses
import json
import re
from xml.etree import ElementTree

import pytest

from langchain_specdec.bench.report import Report
from tools.benchmark_plots import FOLDER, draw_plot, source_of

MEASUREMENTS = sorted(FOLDER.glob("*.json"))
PAGE = (FOLDER.parent / "benchmarks.md").read_text(encoding="utf-8")

each = pytest.mark.parametrize("measurement", MEASUREMENTS, ids=lambda path: path.stem)


@each
def test_a_plot_is_that_of_its_measurement(measurement):
    svg = measurement.with_suffix(".svg").read_text(encoding="utf-8")
    assert len(svg.encode()) < 200_000
    assert source_of(measurement) in svg, "the plot is of other runs: make plots"
    elements = ElementTree.fromstring(svg).iter()  # noqa: S314 - our own
    shown = {" ".join("".join(text.itertext()).split()) for text in elements if text.tag.endswith("}text")}
    report = json.loads(measurement.read_text(encoding="utf-8"))
    names = {contestant["name"] for contestant in report["contestants"]} - {report["baseline"]}
    assert names | {run["category"] for run in report["runs"]} <= shown


@each
def test_the_page_shows_the_plot_and_says_what_is_in_it(measurement):
    shown = re.search(rf"!\[([^\]]+)\]\(benchmarks/{measurement.stem}\.svg\)", PAGE)
    assert shown is not None
    report = json.loads(measurement.read_text(encoding="utf-8"))
    (auto,) = (contestant for contestant in report["contestants"] if contestant["name"] == "auto")
    medians = [figures["ratio"]["median"] for name, figures in auto["by_category"].items() if name != "all"]
    assert f"{min(medians):.2f} " in shown[1].replace(",", " ")
    assert f"{max(medians):.2f}" in shown[1]


def _assert_holds(found, values):
    """All values are found, beside those that later versions added."""
    if isinstance(values, dict):
        for name, value in values.items():
            _assert_holds(found[name], value)
    elif isinstance(values, list):
        assert len(found) == len(values)
        for one, value in zip(found, values, strict=True):
            _assert_holds(one, value)
    else:
        assert found == values


@each
def test_a_report_comes_back_from_json_as_it_was(measurement):
    values = json.loads(measurement.read_text(encoding="utf-8"))
    report = Report.from_dict(values)
    again = json.loads(json.dumps(report.as_dict()))
    _assert_holds(again, values)
    assert Report.from_dict(again) == report
    assert dataclasses.is_dataclass(report.runs[0].result)


# matplotlib asks the system for its fonts, in a process, when it is first used.
@pytest.mark.process
def test_a_plot_is_drawn_alike_each_time(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    measurement = MEASUREMENTS[0]
    paths = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for path in paths:
        draw_plot(measurement, path)
    first, second = (path.read_text(encoding="utf-8") for path in paths)
    assert first == second
    committed = measurement.with_suffix(".svg").read_text(encoding="utf-8")
    if f"Matplotlib v{matplotlib.__version__}," in committed:
        # Widths of letters, and with them places, are those of the machine's fonts.
        bars = re.compile(r'<path d="(M [^"]*z\s*)"')
        assert len(bars.findall(first)) == len(bars.findall(committed)) > 10
