"""What the dashboard and the alerts ask Prometheus for: their expressions, the metrics and labels that these name."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser
import yaml

MONITORING = Path(__file__).parents[1] / "cluster" / "monitoring"

GRAFANA = {"$__rate_interval": "5m", "$__range": "1h", "$__interval": "1m"}
"""What Grafana fills in where PromQL has a duration."""

SCRAPED = {"instance", "job"}
"""Labels that Prometheus itself adds."""


class Expression(NamedTuple):
    """A PromQL expression, and where it stands."""

    where: str
    text: str


class Use(NamedTuple):
    """A metric by its exported name, and the labels that an expression expects of it."""

    metric: str
    labels: frozenset[str]


def alert_expressions(file: Path = MONITORING / "alerts.yaml") -> list[Expression]:
    """One for each alert, named after it."""
    groups = yaml.safe_load(file.read_text())["groups"]
    return [Expression(rule["alert"], rule["expr"]) for group in groups for rule in group["rules"]]


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The panels of a dashboard, also those inside collapsed rows, without the rows."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels", ())
        else:
            yield panel


def dashboard_expressions(file: Path = MONITORING / "dashboard.json") -> list[Expression]:
    """Those of the panels, named after them, with durations in place of Grafana's variables; and of the variables."""
    dashboard = json.loads(file.read_text())
    found = [
        Expression(panel["title"], _with_durations(target["expr"]))
        for panel in panels(dashboard)
        for target in panel["targets"]
    ]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            [(metric, label)] = re.findall(r"^label_values\((\w+), (\w+)\)$", variable["query"])
            found.append(Expression(f"variable {variable['name']}", f"count by ({label}) ({metric})"))
    return found


def _with_durations(text: str) -> str:
    for name, duration in GRAFANA.items():
        text = text.replace(f"[{name}]", f"[{duration}]")
    return text


def uses(text: str) -> set[Use]:
    """What an expression names: labels of matchers belong to their metric, those of `by` and `on` to each one inside.

    Raises:
        ValueError: the expression is not PromQL.
    """
    labels: dict[str, set[str]] = {}
    for node in _nodes(promql_parser.parse(text)):
        for metric, names in _named(node):
            labels.setdefault(metric, set()).update(set(names) - SCRAPED)
    return {Use(metric, frozenset(names)) for metric, names in labels.items()}


def _named(node: promql_parser.Expr) -> Iterator[tuple[str, list[str]]]:
    if isinstance(node, promql_parser.VectorSelector):
        if node.name is None:
            raise ValueError(f"a selector without a metric's name: {node.prettify()}")
        yield node.name, [matcher.name for matcher in node.matchers.matchers]
    for metric in _metrics(node):
        yield metric, _grouped_by(node)


def _grouped_by(node: promql_parser.Expr) -> list[str]:
    if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
        return node.modifier.labels if node.modifier.type == promql_parser.AggModifierType.By else []
    if isinstance(node, promql_parser.BinaryExpr) and node.modifier is not None and node.modifier.matching is not None:
        matching = node.modifier.matching
        return matching.labels if matching.type == promql_parser.LabelModifierType.Include else []
    return []


def _metrics(node: promql_parser.Expr) -> set[str]:
    return {found.name for found in _nodes(node) if isinstance(found, promql_parser.VectorSelector) and found.name}


def _nodes(root: promql_parser.Expr) -> list[promql_parser.Expr]:
    found: list[promql_parser.Expr] = []
    promql_parser.walk(root, pre_visit=found.append)
    return found


def all_uses(expressions: list[Expression]) -> dict[str, set[str]]:
    """Each metric with all the labels that any of the expressions expects of it."""
    found: dict[str, set[str]] = {}
    for expression in expressions:
        for use in uses(expression.text):
            found.setdefault(use.metric, set()).update(use.labels)
    return found
