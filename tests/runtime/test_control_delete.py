"""Deleting workers: nothing in flight is cut short, nothing deleted comes back."""

from __future__ import annotations

import asyncio
import math

import pytest
from tests.runtime.control_world import SlowStore, World, play

from tandem_router.errors import Reason, TandemError
from tandem_router.model.ids import RankKey
from tandem_router.model.job import JobState, JobType
from tandem_router.model.settings import JobSettings, RuntimeSettings
from tandem_router.model.spec import WorkerSpec
from tandem_router.model.worker import WorkerStatus

URL = "grpc://engine:30000"


async def gone(world: World, worker_id: str) -> bool:
    try:
        await world.control.get_worker(worker_id)
    except TandemError as error:
        return error.reason is Reason.WORKER_NOT_FOUND
    return False


@pytest.mark.parametrize("commit_s", [0.0, 0.003])
@pytest.mark.parametrize("delay_ms", range(20))
def test_a_delete_while_the_registration_runs_never_lets_the_worker_come_back(delay_ms: int, commit_s: float) -> None:
    """smg #1967: at whatever step the delete arrives."""

    async def scene(world: World) -> None:
        process = world.process(URL)
        worker, job = await world.create(WorkerSpec(URL))
        await asyncio.sleep(delay_ms / 1000)
        removal = await world.control.delete_worker(worker.id)
        registration = await world.control.get_job(job.id)
        if registration.state is JobState.CANCELLED:
            assert removal.state is JobState.SUCCEEDED
            assert await gone(world, worker.id)
        else:
            assert registration.state is JobState.SUCCEEDED, "it was READY before the delete"
        await asyncio.sleep(120)
        assert await gone(world, worker.id)
        assert process.open_clients == 0
        assert world.control.statistics().open_clients == 0
        assert world.control.statistics().probes == 0

    play(scene, seed=delay_ms, store=SlowStore(commit_s))


def test_a_delete_while_dialling_cancels_the_dial_and_frees_the_url_at_once() -> None:
    async def scene(world: World) -> None:
        world.dialer.gate = asyncio.Event()
        world.process(URL)
        worker, _ = await world.control.create_worker(WorkerSpec(URL))
        await asyncio.sleep(0.1)
        await world.control.delete_worker(worker.id)
        world.dialer.gate.set()
        again, _ = await world.control.create_worker(WorkerSpec(URL))
        await world.until(again.id, WorkerStatus.READY)
        assert again.id != worker.id

    play(scene)


def test_a_delete_waits_for_the_legs_in_flight_and_then_removes() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        for leg in ("a", "b", "c"):
            world.open_leg(worker, leg)
        job = await world.control.delete_worker(worker.id)
        assert job.type is JobType.REMOVE_WORKER
        await asyncio.sleep(5)
        draining = await world.control.get_worker(worker.id)
        assert draining.status is WorkerStatus.DRAINING
        assert draining.generation == worker.generation + 1
        assert (await world.control.get_job(job.id)).steps[0].detail == "waiting for 3 legs"
        assert world.control.fleet.client(worker.rank_key(0)) is not None
        for leg in ("a", "b", "c"):
            world.ledger.close(leg)
        ended = await world.ended(job.id, within_s=0.1)
        assert ended.state is JobState.SUCCEEDED
        assert await gone(world, worker.id)
        assert world.control.fleet.client(worker.rank_key(0)) is None

    play(scene)


def test_legs_of_another_worker_do_not_hold_a_delete_up() -> None:
    async def scene(world: World) -> None:
        worker, other = await world.ready(URL), await world.ready("grpc://other:1")
        world.open_leg(other, "x")
        job = await world.control.delete_worker(worker.id)
        assert (await world.ended(job.id, within_s=0.1)).state is JobState.SUCCEEDED
        world.ledger.close("x")

    play(scene)


@pytest.mark.parametrize(("stated_s", "waited_s"), [(None, 5.0), (10.0, 10.0), (0.0, 0.0)])
def test_a_delete_gives_up_waiting_at_its_drain_timeout(stated_s: float | None, waited_s: float) -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        world.open_leg(worker, "a")
        job = await world.control.delete_worker(worker.id, stated_s)
        started_s = world.clock.monotonic_s()
        ended = await world.ended(job.id)
        assert world.clock.monotonic_s() - started_s == pytest.approx(waited_s, abs=0.02)
        assert "1 leg still open at the deadline" in ended.steps[0].detail
        world.ledger.close("a")

    play(scene)


def test_a_delete_without_limit_waits_as_long_as_it_takes() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        world.open_leg(worker, "a")
        job = await world.control.delete_worker(worker.id, math.inf)
        await asyncio.sleep(3600)
        assert not (await world.control.get_job(job.id)).state.is_final
        world.ledger.close("a")
        await world.ended(job.id, within_s=0.1)

    play(scene)


def test_a_second_delete_while_draining_returns_the_same_job_and_one_after_it_not_found() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        world.open_leg(worker, "a")
        first = await world.control.delete_worker(worker.id)
        assert (await world.control.delete_worker(worker.id)).id == first.id
        world.ledger.close("a")
        await world.ended(first.id)
        with pytest.raises(TandemError) as caught:
            await world.control.delete_worker(worker.id)
        assert caught.value.reason is Reason.WORKER_NOT_FOUND

    play(scene)


def test_force_removes_a_draining_worker_at_once_within_the_same_job() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        world.open_leg(worker, "a")
        first = await world.control.delete_worker(worker.id)
        await asyncio.sleep(1)
        forced = await world.control.delete_worker(worker.id, force=True)
        assert (forced.id, forced.state) == (first.id, JobState.SUCCEEDED)
        assert await gone(world, worker.id)
        world.ledger.close("a")

    play(scene)


def test_a_delete_leaves_a_url_taken_until_the_drain_has_ended() -> None:
    """smg #1106: a late removal must not meet the successor at its URL."""

    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        world.open_leg(worker, "a")
        await world.control.delete_worker(worker.id)
        with pytest.raises(TandemError) as caught:
            await world.control.create_worker(WorkerSpec(URL))
        assert caught.value.metadata["worker_id"] == worker.id
        world.ledger.close("a")

    play(scene)


def test_an_ended_removals_job_stays_readable_until_its_time_is_over() -> None:
    settings = RuntimeSettings(jobs=JobSettings(history_ttl_s=60.0))

    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        job = await world.control.delete_worker(worker.id)
        await asyncio.sleep(59)
        assert (await world.control.get_job(job.id)).state is JobState.SUCCEEDED
        await asyncio.sleep(2)
        with pytest.raises(TandemError) as caught:
            await world.control.get_job(job.id)
        assert caught.value.reason is Reason.JOB_NOT_FOUND

    play(scene, settings=settings)


def test_a_failed_worker_is_deleted_at_once() -> None:
    settings = RuntimeSettings(jobs=JobSettings(max_connection_attempts=1))

    async def scene(world: World) -> None:
        worker, job = await world.create(WorkerSpec(URL))
        await world.ended(job.id)
        assert (await world.control.delete_worker(worker.id)).state is JobState.SUCCEEDED
        assert await gone(world, worker.id)

    play(scene, settings=settings)


def test_events_that_the_store_refuses_change_nothing() -> None:
    store = SlowStore(0.5)

    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        await asyncio.sleep(5)
        store.is_broken = True
        before = world.control.revision
        with pytest.raises(OSError, match="disk full"):
            await world.control.delete_worker(worker.id)
        assert world.control.revision == before
        store.is_broken = False

    play(scene, store=store)


def test_a_caller_that_leaves_during_the_commit_leaves_store_and_registry_equal() -> None:
    store = SlowStore(0.5)

    async def scene(world: World) -> None:
        caller = asyncio.create_task(world.control.create_worker(WorkerSpec(URL)))
        await asyncio.sleep(0.1)
        caller.cancel()
        await asyncio.sleep(1)
        assert [worker.url for worker in await world.control.list_workers()] == [URL]

    play(scene, store=store)


def test_closing_the_control_loop_in_the_middle_of_everything_leaves_no_task_and_no_connection() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        world.open_leg(worker, "a")
        await world.control.delete_worker(worker.id)
        world.process("grpc://slow:1", is_stuck=True)
        await world.control.create_worker(WorkerSpec("grpc://slow:1"))
        await world.control.create_worker(WorkerSpec("grpc://absent:1"))
        await asyncio.sleep(2)
        await world.control.close()
        assert all(process.open_clients == 0 for process in world.dialer.processes.values())
        assert world.control.fleet.client(RankKey(worker.id, worker.epoch, 0)) is None
        with pytest.raises(TandemError) as caught:
            await world.control.create_worker(WorkerSpec("grpc://new:1"))
        assert caught.value.reason is Reason.DRAINING

    play(scene)
