"""Which workers an operation is for, what it is, and how it went: between protobuf and model/."""

from __future__ import annotations

from collections.abc import Iterable

from tandem.v1 import cache_service_pb2, profile_service_pb2, worker_selection_pb2
from tandem_router.model.operations import FlushCache, StartProfile
from tandem_router.model.selection import WorkerOutcome, WorkerSelection
from tandem_router.wire.checks import at_most, duration, invalid, present, text, worker_id
from tandem_router.wire.scalars import failure_pb

__all__ = ["flush_of", "outcomes_pb", "selection_of", "start_profile_of"]

_MOST_WORKERS = 1000
_MOST_WAIT_S = 600.0
_MOST_PATH_BYTES = 2048
_MOST_ACTIVITIES = 16


def selection_of(message: worker_selection_pb2.WorkerSelection, path: str = "workers") -> WorkerSelection:
    """The workers that are meant, each once; raises INVALID_REQUEST, INVALID_WORKER_ID."""
    if bool(message.worker_ids) == bool(message.model):
        raise invalid(path, "Set exactly one of worker_ids and model.")
    at_most(f"{path}.worker_ids", message.worker_ids, _MOST_WORKERS)
    ids = [worker_id(f"{path}.worker_ids[{index}]", each) for index, each in enumerate(message.worker_ids)]
    return WorkerSelection(tuple(dict.fromkeys(ids)), text(f"{path}.model", message.model, most=256))


def flush_of(message: cache_service_pb2.FlushCacheRequest) -> FlushCache:
    """What to flush; raises INVALID_REQUEST."""
    return FlushCache(duration(message, "wait_idle", message.wait_idle, most_s=_MOST_WAIT_S) or 0.0)


def start_profile_of(message: profile_service_pb2.StartProfileRequest) -> StartProfile:
    """What to profile; raises INVALID_REQUEST."""
    at_most("activities", message.activities, _MOST_ACTIVITIES)
    return StartProfile(
        output_dir=text("output_dir", message.output_dir, most=_MOST_PATH_BYTES, in_bytes=True) or None,
        start_step=message.start_step if present(message, "start_step") else None,
        num_steps=message.num_steps if present(message, "num_steps") else None,
        activities=tuple(
            text(f"activities[{index}]", activity, least=1, most=64)
            for index, activity in enumerate(message.activities)
        ),
        with_stack=message.with_stack if present(message, "with_stack") else None,
        record_shapes=message.record_shapes if present(message, "record_shapes") else None,
        by_stage=message.by_stage,
    )


def outcomes_pb(outcomes: Iterable[WorkerOutcome]) -> list[worker_selection_pb2.WorkerOutcome]:
    """One message per worker, in order."""
    return [
        worker_selection_pb2.WorkerOutcome(
            worker_id=outcome.worker_id,
            message=outcome.message,
            failure=None if outcome.failure is None else failure_pb(outcome.failure),
        )
        for outcome in outcomes
    ]
