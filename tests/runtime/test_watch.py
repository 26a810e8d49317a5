"""Running watches in virtual time: who is woken, who is too slow, and what is left when they end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from tandem_router.core.events import JobCreated, JobEnded, JobForgotten, JobStarted, WorkerCreated
from tandem_router.core.registry import Registry
from tandem_router.core.watch_pairs import PairTable
from tandem_router.core.watch_workers import WorkerHistory
from tandem_router.errors import Reason, TandemError
from tandem_router.model.ids import JobId, PairId, RankKey, WorkerId
from tandem_router.model.job import JobState, JobType
from tandem_router.model.pairing import HandshakeKind, LegState, PairState, PairView
from tandem_router.model.settings import WatchSettings
from tandem_router.model.spec import WorkerSpec
from tandem_router.model.watch import WatchEvent
from tandem_router.runtime.watch import Watches, WatchOptions
from tandem_router.testing.sim_loop import SimLoop

KEY = RankKey(WorkerId("w"), 1, 0)
RESERVED = LegState.RESERVED
VIEW = PairView(
    PairId("p"), "r", 1, HandshakeKind.RENDEZVOUS, PairState.RESERVED, KEY, RESERVED, KEY, RESERVED, 1030, 0.0
)
JOB = JobId("00000000-0000-4000-8000-000000000009")
MAX_LAG = 32


class World:
    """Watches over tables that a test changes by hand, and one reader."""

    def __init__(self) -> None:
        self.history = WorkerHistory(Registry())
        self.pairs = PairTable(capacity=1_000)
        self.watches = Watches(self.history, self.pairs, WatchSettings(1_000, MAX_LAG))
        self.told: list[tuple[str, int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.jobs: list[JobState] = []

    async def send(self, event: WatchEvent[Any]) -> None:
        await self.gate.wait()
        self.told.append((event.type.value, event.revision))

    async def send_job(self, event: WatchEvent[Any]) -> None:
        await self.gate.wait()
        self.jobs.append(event.thing.state)

    def change(self, times: int = 1) -> None:
        for _ in range(times):
            self.pairs.show(replace(VIEW, room=self.pairs.log.revision), now_s=0.0)

    def apply(self, kind: Any, *fields: object) -> None:
        revision = self.history.log.revision + 1
        self.history.apply([kind(revision, float(revision), *fields)])

    def begin_job(self) -> None:
        worker = WorkerId("w")
        self.apply(WorkerCreated, worker, "grpc://h:1", WorkerSpec("grpc://h:1"), False, None, JOB)
        self.apply(JobCreated, JOB, JobType.REGISTER_WORKER, worker, ())


def play(scene: Callable[[World], Awaitable[None]]) -> None:
    """Run a scene; fails on a watch, a bell or a task that is left."""

    async def main() -> None:
        world = World()
        await scene(world)
        await world.watches.close()
        assert world.watches.statistics().running == 0
        assert world.history.followed_jobs == 0

    SimLoop(1).run(main())


def anything(_: object) -> bool:
    return True


async def reason_of(call: Any) -> Reason:
    with pytest.raises(TandemError) as caught:
        await call.result()
    return caught.value.reason


def test_stop_after_synced_ends_well() -> None:
    async def scene(world: World) -> None:
        world.change()
        await world.watches.pairs(WatchOptions(stop_after_synced=True), anything, world.send).result()
        assert world.told == [("SNAPSHOT", 1), ("SYNCED", 1)]
        assert world.watches.statistics().running == 0

    play(scene)


def test_a_waiting_reader_is_told_at_once() -> None:
    async def scene(world: World) -> None:
        call = world.watches.pairs(WatchOptions(), anything, world.send)
        await asyncio.sleep(100)
        before_s = asyncio.get_running_loop().time()
        world.change()
        while world.told[-1] != ("ADDED", 1):  # noqa: ASYNC110 - counts turns of the loop, not time
            await asyncio.sleep(0)
        assert asyncio.get_running_loop().time() == before_s
        call.end()

    play(scene)


def test_a_reader_that_stalls_in_a_write_is_told_that_it_is_slow() -> None:
    async def scene(world: World) -> None:
        call = world.watches.pairs(WatchOptions(), anything, world.send)
        await asyncio.sleep(1)
        world.gate.clear()
        world.change(2 * MAX_LAG)
        await asyncio.sleep(0)
        assert await reason_of(call) is Reason.SLOW_CLIENT
        assert world.watches.statistics().slow_total == 1

    play(scene)


def test_a_reader_may_be_some_way_behind_and_never_further_than_max_lag() -> None:
    async def scene(world: World) -> None:
        call = world.watches.pairs(WatchOptions(), anything, world.send)
        await asyncio.sleep(1)
        world.gate.clear()
        world.change(MAX_LAG // 2)
        await asyncio.sleep(1)
        assert world.watches.statistics().slow_total == 0
        world.change(MAX_LAG // 2)
        assert await reason_of(call) is Reason.SLOW_CLIENT

    play(scene)


def test_what_a_slow_reader_missed_comes_when_it_resumes() -> None:
    async def scene(world: World) -> None:
        call = world.watches.pairs(WatchOptions(), anything, world.send)
        await asyncio.sleep(1)
        world.gate.clear()
        world.change(2 * MAX_LAG)
        assert await reason_of(call) is Reason.SLOW_CLIENT
        world.gate.set()
        last = world.told[-1][1]
        await world.watches.pairs(WatchOptions(last, True), anything, world.send).result()
        revisions = [revision for kind, revision in world.told if kind != "SYNCED"]
        assert revisions == list(range(1, 2 * MAX_LAG + 1))

    play(scene)


def test_a_reader_that_resumes_far_back_is_given_the_time_to_come_up() -> None:
    async def scene(world: World) -> None:
        world.change(10 * MAX_LAG)
        call = world.watches.pairs(WatchOptions(0), anything, world.send)
        for _ in range(5 * MAX_LAG):
            world.change()
            await asyncio.sleep(0.01)
        assert world.told[-1] == ("UPDATED", 15 * MAX_LAG)
        call.end()

    play(scene)


def test_progress_comes_while_nothing_matches_and_names_a_place_to_resume_from() -> None:
    async def scene(world: World) -> None:
        call = world.watches.pairs(WatchOptions(progress_interval_s=2.0), lambda _: False, world.send)
        await asyncio.sleep(1)
        world.change(3)
        await asyncio.sleep(1.5)
        assert world.told == [("SYNCED", 0), ("PROGRESS", 3)]
        await asyncio.sleep(2)
        assert world.told[-1] == ("PROGRESS", 3)
        call.end()

    play(scene)


def test_progress_waits_for_the_interval_after_a_message() -> None:
    async def scene(world: World) -> None:
        call = world.watches.pairs(WatchOptions(progress_interval_s=2.0), anything, world.send)
        for _ in range(5):
            await asyncio.sleep(1.5)
            world.change()
        await asyncio.sleep(0.1)
        assert [kind for kind, _ in world.told] == ["SYNCED", "ADDED", "UPDATED", "UPDATED", "UPDATED", "UPDATED"]
        call.end()

    play(scene)


def test_a_watch_that_is_ended_lets_go_of_everything_also_out_of_a_write() -> None:
    async def scene(world: World) -> None:
        world.gate.clear()
        call = world.watches.pairs(WatchOptions(), anything, world.send)
        await asyncio.sleep(1)
        call.end()
        await call.result()
        assert world.watches.statistics().running == 0

    play(scene)


def test_a_watch_may_be_ended_before_its_first_step() -> None:
    async def scene(world: World) -> None:
        world.watches.pairs(WatchOptions(), anything, world.send).end()
        await asyncio.sleep(1)
        assert world.told == []

    play(scene)


def test_shutting_down_ends_every_watch_with_draining_and_takes_no_new_one() -> None:
    async def scene(world: World) -> None:
        world.begin_job()
        calls = [
            world.watches.workers(WatchOptions(), anything, world.send),
            world.watches.pairs(WatchOptions(), anything, world.send),
            world.watches.job(JOB, False, world.send_job),
        ]
        await asyncio.sleep(1)
        await world.watches.close()
        assert [await reason_of(call) for call in calls] == [Reason.DRAINING] * 3
        with pytest.raises(TandemError, match="DRAINING"):
            world.watches.workers(WatchOptions(), anything, world.send)

    play(scene)


def test_a_reader_s_fault_ends_the_watch_with_its_reason() -> None:
    async def scene(world: World) -> None:
        async def gone(_: object) -> None:
            raise TandemError(Reason.REQUEST_CANCELLED, "the client has left")

        assert await reason_of(world.watches.pairs(WatchOptions(), anything, gone)) is Reason.REQUEST_CANCELLED

    play(scene)


def test_a_job_is_followed_to_its_final_state() -> None:
    async def scene(world: World) -> None:
        world.begin_job()
        call = world.watches.job(JOB.upper(), False, world.send_job)
        await asyncio.sleep(1)
        world.apply(JobStarted, JOB)
        await asyncio.sleep(1)
        world.apply(JobEnded, JOB, JobState.SUCCEEDED)
        await call.result()
        assert world.jobs == [JobState.PENDING, JobState.RUNNING, JobState.SUCCEEDED]

    play(scene)


def test_a_slow_reader_of_a_job_misses_states_but_never_the_final_one() -> None:
    async def scene(world: World) -> None:
        world.begin_job()
        world.gate.clear()
        call = world.watches.job(JOB, False, world.send_job)
        await asyncio.sleep(1)
        world.apply(JobStarted, JOB)
        world.apply(JobEnded, JOB, JobState.FAILED)
        world.apply(JobForgotten, JOB)
        world.gate.set()
        await call.result()
        assert world.jobs == [JobState.PENDING, JobState.FAILED]

    play(scene)


def test_a_job_that_has_ended_is_told_once() -> None:
    async def scene(world: World) -> None:
        world.begin_job()
        world.apply(JobEnded, JOB, JobState.CANCELLED)
        await world.watches.job(JOB, False, world.send_job).result()
        assert world.jobs == [JobState.CANCELLED]

    play(scene)


def test_stop_after_synced_ends_a_job_s_watch_after_one_state() -> None:
    async def scene(world: World) -> None:
        world.begin_job()
        await world.watches.job(JOB, True, world.send_job).result()
        assert world.jobs == [JobState.PENDING]

    play(scene)


@pytest.mark.parametrize(
    ("job_id", "reason"), [("x", Reason.INVALID_REQUEST), (JOB, Reason.JOB_NOT_FOUND)], ids=["no UUID", "unknown"]
)
def test_a_job_that_is_not_there_is_refused_at_once(job_id: str, reason: Reason) -> None:
    async def scene(world: World) -> None:
        with pytest.raises(TandemError) as caught:
            world.watches.job(job_id, False, world.send_job)
        assert caught.value.reason is reason

    play(scene)
