"""What the fake router says in the transcript: two workers, a pair, jobs and refusals of every kind."""

from __future__ import annotations

from typing import Any

from grpc_health.v1 import health_pb2
from tests.cli.fakes import FakeRouter, message
from tests.cli.things import (
    ADAPTERS,
    COUNTS,
    FAILED_JOB,
    J1,
    MODEL,
    OUTCOMES,
    PAIR,
    PLAN,
    W1,
    W2,
    WORKERS,
    drain_job,
)

from tandem.v1 import (
    adapter_service_pb2,
    cache_service_pb2,
    job_service_pb2,
    pair_plan_pb2,
    pair_service_pb2,
    profile_service_pb2,
    router_service_pb2,
    worker_pb2,
    worker_service_pb2,
)
from tandem_router.errors import Reason, TandemError

__all__ = ["furnish"]

_health: Any = health_pb2
"""The published stubs predate List."""


GONE = worker_pb2.Worker()
"""The second worker's last state."""
GONE.CopyFrom(WORKERS[1])
GONE.status = worker_pb2.WORKER_STATUS_GONE


def furnish(fake: FakeRouter) -> None:
    """Answer every rpc that the command line calls."""
    fake.says(
        WorkerService_ListWorkers=worker_service_pb2.ListWorkersResponse(workers=WORKERS, revision=41, counts=COUNTS),
        WorkerService_GetWorker=_get_worker,
        WorkerService_WatchWorkers=_watch_workers,
        WorkerService_CreateWorker=_create_worker,
        WorkerService_ReplaceWorker=worker_service_pb2.ReplaceWorkerResponse(worker=WORKERS[0], job=FAILED_JOB),
        WorkerService_UpdateWorker=_update_worker,
        WorkerService_DrainWorker=worker_service_pb2.DrainWorkerResponse(worker=WORKERS[0], job=drain_job(3)),
        WorkerService_UndrainWorker=worker_service_pb2.UndrainWorkerResponse(worker=WORKERS[0]),
        WorkerService_DeleteWorker=TandemError(Reason.JOB_QUEUE_FULL, "1000 jobs wait", retry_after_s=1.5),
    )
    fake.says(
        JobService_ListJobs=job_service_pb2.ListJobsResponse(jobs=[FAILED_JOB]),
        JobService_GetJob=job_service_pb2.GetJobResponse(job=FAILED_JOB),
        JobService_WatchJob=[
            *(job_service_pb2.WatchJobResponse(job=drain_job(legs)) for legs in (3, 2, 2)),
            job_service_pb2.WatchJobResponse(job=drain_job(0, is_done=True)),
        ],
        JobService_CancelJob=TandemError(Reason.JOB_FINISHED, "the job has ended", metadata={"job_id": J1}),
        PairService_ListPairs=pair_service_pb2.ListPairsResponse(pairs=[PAIR], revision=7),
        PairService_WatchPairs=[
            message(pair_service_pb2.WatchPairsResponse, type="WATCH_EVENT_TYPE_SYNCED", revision="7"),
            pair_service_pb2.WatchPairsResponse(type="WATCH_EVENT_TYPE_ADDED", revision=8, pair=PAIR),
        ],
        PairService_PlanPair=_plan,
        PairService_ReservePair=_reserved(),
        PairService_ReleasePair=pair_service_pb2.ReleasePairResponse(pair=PAIR),
    )
    fake.says(
        AdapterService_LoadAdapter=_load_adapter,
        AdapterService_UnloadAdapter=adapter_service_pb2.UnloadAdapterResponse(outcomes=OUTCOMES[:1]),
        AdapterService_GetAdapter=_get_adapter,
        AdapterService_ListAdapters=adapter_service_pb2.ListAdaptersResponse(adapters=ADAPTERS),
        CacheService_FlushCache=_flush,
        ProfileService_StartProfile=profile_service_pb2.StartProfileResponse(outcomes=OUTCOMES[:1]),
        ProfileService_StopProfile=TandemError(
            Reason.RUNTIME_CANNOT_PROFILE,
            f"worker {W1}: no such rpc",
            metadata={"worker_id": W1, "failed_workers": "1"},
        ),
    )
    fake.says(
        RouterService_ListModels=router_service_pb2.ListModelsResponse(models=[MODEL]),
        RouterService_GetModel=router_service_pb2.GetModelResponse(model=MODEL),
        Health_Check=health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING),
        Health_Watch=[health_pb2.HealthCheckResponse(status=status) for status in (3, 1, 2)],
        Health_List=message(
            _health.HealthListResponse,
            statuses={"": {"status": "SERVING"}, "readiness": {"status": "NOT_SERVING"}},
        ),
    )


def _get_worker(request: worker_service_pb2.GetWorkerRequest) -> Any:
    return worker_service_pb2.GetWorkerResponse(worker=WORKERS[0] if request.worker_id == W1 else WORKERS[1])


def _watch_workers(request: worker_service_pb2.WatchWorkersRequest) -> Any:
    if request.HasField("from_revision") and request.from_revision < 10:
        return TandemError(Reason.REVISION_COMPACTED, "5 is too old", metadata={"oldest_revision": "10"})
    response = worker_service_pb2.WatchWorkersResponse
    events = [] if request.HasField("from_revision") else [response(type="WATCH_EVENT_TYPE_SNAPSHOT", revision=41)]
    for event in events:
        event.worker.CopyFrom(WORKERS[0])
    events.append(response(type="WATCH_EVENT_TYPE_SYNCED", revision=41))
    if not request.stop_after_synced:
        events.append(response(type="WATCH_EVENT_TYPE_REMOVED", revision=42, worker=GONE))
    return events


def _create_worker(request: worker_service_pb2.CreateWorkerRequest) -> Any:
    if request.spec.url == "grpc://taken:1":
        return TandemError(Reason.WORKER_ALREADY_EXISTS, "a live worker has it", metadata={"worker_id": W1})
    if request.spec.priority > 1000:
        return TandemError(Reason.INVALID_REQUEST, "2000 is above 1000", field="spec.priority")
    return worker_service_pb2.CreateWorkerResponse(worker=WORKERS[0], job=FAILED_JOB)


def _update_worker(request: worker_service_pb2.UpdateWorkerRequest) -> Any:
    if request.HasField("expected_generation") and request.expected_generation != WORKERS[0].generation:
        return TandemError(
            Reason.GENERATION_MISMATCH,
            "the worker has generation 4, not 3",
            metadata={"generation": "4", "expected_generation": "3", "worker_id": W1},
        )
    return worker_service_pb2.UpdateWorkerResponse(worker=WORKERS[0])


def _load_adapter(request: adapter_service_pb2.LoadAdapterRequest) -> Any:
    outcomes = OUTCOMES if request.workers.model else OUTCOMES[:1]
    return adapter_service_pb2.LoadAdapterResponse(adapter=ADAPTERS[0], outcomes=outcomes)


def _get_adapter(request: adapter_service_pb2.GetAdapterRequest) -> Any:
    if request.name != "german":
        return TandemError(Reason.ADAPTER_NOT_FOUND, f"no worker has the adapter {request.name}", field="name")
    return adapter_service_pb2.GetAdapterResponse(adapter=ADAPTERS[0])


def _flush(request: cache_service_pb2.FlushCacheRequest) -> Any:
    outcomes = OUTCOMES if request.workers.model else OUTCOMES[: len(request.workers.worker_ids)]
    return cache_service_pb2.FlushCacheResponse(outcomes=outcomes)


def _plan(request: pair_service_pb2.PlanPairRequest) -> Any:
    if request.request.model != "lost":
        return pair_service_pb2.PlanPairResponse(plan=PLAN)
    plan = message(
        pair_plan_pb2.PairPlan,
        failure={"reason": "NO_READY_WORKER", "message": "no decode worker of lost is READY"},
        decodeCandidates=[
            {"worker": {"workerId": W2}, "refusal": {"reason": "WORKER_NOT_READY", "message": "it is DRAINING"}}
        ],
    )
    return pair_service_pb2.PlanPairResponse(plan=plan)


def _reserved() -> Any:
    return message(
        pair_service_pb2.ReservePairResponse,
        pair={
            "id": PAIR.id,
            "state": "PAIR_STATE_RESERVED",
            "connector": "KV_CONNECTOR_RENDEZVOUS",
            "handoff": {"rendezvous": {"room": {"number": 1030}}},
        },
        prefill={"worker": {"workerId": W1, "dpRank": 0}, "url": "grpc://a:1", "workerRequestId": "x"},
        decode={"worker": {"workerId": W2}, "url": "grpc://b:20", "workerRequestId": "y"},
    )
