"""The races that others hit while they managed workers, one test per row of the list, named after its source."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import pytest
from tests.runtime.control_world import FACTS, SlowStore, World, play

from tandem_router.core.ledger import LegLedger
from tandem_router.core.pair import Directive, Do, PairInput, PairMachine
from tandem_router.errors import Reason, TandemError
from tandem_router.model.failure import EngineFailure, Failure
from tandem_router.model.ids import RankKey
from tandem_router.model.job import JobState
from tandem_router.model.pairing import HandshakeKind, LegRole
from tandem_router.model.settings import JobSettings, RuntimeSettings
from tandem_router.model.spec import WorkerSpec, WorkerType
from tandem_router.model.spec_patch import SpecPatch
from tandem_router.model.worker import Worker, WorkerStatus
from tandem_router.policies.contract import Plan, Query, Refusal
from tandem_router.policies.plan import Planner
from tandem_router.policies.scorers import LeastInFlight

URL = "grpc://engine:30000"
OTHER = "grpc://other:30000"
LOST = EngineFailure(Reason.WORKER_LOST, "connection reset", connection_lost=True)


def pick(world: World, ledger: LegLedger | None = None) -> Plan | Refusal:
    """What the policies would do with a request now."""
    in_flight = (ledger or world.ledger).in_flight
    planner = Planner(RuntimeSettings(), LeastInFlight())
    return planner.plan(Query("tiny", 4), world.control.fleet.workers(), in_flight, random=0.5)


async def reason_of(world: World, worker_id: str) -> Reason | None:
    try:
        await world.control.get_worker(worker_id)
    except TandemError as error:
        return error.reason
    return None


def test_sglang_11566_a_create_returns_before_its_worker_answers() -> None:
    async def scene(world: World) -> None:
        world.process(URL, is_stuck=True)
        began_s = world.clock.monotonic_s()
        worker, job = await world.create(WorkerSpec(URL))
        assert world.clock.monotonic_s() == began_s
        assert job is not None
        assert (worker.status, job.state) == (WorkerStatus.PENDING, JobState.PENDING)

    play(scene)


def test_sglang_19797_starting_workers_hold_no_slot_and_a_full_queue_answers_at_once() -> None:
    settings = RuntimeSettings(jobs=JobSettings(max_running=1, max_queued=2))

    async def scene(world: World) -> None:
        for number in range(2):
            await world.control.create_worker(WorkerSpec(f"grpc://absent:{number + 1}"))
        await asyncio.sleep(1.0)
        await world.ready(URL)
        await world.control.create_worker(WorkerSpec("grpc://absent:3"))
        began_s = world.clock.monotonic_s()
        with pytest.raises(TandemError) as caught:
            await world.control.create_worker(WorkerSpec("grpc://absent:4"))
        assert (caught.value.reason, world.clock.monotonic_s()) == (Reason.JOB_QUEUE_FULL, began_s)

    play(scene, settings=settings)


def test_smg_1533_a_reservation_never_outlives_its_job() -> None:
    """Schemeless URLs, refused submits, failed registrations: a known id resolves, and the URL is free again."""
    settings = RuntimeSettings(jobs=JobSettings(max_connection_attempts=1, history_ttl_s=60.0))

    async def scene(world: World) -> None:
        for text in ("engine:30000", "", "http://engine:1"):
            with pytest.raises(TandemError):
                await world.control.create_worker(WorkerSpec(text))
        assert world.control.statistics().registry.reserved_urls == 0
        worker, job = await world.create(WorkerSpec("GRPC://Engine:030000"))
        with pytest.raises(TandemError) as caught:
            await world.control.create_worker(WorkerSpec(URL))
        assert (caught.value.reason, caught.value.metadata["worker_id"]) == (
            Reason.WORKER_CREATE_IN_PROGRESS,
            worker.id,
        )
        assert job is not None
        await world.ended(job.id)
        assert (await world.control.get_worker(worker.id)).status is WorkerStatus.FAILED
        assert world.control.statistics().registry.reserved_urls == 0
        await asyncio.sleep(61.0)
        assert await reason_of(world, worker.id) is Reason.WORKER_NOT_FOUND

    play(scene, settings=settings)


def test_smg_836_a_create_never_upserts_a_replace_is_whole_and_an_update_is_partial() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        with pytest.raises(TandemError) as caught:
            await world.control.create_worker(WorkerSpec(URL, labels={"zone": "b"}))
        assert caught.value.reason is Reason.WORKER_ALREADY_EXISTS
        await world.control.update_worker(worker.id, SpecPatch(labels={"zone": "a"}))
        updated, _ = await world.control.update_worker(worker.id, SpecPatch(labels={"rack": "1"}))
        assert updated.spec.labels == {"zone": "a", "rack": "1"}
        _, job = await world.control.replace_worker(worker.id, WorkerSpec(URL, labels={"rack": "2"}))
        await world.ended(job.id)
        assert (await world.control.get_worker(worker.id)).spec.labels == {"rack": "2"}

    play(scene)


@pytest.mark.parametrize("delay_ms", range(0, 24, 2))
def test_smg_1967_a_late_replace_cannot_resurrect_a_deleted_worker(delay_ms: int) -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        _, job = await world.control.replace_worker(worker.id, WorkerSpec(URL, labels={"v": "2"}))
        await asyncio.sleep(delay_ms / 1000)
        removal = await world.control.delete_worker(worker.id)
        await world.ended(removal.id)
        assert (await world.control.get_job(job.id)).state.is_final
        await asyncio.sleep(60)
        assert await reason_of(world, worker.id) is Reason.WORKER_NOT_FOUND
        assert world.dialer.processes[URL].open_clients == 0

    play(scene, seed=delay_ms, store=SlowStore(0.001))


def test_smg_1967_an_older_replace_cannot_overwrite_a_newer_one() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        world.dialer.gate = asyncio.Event()
        _, older = await world.control.replace_worker(worker.id, WorkerSpec(URL, labels={"v": "2"}))
        _, newer = await world.control.replace_worker(worker.id, WorkerSpec(URL, labels={"v": "3"}))
        world.dialer.gate.set()
        assert (await world.ended(newer.id)).state is JobState.SUCCEEDED
        assert (await world.ended(older.id)).state is JobState.CANCELLED
        await asyncio.sleep(60)
        assert (await world.control.get_worker(worker.id)).spec.labels == {"v": "3"}

    play(scene)


def test_smg_1106_a_stale_remove_does_not_touch_the_successor_at_its_url() -> None:
    async def scene(world: World) -> None:
        old = await world.ready(URL)
        await world.ended((await world.control.delete_worker(old.id)).id)
        new = await world.ready(URL)
        with pytest.raises(TandemError) as caught:
            await world.control.delete_worker(old.id)
        assert caught.value.reason is Reason.WORKER_NOT_FOUND
        with pytest.raises(TandemError) as caught:
            await world.control.delete_worker(new.id, expected_generation=new.generation + 7)
        assert caught.value.reason is Reason.GENERATION_MISMATCH
        assert (await world.control.get_worker(new.id)).status is WorkerStatus.READY

    play(scene)


def test_sglang_19909_a_worker_replaced_by_another_role_is_in_one_pool_only() -> None:
    async def scene(world: World) -> None:
        decode = await world.ready(OTHER, WorkerType.DECODE)
        worker = await world.ready(URL, WorkerType.PREFILL)
        await asyncio.sleep(0.1)
        assert world.condition(await world.control.get_worker(decode.id), "PAIRABLE").is_true
        world.dialer.processes[URL].facts = replace(FACTS, bootstrap=None)
        _, job = await world.control.replace_worker(worker.id, WorkerSpec(URL, worker_type=WorkerType.DECODE))
        await world.ended(job.id)
        await asyncio.sleep(0.1)
        (model,) = world.control.models()
        assert (model.ready_prefill, model.ready_decode) == (0, 2)
        assert world.condition(await world.control.get_worker(decode.id), "PAIRABLE").reason == "NO_PEER"

    play(scene)


def test_smg_2521_removing_a_worker_by_id_takes_all_its_ranks_and_no_namesake() -> None:
    """Ranks are slots of one worker here, so there is no `url@rank` to match by prefix."""

    async def scene(world: World) -> None:
        wide = await world.ready("grpc://engine:1", facts=replace(FACTS, dp_size=4))
        longer = await world.ready("grpc://engine:10")
        assert len(wide.ranks) == 4
        await world.ended((await world.control.delete_worker(wide.id)).id)
        assert [worker.id for worker in await world.control.list_workers()] == [longer.id]
        with pytest.raises(TandemError) as caught:
            await world.control.delete_worker(wide.id)
        assert caught.value.reason is Reason.WORKER_NOT_FOUND

    play(scene)


def test_smg_1491_no_request_is_routed_to_a_worker_that_is_about_to_go() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        assert isinstance(pick(world), Plan)
        world.open_leg(worker, "a")
        job = await world.control.delete_worker(worker.id, math.inf)
        assert isinstance(pick(world), Refusal)
        await asyncio.sleep(60)
        assert (await world.control.get_job(job.id)).state is JobState.RUNNING
        world.ledger.close("a")
        await world.ended(job.id, within_s=0.1)

    play(scene)


def test_smg_876_a_draining_worker_keeps_its_connection_until_its_last_stream_has_ended() -> None:
    """The same for a router that shuts down is tests/cli/test_serve_signals.py."""

    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        key = world.open_leg(worker, "a")
        await world.control.drain_worker(worker.id)
        removal = await world.control.delete_worker(worker.id, math.inf)
        await asyncio.sleep(3600)
        assert world.control.fleet.client(key) is not None
        world.ledger.close("a")
        await world.ended(removal.id, within_s=0.1)
        assert world.control.fleet.client(key) is None

    play(scene)


def test_sglang_27980_a_worker_whose_facts_cannot_be_read_is_never_ready_without_them() -> None:
    async def scene(world: World) -> None:
        process = world.process(URL, is_stuck=True)
        worker, _ = await world.control.create_worker(WorkerSpec(URL))
        await asyncio.sleep(30)
        pending = await world.control.get_worker(worker.id)
        assert (pending.status, pending.models) == (WorkerStatus.PENDING, ())
        process.is_stuck = False
        ready = await world.until(worker.id, WorkerStatus.READY, within_s=60)
        assert [card.id for card in ready.models] == ["tiny"]

    play(scene)


def test_sglang_22835_a_removed_prefill_is_never_picked_again() -> None:
    async def scene(world: World) -> None:
        first = await world.ready(URL, WorkerType.PREFILL)
        second = await world.ready("grpc://second:1", WorkerType.PREFILL)
        await world.ready(OTHER, WorkerType.DECODE)
        await world.ended((await world.control.delete_worker(first.id)).id)
        for _ in range(20):
            plan = pick(world)
            assert isinstance(plan, Plan)
            assert plan.prefill is not None
            assert plan.prefill.worker.id == second.id

    play(scene)


def test_sglang_7028_a_fleet_that_died_refuses_and_serves_again_when_one_returns() -> None:
    async def scene(world: World) -> None:
        workers = [await world.ready(url) for url in (URL, OTHER)]
        for worker in workers:
            process = world.dialer.processes[worker.url]
            process.is_up = False
            world.control.fleet.leg_failed(worker.rank_key(0), LOST)
        await asyncio.sleep(0.1)
        refusal = pick(world)
        assert isinstance(refusal, Refusal)
        assert refusal.failure.reason is Reason.NO_READY_WORKER
        world.dialer.processes[OTHER].restart()
        await world.until(workers[1].id, WorkerStatus.READY)
        plan = pick(world)
        assert isinstance(plan, Plan)
        assert plan.decode.worker.id == workers[1].id

    play(scene)


def test_sglang_26842_what_is_known_of_workers_is_rebuilt_from_what_is_there_and_not_from_what_was_seen() -> None:
    """Nothing discovers pods here; the equivalent is the pairing claim, which follows the fleet after any changes."""

    async def scene(world: World) -> None:
        prefill = await world.ready(URL, WorkerType.PREFILL)
        for round_ in range(3):
            decode = await world.ready(f"grpc://decode-{round_}:1", WorkerType.DECODE)
            await asyncio.sleep(0.1)
            assert world.condition(await world.control.get_worker(prefill.id), "PAIRABLE").is_true
            await world.control.drain_worker(decode.id)
            await world.control.undrain_worker(decode.id)
            await world.control.delete_worker(decode.id, force=True)
            await asyncio.sleep(0.1)
            assert world.condition(await world.control.get_worker(prefill.id), "PAIRABLE").reason == "NO_PEER"

    play(scene)


def test_miles_2475_a_leg_that_ends_after_its_worker_went_counts_for_nobody_else() -> None:
    async def scene(world: World) -> None:
        old = await world.ready(URL)
        world.open_leg(old, "late")
        await world.control.delete_worker(old.id, force=True)
        new = await world.ready(URL)
        world.open_leg(new, "own")
        world.ledger.close("late")
        assert world.control.open_legs(new.id) == 1
        assert world.ledger.in_flight(RankKey(new.id, new.epoch, 0)) == 1
        world.ledger.close("own")
        assert world.ledger.statistics().open == 0

    play(scene)


def test_sglang_omni_1049_a_worker_that_hangs_while_it_is_asked_holds_nobody_up() -> None:
    async def scene(world: World) -> None:
        world.process(URL, is_stuck=True)
        await world.control.create_worker(WorkerSpec(URL))
        await asyncio.sleep(0.5)
        began_s = world.clock.monotonic_s()
        await world.ready(OTHER)
        assert world.clock.monotonic_s() - began_s < 0.5

    play(scene)


def test_sglang_29017_a_failed_prefill_ends_its_decode_and_a_finished_one_is_no_load() -> None:
    failure = Failure(Reason.WORKER_LOST, "gone")
    machine = PairMachine(HandshakeKind.RENDEZVOUS)
    machine.step(PairInput.START)
    todo = machine.step(PairInput.PREFILL_BROKEN, failure)
    assert Directive(Do.CANCEL, LegRole.DECODE) in todo
    other = PairMachine(HandshakeKind.RENDEZVOUS)
    other.step(PairInput.START)
    other.step(PairInput.DECODE_ITEM)
    assert Directive(Do.CLOSE, LegRole.PREFILL) in other.step(PairInput.PREFILL_FINISHED)


def test_smg_2140_a_job_that_nobody_waits_for_is_forgotten_all_the_same() -> None:
    settings = RuntimeSettings(jobs=JobSettings(max_connection_attempts=1, history_ttl_s=60.0))

    async def scene(world: World) -> None:
        waiter = asyncio.create_task(world.control.create_worker(WorkerSpec(URL)))
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.sleep(120)
        statistics = world.control.statistics()
        assert (statistics.registry.jobs, statistics.registry.workers_by_status, statistics.jobs.started) == (0, {}, 0)

    play(scene, settings=settings)


def test_sglang_14288_a_worker_that_exits_is_reported_without_any_request() -> None:
    async def scene(world: World) -> None:
        worker: Worker = await world.ready(URL)
        world.dialer.processes[URL].is_up = False
        gone = await world.until(worker.id, WorkerStatus.NOT_READY, within_s=6)
        assert gone.failure is not None
        assert gone.failure.reason is Reason.WORKER_LOST

    play(scene)
