"""Engines' load: read when asked for, not more often than stated, and never taken from a corpse."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from tests.policies.fleet import fleet, worker

from tandem_router.errors import Reason
from tandem_router.model.failure import EngineFailure
from tandem_router.model.ids import RankKey, WorkerId
from tandem_router.model.settings import LoadSettings
from tandem_router.model.spec import WorkerType
from tandem_router.model.worker import RankLoad, Worker, WorkerStatus
from tandem_router.runtime.load_samples import LoadSamples
from tandem_router.testing.sim_loop import SimLoop
from tandem_router.testing.sim_ports import LoopClock

R = WorkerType.REGULAR


class Engine:
    """Answers with its count of readings, or as it is told."""

    def __init__(self) -> None:
        self.readings = 0
        self.answer: str = "loads"
        self.until = asyncio.Event()

    async def loads(self, *, timeout_s: float) -> Sequence[RankLoad] | None:
        self.readings += 1
        match self.answer:
            case "fails":
                raise EngineFailure(Reason.WORKER_LOST, "gone")
            case "hangs":
                await asyncio.Event().wait()
            case "has none":
                return None
            case "empty":
                return []
            case "rank 0 only":
                return [RankLoad(self.readings, 0, 10, 100, asyncio.get_running_loop().time())]
            case "dies":
                await self.until.wait()
        return [RankLoad(self.readings, 0, 10, 100, asyncio.get_running_loop().time())] * 2


class Fleet:
    def __init__(self, workers: Mapping[WorkerId, Worker]) -> None:
        self.engines = {each: Engine() for each in workers}
        self.snapshot = workers

    def workers(self) -> Mapping[WorkerId, Worker]:
        return self.snapshot

    def client(self, key: RankKey) -> Any:
        return self.engines[key.worker_id]


def played(*workers: Worker) -> tuple[SimLoop, Fleet, LoadSamples]:
    loop = SimLoop(3)
    found = Fleet(fleet(*workers))
    return loop, found, LoadSamples(found, LoopClock(loop), LoadSettings())  # type: ignore[arg-type]


def running(worker: Worker) -> list[int | None]:
    return [None if rank.load is None else rank.load.running for rank in worker.ranks]


def test_every_rank_shows_what_its_engine_said() -> None:
    one = worker(1, R, dp_size=2)
    loop, _, samples = played(one)
    [read] = loop.run(samples.read([one]))
    assert running(read) == [1, 1]


@pytest.mark.parametrize(("interval_s", "readings"), [(None, 2), (0.1, 3), (10.0, 1)])
def test_an_engine_is_asked_once_per_interval(interval_s: float | None, readings: int) -> None:
    one = worker(1, R)
    one = replace(one, spec=replace(one.spec, load_monitor_interval_s=interval_s))
    loop, found, samples = played(one)

    async def ask_at_0_and_half_and_1_second() -> None:
        for _ in range(3):
            await samples.read([one])
            await asyncio.sleep(0.5)

    loop.run(ask_at_0_and_half_and_1_second())
    assert found.engines[one.id].readings == readings


@pytest.mark.parametrize("answer", ["fails", "hangs", "has none", "empty"])
def test_an_engine_that_does_not_say_shows_no_load_and_holds_nobody_up(answer: str) -> None:
    silent, open_ = worker(1, R), worker(2, R)
    loop, found, samples = played(silent, open_)
    found.engines[silent.id].answer = answer
    read = loop.run(samples.read([silent, open_]))
    assert [running(each) for each in read] == [[None], [1]]


def test_a_worker_that_is_not_ready_is_not_asked_and_shows_no_load() -> None:
    dead = worker(1, R, status=WorkerStatus.NOT_READY)
    loop, found, samples = played(dead)
    [read] = loop.run(samples.read([dead]))
    assert running(read) == [None]
    assert found.engines[dead.id].readings == 0


@pytest.mark.parametrize(
    ("answer", "shown"),
    [("fails", [None, None]), ("has none", [None, None]), ("empty", [None, None]), ("rank 0 only", [2, None])],
)
def test_what_an_engine_does_not_say_again_is_not_remembered(answer: str, shown: list[int | None]) -> None:
    one = worker(1, R, dp_size=2)
    loop, found, samples = played(one)

    async def scene() -> Worker:
        await samples.read([one])
        found.engines[one.id].answer = answer
        await asyncio.sleep(LoadSettings().interval_s)
        return (await samples.read([one]))[0]

    assert running(loop.run(scene())) == shown


@pytest.mark.parametrize(("answer", "readings"), [("has none", 1), ("empty", 1), ("fails", 2)])
def test_an_engine_with_nothing_to_say_is_asked_no_more_often_than_another(answer: str, readings: int) -> None:
    one = worker(1, R)
    loop, found, samples = played(one)
    found.engines[one.id].answer = answer

    async def ask_twice() -> None:
        await samples.read([one])
        await samples.read([one])

    loop.run(ask_twice())
    assert found.engines[one.id].readings == readings


def test_a_worker_that_dies_while_it_is_asked_shows_no_load() -> None:
    one = worker(1, R)
    loop, found, samples = played(one)
    found.engines[one.id].answer = "dies"

    async def scene() -> Worker:
        reading = asyncio.create_task(samples.read([one]))
        await asyncio.sleep(0.1)
        found.snapshot = fleet(replace(one, status=WorkerStatus.NOT_READY))
        found.engines[one.id].until.set()
        return (await reading)[0]

    assert running(loop.run(scene())) == [None]


def test_what_a_worker_said_before_it_was_not_ready_is_not_shown_afterwards() -> None:
    one = worker(1, R)
    one = replace(one, spec=replace(one.spec, load_monitor_interval_s=3600.0))
    loop, found, samples = played(one)

    async def scene() -> tuple[Worker, Worker]:
        await samples.read([one])
        down = replace(one, status=WorkerStatus.NOT_READY)
        found.snapshot = fleet(down)
        [while_down] = await samples.read([down])
        found.snapshot = fleet(one)
        found.engines[one.id].answer = "fails"
        return while_down, (await samples.read([one]))[0]

    while_down, afterwards = loop.run(scene())
    assert (running(while_down), running(afterwards)) == ([None], [None])


def test_a_sample_of_a_former_life_is_not_shown() -> None:
    one = worker(1, R)
    loop, found, samples = played(one)

    async def scene() -> Worker:
        await samples.read([one])
        reborn = replace(one, epoch=2)
        found.snapshot = fleet(reborn)
        found.engines[one.id].answer = "has none"
        return (await samples.read([reborn]))[0]

    assert running(loop.run(scene())) == [None]
