"""Messages of watches to protobuf, and what a watch request asks for."""

from __future__ import annotations

from tandem.v1 import job_service_pb2, pair_service_pb2, watch_pb2, worker_service_pb2
from tandem_router.model.job import Job
from tandem_router.model.pairing import PairView
from tandem_router.model.watch import WatchEvent, WatchEventType, WorkerReading
from tandem_router.wire.checks import duration, present
from tandem_router.wire.job import job_pb
from tandem_router.wire.pair import pair_pb
from tandem_router.wire.worker import worker_pb

__all__ = ["job_event_pb", "pair_event_pb", "progress_interval_s", "resume_revision", "worker_event_pb"]

_TYPES = {kind: watch_pb2.WatchEventType.Value(f"WATCH_EVENT_TYPE_{kind.value}") for kind in WatchEventType}

LEAST_PROGRESS_S = 1.0


def worker_event_pb(event: WatchEvent[WorkerReading]) -> worker_service_pb2.WatchWorkersResponse:
    """One message of WatchWorkers; load is never in it."""
    reading = event.thing
    return worker_service_pb2.WatchWorkersResponse(
        type=_TYPES[event.type],
        revision=event.revision,
        worker=None if reading is None else worker_pb(reading.worker, reading.job),
    )


def pair_event_pb(event: WatchEvent[PairView]) -> pair_service_pb2.WatchPairsResponse:
    """One message of WatchPairs."""
    return pair_service_pb2.WatchPairsResponse(
        type=_TYPES[event.type],
        revision=event.revision,
        pair=None if event.thing is None else pair_pb(event.thing),
    )


def job_event_pb(event: WatchEvent[Job]) -> job_service_pb2.WatchJobResponse:
    """One message of WatchJob."""
    return job_service_pb2.WatchJobResponse(
        type=_TYPES[event.type], job=None if event.thing is None else job_pb(event.thing)
    )


def resume_revision(
    request: worker_service_pb2.WatchWorkersRequest | pair_service_pb2.WatchPairsRequest,
) -> int | None:
    """The revision to go on from; None = begin with a snapshot."""
    return request.from_revision if present(request, "from_revision") else None


def progress_interval_s(request: worker_service_pb2.WatchWorkersRequest) -> float | None:
    """Seconds between PROGRESS messages, at least 1; None = none."""
    return duration(request, "progress_interval", request.progress_interval, least_s=LEAST_PROGRESS_S)
