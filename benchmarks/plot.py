"""The plot: throughput against the plain server as bars with their budgets, and below them every budget's verdict."""

import textwrap
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from benchmarks.report import BUDGETS, Report, Row
from tuning.hardware import summary

WIDTH, LINE = 12.0, 0.29
"""Inches: of the picture, and of a row."""

INK, GREY, BAR, MARK = "#1d2433", "#667085", "#3b6fd4", "#c2410c"
VERDICT_COLORS = {"met": "#15803d", "not met": "#b91c1c", "not measured": "#98a2b3"}


def draw(report: Report, path: Path) -> None:
    """Writes the PNG file."""
    findings = report.findings.get("scenarios")
    rows = [row for row in findings.rows if not row.budget.endswith("stretch")] if findings else []
    ratios = [row for row in rows if row.measured is not None]
    title = "Segment Anything 2 on Ray Serve" + (" (--quick: figures of little worth)" if report.quick else "")
    hardware = f"{summary(report.hardware)}; service {report.precision}, naive server float32"
    head = [title, report.hardware["date"][:10], *textwrap.wrap(hardware, 140)]
    heights = [LINE * (len(ratios) + 5) * bool(ratios), LINE * (len(BUDGETS) + 1)]
    figure = Figure(figsize=(WIDTH, sum(heights) + LINE * len(head)), layout="constrained")
    figure.suptitle("\n".join(head), fontsize=9)
    above, below = np.ravel(
        figure.subfigures(2, 1, squeeze=False, height_ratios=[max(height, 0.01) for height in heights])
    )
    if ratios:
        _bars(above.subplots(), ratios)
    _verdicts(below.subplots(), report.budget_rows())
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _bars(axes: Axes, rows: list[Row]) -> None:
    """Each ratio from 1 on a logarithmic axis; whiskers to the least and the most of its rounds, budgets as marks."""
    axes.set_title("Throughput, service ÷ naive server (whiskers: least and most of the rounds; │ budget)", fontsize=10)
    measured = [row.measured or 0.0 for row in rows]
    spreads = [
        (row.spread.low, row.spread.high) if row.spread else (value, value)
        for row, value in zip(rows, measured, strict=True)
    ]
    whiskers = [[value - low for value, (low, _) in zip(measured, spreads, strict=True)]]
    whiskers.append([high - value for value, (_, high) in zip(measured, spreads, strict=True)])
    axes.barh(range(len(rows)), [value - 1 for value in measured], left=1, height=0.55, color=BAR)
    axes.errorbar(measured, range(len(rows)), xerr=whiskers, fmt="none", ecolor=INK, elinewidth=1, capsize=3)
    for place, row in enumerate(rows):
        # Those of a stretch goal are marked on the same bar.
        limits = [BUDGETS[key].limit for key in (row.budget, f"{row.budget}, stretch") if key in BUDGETS]
        axes.plot(limits, [place] * len(limits), "|", color=MARK, markersize=14, markeredgewidth=2)
        end = max(measured[place], spreads[place][1] or 0, 1)
        # The figure must not stand on a mark.
        end = max([end, *(limit for limit in limits if end < limit < 1.4 * end)])
        axes.annotate(
            f"{measured[place]:.1f}×",
            (end, place),
            (6, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter("{x:g}×")
    axes.grid(axis="x", color="#e4e7ec")
    axes.set_axisbelow(True)


def _verdicts(axes: Axes, rows: list[Row]) -> None:
    """A table of the budgets."""
    axes.axis("off")
    cells = [
        [
            BUDGETS[row.budget].what,
            str(BUDGETS[row.budget]),
            row.figure.partition(" (")[0],
            row.verdict,
            row.precision.removeprefix("naive float32, "),
        ]
        for row in rows
    ]
    columns = ["budget", "limit", "measured", "verdict", "precision"]
    widths = [0.56, 0.1, 0.1, 0.1, 0.14]
    table = axes.table(cells, colLabels=columns, colWidths=widths, cellLoc="left", colLoc="left", bbox=Bbox.unit())
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    for (line, column), cell in table.get_celld().items():
        cell.set(edgecolor="#e4e7ec")
        cell.PAD = 0.02
        if line and column == 3:
            cell.get_text().set_color(VERDICT_COLORS.get(cells[line - 1][3], GREY))
