"""The three watches over grpcio: WatchWorkers, WatchPairs and WatchJob.

Headers go out just before the first message, which comes at once: every watch has at least SYNCED, or a job's state, to
say.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc

from tandem.v1 import job_service_pb2, pair_service_pb2, worker_service_pb2
from tandem_router.errors import Reason, TandemError
from tandem_router.model.watch import WatchEvent
from tandem_router.runtime.watch import Watches, WatchOptions
from tandem_router.runtime.watch_call import WatchCall
from tandem_router.services.headers import Headers
from tandem_router.wire.filters import checked_pair_filter, checked_worker_filter, pair_matches, worker_matches
from tandem_router.wire.watch import (
    job_event_pb,
    pair_event_pb,
    progress_interval_s,
    resume_revision,
    worker_event_pb,
)

__all__ = ["watch_job", "watch_pairs", "watch_workers"]

Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")


async def watch_workers(watches: Watches, request: worker_service_pb2.WatchWorkersRequest, context: Context) -> None:
    """Write the watch until it ends; raises TandemError."""
    options = WatchOptions(resume_revision(request), request.stop_after_synced, progress_interval_s(request))
    wanted = checked_worker_filter(request.filter)
    headers = Headers(context)
    call = watches.workers(
        options, lambda reading: worker_matches(wanted, reading.worker), _writer(context, headers, worker_event_pb)
    )
    await _served(call, context, headers)


async def watch_pairs(watches: Watches, request: pair_service_pb2.WatchPairsRequest, context: Context) -> None:
    """Write the watch until it ends; raises TandemError."""
    options = WatchOptions(resume_revision(request), request.stop_after_synced)
    wanted = checked_pair_filter(request.filter)
    headers = Headers(context)
    call = watches.pairs(options, lambda pair: pair_matches(wanted, pair), _writer(context, headers, pair_event_pb))
    await _served(call, context, headers)


async def watch_job(watches: Watches, request: job_service_pb2.WatchJobRequest, context: Context) -> None:
    """Write every state of the job that the reader is fast enough for, and the final one; raises TandemError."""
    headers = Headers(context)
    call = watches.job(request.job_id, request.stop_after_synced, _writer(context, headers, job_event_pb))
    await _served(call, context, headers)


async def _served(call: WatchCall, context: Context, headers: Headers) -> None:
    # A stalled client's cancel is no CancelledError for a blocked handler; the callback fires in every case.
    context.add_done_callback(lambda _: call.end())  # type: ignore[arg-type]  # the stub wants a class of its own
    try:
        await call.result()
    finally:
        call.end()
        await headers.settled()


def _writer(
    context: Context, headers: Headers, pack: Callable[[WatchEvent[T]], Any]
) -> Callable[[WatchEvent[T]], Awaitable[None]]:
    async def write(event: WatchEvent[T]) -> None:
        try:
            await headers.sent()
            await context.write(pack(event))
        except Exception as error:
            # grpcio raises private types when the peer is gone (ExecuteBatchError, UsageError, ...).
            raise TandemError(Reason.REQUEST_CANCELLED, "The client's stream has ended.") from error

    return write
