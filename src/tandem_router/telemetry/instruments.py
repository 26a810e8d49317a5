"""The instruments of `names.METRICS`, and what the gauges read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, Observation

from tandem_router.telemetry.names import METRICS, Kind, Metric
from tandem_router.telemetry.readings import Readings

__all__ = ["Instruments"]


class Instruments:
    """Counters and histograms by name; gauges are read from the latest readings when an exporter asks."""

    def __init__(self, meter: Meter, readings: Callable[[], Readings]) -> None:
        """readings: called on an exporter's thread; must return a frozen value."""
        self._counters: dict[str, Counter] = {}
        self._histograms: dict[str, Histogram] = {}
        for metric in METRICS:
            unit, text = metric.unit, metric.meaning
            match metric.kind:
                case Kind.COUNTER:
                    self._counters[metric.name] = meter.create_counter(metric.name, unit, text)
                case Kind.HISTOGRAM:
                    self._histograms[metric.name] = meter.create_histogram(
                        metric.name, unit, text, explicit_bucket_boundaries_advisory=list(metric.buckets)
                    )
                case Kind.GAUGE:
                    meter.create_observable_gauge(metric.name, [_reader(metric, readings)], unit, text)

    def add(self, name: str, labels: Mapping[str, str], count: int = 1) -> None:
        """Count."""
        self._counters[name].add(count, labels)

    def record(self, name: str, value_s: float, labels: Mapping[str, str]) -> None:
        """Observe seconds."""
        self._histograms[name].record(value_s, labels)


def _reader(metric: Metric, readings: Callable[[], Readings]) -> Callable[[CallbackOptions], Iterable[Observation]]:
    rows = _GAUGES[metric.name]

    def read(_: CallbackOptions) -> Iterable[Observation]:
        for values, count in rows(readings()):
            yield Observation(count, dict(zip(metric.labels, values, strict=True)))

    return read


_Rows = Callable[[Readings], Iterable[tuple[tuple[str, ...], int]]]

_GAUGES: Mapping[str, _Rows] = {
    "tandem.requests.live": lambda now: [((), now.live_requests)],
    "tandem.requests.queued": lambda now: [((), now.queued_requests)],
    "tandem.attempts.live": lambda now: [((), now.live_attempts)],
    "tandem.rooms.live": lambda now: [((), now.live_rooms)],
    "tandem.workers": lambda now: now.workers.items(),
    "tandem.worker.in_flight": lambda now: now.in_flight.items(),
}
"""A gauge's values as (label values in the order of its labels, count)."""
