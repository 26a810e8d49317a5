"""An observer whose metrics and spans can be read in the test, and the events of one request through a pair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tandem_router.core.relay_events import AttemptPlanned, RequestAccepted, RequestKind
from tandem_router.model.ids import PairId, RankKey, WorkerId
from tandem_router.model.pairing import HandshakeKind, LegRole
from tandem_router.model.stream import Attempt, ChoiceEnd, Finished, FinishReason, PhaseTimings, ServedBy, Usage
from tandem_router.telemetry.access_log import AccessLog
from tandem_router.telemetry.instruments import Instruments
from tandem_router.telemetry.observer import TelemetryObserver
from tandem_router.telemetry.readings import Readings
from tandem_router.telemetry.spans import SpanBook

__all__ = ["DECODE", "PREFILL", "Bench", "begin", "bench", "finished"]

PREFILL, DECODE = RankKey(WorkerId("prefiller"), 1, 0), RankKey(WorkerId("decoder"), 1, 0)


@dataclass
class Bench:
    """The observer, and what came of its events."""

    observer: TelemetryObserver
    _reader: InMemoryMetricReader
    _exporter: InMemorySpanExporter

    def points(self, name: str) -> dict[frozenset[tuple[str, str]], float]:
        """A counter's values, or a histogram's sums, by labels."""
        data = self._reader.get_metrics_data()
        found = {}
        for resource in data.resource_metrics if data is not None else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    if metric.name == name:
                        for point in metric.data.data_points:
                            labels = frozenset(
                                (str(key), str(value)) for key, value in (point.attributes or {}).items()
                            )
                            found[labels] = point.sum if hasattr(point, "sum") else point.value
        return found

    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())


def bench(label: Callable[[str], str] = str, monotonic_s: Callable[[], float] = lambda: 0.0) -> Bench:
    """A fresh observer."""
    reader, exporter = InMemoryMetricReader(), InMemorySpanExporter()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    instruments = Instruments(meters.get_meter("test"), Readings)
    spans = SpanBook(tracers.get_tracer("test"))
    observer = TelemetryObserver(instruments, spans, AccessLog(), label, monotonic_s=monotonic_s)
    return Bench(observer, reader, exporter)


def begin(
    observer: TelemetryObserver,
    request_id: str,
    *,
    traceparent: str | None = None,
    kind: RequestKind = RequestKind.TEXT,
) -> PairId:
    """Accepted, planned, both legs begun."""
    pair_id = PairId(f"pair of {request_id}")
    observer.observe(RequestAccepted(request_id, "m", "anonymous", traceparent, kind))
    observer.observe(AttemptPlanned(request_id, pair_id, 1, HandshakeKind.RENDEZVOUS, PREFILL, DECODE, 4096))
    for role, key in ((LegRole.PREFILL, PREFILL), (LegRole.DECODE, DECODE)):
        observer.begin_leg(pair_id, f"{role} of {request_id}", role, key)
    return pair_id


def finished(pair_id: PairId, *, tokens: int = 11, decode_s: float = 0.5) -> Finished:
    """A good end with `tokens` tokens."""
    served = ServedBy(pair_id, HandshakeKind.RENDEZVOUS, DECODE.worker_id, 0, PREFILL.worker_id, 0, 4096)
    return Finished(
        model="m",
        choices=(ChoiceEnd(0, FinishReason.STOP, None, tokens),),
        usage=Usage(7, tokens, 3),
        timings=PhaseTimings(0.1, 0.2, 0.3, 0.0, decode_s, 0.6 + decode_s),
        served_by=served,
        attempts=(Attempt(1, served),),
    )
