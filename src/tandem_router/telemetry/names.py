"""Every metric and span attribute by name: the one list that instruments, docs and dashboard are checked against.

Names of OpenTelemetry's rpc and gen_ai conventions where those have one (semantic conventions 1.45), else `tandem.*`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = [
    "EMBED_METHOD",
    "FRACTIONS_S",
    "LATENCIES_S",
    "METHOD",
    "METRICS",
    "PROVIDER",
    "Kind",
    "Metric",
    "prometheus_names",
]

METHOD = "tandem.v1.RouterService/Generate"
EMBED_METHOD = "tandem.v1.RouterService/Embed"
PROVIDER = "tandem"

LATENCIES_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Bucket bounds of phases and requests, seconds: 1 ms to 60 s where TTFT lies, then whole answers."""
FRACTIONS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Bucket bounds of what should be milliseconds: time per output token and loop lag."""


class Kind(enum.StrEnum):
    """Of instrument; the value is Prometheus's word."""

    COUNTER = "counter"
    HISTOGRAM = "histogram"
    GAUGE = "gauge"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as OpenTelemetry names it."""

    name: str
    kind: Kind
    unit: str
    """UCUM: "s", or a word in braces for a count of things."""
    labels: tuple[str, ...]
    meaning: str
    buckets: tuple[float, ...] = ()


def _of(name: str, kind: Kind, unit: str, labels: str, meaning: str, buckets: tuple[float, ...] = ()) -> Metric:
    return Metric(name, kind, unit, tuple(labels.split()), meaning, buckets)


_MODEL = "gen_ai.request.model"
_OPERATION = "gen_ai.operation.name"
_C, _H, _G = Kind.COUNTER, Kind.HISTOGRAM, Kind.GAUGE

METRICS = (
    _of("rpc.server.call.duration", _H, "s", "rpc.method rpc.response.status_code error.type",
        "Calls of every rpc of ours, from the handler's start to the status.", LATENCIES_S),
    _of("gen_ai.server.request.duration", _H, "s", f"{_OPERATION} {_MODEL} error.type",
        "Generate and Embed calls that were let in, from the door to the end.", LATENCIES_S),
    _of("gen_ai.server.time_to_first_token", _H, "s", f"{_OPERATION} {_MODEL}",
        "From the door to the first token of the call, failed attempts included.", LATENCIES_S),
    _of("gen_ai.server.time_per_output_token", _H, "s", f"{_OPERATION} {_MODEL}",
        "Mean of one stream: decode phase / (tokens of the first choice - 1). One observation per finished call with "
        "at least two tokens, none per token.", FRACTIONS_S),
    _of("tandem.request.phase.duration", _H, "s", f"{_MODEL} phase",
        "Phases of finished Generate calls: queue, prefill, transfer, first_token, decode; they sum to the total.",
        LATENCIES_S),
    _of("tandem.requests", _C, "{request}", f"{_MODEL} code reason",
        "Generate and Embed calls that ended, those without a place included; reason is OK or a row of errors.md. "
        "Calls with wrong fields are in rpc.server.call.duration alone."),
    _of("tandem.tokens", _C, "{token}", f"{_MODEL} gen_ai.token.type",
        "Tokens of finished calls: input, output, and cached (a part of input)."),
    _of("tandem.attempts", _C, "{attempt}", "handshake reason",
        "Attempts that ended; reason is OK or why it was lost."),
    _of("tandem.legs", _C, "{leg}", "role outcome",
        "Legs that closed: done, failed, or aborted with their attempt."),
    _of("tandem.jobs", _C, "{job}", "type state", "Jobs that ended: SUCCEEDED, FAILED or CANCELLED."),
    _of("tandem.worker.status.changes", _C, "{change}", "status",
        "Changes of any worker's status to this one."),
    _of("tandem.requests.live", _G, "{request}", "", "Generate and Embed calls that run now."),
    _of("tandem.requests.queued", _G, "{request}", "", "Generate and Embed calls that wait to be admitted."),
    _of("tandem.attempts.live", _G, "{attempt}", "",
        "Pairs, and aggregated attempts, with an open leg; each input of an Embed call that runs is one."),
    _of("tandem.rooms.live", _G, "{room}", "", "Bootstrap rooms in use."),
    _of("tandem.workers", _G, "{worker}", "status type", "Registered workers."),
    _of("tandem.worker.in_flight", _G, "{leg}", "worker_id dp_rank",
        "Open legs on a rank in the worker's present life; the first 1,000 ranks, the rest summed as worker_id other."),
    _of("tandem.loop.lag", _H, "s", "", "How late a timer of the event loop fired, looked at 4 times a second.",
        FRACTIONS_S),
)  # fmt: skip


def prometheus_names(metric: Metric) -> tuple[str, ...]:
    """The names of a metric's samples in Prometheus's text: unit and suffixes as the exporter writes them."""
    name = metric.name.replace(".", "_")
    if metric.unit == "s":
        name += "_seconds"
    if metric.kind is Kind.COUNTER:
        return (f"{name}_total",)
    if metric.kind is Kind.HISTOGRAM:
        return (f"{name}_bucket", f"{name}_count", f"{name}_sum")
    return (name,)
