"""Replacing, updating, draining, taking back and cancelling, through the one pipeline."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from tests.runtime.control_world import FACTS, World, play

from tandem_router.errors import Reason, TandemError
from tandem_router.model.failure import Failure
from tandem_router.model.ids import WorkerId
from tandem_router.model.job import JobState, JobType
from tandem_router.model.settings import JobSettings, RuntimeSettings
from tandem_router.model.spec import HealthOverrides, WorkerSpec, WorkerType
from tandem_router.model.spec_patch import SpecPatch
from tandem_router.model.worker import Credentials, CredentialsPatch, WorkerStatus

URL = "grpc://engine:30000"
FEW = RuntimeSettings(jobs=JobSettings(max_connection_attempts=2))


def test_a_replaced_worker_serves_under_its_old_spec_until_the_new_one_takes_over_at_once() -> None:
    async def scene(world: World) -> None:
        old = await world.ready(URL)
        world.dialer.gate = asyncio.Event()
        shown, job = await world.control.replace_worker(old.id, WorkerSpec(URL, worker_type=WorkerType.DECODE))
        assert (shown.spec, shown.status, shown.generation) == (old.spec, WorkerStatus.READY, old.generation + 1)
        assert (job.type, job.worker_generation) == (JobType.REPLACE_WORKER, shown.generation)
        await asyncio.sleep(1.0)
        assert (await world.control.get_worker(old.id)).worker_type is WorkerType.REGULAR
        world.dialer.gate.set()
        assert (await world.ended(job.id)).state is JobState.SUCCEEDED
        new = await world.control.get_worker(old.id)
        assert (new.worker_type, new.status, new.epoch) == (WorkerType.DECODE, WorkerStatus.READY, old.epoch + 1)
        assert new.generation == shown.generation

    play(scene)


def test_legs_on_the_old_spec_go_on_to_their_end_on_its_connection() -> None:
    async def scene(world: World) -> None:
        old = await world.ready(URL)
        key = world.open_leg(old, "a")
        _, job = await world.control.replace_worker(old.id, WorkerSpec(URL))
        await world.ended(job.id)
        await asyncio.sleep(60)
        assert world.control.fleet.client(key) is not None
        world.ledger.close("a")
        await asyncio.sleep(0.1)
        assert world.control.fleet.client(key) is None
        assert world.dialer.processes[URL].open_clients == 1

    play(scene)


def test_a_replacement_that_fails_leaves_the_old_spec_and_its_job_readable() -> None:
    async def scene(world: World) -> None:
        old = await world.ready(URL)
        process = world.dialer.processes[URL]
        process.is_up = False
        _, job = await world.control.replace_worker(old.id, WorkerSpec(URL, labels={"v": "2"}))
        assert (await world.ended(job.id)).state is JobState.FAILED
        shown = await world.control.get_worker(old.id)
        assert (shown.spec, shown.current_job) == (old.spec, job.id)
        process.restart()
        await world.until(old.id, WorkerStatus.READY)

    play(scene, settings=FEW)


def test_a_replacement_with_another_endpoint_is_refused_by_field() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        with pytest.raises(TandemError) as caught:
            await world.control.replace_worker(worker.id, WorkerSpec("grpc://elsewhere:1"))
        assert (caught.value.reason, caught.value.field) == (Reason.INVALID_REQUEST, "spec.url")
        _, job = await world.control.replace_worker(worker.id, WorkerSpec("GRPC://Engine.:30000"))
        assert (await world.ended(job.id)).state is JobState.SUCCEEDED

    play(scene)


def test_a_failed_worker_is_replaced_from_the_start_and_keeps_its_credentials() -> None:
    async def scene(world: World) -> None:
        worker, job = await world.create(WorkerSpec(URL), Credentials("k"))
        await world.ended(job.id)
        process = world.process(URL)
        shown, again = await world.control.replace_worker(worker.id, WorkerSpec(URL, labels={"v": "2"}))
        assert (shown.status, shown.spec.labels, shown.failure) == (WorkerStatus.PENDING, {"v": "2"}, None)
        assert (await world.ended(again.id)).state is JobState.SUCCEEDED
        assert process.clients[0].credentials == Credentials("k")

    play(scene, settings=FEW)


def test_a_failed_worker_whose_url_was_taken_cannot_be_replaced() -> None:
    async def scene(world: World) -> None:
        worker, job = await world.create(WorkerSpec(URL))
        await world.ended(job.id)
        successor = await world.ready(URL)
        with pytest.raises(TandemError) as caught:
            await world.control.replace_worker(worker.id, WorkerSpec(URL))
        assert caught.value.metadata["worker_id"] == successor.id

    play(scene, settings=FEW)


def test_a_change_expecting_another_generation_is_refused_with_both_numbers() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        with pytest.raises(TandemError) as caught:
            await world.control.drain_worker(worker.id, expected_generation=9)
        assert caught.value.reason is Reason.GENERATION_MISMATCH
        assert caught.value.metadata == {"worker_id": worker.id, "expected_generation": "9", "generation": "1"}

    play(scene)


def test_labels_are_merged_and_health_acts_at_once_without_a_job() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        patch = SpecPatch({("health", "check_interval_s"): 0.5}, {"a": "1"})
        shown, job = await world.control.update_worker(worker.id, patch)
        assert (job, shown.generation, shown.epoch) == (None, 2, worker.epoch)
        assert shown.spec.health == HealthOverrides(check_interval_s=0.5)
        again, _ = await world.control.update_worker(worker.id, patch)
        assert again.generation == 2, "what is so already is no change"
        shown, _ = await world.control.update_worker(worker.id, SpecPatch(labels={"b": "2"}, remove_labels=("a", "x")))
        assert shown.spec.labels == {"b": "2"}

    play(scene)


def test_a_label_set_while_a_replacement_runs_survives_it() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        world.dialer.gate = asyncio.Event()
        _, job = await world.control.replace_worker(worker.id, WorkerSpec(URL, labels={"v": "2"}))
        shown, same = await world.control.update_worker(worker.id, SpecPatch(labels={"a": "1"}))
        assert (shown.spec.labels, same and same.id) == ({"a": "1"}, job.id)
        world.dialer.gate.set()
        ended = await world.ended(job.id)
        after = await world.control.get_worker(worker.id)
        assert (after.spec.labels, ended.worker_generation) == ({"v": "2", "a": "1"}, after.generation)

    play(scene)


def test_new_credentials_are_tried_before_they_are_used_and_an_empty_key_deletes_them() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        process = world.dialer.processes[URL]
        _, job = await world.control.update_worker(worker.id, SpecPatch(), CredentialsPatch("new"))
        assert job is not None
        assert not (await world.control.get_worker(worker.id)).has_credentials
        await world.ended(job.id)
        assert process.clients[-1].credentials == Credentials("new")
        assert (await world.control.get_worker(worker.id)).has_credentials
        _, job = await world.control.update_worker(worker.id, SpecPatch(), CredentialsPatch(""))
        assert job is not None
        await world.ended(job.id)
        assert process.clients[-1].credentials is None
        assert world.control.statistics().credentials == 0

    play(scene)


def test_a_drain_cordons_at_once_tells_its_progress_and_ends_with_the_last_leg() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        for leg in "abc":
            world.open_leg(worker, leg)
        shown, job = await world.control.drain_worker(worker.id, None, "new kernel")
        assert (shown.status, shown.drain and shown.drain.reason) == (WorkerStatus.DRAINING, "new kernel")
        await asyncio.sleep(2)
        world.ledger.close("a")
        await asyncio.sleep(2)
        assert (await world.control.get_job(job.id)).steps[0].detail == "waiting for 2 legs"
        assert world.control.open_legs(worker.id) == 2
        world.ledger.close("b")
        world.ledger.close("c")
        assert (await world.ended(job.id, within_s=0.1)).state is JobState.SUCCEEDED
        after = await world.control.get_worker(worker.id)
        assert after.status is WorkerStatus.DRAINING
        assert after.drain is not None
        assert after.drain.drained_at_s is not None

    play(scene)


def test_at_its_deadline_a_drain_aborts_what_is_left() -> None:
    async def scene(world: World) -> None:
        aborted: list[tuple[WorkerId, Failure]] = []

        def abort(worker_id: WorkerId, failure: Failure) -> int:
            aborted.append((worker_id, failure))
            world.ledger.close("a")
            return 1

        world.control.use(abort)
        worker = await world.ready(URL)
        world.open_leg(worker, "a")
        began_s = world.clock.monotonic_s()
        _, job = await world.control.drain_worker(worker.id, 7.0)
        assert job.deadline_at_s == pytest.approx(world.clock.wall_s() + 7.0)
        ended = await world.ended(job.id)
        assert world.clock.monotonic_s() - began_s == pytest.approx(7.0, abs=0.02)
        assert ended.steps[0].detail == "idle; 1 leg aborted at the deadline"
        assert [(one, failure.reason) for one, failure in aborted] == [(worker.id, Reason.WORKER_LOST)]

    play(scene)


def test_a_second_drain_replaces_deadline_and_reason_of_the_same_job() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        world.open_leg(worker, "a")

        def abort(worker_id: WorkerId, failure: Failure) -> int:
            world.ledger.close("a")
            return 1

        world.control.use(abort)
        _, first = await world.control.drain_worker(worker.id, None, "one")
        await asyncio.sleep(5)
        shown, second = await world.control.drain_worker(worker.id, 0.0, "two")
        assert (second.id, shown.drain and shown.drain.reason) == (first.id, "two")
        await world.ended(first.id, within_s=0.1)

    play(scene)


def test_an_undrain_makes_a_healthy_worker_ready_at_once_and_cancels_the_drain() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        world.open_leg(worker, "a")
        _, job = await world.control.drain_worker(worker.id)
        await asyncio.sleep(30)
        shown = await world.control.undrain_worker(worker.id)
        assert (shown.status, shown.drain, shown.epoch) == (WorkerStatus.READY, None, worker.epoch)
        assert (await world.control.get_job(job.id)).state is JobState.CANCELLED
        again = await world.control.undrain_worker(worker.id)
        assert again.generation == shown.generation
        world.ledger.close("a")

    play(scene)


def test_a_worker_that_died_while_it_drained_is_not_ready_after_the_undrain() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        await world.control.drain_worker(worker.id)
        world.dialer.processes[URL].is_up = False
        await asyncio.sleep(30)
        assert (await world.control.get_worker(worker.id)).status is WorkerStatus.DRAINING
        shown = await world.control.undrain_worker(worker.id)
        why = shown.failure and shown.failure.reason
        assert (shown.status, why) == (WorkerStatus.NOT_READY, Reason.WORKER_UNREACHABLE)

    play(scene)


def test_a_worker_drained_while_it_registers_never_gets_a_request() -> None:
    async def scene(world: World) -> None:
        world.process(URL)
        worker, _ = await world.control.create_worker(WorkerSpec(URL))
        shown, job = await world.control.drain_worker(worker.id)
        assert shown.status is WorkerStatus.PENDING
        await world.ended(job.id)
        assert (await world.control.get_worker(worker.id)).status is WorkerStatus.DRAINING
        assert (await world.control.undrain_worker(worker.id)).status is WorkerStatus.READY

    play(scene)


def test_a_cancelled_registration_leaves_a_failed_worker_that_says_why() -> None:
    async def scene(world: World) -> None:
        world.process(URL, is_stuck=True)
        worker, job = await world.create(WorkerSpec(URL))
        await asyncio.sleep(0.5)
        asked = await world.control.cancel_job(job.id, "wrong port")
        assert (asked.state, asked.cancel is not None) == (JobState.RUNNING, True)
        ended = await world.ended(job.id, within_s=0.1)
        assert (ended.state, ended.failure and ended.failure.reason) == (JobState.CANCELLED, Reason.REQUEST_CANCELLED)
        shown = await world.control.get_worker(worker.id)
        assert shown.status is WorkerStatus.FAILED
        assert shown.failure is not None
        assert "wrong port" in shown.failure.sentence
        await asyncio.sleep(1)
        assert world.dialer.processes[URL].open_clients == 0
        with pytest.raises(TandemError) as caught:
            await world.control.cancel_job(job.id)
        assert caught.value.reason is Reason.JOB_FINISHED

    play(scene)


def test_a_cancelled_replacement_leaves_the_old_spec_serving() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        world.dialer.gate = asyncio.Event()
        _, job = await world.control.replace_worker(worker.id, WorkerSpec(URL, labels={"v": "2"}))
        await asyncio.sleep(0.5)
        await world.control.cancel_job(job.id)
        assert (await world.ended(job.id, within_s=0.1)).state is JobState.CANCELLED
        world.dialer.gate.set()
        await asyncio.sleep(10)
        shown = await world.control.get_worker(worker.id)
        assert (shown.status, shown.spec, shown.epoch) == (WorkerStatus.READY, worker.spec, worker.epoch)

    play(scene)


@pytest.mark.parametrize("is_removal", [False, True])
def test_a_cancelled_drain_or_delete_takes_the_wish_back(is_removal: bool) -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        world.open_leg(worker, "a")
        if is_removal:
            job = await world.control.delete_worker(worker.id, 60.0)
        else:
            _, job = await world.control.drain_worker(worker.id, 60.0)
        await asyncio.sleep(1)
        assert (await world.control.cancel_job(job.id)).state is JobState.CANCELLED
        await asyncio.sleep(120)
        assert (await world.control.get_worker(worker.id)).status is WorkerStatus.READY
        world.ledger.close("a")

    play(scene)


def test_nothing_else_can_be_wished_of_a_worker_that_is_being_deleted() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        world.open_leg(worker, "a")
        removal = await world.control.delete_worker(worker.id, 60.0)
        with pytest.raises(TandemError) as caught:
            await world.control.undrain_worker(worker.id)
        assert caught.value.reason is Reason.WORKER_BEING_DELETED
        assert caught.value.metadata["job_id"] == removal.id
        world.ledger.close("a")

    play(scene)


def test_a_step_that_waits_for_its_next_try_says_when_that_is() -> None:
    async def scene(world: World) -> None:
        _, job = await world.create(WorkerSpec(URL))
        await asyncio.sleep(0.05)
        waiting = await world.control.get_job(job.id)
        assert waiting.next_try_at_s is not None
        assert 0 < waiting.next_try_at_s - world.clock.wall_s() < 0.3
        ended = await world.ended(job.id)
        assert ended.next_try_at_s is None

    play(scene, settings=FEW)


def test_a_request_id_still_gives_its_worker_after_the_jobs_record_has_gone() -> None:
    async def scene(world: World) -> None:
        world.process(URL)
        worker, _ = await world.control.create_worker(WorkerSpec(URL), request_id="r")
        await asyncio.sleep(2 * 3600)
        again, job = await world.control.create_worker(WorkerSpec(URL), request_id="r")
        assert (again.id, job) == (worker.id, None)

    play(scene)


def test_a_change_of_one_worker_of_many_looks_at_few_others() -> None:
    async def scene(world: World) -> None:
        decode_facts = replace(FACTS, bootstrap=None)
        for number in range(30):
            world.process(f"grpc://p{number}:1")
            world.process(f"grpc://d{number}:1", facts=decode_facts)
            await world.control.create_worker(WorkerSpec(f"grpc://p{number}:1", worker_type=WorkerType.PREFILL))
            await world.control.create_worker(WorkerSpec(f"grpc://d{number}:1", worker_type=WorkerType.DECODE))
        await asyncio.sleep(5)
        workers = await world.control.list_workers()
        assert all(world.condition(worker, "PAIRABLE").is_true for worker in workers)
        before = world.control.revision
        await world.control.drain_worker(workers[-1].id)
        await asyncio.sleep(1)
        assert world.control.revision - before < 10

    play(scene)
