"""What a part of the benchmark found: rows for the common table, tables of its own, and the raw data."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.budgets import BUDGETS, figure
from benchmarks.spread import Spread


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


@dataclass(frozen=True)
class Table:
    """A table of a part's own."""

    title: str
    columns: Sequence[str]
    lines: Sequence[Sequence[str]]


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
