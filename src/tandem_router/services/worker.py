"""WorkerService: registers, shows and forgets workers. Served on the admin listener."""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from tandem.v1 import worker_pb2, worker_service_pb2_grpc
from tandem.v1 import worker_service_pb2 as pb
from tandem_router.errors import Reason, TandemError
from tandem_router.model.ids import JobId
from tandem_router.model.job import Job
from tandem_router.model.worker import Worker
from tandem_router.ports import Clock
from tandem_router.services.contract import InFlight, Registry
from tandem_router.services.guard import unimplemented
from tandem_router.wire.checks import duration, not_yet, present, text
from tandem_router.wire.filters import worker_matches
from tandem_router.wire.job import job_pb
from tandem_router.wire.paging import page
from tandem_router.wire.spec import credentials_of, refuse_what_is_not_carried_out, spec_of
from tandem_router.wire.worker import worker_pb

__all__ = ["WorkerServicer"]

Context = grpc.aio.ServicerContext[object, object]


class WorkerServicer(worker_service_pb2_grpc.WorkerServiceServicer):
    """Unpacks, calls the control loop, packs."""

    def __init__(self, registry: Registry, in_flight: InFlight, clock: Clock) -> None:
        self._registry = registry
        self._in_flight = in_flight
        self._clock = clock

    async def CreateWorker(self, request: pb.CreateWorkerRequest, context: Context) -> pb.CreateWorkerResponse:
        """Reserve the endpoint and begin to register."""
        text("request_id", request.request_id, most=128)
        # A missing spec reads as an empty one, which has no endpoint and is refused for that.
        spec = spec_of(request.spec)
        refuse_what_is_not_carried_out(spec)
        credentials = credentials_of(request.credentials)
        worker, job = await self._registry.create_worker(spec, credentials, request.request_id or None)
        return pb.CreateWorkerResponse(worker=worker_pb(worker, job), job=job_pb(job))

    async def GetWorker(self, request: pb.GetWorkerRequest, context: Context) -> pb.GetWorkerResponse:
        """One worker, from the moment of its creation."""
        worker = await self._registry.get_worker(request.worker_id)
        return pb.GetWorkerResponse(worker=(await self._pack([worker], request.include_load))[0])

    async def ListWorkers(self, request: pb.ListWorkersRequest, context: Context) -> pb.ListWorkersResponse:
        """A page of the workers that match, by creation time, then id."""
        workers = await self._registry.list_workers()
        revision = self._registry.revision
        matching = [worker for worker in workers if worker_matches(request.filter, worker)]
        matching.sort(key=lambda worker: (worker.created_at_s, worker.id))
        chosen, token = page(
            matching, lambda one: one.id, size=request.page_size, token=request.page_token, filters=request.filter
        )
        packed = await self._pack(chosen, request.include_load)
        return pb.ListWorkersResponse(workers=packed, next_page_token=token, revision=revision)

    async def DeleteWorker(self, request: pb.DeleteWorkerRequest, context: Context) -> pb.DeleteWorkerResponse:
        """Begin to drain and forget a worker."""
        if present(request, "expected_generation"):
            raise not_yet("expected_generation")
        drain_s = duration(request, "drain_timeout", request.drain_timeout)
        before = await self._registry.get_worker(request.worker_id)
        if drain_s is None:
            drain_s = before.spec.health.drain_settle_s
        job = await self._registry.delete_worker(request.worker_id, drain_s, False)
        try:
            worker = await self._registry.get_worker(request.worker_id)
        except TandemError as error:
            if error.reason is not Reason.WORKER_NOT_FOUND:
                raise
            worker = before  # it had nothing to drain and is gone already
        return pb.DeleteWorkerResponse(worker=worker_pb(worker, job), job=job_pb(job))

    async def ReplaceWorker(self, request: pb.ReplaceWorkerRequest, context: Context) -> pb.ReplaceWorkerResponse:
        """Not carried out yet."""
        raise unimplemented("ReplaceWorker")

    async def UpdateWorker(self, request: pb.UpdateWorkerRequest, context: Context) -> pb.UpdateWorkerResponse:
        """Not carried out yet."""
        raise unimplemented("UpdateWorker")

    async def DrainWorker(self, request: pb.DrainWorkerRequest, context: Context) -> pb.DrainWorkerResponse:
        """Not carried out yet."""
        raise unimplemented("DrainWorker")

    async def UndrainWorker(self, request: pb.UndrainWorkerRequest, context: Context) -> pb.UndrainWorkerResponse:
        """Not carried out yet."""
        raise unimplemented("UndrainWorker")

    async def WatchWorkers(  # type: ignore[override]  # grpc.aio also takes a coroutine; the stub knows one style
        self, request: pb.WatchWorkersRequest, context: Context
    ) -> None:
        """Not carried out yet."""
        raise unimplemented("WatchWorkers")

    async def _pack(self, workers: Sequence[Worker], include_load: bool) -> list[worker_pb2.Worker]:
        jobs: dict[JobId, Job] = {}
        if any(worker.current_job is not None for worker in workers):
            jobs = {job.id: job for job in await self._registry.list_jobs()}
        offset_s = self._clock.wall_s() - self._clock.monotonic_s()
        return [
            worker_pb(
                worker,
                None if worker.current_job is None else jobs.get(worker.current_job),
                in_flight={rank.dp_rank: self._in_flight(worker.rank_key(rank.dp_rank)) for rank in worker.ranks},
                include_load=include_load,
                wall_minus_monotonic_s=offset_s,
            )
            for worker in workers
        ]
