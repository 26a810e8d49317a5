"""Health of registered workers, and the epochs of their processes."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import pytest
from tests.runtime.control_world import Process, World, play

from tandem_router.errors import Reason
from tandem_router.model.adapters import LoadedAdapter
from tandem_router.model.failure import EngineFailure
from tandem_router.model.settings import HealthSettings, RuntimeSettings
from tandem_router.model.spec import HealthOverrides, WorkerSpec
from tandem_router.model.worker import WorkerStatus

URL = "grpc://engine:30000"
LOST = EngineFailure(Reason.WORKER_LOST, "connection reset", connection_lost=True)
BUSY = EngineFailure(Reason.ENGINE_ERROR, "out of memory")


def test_a_broken_connection_under_a_leg_makes_the_worker_not_ready_at_once() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        process = world.dialer.processes[URL]
        process.is_up = False
        world.control.fleet.leg_failed(worker.rank_key(0), LOST)
        shown = await world.until(worker.id, WorkerStatus.NOT_READY, within_s=0.05)
        assert shown.failure is not None
        assert shown.failure.reason is Reason.WORKER_LOST

    play(scene)


def test_a_failure_of_the_request_alone_leaves_a_serving_worker_ready() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        for _ in range(10):
            world.control.fleet.leg_failed(worker.rank_key(0), BUSY)
            await asyncio.sleep(0.05)
        await asyncio.sleep(10)
        assert world.statuses(worker.id) == [WorkerStatus.READY]

    play(scene)


def test_a_restarted_process_comes_back_in_the_next_epoch_on_a_new_connection() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        process = world.dialer.processes[URL]
        process.is_up = False
        world.control.fleet.leg_failed(worker.rank_key(0), LOST)
        await asyncio.sleep(8)
        assert (await world.control.get_worker(worker.id)).status is WorkerStatus.NOT_READY
        process.restart(model_id="other")
        back = await world.until(worker.id, WorkerStatus.READY, within_s=3)
        assert back.epoch == 2
        assert back.facts is not None
        assert (back.facts.instance, back.models[0].id) == ("life 2", "other")
        assert world.control.fleet.client(worker.rank_key(0)) is None
        assert world.control.fleet.client(back.rank_key(0)) is not None
        await asyncio.sleep(1)
        assert process.open_clients == 1
        assert "other" in world.codecs.archives

    play(scene)


def test_an_idle_worker_that_dies_is_noticed_within_one_interval() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        world.dialer.processes[URL].is_up = False
        await world.until(worker.id, WorkerStatus.NOT_READY, within_s=6)

    play(scene)


def test_a_worker_that_answers_not_serving_goes_after_the_failure_threshold_and_keeps_its_epoch() -> None:
    settings = RuntimeSettings(health=HealthSettings(check_interval_s=1.0, failure_threshold=3))

    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        process = world.dialer.processes[URL]
        process.is_serving = False
        await asyncio.sleep(1.9)
        assert (await world.control.get_worker(worker.id)).status is WorkerStatus.READY
        await world.until(worker.id, WorkerStatus.NOT_READY, within_s=2)
        process.is_serving = True
        back = await world.until(worker.id, WorkerStatus.READY, within_s=2)
        assert back.epoch == 1
        assert process.dials == 1

    play(scene, settings=settings)


def test_probes_that_hang_are_failures_and_not_the_end_of_probing() -> None:
    settings = RuntimeSettings(health=HealthSettings(check_interval_s=1.0, timeout_s=1.0))

    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        process = world.dialer.processes[URL]
        process.is_stuck = True
        await world.until(worker.id, WorkerStatus.NOT_READY, within_s=12)
        process.is_stuck = False
        await world.until(worker.id, WorkerStatus.READY, within_s=6)

    play(scene, settings=settings)


def test_a_process_replaced_between_two_probes_is_another_epoch() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        process = world.dialer.processes[URL]
        process.clients[0].follows_restarts = True
        process.restart()
        await asyncio.sleep(45)
        back = await world.until(worker.id, WorkerStatus.READY)
        assert back.epoch == 2
        assert world.statuses(worker.id) == [WorkerStatus.READY, WorkerStatus.NOT_READY, WorkerStatus.READY]

    play(scene)


def test_a_failing_leg_makes_a_replaced_process_known_at_once() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        process = world.dialer.processes[URL]
        process.clients[0].follows_restarts = True
        process.restart()
        world.control.fleet.leg_failed(worker.rank_key(0), BUSY)
        await world.until(worker.id, WorkerStatus.NOT_READY, within_s=0.5)
        assert (await world.until(worker.id, WorkerStatus.READY, within_s=4)).epoch == 2

    play(scene)


def test_news_of_an_old_epoch_is_ignored() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        process = world.dialer.processes[URL]
        process.is_up = False
        world.control.fleet.leg_failed(worker.rank_key(0), LOST)
        process.restart()
        await asyncio.sleep(4)
        back = await world.until(worker.id, WorkerStatus.READY)
        world.control.fleet.leg_failed(worker.rank_key(0), LOST)
        await asyncio.sleep(10)
        assert (await world.control.get_worker(worker.id)).revision == back.revision

    play(scene)


@pytest.mark.parametrize("seed", range(10))
def test_a_worker_that_flaps_ends_ready_with_one_connection(seed: int) -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        process = world.dialer.processes[URL]
        for _ in range(10):
            process.is_up = False
            world.control.fleet.leg_failed((await world.control.get_worker(worker.id)).rank_key(0), LOST)
            await asyncio.sleep(0.7)
            process.restart()
            await asyncio.sleep(1.3)
        await asyncio.sleep(60)
        back = await world.control.get_worker(worker.id)
        assert back.status is WorkerStatus.READY
        assert process.open_clients == 1
        assert world.control.statistics().open_clients == 1
        assert back.facts == process.facts.__class__(
            **{name: getattr(process.facts, name) for name in process.facts.__slots__} | {"bootstrap": None}
        )

    play(scene, seed=seed)


def test_a_worker_without_health_checks_is_never_probed_while_ready_and_recovers_all_the_same() -> None:
    async def scene(world: World) -> None:
        process = world.process(URL)
        worker, _ = await world.control.create_worker(WorkerSpec(URL, health=HealthOverrides(is_disabled=True)))
        ready = await world.until(worker.id, WorkerStatus.READY)
        process.is_serving = False
        await asyncio.sleep(600)
        assert (await world.control.get_worker(worker.id)).status is WorkerStatus.READY
        process.is_serving = True
        process.is_up = False
        world.control.fleet.leg_failed(ready.rank_key(0), LOST)
        await asyncio.sleep(5)
        process.restart()
        assert (await world.until(worker.id, WorkerStatus.READY, within_s=4)).epoch == 2

    play(scene)


def test_a_storm_of_failing_legs_asks_for_few_probes() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        await asyncio.sleep(0.5)
        before = len(world.dialer.knocks)
        probe = world.control._probing.of(worker.id)
        assert probe is not None
        checks = probe._checks
        for _ in range(1000):
            world.control.fleet.leg_failed(worker.rank_key(0), BUSY)
            await asyncio.sleep(0.001)
        assert probe._checks - checks <= 11
        assert len(world.dialer.knocks) == before

    play(scene)


def test_a_connection_that_breaks_while_a_worker_is_read_anew_is_not_forgotten() -> None:
    settings = RuntimeSettings(health=HealthSettings(check_interval_s=1.0, failure_threshold=1))

    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        process = world.dialer.processes[URL]
        process.is_serving = False
        await world.until(worker.id, WorkerStatus.NOT_READY, within_s=2)
        process.is_serving = True

        def break_once() -> None:
            process.on_describe = None
            world.control.fleet.leg_failed(worker.rank_key(0), LOST)

        process.on_describe = break_once
        back = await world.until(worker.id, WorkerStatus.READY, within_s=5)
        assert back.epoch == 2

    play(scene, settings=settings)


def test_a_worker_lost_while_draining_still_leaves_in_peace() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        process = world.dialer.processes[URL]
        world.open_leg(worker, "a")
        job = await world.control.delete_worker(worker.id, math.inf)
        process.is_up = False
        world.control.fleet.leg_failed(worker.rank_key(0), LOST)
        process.restart()
        await asyncio.sleep(20)
        assert (await world.control.get_worker(worker.id)).status is WorkerStatus.DRAINING
        world.ledger.close("a")
        await world.ended(job.id, within_s=0.1)
        await asyncio.sleep(1)
        assert process.open_clients == 0

    play(scene)


BRISK = RuntimeSettings(health=HealthSettings(check_interval_s=2.0, timeout_s=1.0, failure_threshold=2))


async def stream_on(process: Process, seconds: float) -> None:
    """Items come every half second."""
    for _ in range(round(seconds * 2)):
        process.last_item_s = asyncio.get_running_loop().time()
        await asyncio.sleep(0.5)


def test_trap_15_a_late_health_check_is_not_death_while_streams_progress() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        process = world.dialer.processes[URL]
        process.is_stuck = True
        await stream_on(process, 60)
        assert world.statuses(worker.id) == [WorkerStatus.READY]

    play(scene, settings=BRISK)


def test_a_worker_whose_streams_stop_too_is_not_ready_soon() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        process = world.dialer.processes[URL]
        process.is_stuck = True
        await stream_on(process, 20)
        await world.until(worker.id, WorkerStatus.NOT_READY, within_s=12)

    play(scene, settings=BRISK)


def test_a_health_check_that_answers_no_is_believed_whatever_streams() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        process = world.dialer.processes[URL]
        process.is_serving = False
        await stream_on(process, 10)
        assert (await world.control.get_worker(worker.id)).status is WorkerStatus.NOT_READY

    play(scene, settings=BRISK)


def test_a_worker_that_is_not_ready_needs_an_answer_to_come_back() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        process = world.dialer.processes[URL]
        process.is_stuck = True
        await world.until(worker.id, WorkerStatus.NOT_READY, within_s=20)
        await stream_on(process, 20)
        assert (await world.control.get_worker(worker.id)).status is WorkerStatus.NOT_READY
        process.is_stuck = False
        await world.until(worker.id, WorkerStatus.READY, within_s=10)

    play(scene, settings=BRISK)


def test_an_adapter_that_somebody_else_loaded_is_found_by_a_later_probe() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        process = world.dialer.processes[URL]
        process.facts = replace(process.facts, adapters=(LoadedAdapter("poet"),))
        await asyncio.sleep(2.2 * 7)
        found = await world.control.get_worker(worker.id)
        assert found.facts is not None
        assert (found.facts.adapters, found.epoch) == ((LoadedAdapter("poet"),), 1)

    play(scene, settings=BRISK)
