"""Tracing: spans for a request's stages, inside Ray Serve's spans for its hops, and the exporter that sends them.

Spans are recorded only where Serve's `tracing_config` (or RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH) turns tracing on, and
then for `sampling_ratio` of the requests. Elsewhere a span is a no-op that takes a few microseconds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace

TRACER = "segment-anything-2"


@contextmanager
def span(name: str, **attributes: str | int | float) -> Iterator[None]:
    """Records a span around the block, as a child of the current span.

    Args:
        name: of the stage.
        attributes: of the span; never any of the image's content.
    """
    # Outside a sampled hop there is no current span, and a span without a parent would start a trace of its own.
    if not trace.get_current_span().get_span_context().is_valid:
        yield
        return
    with trace.get_tracer(TRACER).start_as_current_span(name, attributes=attributes):
        yield


def otlp() -> list[Any]:
    """Returns span processors that send spans over HTTP to an OpenTelemetry collector: for `exporter_import_path`.

    The standard environment variables set its address (OTEL_EXPORTER_OTLP_ENDPOINT, by default http://localhost:4318),
    headers and certificates.
    """
    # Imported only where tracing is on.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return [BatchSpanProcessor(OTLPSpanExporter())]
