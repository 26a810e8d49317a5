"""WorkerService: registers, shows, changes, drains and forgets workers. Served on the admin listener."""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from tandem.v1 import worker_pb2, worker_service_pb2_grpc
from tandem.v1 import worker_service_pb2 as pb
from tandem_router.errors import Reason, TandemError
from tandem_router.model.ids import JobId
from tandem_router.model.job import Job
from tandem_router.model.worker import CredentialsPatch, Worker
from tandem_router.ports import Clock
from tandem_router.runtime.watch import Watches
from tandem_router.services.contract import InFlight, Registry
from tandem_router.services.watch import watch_workers
from tandem_router.wire.checks import duration, text
from tandem_router.wire.filters import checked_worker_filter, worker_matches
from tandem_router.wire.job import job_pb
from tandem_router.wire.paging import ordered_page
from tandem_router.wire.spec import credentials_of, credentials_patch_of, refuse_what_is_not_carried_out, spec_of
from tandem_router.wire.spec_patch import patch_of
from tandem_router.wire.worker import worker_counts_pb, worker_pb

__all__ = ["WorkerServicer"]

Context = grpc.aio.ServicerContext[object, object]
_Fenced = (
    pb.ReplaceWorkerRequest
    | pb.UpdateWorkerRequest
    | pb.DeleteWorkerRequest
    | pb.DrainWorkerRequest
    | pb.UndrainWorkerRequest
)


class WorkerServicer(worker_service_pb2_grpc.WorkerServiceServicer):
    """Unpacks, calls the control loop, packs."""

    def __init__(self, registry: Registry, in_flight: InFlight, clock: Clock, watches: Watches) -> None:
        self._registry = registry
        self._in_flight = in_flight
        self._clock = clock
        self._watches = watches

    async def CreateWorker(self, request: pb.CreateWorkerRequest, context: Context) -> pb.CreateWorkerResponse:
        """Reserve the endpoint and begin to register."""
        text("request_id", request.request_id, most=128)
        # A missing spec reads as an empty one, which has no endpoint and is refused for that.
        spec = spec_of(request.spec)
        refuse_what_is_not_carried_out(spec)
        credentials = credentials_of(request.credentials)
        worker, job = await self._registry.create_worker(spec, credentials, request.request_id or None)
        return pb.CreateWorkerResponse(worker=self._one(worker, job), job=None if job is None else job_pb(job))

    async def GetWorker(self, request: pb.GetWorkerRequest, context: Context) -> pb.GetWorkerResponse:
        """One worker, from the moment of its creation."""
        worker = await self._registry.get_worker(request.worker_id)
        return pb.GetWorkerResponse(worker=(await self._pack([worker], request.include_load))[0])

    async def ListWorkers(self, request: pb.ListWorkersRequest, context: Context) -> pb.ListWorkersResponse:
        """A page of the workers that match, by creation time, then id."""
        wanted = checked_worker_filter(request.filter)
        workers = await self._registry.list_workers()
        revision = self._registry.revision
        matching = [worker for worker in workers if worker_matches(wanted, worker)]
        chosen, token = ordered_page(
            matching,
            lambda worker: (worker.created_at_s, worker.id),
            size=request.page_size,
            token=request.page_token,
            filters=request.filter,
        )
        packed = await self._pack(chosen, request.include_load)
        return pb.ListWorkersResponse(
            workers=packed, next_page_token=token, revision=revision, counts=worker_counts_pb(matching)
        )

    async def ReplaceWorker(self, request: pb.ReplaceWorkerRequest, context: Context) -> pb.ReplaceWorkerResponse:
        """Begin to register a worker anew under another spec."""
        spec = spec_of(request.spec)
        refuse_what_is_not_carried_out(spec)
        worker, job = await self._registry.replace_worker(
            request.worker_id, spec, _credentials(request), _generation(request)
        )
        return pb.ReplaceWorkerResponse(worker=self._one(worker, job), job=job_pb(job))

    async def UpdateWorker(self, request: pb.UpdateWorkerRequest, context: Context) -> pb.UpdateWorkerResponse:
        """Change some fields of a worker's spec."""
        worker, job = await self._registry.update_worker(
            request.worker_id, patch_of(request), _credentials(request), _generation(request)
        )
        packed = (await self._pack([worker], include_load=False))[0]
        return pb.UpdateWorkerResponse(worker=packed, job=None if job is None else job_pb(job))

    async def DeleteWorker(self, request: pb.DeleteWorkerRequest, context: Context) -> pb.DeleteWorkerResponse:
        """Begin to drain and forget a worker."""
        drain_s = duration(request, "drain_timeout", request.drain_timeout)
        before = await self._registry.get_worker(request.worker_id)
        job = await self._registry.delete_worker(request.worker_id, drain_s, False, _generation(request))
        try:
            worker = await self._registry.get_worker(request.worker_id)
        except TandemError as error:
            if error.reason is not Reason.WORKER_NOT_FOUND:
                raise
            worker = before  # it had nothing to drain and is gone already
        return pb.DeleteWorkerResponse(worker=self._one(worker, job), job=job_pb(job))

    async def DrainWorker(self, request: pb.DrainWorkerRequest, context: Context) -> pb.DrainWorkerResponse:
        """Take a worker out of routing and wait for its requests to end."""
        text("reason", request.reason, most=512)
        timeout_s = duration(request, "timeout", request.timeout)
        worker, job = await self._registry.drain_worker(
            request.worker_id, timeout_s, request.reason, _generation(request)
        )
        return pb.DrainWorkerResponse(worker=self._one(worker, job), job=job_pb(job))

    async def UndrainWorker(self, request: pb.UndrainWorkerRequest, context: Context) -> pb.UndrainWorkerResponse:
        """Take the wish to drain back."""
        worker = await self._registry.undrain_worker(request.worker_id, _generation(request))
        return pb.UndrainWorkerResponse(worker=(await self._pack([worker], include_load=False))[0])

    async def WatchWorkers(  # type: ignore[override]  # grpc.aio also takes a coroutine; the stub knows one style
        self, request: pb.WatchWorkersRequest, context: Context
    ) -> None:
        """Follow workers."""
        await watch_workers(self._watches, request, context)

    async def _pack(self, workers: Sequence[Worker], include_load: bool) -> list[worker_pb2.Worker]:
        if include_load:
            workers = await self._registry.with_loads(workers)
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
                open_legs=self._open_legs(worker),
            )
            for worker in workers
        ]

    def _one(self, worker: Worker, job: Job | None) -> worker_pb2.Worker:
        """A worker in the answer to a change, with the job that the change began."""
        return worker_pb(worker, job, open_legs=self._open_legs(worker))

    def _open_legs(self, worker: Worker) -> int | None:
        """Counted only where it is shown: counting looks at every busy slot."""
        return None if worker.leaving is None else self._registry.open_legs(worker.id)


def _generation(request: _Fenced) -> int | None:
    return request.expected_generation if request.HasField("expected_generation") else None


def _credentials(request: pb.ReplaceWorkerRequest | pb.UpdateWorkerRequest) -> CredentialsPatch | None:
    return credentials_patch_of(request.credentials) if request.HasField("credentials") else None
