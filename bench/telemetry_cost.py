"""What telemetry costs a request: `python bench/telemetry_cost.py`, about five seconds, CPU microseconds per request.

The events are those of a request through a pair, as the relay sends them. There is no event per token, so a token costs
nothing; the log's lines are written to /dev/null, the spans are batched for an exporter that keeps them in memory.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence

from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tandem_router.core.relay_events import (
    AttemptPlanned,
    FirstToken,
    LegClosed,
    LegSent,
    RequestAccepted,
    RequestFinished,
)
from tandem_router.model.ids import PairId, RankKey, WorkerId
from tandem_router.model.pairing import HandshakeKind, LegRole, LegState
from tandem_router.model.stream import Attempt, ChoiceEnd, Finished, FinishReason, PhaseTimings, ServedBy, Usage
from tandem_router.telemetry.access_log import AccessLog
from tandem_router.telemetry.observer import TelemetryObserver
from tandem_router.telemetry.telemetry import Telemetry

REQUESTS = 2000
PREFILL, DECODE = RankKey(WorkerId("prefiller"), 1, 0), RankKey(WorkerId("decoder"), 1, 0)
TIMINGS = PhaseTimings(0.001, 0.002, 0.003, 0.0, 0.4, 0.406)


def one_request(observer: TelemetryObserver, name: str) -> None:
    """All events of one good request."""
    pair_id = PairId(f"pair {name}")
    observer.observe(RequestAccepted(name, "m", "anonymous", None))
    observer.observe(AttemptPlanned(name, pair_id, 1, HandshakeKind.RENDEZVOUS, PREFILL, DECODE, 4096))
    for role, key in ((LegRole.PREFILL, PREFILL), (LegRole.DECODE, DECODE)):
        observer.begin_leg(pair_id, f"{role} {name}", role, key)
        observer.observe(LegSent(pair_id, f"{role} {name}", role, key))
    observer.observe(FirstToken(name, pair_id))
    for role in LegRole:
        observer.observe(LegClosed(pair_id, f"{role} {name}", role, LegState.DONE))
    served = ServedBy(pair_id, HandshakeKind.RENDEZVOUS, DECODE.worker_id, 0, PREFILL.worker_id, 0, 4096, "nixl")
    choices = (ChoiceEnd(0, FinishReason.STOP, None, 100),)
    finished = Finished("m", choices, Usage(10, 100, 0), TIMINGS, served, (Attempt(1, served),))
    observer.observe(RequestFinished(name, finished))
    observer.call_ended("/tandem.v1.RouterService/Generate", "OK", None, 0.4)


def cost_us(observer: TelemetryObserver) -> float:
    """CPU of the whole process per request, the best of three runs after a warm-up."""
    best = float("inf")
    for run in range(4):
        began_s = time.process_time()
        for number in range(REQUESTS):
            one_request(observer, f"{run}-{number}")
        if run:
            best = min(best, (time.process_time() - began_s) / REQUESTS * 1e6)
    return best


def main() -> None:
    """Print the table."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - the access log's stream, until the end
    kinds: Sequence[tuple[str, int, Sequence[SpanProcessor]]] = (
        ("metrics", logging.WARNING, ()),
        ("metrics and access log", logging.INFO, ()),
        ("metrics, access log and spans", logging.INFO, (BatchSpanProcessor(InMemorySpanExporter()),)),
    )
    for name, level, processors in kinds:
        logging.getLogger("tandem.access").setLevel(level)
        log = AccessLog()
        log.start()
        print(f"{name:32} {cost_us(Telemetry('bench', span_processors=processors).observer):6.0f} us per request")
        log.close()


if __name__ == "__main__":
    main()
