"""Spans of stages: below that of a hop, and none at all where the hop is not sampled."""

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from deployments.telemetry import tracing


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> TracerProvider:
    provider = TracerProvider()
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return provider


@pytest.fixture
def exporter(provider: TracerProvider) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


def test_a_stage_is_below_its_hop(provider: TracerProvider, exporter: InMemorySpanExporter) -> None:
    with provider.get_tracer("serve").start_as_current_span("hop"), tracing.span("embed", height=7):
        pass
    stage, hop = exporter.get_finished_spans()
    assert (stage.name, dict(stage.attributes or {})) == ("embed", {"height": 7})
    assert stage.parent is not None
    assert hop.context is not None
    assert stage.parent.span_id == hop.context.span_id


def test_a_hop_that_is_not_sampled_has_no_stages(exporter: InMemorySpanExporter) -> None:
    # Serve makes no span current then.
    with tracing.span("embed"), tracing.span("inside"):
        pass
    assert exporter.get_finished_spans() == ()
