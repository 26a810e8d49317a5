"""Where spans and metrics go: Prometheus's text on a listener of its own, and a collector over OTLP."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from threading import Thread
from wsgiref.simple_server import WSGIServer

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from prometheus_client import CollectorRegistry, start_http_server

__all__ = ["PrometheusListener", "otlp_reader", "otlp_spans", "resource"]

_OTLP_INTERVAL_MS = 15_000
"""Between two exports of metrics; the usual scrape interval."""
_OTLP_TIMEOUT_S = 5


def resource(instance_id: str) -> Resource:
    """Who speaks: service.name, version and instance; OTEL_RESOURCE_ATTRIBUTES adds to it."""
    try:
        release = version("tandem-router")
    except PackageNotFoundError:
        release = "unknown"
    return Resource.create(
        {"service.name": "tandem-router", "service.version": release, "service.instance.id": instance_id}
    )


class PrometheusListener:
    """GET /metrics on a thread of its own, so that a busy loop is still measured."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.reader: MetricReader = PrometheusMetricReader(scope_info_enabled=False, registry=self._registry)
        self._running: tuple[WSGIServer, Thread] | None = None

    def open(self, address: str) -> str:
        """Listen on host:port (port 0 takes any) and say where; raises OSError."""
        host, _, port = address.rpartition(":")
        try:
            server, _ = self._running = start_http_server(int(port), host.strip("[]"), self._registry)
        except OSError as error:
            raise OSError(f"cannot listen on {address}: {error}") from error
        except (ValueError, OverflowError) as error:
            raise OSError(f"cannot listen on {address}: it is no host:port") from error
        return f"{host}:{server.server_port}"

    def close(self) -> None:
        """Stop listening; blocks at most half a second. Idempotent."""
        if self._running is None:
            return
        server, thread = self._running
        self._running = None
        server.shutdown()
        server.server_close()
        thread.join()


def otlp_reader(endpoint: str) -> MetricReader:
    """Metrics to a collector; raises ImportError without the extra `otlp`."""
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

    exporter = OTLPMetricExporter(endpoint=endpoint, timeout=_OTLP_TIMEOUT_S)
    return PeriodicExportingMetricReader(exporter, export_interval_millis=_OTLP_INTERVAL_MS)


def otlp_spans(endpoint: str) -> BatchSpanProcessor:
    """Spans to a collector, in batches on a thread; raises ImportError without the extra `otlp`."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    exporter: SpanExporter = OTLPSpanExporter(endpoint=endpoint, timeout=_OTLP_TIMEOUT_S)
    return BatchSpanProcessor(exporter)
