"""What a run of the benchmark found: figures with their budgets, tables, raw data; as Markdown and as JSON."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

from tuning.hardware import summary
from tuning.tables import Table, table_lines

COLUMNS = ("what", "budget", "measured", "verdict", "precision", "note")

# ---- budgets


@dataclass(frozen=True)
class Budget:
    """What a measurement must reach.

    Attributes:
        part: the part of the benchmark that measures it.
        what: what is measured.
        limit: the figure, in `unit`.
        sense: whether the measurement must be at most or at least that.
        unit: `×`, `MB`, `ms`, `%`, or nothing for a plain number.
    """

    part: str
    what: str
    limit: float
    sense: Literal["at most", "at least"]
    unit: str = ""

    def met_by(self, measured: float) -> bool:
        """Whether a measurement keeps it."""
        return measured <= self.limit if self.sense == "at most" else measured >= self.limit

    def __str__(self) -> str:
        sign, gap = ("≤" if self.sense == "at most" else "≥"), "" if self.unit == "×" else " "
        return f"{sign} {self.limit:g}{gap}{self.unit}".rstrip()


def figure(value: float, unit: str) -> str:
    """A number as the tables show it."""
    match unit:
        case "×":
            return f"{value:.1f}×"
        case "MB" | "ms":
            return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
        case "%":
            return f"{value:.0f} %" if value in (0, 100) else f"{value:.1f} %"
        case _:
            return f"{value:.4g}" + (f" {unit}" if unit else "")


MEMORY_MB = 256.0

BUDGETS = {
    "parity float32": Budget(
        "parity", "float32: max abs difference of logits from SAM2ImagePredictor", 1e-3, "at most"
    ),
    "parity bfloat16": Budget("parity", "bfloat16: mean IoU with SAM2ImagePredictor", 0.99, "at least"),
    "new image": Budget("scenarios", "throughput ÷ naive: 1080p, new image, default JSON", 5, "at least", "×"),
    "same image": Budget(
        "scenarios", "throughput ÷ naive: 1080p, same image, new prompt, default JSON", 15, "at least", "×"
    ),
    "same image small": Budget(
        "scenarios", "throughput ÷ naive: 1080p, same image by image_id, new prompt, RLE", 40, "at least", "×"
    ),
    "same image small, stretch": Budget("scenarios", "the same, stretch goal", 80, "at least", "×"),
    "encoder cpu": Budget("encoder", "CPU: image encoder ÷ its bfloat16 matmul floor", 2.5, "at most", "×"),
    "encoder gpu": Budget("encoder", "GPU: hiera-large encoder, of the bfloat16 matmul rate", 40, "at least", "%"),
    "overhead": Budget("overhead", "what Ray and HTTP add to a warm RLE prompt, median", 15, "at most", "ms"),
    "first click": Budget(
        "page", "the page: first click on an image to mask on the screen, median", 150, "at most", "ms"
    ),
    "objects": Budget("objects", "a request with 100 boxes ÷ one with one box, new image, RLE", 10, "at most", "×"),
    "everything": Budget(
        "everything", "everything over HTTP: times as fast as SAM2AutomaticMaskGenerator", 1, "at least", "×"
    ),
    "click": Budget("everything", "a click's latency while everything is segmented ÷ idle", 3, "at most", "×"),
    "single flight": Budget("affinity", "encoder runs for ten concurrent requests for one new image", 1, "at most"),
    "memory": Budget(
        "memory",
        "12 megapixels, default JSON, a client that reads: above idle and the image",
        MEMORY_MB,
        "at most",
        "MB",
    ),
    "slow readers": Budget(
        "memory",
        "50 clients that do not read: above idle and the answer budget",
        MEMORY_MB,
        "at most",
        "MB",
    ),
    "replica killed": Budget("faults", "replica killed under load: failed requests", 0, "at most"),
    "rolling update": Budget("faults", "rolling update under load: failed requests", 0, "at most"),
    "scaling": Budget("scaling", "throughput at 8 replicas ÷ 8 × that of one, waiting engine", 0.9, "at least"),
    "video 1": Budget("video", "video, 1 object, HTTP, RLE: frames/s ÷ SAM2VideoPredictor's", 1.0, "at least", "×"),
    "video 8": Budget("video", "video, 8 objects, HTTP, RLE: frames/s ÷ SAM2VideoPredictor's", 1.1, "at least", "×"),
    "video again": Budget("video", "encoder runs for a new object in a video that is remembered", 0, "at most"),
    "video click": Budget("video", "a click's latency while a video is followed ÷ idle", 3, "at most", "×"),
    "video scaling": Budget(
        "videos", "video: throughput at 10 replicas ÷ 10 × that of one, 2 jobs each, waiting engine", 0.9, "at least"
    ),
    "video memory": Budget("videos", "video: memory of all processes, 3,000 frames less 300", 64, "at most", "MB"),
    "video parser": Budget("videos", "video: through the parser, a frame and object", 0.6, "at most", "MB"),
    "video state": Budget("videos", "video: state of an object", 4.5, "at most", "MB"),
    "affinity": Budget("affinity", "cache hits of follow-up prompts, 4 replicas", 95, "at least", "%"),
    "affinity after": Budget("affinity", "the same, after a fifth replica has come", 95, "at least", "%"),
    # A fifth is expected to move; of 60 images that is 12, with a standard deviation of 3.
    "moved": Budget("affinity", "images that move when a fifth replica comes", 35, "at most", "%"),
}


# ---- what a part finds


@dataclass(frozen=True)
class Spread:
    """What is told of repeated measurements: their median, and the least and the most."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} – {self.high:.3g})"


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """The spread of the ratios, round by round: what slows the whole machine for a round cancels out."""
    return Spread.of([above / below for above, below in zip(numerators, denominators, strict=True)])


@dataclass(frozen=True)
class Row:
    """One figure of the common table.

    Attributes:
        name: what was measured.
        measured: the figure; None if it could not be measured, and `note` says why.
        precision: the arithmetic that it was measured with.
        unit: as Budget's.
        budget: a key of BUDGETS, or "" where there is none.
        spread: of repeated measurements.
        note: how it was measured, where the name does not say.
    """

    name: str
    measured: float | None
    precision: str
    unit: str = ""
    budget: str = ""
    spread: Spread | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """`met`, `not met`, `not measured`, or a dash where there is no budget."""
        if self.measured is None:
            return "not measured"
        if not self.budget:
            return "–"
        return "met" if BUDGETS[self.budget].met_by(self.measured) else "not met"

    @property
    def figure(self) -> str:
        """The measurement with its spread, as the table shows it."""
        if self.measured is None:
            return "–"
        text = figure(self.measured, self.unit)
        if self.spread is None or self.spread.count == 1:
            return text
        return f"{text} ({figure(self.spread.low, self.unit)} – {figure(self.spread.high, self.unit)})"


@dataclass
class Findings:
    """Everything that one part found; `data` is written to the JSON file as it is."""

    rows: list[Row] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)


def budget_row(budget: str, measured: float | None, precision: str, name: str = "", **more: Any) -> Row:
    """The row of a budget, with the budget's own unit, and its name unless what was measured has one of its own."""
    name = name or BUDGETS[budget].what
    return Row(name, measured, precision, unit=BUDGETS[budget].unit, budget=budget, **more)


# ---- the whole


@dataclass
class Report:
    """What was found so far.

    Attributes:
        hardware: see hardware.describe.
        precision: what the service computes with.
        quick: whether its figures are worth little.
        findings: of each part that has ended.
        failures: the cause, of each part that failed.
    """

    hardware: dict[str, Any]
    precision: str
    quick: bool
    findings: dict[str, Findings] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        """All rows of all parts."""
        return [row for findings in self.findings.values() for row in findings.rows]

    def budget_rows(self) -> list[Row]:
        """One row for each budget, also where nothing was measured."""
        found = {row.budget: row for row in self.rows if row.budget}
        return [found.get(key) or budget_row(key, None, "–", note=self._why_not(key)) for key in BUDGETS]

    def _why_not(self, budget: str) -> str:
        part = BUDGETS[budget].part
        if part in self.failures:
            return f"the part {part} failed: {self.failures[part].splitlines()[0][:120]}"
        return "not on this machine" if part in self.findings else f"the part {part} has not run"

    def write(self, path: Path) -> None:
        """Writes the JSON file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {
            "hardware": self.hardware,
            "precision": self.precision,
            "quick": self.quick,
            "budgets": [_record(row) for row in self.budget_rows()],
            "other": [_record(row) for row in self.rows if not row.budget],
            "failures": self.failures,
            "data": {part: findings.data for part, findings in self.findings.items()},
        }
        options = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE
        path.write_bytes(orjson.dumps(document, option=options))

    def markdown(self) -> str:
        """The tables."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"# Benchmark, {self.hardware['date']}{', --quick: figures of little worth' if self.quick else ''}"
        yield f"\n{summary(self.hardware)}; service {self.precision}, naive server float32"
        yield from table_lines(Table("Budgets", COLUMNS, list(map(_cells, self.budget_rows()))))
        others = [row for row in self.rows if not row.budget]
        if others:
            yield from table_lines(Table("Other figures", COLUMNS, list(map(_cells, others))))
        for findings in self.findings.values():
            for table in findings.tables:
                yield from table_lines(table)
        for part, cause in self.failures.items():
            yield f"\nThe part {part} failed: {cause}"


def _cells(row: Row) -> list[str]:
    limit = str(BUDGETS[row.budget]) if row.budget else "–"
    name = BUDGETS[row.budget].what if row.budget else row.name
    return [name, limit, row.figure, row.verdict, row.precision, row.note]


def _record(row: Row) -> dict[str, Any]:
    limit = str(BUDGETS[row.budget]) if row.budget else None
    return {**asdict(row), "limit": limit, "verdict": row.verdict}
