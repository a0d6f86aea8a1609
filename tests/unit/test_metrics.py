"""Metrics wherever they are defined: their names, units and tags. And gauges that are told again and again."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from deployments.telemetry import metrics
from tests.defined_metrics import SERIES, Metric, defined_metrics, metrics_of

METRICS = defined_metrics()

# Each has as many values as there are models, routes, formats, statuses and stages: few, whatever clients send.
TAGS = {"model_id", "route", "response_format", "status", "stage", "reason", "callee"}

UNITS = {"Histogram": {"seconds", "bytes", "size"}, "Gauge": {"seconds", "bytes", "requests", "entries", "length"}}
"""What a name must say is measured: a histogram's at its end, a gauge's anywhere, as of bytes in flight."""


def test_metrics_of_each_kind_are_found() -> None:
    assert {metric.kind for metric in METRICS} == set(SERIES)


def made_up(folder: Path, text: str) -> ModuleType:
    file = folder / "made_up.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location("made_up", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_metrics_of_any_module_are_found_however_they_are_imported(tmp_path: Path) -> None:
    module = made_up(
        tmp_path,
        """
from collections import Counter as Count
from ray import serve
from ray.serve import metrics
from ray.util.metrics import Gauge as Measure
import deployments.telemetry.metrics as ours
TAGS = ("model_id",)
NUMBERS = Count("aab")
class Deployment:
    def __init__(self, model_id):
        self.one = metrics.Counter("one", description="The first.", tag_keys=TAGS)
        self.two = Measure("two", tag_keys=("stage", *TAGS))
        self.three = serve.metrics.Histogram("three", "The third.", [1, 2], TAGS)
        self.four = ours.KeptGauge("four", "The fourth.", TAGS, model_id=model_id)
""",
    )
    assert [metric[1:] for metric in metrics_of(module)] == [
        ("Counter", "one", "The first.", ("model_id",)),
        ("Gauge", "two", "", ("stage", "model_id")),
        ("Histogram", "three", "The third.", ("model_id",)),
        ("Gauge", "four", "The fourth.", ("model_id",)),
    ]


def test_a_metric_whose_name_cannot_be_read_is_noticed(tmp_path: Path) -> None:
    module = made_up(
        tmp_path, "from ray.serve.metrics import Counter\n\ndef made(name):\n    return Counter(name, 'x')\n"
    )
    with pytest.raises(ValueError, match="made_up:4"):
        metrics_of(module)


def test_each_name_is_defined_once() -> None:
    names = [metric.name for metric in METRICS]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_name_says_whose_it_is_and_in_which_unit(metric: Metric) -> None:
    assert re.fullmatch(r"sam2(_[a-z0-9]+)+", metric.name), metric.where
    words = metric.name.split("_")[1:]
    # Prometheus' base units only.
    assert not {"ms", "us", "milliseconds", "minutes", "kb", "mb", "mib", "gb", "percent"} & set(words), metric.where
    assert (words[-1] == "total") == (metric.kind == "Counter"), metric.where
    if metric.kind == "Histogram":
        assert words[-1] in UNITS["Histogram"], metric.where
    if metric.kind == "Gauge":
        assert UNITS["Gauge"] & set(words), metric.where


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_metric_is_described_and_its_tags_have_few_values(metric: Metric) -> None:
    assert re.fullmatch(r"[A-Z].+\.", metric.description), metric.where
    assert set(metric.tags) <= TAGS, metric.where
    assert len(set(metric.tags)) == len(metric.tags), metric.where


# ---- gauges


class Recorder:
    """Stands where Serve's Gauge stands: keeps what it is told."""

    def __init__(self, *_: Any) -> None:
        self.told: list[tuple[float, dict[str, str]]] = []
        self.default_tags: dict[str, str] = {}

    def set_default_tags(self, tags: dict[str, str]) -> None:
        self.default_tags = tags

    def set(self, value: float, tags: dict[str, str]) -> None:
        self.told.append((value, dict(tags)))
        # As Serve does.
        tags["added"] = "by Serve"


@pytest.fixture
def gauge(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(metrics, "Gauge", Recorder)
    monkeypatch.setattr(metrics, "KEEP_S", 0.02)
    return metrics.KeptGauge("sam2_queue_length", "What waits.", ("stage", "model_id"), model_id="tiny")


def test_the_last_value_of_each_tag_is_told_again(gauge: Any) -> None:
    gauge.set(3, stage="embed")
    gauge.set(1, stage="decode")
    gauge.set(2, stage="embed")
    recorder = gauge._gauge
    recorder.told.clear()
    gauge.repeat()
    # The keeper may do so at the same time.
    assert {(value, tags["stage"]) for value, tags in recorder.told} == {(2, "embed"), (1, "decode")}
    assert all(set(tags) == {"stage"} for _, tags in recorder.told)
    assert recorder.default_tags == {"model_id": "tiny"}


def test_it_needs_nobody_to_do_so(gauge: Any) -> None:
    assert metrics.KeptGauge._keeper is not None
    assert metrics.KeptGauge._keeper.is_alive()
    assert metrics.KeptGauge._keeper.daemon
    assert gauge in metrics.KeptGauge._all


def test_what_was_never_set_is_not_told(gauge: Any) -> None:
    gauge.repeat()
    assert gauge._gauge.told == []
