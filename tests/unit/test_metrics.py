"""Gauges that are told again and again, since Ray forgets those that were not set for a while."""

from typing import Any

import pytest

from deployments.telemetry import metrics


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
