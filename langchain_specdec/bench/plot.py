"""A report as bars by category."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

from langchain_specdec.bench.report import Report
from langchain_specdec.bench.statistics import ALL
from langchain_specdec.errors import MissingDependencyError
from langchain_specdec.paths import check_output, write_output
from tgi_launcher.extras import install_command

_SUFFIXES = (".png", ".svg", ".pdf")
_BAR_INCHES = 0.22


def check_plot(path: Path, *inputs: Path | None) -> None:
    """Raise unless a plot can be written there.

    Args:
        path: Where to; the suffix decides the format.
        inputs: Files that must not be overwritten.

    Raises:
        InvalidParameterError: It cannot be written, or its name has another suffix.
        MissingDependencyError: matplotlib is not installed.
    """
    check_output("--plot", path, _SUFFIXES, inputs)
    if importlib.util.find_spec("matplotlib") is None:
        msg = f"--plot needs matplotlib:\n    {install_command('bench')}"
        raise MissingDependencyError(msg)


def draw(report: Report, path: Path, *, inches: float | None = None, source: str = "") -> None:
    """Draw the median ratios to the baseline by category, with quartiles, and the baseline as a line.

    The same report makes the same SVG, byte for byte, by the same version of matplotlib.

    Args:
        report: What to draw.
        path: Where to write it; the suffix decides the format.
        inches: The width; None is as much as the bars want.
        source: What the report was read from, for the description in an SVG.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shown = [c for c in report.contestants if c.name != report.baseline]
    categories = [*report.categories, *([ALL] if len(report.categories) > 1 else [])]
    width = 0.8 / max(len(shown), 1)
    inches = inches or max(6.0, 2.0 + _BAR_INCHES * len(categories) * (len(shown) + 1))
    figure, axes = plt.subplots(figsize=(inches, 4.2), layout="constrained")
    for number, contestant in enumerate(shown):
        spreads = [contestant.by_category[category].ratio for category in categories]
        present = [(at, ratio) for at, ratio in enumerate(spreads) if ratio is not None]
        places = [at + (number - (len(shown) - 1) / 2) * width for at, _ in present]
        medians = [ratio.median for _, ratio in present]
        below = [ratio.median - ratio.low for _, ratio in present]
        above = [ratio.high - ratio.median for _, ratio in present]
        bars = axes.bar(places, medians, 0.92 * width, label=contestant.name)
        axes.errorbar(places, medians, (below, above), fmt="none", ecolor="0.25", elinewidth=0.9, capsize=1.5)
        if len(shown) * len(categories) <= 40:
            axes.bar_label(bars, fmt="%.2f", fontsize=6, padding=2, label_type="center", color="white")
    axes.axhline(1.0, color="0.2", linewidth=0.9, linestyle="--")
    # matplotlib would take what stands between two dollar signs for a formula.
    axes.set_xticks(range(len(categories)), categories, rotation=30, ha="right", parse_math=False)
    rate = "decode rate" if report.rate == "decode" else "rate from start to end"
    axes.set_ylabel(f"{rate}, × {report.baseline}")
    axes.set_ylim(bottom=0)
    model, machine = report.header["model"], report.header["machine"]
    axes.set_title(
        f"{model['name']}, {model['dtype']}, {machine.get('gpu', machine['processor'])}"
        f"{report.beside and f', beside {report.beside}'}\n"
        "median of prompts; lines are quartiles",
        fontsize=9,
        loc="left",
        parse_math=False,
    )
    if shown:
        figure.legend(loc="outside lower center", fontsize=8, ncols=min(len(shown), 5), frameon=False)
    drawn = io.BytesIO()
    suffix = path.suffix[1:].lower()
    metadata = {"Date": None, "Description": source or None} if suffix == "svg" else None
    # Letters stay letters, which can be searched and read aloud.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "langchain-specdec"}):
        figure.savefig(drawn, dpi=160, format=suffix, metadata=metadata)
    plt.close(figure)
    write_output(path, drawn.getvalue())
