"""Blocks on their way from a prefill worker whose leg has ended: it is not stopped under them, and its loss is told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from tests.handshake.pair_world import MOONCAKE, NIXL, REQUEST, ROOMY, STORE, World, call, pair_of, params_of, play

from tandem_router.core.commands import MarkNotReady
from tandem_router.errors import Reason, TandemError
from tandem_router.model.failure import Failure
from tandem_router.model.job import Job, JobState
from tandem_router.model.pairing import LegRole
from tandem_router.model.request import LegRequest
from tandem_router.model.settings import RuntimeSettings
from tandem_router.model.worker import Worker, WorkerStatus
from tandem_router.testing.harness import until
from tandem_router.testing.scenario import ClientPlan
from tandem_router.testing.scripted_client import ScriptedCall, ScriptedClient
from tandem_router.testing.scripted_wire import EngineScript
from tandem_router.testing.sim_checks import check_client
from tandem_router.testing.sim_client import ClientRecord, run_client

PAGE_S = 1.0
SLOW_MOONCAKE, SLOW_NIXL = replace(MOONCAKE, page_s=PAGE_S), replace(NIXL, page_s=PAGE_S)
HANDOFFS = pytest.mark.parametrize("script", [SLOW_MOONCAKE, SLOW_NIXL], ids=["mooncake", "nixl"])
HEALTH = RuntimeSettings().health
LOST = "was lost before its blocks were fetched"


async def in_transfer(world: World, act: Callable[[], Awaitable[None]], pages: int = 2) -> ClientRecord:
    """One call, and `act` when decode has some pages; the call's end."""
    decode = world.runtime.machines.machines["decode0"]
    record = ClientRecord(ClientPlan(REQUEST, 0.0))
    async with asyncio.TaskGroup() as group:
        group.create_task(run_client(world.runtime.relay, record))
        assert await until(lambda: decode.ledger.pages_received >= pages, 20.0, step_s=0.01)
        await act()
    return record


async def worker_of(world: World, name: str) -> Worker:
    url = world.runtime.machines.machines[name].spec.url
    return next(each for each in await world.runtime.control.list_workers() if each.url == url)


def now_s() -> float:
    return asyncio.get_running_loop().time()


@HANDOFFS
def test_a_drained_prefill_is_not_idle_before_its_blocks_have_been_fetched(script: EngineScript) -> None:
    async def scene(world: World) -> None:
        jobs: list[Job] = []
        idle_s: list[float] = []

        async def drain() -> None:
            worker = await worker_of(world, "prefill0")
            jobs.append((await world.runtime.control.drain_worker(worker.id))[1])
            assert world.runtime.ledger.in_flight(worker.rank_key(0)) == 0, "its own leg has ended"
            assert world.runtime.control.open_legs(worker.id) == 1
            jobs.append(await world.runtime.job_ended(jobs[0].id, 30.0))
            idle_s.append(now_s())

        record = await in_transfer(world, drain)
        assert check_client(record) == []
        assert record.finished is not None
        assert len(record.finished.attempts) == 1
        assert (jobs[1].state, jobs[1].steps[0].detail) == (JobState.SUCCEEDED, "idle")
        assert record.first_chunk_s is not None
        assert idle_s[0] == pytest.approx(record.first_chunk_s, abs=0.1), "woken, and not for the rest of the stream"
        await world.runtime.control.undrain_worker(jobs[0].worker_id)

    # Ten pages, and then an answer that takes longer than they do.
    play(pair_of(replace(script, step_s=2.0)), scene)


@HANDOFFS
def test_a_deleted_prefill_hands_its_blocks_over_before_it_is_forgotten(script: EngineScript) -> None:
    async def scene(world: World) -> None:
        async def delete() -> None:
            worker = await worker_of(world, "prefill0")
            job = await world.runtime.control.delete_worker(worker.id, 30.0)
            assert (await world.runtime.job_ended(job.id, 30.0)).state is JobState.SUCCEEDED
            received.append(decode.ledger.pages_received)

        received: list[int] = []
        decode = world.runtime.machines.machines["decode0"]
        record = await in_transfer(world, delete)
        assert check_client(record) == []
        assert record.finished is not None
        assert len(record.finished.attempts) == 1
        assert received == [decode.ledger.pages_received], "it was gone before its blocks had all been fetched"

    play(pair_of(script), scene)


@HANDOFFS
def test_the_deadline_of_a_drain_holds_for_a_transfer_too(script: EngineScript) -> None:
    async def scene(world: World) -> None:
        jobs: list[Job] = []

        async def drain() -> None:
            worker = await worker_of(world, world.sent[0].instance.partition("#")[0])
            began_s = now_s()
            job = (await world.runtime.control.drain_worker(worker.id, 2.0))[1]
            ended = world.runtime.relay.statistics
            assert await until(lambda: ended().ledger.by_rank.get(worker.rank_key(0), 0) == 0, 5.0)
            jobs.append(await world.runtime.job_ended(job.id, 60.0))
            assert now_s() - began_s < 2.0 + RuntimeSettings().transfer_grace_s + 0.5

        record = await in_transfer(world, drain)
        assert check_client(record) == []
        assert record.finished is not None
        first, second = record.finished.attempts
        assert first.failure is not None
        assert first.failure.reason is Reason.WORKER_LOST
        assert second.served_by.prefill_worker_id != first.served_by.prefill_worker_id
        assert jobs[0].steps[0].detail == "idle; 1 leg aborted at the deadline"
        await world.runtime.control.undrain_worker(jobs[0].worker_id)

    play(pair_of(script, prefills=2), scene, rest_s=550.0)


@pytest.mark.parametrize(
    "script",
    [replace(ROOMY, step_s=1.0), replace(STORE, step_s=1.0)],
    ids=["rendezvous", "shared-store"],
)
def test_a_prefill_that_nobody_fetches_from_is_idle_when_its_leg_has_ended(script: EngineScript) -> None:
    async def scene(world: World) -> None:
        record = ClientRecord(ClientPlan(REQUEST, 0.0))
        worker = await worker_of(world, "prefill0")
        async with asyncio.TaskGroup() as group:
            group.create_task(run_client(world.runtime.relay, record))
            assert await until(lambda: world.runtime.ledger.in_flight(worker.rank_key(0)) == 1, 5.0, step_s=0.0001)
            ended = lambda: world.runtime.ledger.in_flight(worker.rank_key(0)) == 0  # noqa: E731
            assert await until(ended, 20.0, step_s=0.001)
            assert record.ended_s is None
            assert world.runtime.control.open_legs(worker.id) == 0
        assert check_client(record) == []

    play(pair_of(script), scene)


async def mark_down(world: World, name: str) -> None:
    worker = await worker_of(world, name)
    down = Failure(Reason.WORKER_UNREACHABLE, "three probes had no answer")
    await world.runtime.control.pipeline.submit(MarkNotReady(worker.id, worker.epoch, down))


def test_a_prefill_that_was_down_when_it_answered_and_then_dies_is_told_as_lost() -> None:
    async def scene(world: World) -> None:
        prefill = world.runtime.machines.machines["prefill0"]
        record = ClientRecord(ClientPlan(REQUEST, 0.0))
        async with asyncio.TaskGroup() as group:
            group.create_task(run_client(world.runtime.relay, record))
            assert await until(lambda: prefill.ledger.running == 1, 10.0, step_s=0.001)
            await mark_down(world, "prefill0")
            decode = world.runtime.machines.machines["decode0"]
            assert await until(lambda: decode.ledger.pages_received == 2, 10.0, step_s=0.01)
            prefill.kill()
            died_s = now_s()
        assert record.error is not None
        assert record.ended_s is not None
        assert LOST in record.error.sentence
        patience_s = HEALTH.success_threshold * (HEALTH.check_interval_s + HEALTH.timeout_s)
        assert record.ended_s - died_s < patience_s + 1.0, "not the engine's nine minutes"
        prefill.start()

    play(pair_of(replace(SLOW_MOONCAKE, prefill_token_s=0.01)), scene, rest_s=550.0)


def test_a_prefill_whose_place_another_process_took_is_told_as_lost_and_decode_is_not_blamed() -> None:
    async def scene(world: World) -> None:
        prefill = world.runtime.machines.machines["prefill0"]

        async def replace_it() -> None:
            prefill.kill()
            prefill.start()
            worker = await worker_of(world, "prefill0")
            epoch, workers = worker.epoch, world.runtime.control.fleet.workers
            reborn = lambda: workers()[worker.id].epoch > epoch  # noqa: E731
            assert await until(reborn, 60.0, step_s=0.1)
            assert workers()[worker.id].status is WorkerStatus.READY

        record = await in_transfer(world, replace_it)
        assert check_client(record) == []
        assert record.finished is not None
        first, last = record.finished.attempts[0], record.finished.attempts[-1]
        assert first.failure is not None
        assert first.failure.reason is Reason.KV_TRANSFER_FAILED
        assert LOST in first.failure.sentence
        assert first.failure.metadata["leg"] == "prefill"
        assert last.failure is None

    play(pair_of(replace(SLOW_NIXL, peer_loss_s=30.0)), scene)


def test_what_prefill_returned_and_no_engine_may_be_sent_is_blamed_on_prefill_and_tried_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the vLLM dialect refuses params that would kill or hang the decode engine (tests/engines/test_nixl_params)."""
    refused: list[str] = []
    generate = ScriptedClient.generate

    def choosy(self: ScriptedClient, leg: LegRequest, *, timeout_s: float | None) -> ScriptedCall:
        if leg.role is LegRole.DECODE and (not refused or params_of(leg)["remote_engine_id"] == refused[0]):
            refused.append(str(params_of(leg)["remote_engine_id"]))
            raise TandemError(Reason.KV_TRANSFER_FAILED, "no remote_block_ids")
        return generate(self, leg, timeout_s=timeout_s)

    monkeypatch.setattr(ScriptedClient, "generate", choosy)

    async def scene(world: World) -> None:
        record = await call(world)
        assert check_client(record) == []
        assert record.finished is not None
        first, last = record.finished.attempts
        assert first.failure is not None
        assert first.failure.reason is Reason.KV_TRANSFER_FAILED
        assert last.failure is None
        assert refused[0] not in {params_of(leg)["remote_engine_id"] for leg in world.legs(LegRole.DECODE)}

    for seed in range(12):  # chance may spare the one to blame
        refused.clear()
        play(pair_of(NIXL, prefills=2), scene, seed=seed)
        assert refused
