"""Filters of list requests as predicates; fields combine with AND, an empty field matches all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tandem.v1 import (
    job_pb2,
    job_service_pb2,
    pair_pb2,
    pair_service_pb2,
    worker_pb2,
    worker_service_pb2,
    worker_spec_pb2,
)
from tandem_router.model.ids import canonical_uuid
from tandem_router.model.job import Job
from tandem_router.model.pairing import PairView
from tandem_router.model.worker import Worker
from tandem_router.wire.checks import invalid

__all__ = [
    "checked_job_filter",
    "checked_pair_filter",
    "checked_worker_filter",
    "job_matches",
    "pair_matches",
    "worker_matches",
]


def checked_worker_filter(wanted: worker_service_pb2.WorkerFilter) -> worker_service_pb2.WorkerFilter:
    """The filter, if its values are known: with another it would match nothing, for ever and in silence."""
    _check_values(worker_spec_pb2.WorkerType, "filter.worker_types", wanted.worker_types)
    _check_values(worker_pb2.WorkerStatus, "filter.statuses", wanted.statuses)
    _check_values(worker_spec_pb2.RuntimeType, "filter.runtime_types", wanted.runtime_types)
    return wanted


def checked_job_filter(wanted: job_service_pb2.ListJobsRequest) -> job_service_pb2.ListJobsRequest:
    """As for workers."""
    _check_values(job_pb2.JobState, "states", wanted.states)
    _check_values(job_pb2.JobType, "types", wanted.types)
    return wanted


def checked_pair_filter(wanted: pair_service_pb2.PairFilter) -> pair_service_pb2.PairFilter:
    """As for workers, and its worker id must be one."""
    if wanted.worker_id and canonical_uuid(wanted.worker_id) is None:
        raise invalid("filter.worker_id", f'"{wanted.worker_id[:64]}" is not a UUID.')
    _check_values(pair_pb2.PairState, "filter.states", wanted.states)
    return wanted


def worker_matches(wanted: worker_service_pb2.WorkerFilter, worker: Worker) -> bool:
    """Whether a worker passes."""
    runtime = worker.spec.runtime_type or (worker.facts.runtime_type if worker.facts is not None else None)
    runtime_number = (
        worker_spec_pb2.RUNTIME_TYPE_UNSPECIFIED
        if runtime is None
        else worker_spec_pb2.RuntimeType.Value(f"RUNTIME_TYPE_{runtime.value}")
    )
    kind = worker_spec_pb2.WorkerType.Value(f"WORKER_TYPE_{worker.worker_type.value}")
    status = worker_pb2.WorkerStatus.Value(f"WORKER_STATUS_{worker.status.value}")
    return (
        (not wanted.model or worker.serves(wanted.model))
        and (not wanted.worker_types or kind in wanted.worker_types)
        and (not wanted.statuses or status in wanted.statuses)
        and (not wanted.runtime_types or runtime_number in wanted.runtime_types)
        and all(worker.spec.labels.get(key) == value for key, value in wanted.labels.items())
    )


def job_matches(wanted: job_service_pb2.ListJobsRequest, job: Job) -> bool:
    """Whether a job passes; ids compare as parsed values."""
    return (
        (not wanted.worker_id or canonical_uuid(wanted.worker_id) == job.worker_id)
        and (not wanted.states or job_pb2.JobState.Value(f"JOB_STATE_{job.state.value}") in wanted.states)
        and (not wanted.types or job_pb2.JobType.Value(f"JOB_TYPE_{job.type.value}") in wanted.types)
    )


def pair_matches(wanted: pair_service_pb2.PairFilter, pair: PairView) -> bool:
    """Whether a pair passes; ids compare as parsed values."""
    workers = {pair.decode.worker_id} | ({pair.prefill.worker_id} if pair.prefill is not None else set())
    return (
        (not wanted.model or wanted.model == pair.model)
        and (not wanted.worker_id or canonical_uuid(wanted.worker_id) in workers)
        and (not wanted.states or pair_pb2.PairState.Value(f"PAIR_STATE_{pair.state.value}") in wanted.states)
        and (not wanted.request_id or wanted.request_id == pair.request_id)
    )


def _check_values(kind: Any, path: str, values: Iterable[int]) -> None:
    known = kind.values()
    for index, value in enumerate(values):
        if value == 0 or value not in known:
            raise invalid(f"{path}[{index}]", f"{value} is no value to filter by that this release knows.")
