"""Everything of telemetry that one router has, put together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from tandem_router.telemetry.access_log import AccessLog
from tandem_router.telemetry.exporters import PrometheusListener, otlp_reader, otlp_spans, resource
from tandem_router.telemetry.instruments import Instruments
from tandem_router.telemetry.observer import TelemetryObserver
from tandem_router.telemetry.readings import KnownModels, Pulse, Readings, Snapshot
from tandem_router.telemetry.spans import SpanBook

__all__ = ["PULSE_S", "Telemetry"]

PULSE_S = 0.25
"""Between two looks at the router."""


class Telemetry:
    """Build it before the runtime (which is given `observer`), `start` it on the loop, `close` it last."""

    def __init__(
        self,
        instance_id: str,
        *,
        otlp_endpoint: str = "",
        sample_ratio: float = 1.0,
        span_processors: Sequence[SpanProcessor] = (),
    ) -> None:
        """Args:
        otlp_endpoint: http://host:port or https://host:port of a collector (OTLP over gRPC); empty = none.
        sample_ratio: share of traces without a sampled or unsampled parent that are kept, in [0, 1].
        span_processors: further receivers of ended spans. Without one and without a collector no span is made, and
            legs carry the client's own trace context.

        Raises ImportError for an endpoint without the extra `otlp`, ValueError for a ratio out of range.
        """
        who = resource(instance_id)
        self._prometheus = PrometheusListener()
        readers: list[MetricReader] = [self._prometheus.reader]
        processors = list(span_processors)
        if otlp_endpoint:
            readers.append(otlp_reader(otlp_endpoint))
            processors.append(otlp_spans(otlp_endpoint))
        self._meters = MeterProvider(readers, who, shutdown_on_exit=False)
        self._tracers: TracerProvider | None = None
        spans: SpanBook | None = None
        if processors:
            sampler = ParentBased(TraceIdRatioBased(sample_ratio))
            self._tracers = TracerProvider(sampler, who, shutdown_on_exit=False)
            for processor in processors:
                self._tracers.add_span_processor(processor)
            spans = SpanBook(self._tracers.get_tracer("tandem_router"))
        self._access_log = AccessLog()
        self._models: KnownModels | None = None
        self._pulse: Pulse | None = None
        self._beating: asyncio.Task[None] | None = None
        self._is_shut = False
        instruments = Instruments(self._meters.get_meter("tandem_router"), self._readings)
        self.observer = TelemetryObserver(instruments, spans, self._access_log, self._label)
        self.makes_spans = spans is not None

    def start(self, address: str, look: Callable[[], Readings], workers: Snapshot) -> str:
        """Open the Prometheus listener and begin to look at the router; where it listens. Raises OSError.

        look: the router's readings. Both are called on the loop.
        """
        where = self._prometheus.open(address)
        self._models = KnownModels(workers)
        self._pulse = Pulse(look, self.observer.lag)
        self._beating = asyncio.create_task(self._pulse.run(PULSE_S), name="telemetry")
        self._access_log.start()
        return where

    async def close(self) -> None:
        """Stop, and send what waits to be sent, for at most some seconds. Idempotent."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
            self._beating = None
        await asyncio.to_thread(self._shut)

    def _shut(self) -> None:
        if self._is_shut:
            return
        self._is_shut = True
        self._prometheus.close()
        self._access_log.close()
        if self._tracers is not None:
            self._tracers.shutdown()
        self._meters.shutdown()

    def _readings(self) -> Readings:
        return Readings() if self._pulse is None else self._pulse.readings

    def _label(self, name: str) -> str:
        return "other" if self._models is None else self._models.label(name)
