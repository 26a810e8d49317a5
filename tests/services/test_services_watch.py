"""WatchWorkers, WatchPairs and WatchJob over real gRPC, as a client in any language meets them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import grpc
import pytest
from tests.services.fakes import J1, W1, WATCH, House
from tests.services.test_services_guard import refused

from tandem.v1 import (
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    kv_pb2,
    pair_pb2,
    pair_service_pb2,
    pair_service_pb2_grpc,
    watch_pb2,
    worker_pb2,
    worker_service_pb2,
    worker_service_pb2_grpc,
)
from tandem_router.core.events import (
    JobCreated,
    JobEnded,
    JobStarted,
    WorkerCreated,
    WorkerRemoved,
    WorkerStatusChanged,
)
from tandem_router.errors import Reason, TandemError
from tandem_router.model.ids import JobId, WorkerId
from tandem_router.model.job import JobState, JobType
from tandem_router.model.pairing import AbortInTransfer, PairState
from tandem_router.model.spec import WorkerSpec
from tandem_router.model.worker import WorkerStatus

SNAPSHOT, SYNCED = watch_pb2.WATCH_EVENT_TYPE_SNAPSHOT, watch_pb2.WATCH_EVENT_TYPE_SYNCED
ADDED, UPDATED = watch_pb2.WATCH_EVENT_TYPE_ADDED, watch_pb2.WATCH_EVENT_TYPE_UPDATED
REMOVED, PROGRESS = watch_pb2.WATCH_EVENT_TYPE_REMOVED, watch_pb2.WATCH_EVENT_TYPE_PROGRESS
WORKER, JOB = WorkerId(W1), JobId(J1)


def apply(house: House, kind: Any, *fields: object) -> None:
    revision = house.history.log.revision + 1
    house.history.apply([kind(revision, float(revision), *fields)])


def create(house: House, status: WorkerStatus | None = None) -> None:
    """A worker with a pending registration: two revisions, and a third where it has a status."""
    apply(house, WorkerCreated, WORKER, "grpc://h:1", WorkerSpec("grpc://h:1"), False, None, JOB)
    apply(house, JobCreated, JOB, JobType.REGISTER_WORKER, WORKER, ())
    if status is not None:
        apply(house, WorkerStatusChanged, WORKER, status)


def watch_workers(house: House, **fields: Any) -> Any:
    return worker_service_pb2_grpc.WorkerServiceStub(house.admin).WatchWorkers(
        worker_service_pb2.WatchWorkersRequest(**fields)
    )


def watch_pairs(house: House, **fields: Any) -> Any:
    return pair_service_pb2_grpc.PairServiceStub(house.admin).WatchPairs(pair_service_pb2.WatchPairsRequest(**fields))


def watch_job(house: House, **fields: Any) -> Any:
    return job_service_pb2_grpc.JobServiceStub(house.admin).WatchJob(job_service_pb2.WatchJobRequest(**fields))


async def read(call: Any, count: int) -> list[tuple[int, int]]:
    """Type and revision of the next messages."""
    async with asyncio.timeout(10):
        return [(message.type, message.revision) for message in [await call.read() for _ in range(count)]]


async def read_all(call: Any) -> list[Any]:
    found = []
    async with asyncio.timeout(10):
        while (message := await call.read()) is not grpc.aio.EOF:
            found.append(message)
    return found


async def ended(call: Any, found: list[int]) -> tuple[grpc.StatusCode, TandemError | None, str]:
    """How a watch that must fail ends; the revisions that came before go into `found`."""

    async def drain() -> None:
        async with asyncio.timeout(30):
            while (message := await call.read()) is not grpc.aio.EOF:
                found.append(message.revision)
        raise AssertionError(f"the watch ended with {await call.code()}")

    return await refused(drain())


async def until_none_runs(house: House) -> None:
    async with asyncio.timeout(10):
        while house.watches.statistics().running:  # noqa: ASYNC110 - nothing tells a test that a stream's end was seen
            await asyncio.sleep(0.005)


async def test_stop_after_synced_ends_by_itself_with_ok(house: House) -> None:
    create(house)
    call = watch_workers(house, stop_after_synced=True)
    assert [(message.type, message.revision) for message in await read_all(call)] == [(SNAPSHOT, 2), (SYNCED, 2)]
    assert await call.code() is grpc.StatusCode.OK


async def test_a_worker_is_followed_from_its_creation_to_its_end(house: House) -> None:
    call = watch_workers(house)
    assert await read(call, 1) == [(SYNCED, 0)]
    create(house, WorkerStatus.READY)
    apply(house, WorkerRemoved, WORKER, "deleted")
    assert await read(call, 4) == [(ADDED, 1), (UPDATED, 2), (UPDATED, 3), (REMOVED, 4)]
    call.cancel()


async def test_a_worker_is_sent_whole_with_its_job_and_a_tombstone_with_its_last_state(house: House) -> None:
    call = watch_workers(house)
    await read(call, 1)
    create(house, WorkerStatus.READY)
    apply(house, WorkerRemoved, WORKER, "deleted")
    await read(call, 3)
    tombstone = (await call.read()).worker
    assert (tombstone.id, tombstone.status, tombstone.revision) == (W1, worker_pb2.WORKER_STATUS_READY, 3)
    assert tombstone.current_job.id == J1
    call.cancel()


async def test_headers_come_before_anything_happens(house: House) -> None:
    call = watch_workers(house)
    async with asyncio.timeout(10):
        await call.initial_metadata()
    call.cancel()


async def test_what_leaves_the_filter_is_removed_and_what_enters_is_added(house: House) -> None:
    create(house, WorkerStatus.NOT_READY)
    wanted = worker_service_pb2.WorkerFilter(statuses=[worker_pb2.WORKER_STATUS_READY])
    call = watch_workers(house, filter=wanted)
    assert await read(call, 1) == [(SYNCED, 3)]
    apply(house, WorkerStatusChanged, WORKER, WorkerStatus.READY)
    assert await read(call, 1) == [(ADDED, 4)]
    apply(house, WorkerStatusChanged, WORKER, WorkerStatus.NOT_READY)
    left = await call.read()
    assert (left.type, left.revision, left.worker.status) == (REMOVED, 5, worker_pb2.WORKER_STATUS_NOT_READY)
    call.cancel()


async def test_a_resume_after_a_reconnect_sees_no_gap_and_no_repeat(house: House) -> None:
    create(house)
    first = watch_workers(house)
    seen = await read(first, 2)
    first.cancel()
    await until_none_runs(house)
    apply(house, WorkerStatusChanged, WORKER, WorkerStatus.READY)
    apply(house, WorkerStatusChanged, WORKER, WorkerStatus.NOT_READY)
    second = watch_workers(house, from_revision=seen[-1][1])
    assert await read(second, 3) == [(UPDATED, 3), (UPDATED, 4), (SYNCED, 4)]
    apply(house, WorkerRemoved, WORKER, "deleted")
    assert await read(second, 1) == [(REMOVED, 5)]
    second.cancel()


@pytest.mark.parametrize("from_revision", [0, 99])
async def test_a_revision_that_is_not_kept_is_out_of_range(house: House, from_revision: int) -> None:
    create(house)
    house.history.log.compact(1)
    code, error, message = await refused(watch_workers(house, from_revision=from_revision))
    assert code is grpc.StatusCode.OUT_OF_RANGE
    assert error is not None
    assert (error.reason, error.field) == (Reason.REVISION_COMPACTED, "from_revision")
    assert error.metadata["oldest_revision"] == "1"
    assert message.startswith("REVISION_COMPACTED: from_revision: ")


async def test_progress_more_often_than_every_second_is_refused(house: House) -> None:
    request = worker_service_pb2.WatchWorkersRequest()
    request.progress_interval.FromMilliseconds(500)
    call = worker_service_pb2_grpc.WorkerServiceStub(house.admin).WatchWorkers(request)
    code, error, _ = await refused(call)
    assert (code, error and error.field) == (grpc.StatusCode.INVALID_ARGUMENT, "progress_interval")


async def test_a_slow_watcher_is_told_and_resumes_without_a_gap(house: House) -> None:
    base = house.pairs.log.current()[0]
    call = watch_pairs(house)
    assert await read(call, 2) == [(SNAPSHOT, 1), (SYNCED, 1)]
    # 8 KiB a message: what grpcio and the transport keep for a client that does not read is full long before the end.
    last = 0
    async with asyncio.timeout(30):
        while not house.watches.statistics().slow_total:
            assert house.pairs.log.revision < WATCH.log_capacity
            last += 1
            house.pairs.show(replace(base, request_id=f"{last:08}" * 1024), now_s=0.0)
            await asyncio.sleep(0)
    found: list[int] = []
    code, error, _ = await ended(call, found)
    assert (code, error and error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.SLOW_CLIENT)
    assert found == list(range(2, found[-1] + 1))
    rest = await read_all(watch_pairs(house, from_revision=found[-1], stop_after_synced=True))
    assert [message.revision for message in rest[:-1]] == list(range(found[-1] + 1, house.pairs.log.revision + 1))


async def test_a_client_that_leaves_is_forgotten(house: House) -> None:
    calls = [watch_workers(house), watch_pairs(house)]
    for call in calls:
        await call.read()
    assert house.watches.statistics().running == 2
    for call in calls:
        call.cancel()
    await until_none_runs(house)


async def test_a_client_that_leaves_in_the_middle_of_a_stalled_write_is_forgotten(house: House) -> None:
    base = house.pairs.log.current()[0]
    call = watch_pairs(house)
    await read(call, 2)
    for number in range(WATCH.max_lag // 2):
        house.pairs.show(replace(base, request_id=f"{number:08}" * 65_536), now_s=0.0)
    await asyncio.sleep(0.05)
    assert house.watches.statistics().running == 1
    call.cancel()
    await until_none_runs(house)


async def test_a_shutdown_ends_watches_with_draining(house: House) -> None:
    call = watch_workers(house)
    await call.read()
    await house.watches.close()
    code, error, _ = await refused(call)
    assert (code, error and error.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.DRAINING)


@pytest.mark.parametrize("steps", range(8))
async def test_a_watch_that_ends_while_its_first_message_is_written_still_has_its_status(
    house: House, steps: int
) -> None:
    """grpcio would send the headers twice, refuse the status, and leave the client waiting for good."""
    call = watch_workers(house)
    asking = asyncio.ensure_future(refused(call))
    async with asyncio.timeout(10):
        while not house.watches.statistics().running:  # noqa: ASYNC110 - an event would come a step too late
            await asyncio.sleep(0)
        for _ in range(steps):
            await asyncio.sleep(0)
        await house.watches.close()
        code, error, _ = await asking
    assert (code, error and error.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.DRAINING)


async def test_a_pair_is_followed_to_its_last_state(house: House) -> None:
    pair = house.pairs.log.current()[0]
    call = watch_pairs(house)
    assert await read(call, 2) == [(SNAPSHOT, 1), (SYNCED, 1)]
    house.pairs.end(replace(pair, state=PairState.FAILED), now_s=0.0)
    shown, gone = await call.read(), await call.read()
    assert [(one.type, one.revision, one.pair.state) for one in (shown, gone)] == [
        (UPDATED, 2, pair_pb2.PAIR_STATE_FAILED), (REMOVED, 3, pair_pb2.PAIR_STATE_FAILED),
    ]  # fmt: skip
    call.cancel()


async def test_pairs_are_listed_at_the_revision_that_a_watch_goes_on_from(house: House) -> None:
    stub = pair_service_pb2_grpc.PairServiceStub(house.admin)
    listed = await stub.ListPairs(pair_service_pb2.ListPairsRequest())
    assert (listed.revision, [pair.revision for pair in listed.pairs]) == (1, [1])
    house.pairs.end(replace(house.pairs.log.current()[0], state=PairState.DONE), now_s=0.0)
    missed = await read_all(watch_pairs(house, from_revision=listed.revision, stop_after_synced=True))
    assert [(one.type, one.revision) for one in missed] == [(UPDATED, 2), (REMOVED, 3), (SYNCED, 3)]


async def test_a_pair_s_worker_filter_must_be_a_uuid(house: House) -> None:
    wanted = pair_service_pb2.PairFilter(worker_id="x")
    stub = pair_service_pb2_grpc.PairServiceStub(house.admin)
    for call in (watch_pairs(house, filter=wanted), stub.ListPairs(pair_service_pb2.ListPairsRequest(filter=wanted))):
        code, error, _ = await refused(call)
        assert (code, error and error.field) == (grpc.StatusCode.INVALID_ARGUMENT, "filter.worker_id")


async def test_a_pair_shows_when_its_legs_got_where_they_are_and_under_which_ids(house: House) -> None:
    base = house.pairs.log.current()[0]
    house.pairs.show(replace(base, decode_leg_id="leg", abort_in_transfer=AbortInTransfer.DEFER), now_s=7.0)
    pair = (await read_all(watch_pairs(house, stop_after_synced=True)))[0].pair
    assert (pair.decode.worker_request_id, pair.decode.sent_time.seconds, pair.commit_time.seconds) == ("leg", 7, 0)
    assert pair.abort_in_transfer == kv_pb2.ABORT_IN_TRANSFER_DEFER
    assert (pair.HasField("commit_time"), pair.HasField("end_time")) == (True, False)


async def test_a_job_is_followed_until_it_has_ended(house: House) -> None:
    create(house)
    call = watch_job(house, job_id=f"{{{J1}}}")
    first = await call.read()
    apply(house, JobStarted, JOB)
    second = await call.read()
    apply(house, JobEnded, JOB, JobState.SUCCEEDED)
    last = await read_all(call)
    assert [(one.type, one.job.state) for one in (first, second, *last)] == [
        (SNAPSHOT, job_pb2.JOB_STATE_PENDING),
        (UPDATED, job_pb2.JOB_STATE_RUNNING),
        (UPDATED, job_pb2.JOB_STATE_SUCCEEDED),
    ]
    assert await call.code() is grpc.StatusCode.OK


async def test_a_job_s_watch_stops_after_its_first_message_where_asked(house: House) -> None:
    create(house)
    assert len(await read_all(watch_job(house, job_id=J1, stop_after_synced=True))) == 1


@pytest.mark.parametrize(
    ("job_id", "code", "reason"),
    [
        ("x", grpc.StatusCode.INVALID_ARGUMENT, Reason.INVALID_REQUEST),
        (J1, grpc.StatusCode.NOT_FOUND, Reason.JOB_NOT_FOUND),
    ],
    ids=["no UUID", "unknown"],
)
async def test_a_job_that_is_not_there_can_not_be_followed(
    house: House, job_id: str, code: grpc.StatusCode, reason: Reason
) -> None:
    found, error, _ = await refused(watch_job(house, job_id=job_id))
    assert (found, error and error.reason, error and error.field) == (code, reason, "job_id")
