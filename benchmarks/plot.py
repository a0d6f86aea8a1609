"""The plot: throughput against the naive server as bars with their budgets, and below them every budget's verdict."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont

from benchmarks.report import BUDGETS, Report, Row
from tuning.hardware import summary

WIDTH, MARGIN, LINE = 1800, 60, 46
BAR_LEFT, BAR_RIGHT = 820, 1560
INK, GREY, FAINT, BAR, MARK = "#1d2433", "#667085", "#e4e7ec", "#3b6fd4", "#c2410c"
VERDICT_COLORS = {"met": "#15803d", "not met": "#b91c1c", "not measured": "#98a2b3"}

# The font that Pillow bundles lacks signs such as × and ≤.
FONTS = {"regular": "DejaVuSans.ttf", "bold": "DejaVuSans-Bold.ttf"}
PLAIN = str.maketrans({"×": "x", "÷": "/", "≤": "<", "≥": ">", "–": "-", "·": "."})


class Sheet:
    """A white page that grows downwards; `y` is where the next line goes."""

    def __init__(self, height: int) -> None:
        self.image = Image.new("RGB", (WIDTH, height), "white")
        self.y = MARGIN
        self._draw = ImageDraw.Draw(self.image)
        self._fonts: dict[tuple[str, int], tuple[FreeTypeFont | ImageFont.ImageFont, bool]] = {}

    def text(
        self, x: float, text: str, size: int = 24, color: str = INK, kind: str = "regular", anchor: str = "lm"
    ) -> None:
        """Text whose middle is the current line's."""
        font, is_full = self._font(kind, size)
        shown = text if is_full else text.translate(PLAIN)
        self._draw.text((x, self.y), shown, fill=color, font=font, anchor=anchor)

    def box(self, left: float, right: float, half_height: float, color: str) -> None:
        """A rectangle on the current line."""
        self._draw.rectangle((left, self.y - half_height, right, self.y + half_height), fill=color)

    def dot(self, x: float, radius: float, color: str) -> None:
        """A disc on the current line."""
        self._draw.ellipse((x - radius, self.y - radius, x + radius, self.y + radius), fill=color)

    def _font(self, kind: str, size: int) -> tuple[FreeTypeFont | ImageFont.ImageFont, bool]:
        """The font, and whether it has all signs."""
        if (kind, size) not in self._fonts:
            try:
                self._fonts[kind, size] = ImageFont.truetype(FONTS[kind], size), True
            except OSError:
                self._fonts[kind, size] = ImageFont.load_default(size), False
        return self._fonts[kind, size]


def draw(report: Report, path: Path) -> None:
    """Writes the PNG."""
    ratios = [row for row in _scenario_rows(report) if row.measured is not None]
    budgets = report.budget_rows()
    hardware = textwrap.wrap(f"{summary(report.hardware)}; service {report.precision}, naive server float32", 118)
    height = 2 * MARGIN + 150 + 34 * len(hardware) + LINE * (len(ratios) + len(budgets)) + 260 * bool(ratios)
    sheet = Sheet(height)
    _head(sheet, report, hardware)
    if ratios:
        _bars(sheet, ratios)
    _verdicts(sheet, budgets)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.image.crop((0, 0, WIDTH, sheet.y + MARGIN)).save(path, optimize=True)


def _scenario_rows(report: Report) -> list[Row]:
    findings = report.findings.get("scenarios")
    rows = findings.rows if findings else []
    return [row for row in rows if not row.budget.endswith("stretch")]


def _head(sheet: Sheet, report: Report, hardware: Sequence[str]) -> None:
    title = "Segment Anything 2 on Ray Serve" + (" (--quick: figures of little worth)" if report.quick else "")
    sheet.text(MARGIN, title, 40, kind="bold")
    sheet.y += 54
    for line in (report.hardware["date"][:10], *hardware):
        sheet.text(MARGIN, line, 21, GREY)
        sheet.y += 32
    sheet.y += 34


def _bars(sheet: Sheet, rows: Sequence[Row]) -> None:
    sheet.text(MARGIN, "Throughput, service ÷ naive server", 30, kind="bold")
    sheet.y += 36
    sheet.text(
        MARGIN,
        "hiera-tiny, same weights, images and client, in turns; whiskers: least and most of the rounds",
        21,
        GREY,
    )
    sheet.y += 46
    limits = [BUDGETS[key].limit for row in rows for key in _budgets_of(row)]
    most = 1.3 * max([row.spread.high for row in rows if row.spread] + limits)
    least = min([0.8, *(0.8 * row.spread.low for row in rows if row.spread)])
    _grid(sheet, least, most, len(rows))
    for row in rows:
        _bar(sheet, row, least, most)
        sheet.y += LINE
    sheet.text(BAR_LEFT, "│ budget", 21, MARK)
    sheet.y += 70


def _budgets_of(row: Row) -> list[str]:
    """The row's budgets; those of a stretch goal are marked on the same bar."""
    return [key for key in (row.budget, f"{row.budget}, stretch") if key in BUDGETS]


def _at(value: float, least: float, most: float) -> float:
    """Where a ratio lies on the logarithmic axis."""
    return BAR_LEFT + (BAR_RIGHT - BAR_LEFT) * math.log(value / least) / math.log(most / least)


def _grid(sheet: Sheet, least: float, most: float, count: int) -> None:
    top = sheet.y
    for value in (1, 2, 5, 10, 20, 50, 100, 200, 500):
        if least <= value <= most:
            x = _at(value, least, most)
            sheet.y = top
            sheet.text(x, f"{value}×", 20, GREY, anchor="mm")
            sheet.y = top + 18 + (LINE * count) // 2
            sheet.box(x, x + 1, LINE * count / 2, GREY if value == 1 else FAINT)
    sheet.y = top + 18 + LINE // 2


def _bar(sheet: Sheet, row: Row, least: float, most: float) -> None:
    assert row.measured is not None
    end = _at(row.measured, least, most)
    sheet.text(BAR_LEFT - 20, row.name, 22, anchor="rm")
    one = _at(1, least, most)
    sheet.box(min(one, end), max(one, end), 13, BAR)
    if row.spread and row.spread.count > 1:
        low, high = (_at(value, least, most) for value in (row.spread.low, row.spread.high))
        sheet.box(low, high, 1, INK)
        for x in (low, high):
            sheet.box(x - 1, x + 1, 6, INK)
        end = max(end, high)
    for key in _budgets_of(row):
        x = _at(BUDGETS[key].limit, least, most)
        sheet.box(x - 2, x + 2, 19, MARK)
        # The figure must not stand on the mark.
        end = max(end, x) if abs(x - end) < 110 else end
    sheet.text(max(end, one) + 14, f"{row.measured:.1f}×", 23, kind="bold")


def _verdicts(sheet: Sheet, rows: Sequence[Row]) -> None:
    sheet.text(MARGIN, "Budgets", 30, kind="bold")
    sheet.y += 50
    for row in rows:
        color = VERDICT_COLORS[row.verdict]
        sheet.dot(MARGIN + 10, 9, color)
        sheet.text(MARGIN + 36, BUDGETS[row.budget].what, 22)
        sheet.text(1200, str(BUDGETS[row.budget]), 22, GREY, anchor="rm")
        sheet.text(1350, row.figure.partition(" (")[0], 22, kind="bold", anchor="rm")
        sheet.text(1390, row.verdict, 22, color)
        sheet.text(WIDTH - MARGIN, row.precision.removeprefix("naive float32, "), 20, GREY, anchor="rm")
        sheet.y += LINE
