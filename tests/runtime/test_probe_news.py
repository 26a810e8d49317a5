"""A worker that is not ready shows why it is down now, not only why it went down."""

from __future__ import annotations

import asyncio

from tests.runtime.control_world import World, play

from tandem_router.errors import Reason
from tandem_router.model.worker import Worker, WorkerStatus

URL = "grpc://engine:30000"


def claims(worker: Worker) -> dict[str, tuple[bool, str]]:
    return {claim.type: (claim.is_true, claim.reason) for claim in worker.conditions}


def test_a_worker_that_comes_back_as_something_else_says_so() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        process = world.dialer.processes[URL]
        process.is_up = False
        down = await world.until(worker.id, WorkerStatus.NOT_READY, within_s=6)
        assert claims(down)["CONNECTED"] == (False, Reason.WORKER_LOST)
        process.restart()
        process.is_unknown = True
        await asyncio.sleep(10)
        shown = await world.control.get_worker(worker.id)
        assert shown.failure is not None
        assert (shown.status, shown.failure.reason) == (WorkerStatus.NOT_READY, Reason.RUNTIME_NOT_DETECTED)
        assert claims(shown)["SERVING"] == (False, Reason.RUNTIME_NOT_DETECTED)
        assert claims(shown)["CONNECTED"][0]

    play(scene)


def test_one_that_stays_down_for_the_same_reason_is_told_once() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        world.dialer.processes[URL].is_up = False
        await world.until(worker.id, WorkerStatus.NOT_READY, within_s=6)
        await asyncio.sleep(20)
        before = (await world.control.get_worker(worker.id)).revision
        await asyncio.sleep(60)
        assert (await world.control.get_worker(worker.id)).revision == before

    play(scene)


def test_a_worker_that_recovers_is_connected_and_serves() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        process = world.dialer.processes[URL]
        process.is_up = False
        await world.until(worker.id, WorkerStatus.NOT_READY, within_s=6)
        process.restart()
        back = await world.until(worker.id, WorkerStatus.READY, within_s=6)
        assert {name: claims(back)[name][0] for name in ("CONNECTED", "SERVING")} == {
            "CONNECTED": True,
            "SERVING": True,
        }

    play(scene)
