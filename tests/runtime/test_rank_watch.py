"""A failing rank of several gets no requests until its trial; the others, and single ranks, go on."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from tests.runtime.control_world import FACTS, World, play

from tandem_router.core.commands import MarkNotReady, MarkReady
from tandem_router.core.rank_health import FAILURES, TRIAL_AFTER_S
from tandem_router.errors import Reason
from tandem_router.model.failure import EngineFailure, Failure
from tandem_router.model.ids import RankKey
from tandem_router.model.settings import RuntimeSettings
from tandem_router.model.spec import WorkerType
from tandem_router.model.worker import Rank, Worker
from tandem_router.policies.contract import Candidate, Plan, Query
from tandem_router.policies.plan import Planner
from tandem_router.policies.scorers import LeastInFlight
from tandem_router.runtime.rank_watch import RankWatch
from tandem_router.runtime.scope import TaskScope

URL = "grpc://engine:30000"
FAILED = EngineFailure(Reason.ENGINE_ERROR, "device-side assert")


async def ranked(world: World, dp_size: int) -> Worker:
    return await world.ready(URL, WorkerType.REGULAR, facts=replace(FACTS, bootstrap=None, dp_size=dp_size))


def healthy(world: World, worker: Worker) -> list[bool]:
    return [rank.is_healthy for rank in world.control.fleet.workers()[worker.id].ranks]


async def fail(world: World, worker: Worker, rank: int, times: int = FAILURES) -> None:
    for _ in range(times):
        world.control.fleet.leg_failed(RankKey(worker.id, worker.epoch, rank), FAILED)
    await asyncio.sleep(0.01)


def test_a_failing_rank_is_out_and_plans_go_to_its_siblings() -> None:
    async def scene(world: World) -> None:
        worker = await ranked(world, 3)
        await fail(world, worker, 1)
        assert healthy(world, worker) == [True, False, True]
        planner = Planner(RuntimeSettings(), LeastInFlight())
        chosen: list[Candidate] = []
        for tenth in range(10):
            query = Query(FACTS.model_id, 10)
            plan = planner.plan(query, world.control.fleet.workers(), lambda key: 0, random=tenth / 10)
            assert isinstance(plan, Plan)
            chosen.append(plan.decode)
        assert {candidate.dp_rank for candidate in chosen} == {0, 2}

    play(scene)


def test_a_rank_that_is_out_shows_the_engine_s_words_and_when_it_is_tried_again() -> None:
    async def scene(world: World) -> None:
        worker = await ranked(world, 2)
        before_s = world.control.fleet.workers()[worker.id].updated_at_s
        await fail(world, worker, 1)
        sound, out = world.control.fleet.workers()[worker.id].ranks
        assert (sound.outage, out.outage is not None) == (None, True)
        assert out.outage is not None
        assert out.outage.failure == Failure(Reason.ENGINE_ERROR, "device-side assert")
        assert out.outage.began_at_s >= before_s
        assert out.outage.trial_at_s - out.outage.began_at_s == pytest.approx(TRIAL_AFTER_S)
        await asyncio.sleep(TRIAL_AFTER_S + 0.1)
        assert world.control.fleet.workers()[worker.id].ranks[1].outage is None

    play(scene)


def test_a_rank_on_trial_is_out_again_with_its_next_failure_and_cleared_by_a_success() -> None:
    async def scene(world: World) -> None:
        worker = await ranked(world, 2)
        await fail(world, worker, 0)
        await asyncio.sleep(TRIAL_AFTER_S + 0.1)
        assert healthy(world, worker) == [True, True]
        await fail(world, worker, 0, times=1)
        assert healthy(world, worker) == [False, True]
        await asyncio.sleep(TRIAL_AFTER_S + 0.1)
        world.control.fleet.leg_succeeded(RankKey(worker.id, worker.epoch, 0))
        await fail(world, worker, 0, times=1)
        assert healthy(world, worker) == [True, True]

    play(scene)


@pytest.mark.parametrize(("is_new_life", "expected"), [(False, [True, False]), (True, [True, True])])
def test_a_worker_that_comes_back_in_the_same_life_keeps_its_rank_out(is_new_life: bool, expected: list[bool]) -> None:
    async def scene(world: World) -> None:
        worker = await ranked(world, 2)
        await fail(world, worker, 1)
        facts, pipeline = replace(FACTS, bootstrap=None, dp_size=2), world.control.pipeline
        await pipeline.submit(MarkNotReady(worker.id, worker.epoch, Failure(Reason.WORKER_REFUSED, "busy")))
        await pipeline.submit(MarkReady(worker.id, worker.epoch, facts, (Rank(0), Rank(1)), is_new_life))
        assert healthy(world, worker) == expected
        await asyncio.sleep(TRIAL_AFTER_S + 0.1)
        assert healthy(world, worker) == [True, True]

    play(scene)


def test_the_last_healthy_rank_and_an_only_rank_stay() -> None:
    async def scene(world: World) -> None:
        worker = await ranked(world, 2)
        await fail(world, worker, 0)
        await fail(world, worker, 1)
        assert healthy(world, worker) == [False, True]

    async def single(world: World) -> None:
        worker = await ranked(world, 1)
        await fail(world, worker, 0)
        assert healthy(world, worker) == [True]

    play(scene)
    play(single)


def test_what_is_not_the_ranks_own_failure_takes_nothing_out() -> None:
    async def scene(world: World) -> None:
        worker = await ranked(world, 2)
        key = RankKey(worker.id, worker.epoch, 0)
        for _ in range(FAILURES * 2):
            world.control.fleet.leg_failed(key, EngineFailure(Reason.WORKER_REFUSED, "queue full"))
            world.control.fleet.leg_failed(key, EngineFailure(Reason.KV_TRANSFER_FAILED, "no prefill"))
            world.control.fleet.leg_failed(replace(key, epoch=worker.epoch + 1), FAILED)
        await asyncio.sleep(0.01)
        assert healthy(world, worker) == [True, True]

    play(scene)


def test_a_life_that_ended_between_two_failures_is_not_kept() -> None:
    async def scene(world: World) -> None:
        worker = await ranked(world, 2)
        ranks = RankWatch(world.control.pipeline, TaskScope("test"))
        for rank in (0, 1):
            ranks.leg_failed(RankKey(worker.id, worker.epoch, rank), FAILED)
        assert len(ranks) == 2
        await world.control.delete_worker(worker.id, 0.0)
        await asyncio.sleep(10.0)
        ranks.leg_failed(RankKey(worker.id, worker.epoch, 0), FAILED)
        assert len(ranks) == 0

    play(scene)


def test_a_worker_that_is_gone_before_the_trial_leaves_nothing_behind() -> None:
    async def scene(world: World) -> None:
        worker = await ranked(world, 2)
        await fail(world, worker, 0)
        await world.control.delete_worker(worker.id, 0.0)
        await asyncio.sleep(TRIAL_AFTER_S + 5.0)
        assert world.control.statistics().tasks == 0

    play(scene)
