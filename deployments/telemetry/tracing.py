"""Tracing: spans of a request's stages, inside those that Ray Serve makes of its hops, and where they are sent.

Spans are recorded only where Serve's `tracing_config` (or RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH) turns tracing on, and
then for `sampling_ratio` of the requests. Elsewhere a span is a no-op of some microseconds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace

TRACER = "segment-anything-2"


@contextmanager
def span(name: str, **attributes: str | int | float) -> Iterator[None]:
    """A span around the block, below the one that is current.

    Args:
        name: of the stage.
        attributes: of the span; never anything of the image itself.
    """
    # Outside of a hop that is sampled, Serve leaves no span current. One without a parent would be a trace of its own.
    if not trace.get_current_span().get_span_context().is_valid:
        yield
        return
    with trace.get_tracer(TRACER).start_as_current_span(name, attributes=attributes):
        yield


def otlp() -> list[Any]:
    """Span processors that send spans to an OpenTelemetry collector, over HTTP: for `exporter_import_path`.

    The standard variables say where, such as OTEL_EXPORTER_OTLP_ENDPOINT (by default http://localhost:4318), and set
    headers and certificates.
    """
    # Imported where tracing is on; elsewhere nobody needs it.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return [BatchSpanProcessor(OTLPSpanExporter())]
