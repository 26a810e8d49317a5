"""JobService: shows and stops jobs. Served on the admin listener."""

from __future__ import annotations

import grpc

from tandem.v1 import job_service_pb2 as pb
from tandem.v1 import job_service_pb2_grpc
from tandem_router.runtime.watch import Watches
from tandem_router.services.contract import Registry
from tandem_router.services.watch import watch_job
from tandem_router.wire.checks import text
from tandem_router.wire.filters import checked_job_filter, job_matches
from tandem_router.wire.job import job_pb
from tandem_router.wire.paging import ordered_page

__all__ = ["JobServicer"]

Context = grpc.aio.ServicerContext[object, object]


class JobServicer(job_service_pb2_grpc.JobServiceServicer):
    """Unpacks, calls the control loop, packs."""

    def __init__(self, registry: Registry, watches: Watches) -> None:
        self._registry = registry
        self._watches = watches

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:
        """One job."""
        return pb.GetJobResponse(job=job_pb(await self._registry.get_job(request.job_id)))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        """A page of the jobs that match, newest first."""
        wanted = checked_job_filter(request)
        matching = [job for job in await self._registry.list_jobs() if job_matches(wanted, job)]
        filters = pb.ListJobsRequest(worker_id=request.worker_id, states=request.states, types=request.types)
        chosen, token = ordered_page(
            matching,
            lambda job: (-job.created_at_s, job.id),
            size=request.page_size,
            token=request.page_token,
            filters=filters,
        )
        return pb.ListJobsResponse(jobs=[job_pb(job) for job in chosen], next_page_token=token)

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> pb.CancelJobResponse:
        """Ask a job to stop."""
        text("reason", request.reason, most=512)
        return pb.CancelJobResponse(job=job_pb(await self._registry.cancel_job(request.job_id, request.reason)))

    async def WatchJob(  # type: ignore[override]  # grpc.aio also takes a coroutine; the stub knows one style
        self, request: pb.WatchJobRequest, context: Context
    ) -> None:
        """Follow one job to its end."""
        await watch_job(self._watches, request, context)
