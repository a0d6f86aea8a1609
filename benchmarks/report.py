"""The outcome of a whole run: the table of budgets, the other figures, each part's tables; as markdown and as JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from benchmarks.budgets import BUDGETS
from benchmarks.findings import Findings, Row, Table, budget_row
from benchmarks.hardware import summary

COLUMNS = ("what", "budget", "measured", "verdict", "precision", "note")


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


def table_lines(table: Table) -> Iterator[str]:
    """A table as Markdown."""
    yield f"\n## {table.title}\n"
    yield _line(table.columns)
    yield "|---" * len(table.columns) + "|"
    yield from map(_line, table.lines)


def _line(cells: Sequence[str]) -> str:
    # A bar in a cause would end its cell.
    return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |"


def _record(row: Row) -> dict[str, Any]:
    limit = str(BUDGETS[row.budget]) if row.budget else None
    return {**asdict(row), "limit": limit, "verdict": row.verdict}
