"""Alert rules and dashboard, as files: their expressions are PromQL, name metrics that exist, and are explained.

That a running service exports what they name is tested in tests/cluster/test_autoscaling.py.
"""

import json
import re
from typing import Any

import promql_parser
import pytest
import yaml

from tests.defined_metrics import defined_metrics
from tests.promql import MONITORING, alert_expressions, all_uses, dashboard_expressions, panels, uses

ROOT = MONITORING.parents[1]
RUNBOOK = ROOT / "cluster" / "README.md"
EXPRESSIONS = [*alert_expressions(), *dashboard_expressions()]

[GROUP] = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
ALERTS: list[dict[str, Any]] = GROUP["rules"]
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())


METRICS = {series: metric for metric in defined_metrics() for series in metric.exported}
"""Our metrics by the names that Prometheus sees; a histogram under each of its three."""

# What Serve and Prometheus add to the tags of ours.
ADDED = {"application", "deployment", "replica", "le"}


def headings() -> set[str]:
    """The anchors of the runbook's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", RUNBOOK.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=lambda expression: expression.where)
def test_an_expression_is_promql_and_names_metrics_that_exist(expression: Any) -> None:
    assert uses(expression.text)
    for use in uses(expression.text):
        if use.metric.startswith("ray_sam2_"):
            assert use.metric in METRICS
            assert use.labels <= {*METRICS[use.metric].tags, *ADDED}, use


def test_what_is_no_promql_would_be_noticed() -> None:
    with pytest.raises(ValueError, match=r"unclosed|invalid|unexpected|parenthes"):
        promql_parser.parse("sum(rate(ray_sam2_requests_total[5m])")


def test_every_metric_of_ours_is_watched_by_the_dashboard() -> None:
    watched = {re.sub(r"_(bucket|sum|count)$", "", metric) for metric in all_uses(dashboard_expressions())}
    assert {f"ray_{metric.name}" for metric in METRICS.values()} - watched == set()


def test_every_metric_is_in_the_runbook() -> None:
    table = RUNBOOK.read_text()
    for metric in METRICS.values():
        shortened = metric.name.removeprefix("sam2_embedding_cache")
        assert f"`ray_{metric.name}`" in table or f"`…{shortened}`" in table, metric.where


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_how_bad_it_is_and_where_to_read_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["annotations"]["summary"]
    assert alert["annotations"]["description"]
    path, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert ROOT / path == RUNBOOK
    assert anchor == alert["alert"].lower()
    assert anchor in headings()


def test_the_runbooks_own_links_lead_somewhere() -> None:
    text = RUNBOOK.read_text()
    for anchor in re.findall(r"\]\(#([\w-]+)\)", text):
        assert anchor in headings(), anchor
    for path in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (RUNBOOK.parent / path).exists(), path


def test_each_panel_is_explained_and_has_a_unit() -> None:
    identifiers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identifiers)) == len(identifiers)
    for panel in panels(DASHBOARD):
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]


def test_panels_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in panels(DASHBOARD):
        at = panel["gridPos"]
        for x in range(at["x"], at["x"] + at["w"]):
            assert x < 24
            for y in range(at["y"], at["y"] + at["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]
