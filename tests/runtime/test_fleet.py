"""The relay's side of the control loop."""

from __future__ import annotations

import asyncio

import pytest
from tests.runtime.control_world import World, play

from tandem_router.core.events import WorkerConnected, WorkerStatusChanged
from tandem_router.errors import Reason
from tandem_router.model.failure import EngineFailure
from tandem_router.model.ids import RankKey, WorkerId
from tandem_router.model.spec import ModelCard, WorkerSpec, WorkerType
from tandem_router.model.worker import WorkerStatus
from tandem_router.ports import Fleet
from tandem_router.runtime.models import served_models

URL = "grpc://engine:30000"
LOST = EngineFailure(Reason.WORKER_LOST, "connection reset", connection_lost=True)


def test_the_fleet_shows_workers_oldest_first_and_never_changes_a_snapshot() -> None:
    async def scene(world: World) -> None:
        fleet: Fleet = world.control.fleet
        first = await world.ready(URL)
        snapshot = fleet.workers()
        second = await world.ready("grpc://two:1")
        assert list(snapshot) == [first.id]
        assert list(fleet.workers()) == [first.id, second.id]

    play(scene)


def test_every_rank_of_a_life_has_the_same_client_and_other_lives_have_none() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        fleet = world.control.fleet
        assert fleet.client(RankKey(worker.id, 1, 0)) is fleet.client(RankKey(worker.id, 1, 7))
        assert fleet.client(RankKey(worker.id, 0, 0)) is None
        assert fleet.client(RankKey(worker.id, 2, 0)) is None
        assert fleet.client(RankKey(WorkerId("unknown"), 1, 0)) is None

    play(scene)


@pytest.mark.parametrize("seed", range(5))
def test_a_reader_who_sees_an_epoch_as_ready_finds_its_client(seed: int) -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        process, fleet = world.dialer.processes[URL], world.control.fleet
        process.is_up = False
        fleet.leg_failed(worker.rank_key(0), LOST)
        process.restart()
        async with asyncio.timeout(10):
            while True:
                seen = fleet.workers()[worker.id]
                if seen.status is WorkerStatus.READY:
                    assert fleet.client(seen.rank_key(0)) is not None
                    if seen.epoch == 2:
                        return
                await asyncio.sleep(0.0005)

    play(scene, seed=seed)


def test_news_about_a_worker_that_is_gone_is_ignored() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        await world.control.delete_worker(worker.id, force=True)
        world.control.fleet.leg_failed(worker.rank_key(0), LOST)
        world.control.fleet.leg_succeeded(worker.rank_key(0))
        await asyncio.sleep(10)
        assert await world.control.list_workers() == ()

    play(scene)


def test_the_observer_sees_every_event_once_in_the_order_of_revisions() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        await world.ended((await world.control.delete_worker(worker.id)).id)
        revisions = [event.revision for event in world.recorder.events]
        assert revisions == list(range(1, world.control.revision + 1))
        assert world.control.history.log.revision == revisions[-1]
        kinds = [type(event) for event in world.recorder.events]
        assert kinds.index(WorkerConnected) < kinds.index(WorkerStatusChanged)

    play(scene)


def test_one_model_lists_all_its_workers_and_who_of_them_is_ready() -> None:
    async def scene(world: World) -> None:
        prefill = await world.ready("grpc://p:1", WorkerType.PREFILL)
        decode = await world.ready("grpc://d:1", WorkerType.DECODE)
        world.process("grpc://r:1")
        worker, _ = await world.control.create_worker(
            WorkerSpec("grpc://r:1", models=(ModelCard("tiny", aliases=("small",)), ModelCard("else")))
        )
        tiny, other = world.control.models()
        assert (tiny.card.id, tiny.card.aliases) == ("tiny", ("small",))
        assert tiny.worker_ids == (prefill.id, decode.id, worker.id)
        assert (tiny.ready_prefill, tiny.ready_decode, tiny.ready_regular, tiny.is_ready) == (1, 1, 0, True)
        assert (other.card.id, other.is_ready) == ("else", False)

    play(scene)


def test_no_worker_serves_no_model() -> None:
    assert served_models(()) == ()
