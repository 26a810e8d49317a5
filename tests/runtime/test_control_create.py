"""Creating workers: one URL, one worker, whatever races."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from tests.runtime.control_world import FACTS, World, play

from tandem_router.errors import Reason, TandemError
from tandem_router.model.job import JobState, JobType, StepState
from tandem_router.model.settings import JobSettings, RuntimeSettings
from tandem_router.model.spec import ConnectionMode, WorkerSpec, WorkerType
from tandem_router.model.worker import Credentials, WorkerStatus

URL = "grpc://engine:30000"


def test_create_returns_a_pending_worker_and_its_job_before_anything_is_dialled() -> None:
    async def scene(world: World) -> None:
        process = world.process(URL)
        worker, job = await world.create(WorkerSpec(URL))
        assert process.dials == 0
        assert (worker.status, worker.current_job, worker.facts, worker.models) == (
            WorkerStatus.PENDING,
            job.id,
            None,
            (),
        )
        assert (job.type, job.state, job.worker_id) == (JobType.REGISTER_WORKER, JobState.PENDING, worker.id)

    play(scene)


@pytest.mark.parametrize("seed", range(5))
def test_of_200_concurrent_creates_of_one_url_one_succeeds_and_the_rest_learn_its_id(seed: int) -> None:
    async def scene(world: World) -> None:
        world.process(URL)
        spellings = ("grpc://engine:30000", "GRPC://Engine:030000", "grpc://ENGINE.:30000/")

        async def create(number: int) -> tuple[str, str]:
            try:
                worker, _ = await world.control.create_worker(WorkerSpec(spellings[number % 3]))
            except TandemError as error:
                return error.reason.value, error.metadata["worker_id"]
            return "created", worker.id

        answers = await asyncio.gather(*(create(number) for number in range(200)))
        kinds = [kind for kind, _ in answers]
        assert kinds.count("created") == 1
        assert set(kinds) <= {"created", Reason.WORKER_ALREADY_EXISTS, Reason.WORKER_CREATE_IN_PROGRESS}
        assert len({worker_id for _, worker_id in answers}) == 1

    play(scene, seed=seed)


def test_a_create_while_the_url_is_being_registered_names_the_running_job() -> None:
    async def scene(world: World) -> None:
        world.process(URL)
        worker, job = await world.create(WorkerSpec(URL))
        with pytest.raises(TandemError) as caught:
            await world.control.create_worker(WorkerSpec(URL))
        assert caught.value.reason is Reason.WORKER_CREATE_IN_PROGRESS
        assert caught.value.metadata == {"worker_id": worker.id, "job_id": job.id, "url": URL}

    play(scene)


def test_a_create_at_a_live_workers_url_is_refused_with_its_id_and_url() -> None:
    async def scene(world: World) -> None:
        worker = await world.ready(URL)
        with pytest.raises(TandemError) as caught:
            await world.control.create_worker(WorkerSpec("GRPC://ENGINE:30000"))
        assert caught.value.reason is Reason.WORKER_ALREADY_EXISTS
        assert caught.value.metadata == {"worker_id": worker.id, "url": URL}

    play(scene)


def test_a_malformed_url_reserves_nothing() -> None:
    async def scene(world: World) -> None:
        with pytest.raises(TandemError) as caught:
            await world.control.create_worker(WorkerSpec("engine:30000"))
        assert caught.value.reason is Reason.INVALID_WORKER_URL
        assert world.control.statistics().registry.reserved_urls == 0
        assert await world.control.list_jobs() == ()

    play(scene)


def test_a_connection_mode_that_is_not_carried_out_is_refused_by_name() -> None:
    async def scene(world: World) -> None:
        with pytest.raises(TandemError) as caught:
            await world.control.create_worker(WorkerSpec(URL, connection_mode=ConnectionMode.HTTP))
        assert (caught.value.reason, caught.value.field) == (Reason.FEATURE_NOT_IMPLEMENTED, "spec.connection_mode")

    play(scene)


def test_a_repeated_request_id_with_the_same_spec_gives_the_same_worker_and_job() -> None:
    async def scene(world: World) -> None:
        world.process(URL)
        first = await world.create(WorkerSpec(URL), request_id="r1")
        await world.until(first[0].id, WorkerStatus.READY)
        worker, job = await world.create(WorkerSpec(URL), request_id="r1")
        assert (worker.id, job.id, worker.status) == (first[0].id, first[1].id, WorkerStatus.READY)

    play(scene)


def test_a_repeated_request_id_with_another_spec_is_refused() -> None:
    async def scene(world: World) -> None:
        await world.control.create_worker(WorkerSpec(URL), request_id="r1")
        with pytest.raises(TandemError) as caught:
            await world.control.create_worker(WorkerSpec(URL, priority=1), request_id="r1")
        assert caught.value.reason is Reason.REQUEST_ID_REUSED

    play(scene)


def test_a_late_repeat_of_a_create_does_not_bring_a_deleted_worker_back() -> None:
    async def scene(world: World) -> None:
        worker, _ = await world.control.create_worker(WorkerSpec(URL), request_id="r1")
        await world.control.delete_worker(worker.id)
        with pytest.raises(TandemError) as caught:
            await world.control.create_worker(WorkerSpec(URL), request_id="r1")
        assert caught.value.reason is Reason.WORKER_NOT_FOUND
        assert await world.control.list_workers() == ()

    play(scene)


def test_an_upper_case_id_finds_the_worker() -> None:
    async def scene(world: World) -> None:
        worker, _ = await world.control.create_worker(WorkerSpec(URL))
        assert (await world.control.get_worker(worker.id.upper())).id == worker.id

    play(scene)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("not-a-uuid", Reason.INVALID_WORKER_ID),
        ("", Reason.INVALID_WORKER_ID),
        ("00000000-0000-4000-8000-000000000000", Reason.WORKER_NOT_FOUND),
    ],
)
def test_get_worker_tells_a_malformed_id_from_an_unknown_one(text: str, reason: Reason) -> None:
    async def scene(world: World) -> None:
        with pytest.raises(TandemError) as caught:
            await world.control.get_worker(text)
        assert caught.value.reason is reason

    play(scene)


def test_a_full_job_queue_answers_at_once_with_a_hint() -> None:
    settings = RuntimeSettings(jobs=JobSettings(max_running=1, max_queued=1))

    async def scene(world: World) -> None:
        world.dialer.gate = asyncio.Event()
        for number in range(2):
            await world.control.create_worker(WorkerSpec(f"grpc://engine:{number + 1}"))
        with pytest.raises(TandemError) as caught:
            await world.control.create_worker(WorkerSpec("grpc://engine:3"))
        assert caught.value.reason is Reason.JOB_QUEUE_FULL
        assert caught.value.retry_after_s is not None

    play(scene, settings=settings)


def test_a_job_that_waits_between_tries_leaves_its_slot_to_others() -> None:
    settings = RuntimeSettings(jobs=JobSettings(max_running=1))

    async def scene(world: World) -> None:
        await world.control.create_worker(WorkerSpec("grpc://absent:1"))
        await asyncio.sleep(1.0)  # virtual
        started_s = world.clock.monotonic_s()
        await world.ready(URL)
        assert world.clock.monotonic_s() - started_s < 1.0

    play(scene, settings=settings)


def test_no_more_jobs_than_slots_do_something_at_once() -> None:
    settings = RuntimeSettings(jobs=JobSettings(max_running=2))

    async def scene(world: World) -> None:
        world.dialer.gate = asyncio.Event()
        urls = [f"grpc://engine:{number}" for number in range(1, 6)]
        for url in urls:
            world.process(url)
            await world.control.create_worker(WorkerSpec(url))
        await asyncio.sleep(0.5)
        assert sum(process.dials for process in world.dialer.processes.values()) == 2
        assert world.control.statistics().jobs.active == 2
        world.dialer.gate.set()
        await asyncio.sleep(2)
        assert world.control.statistics().registry.workers_by_status == {WorkerStatus.READY: 5}

    play(scene, settings=settings)


def test_credentials_of_a_refused_create_and_of_a_deleted_worker_are_forgotten() -> None:
    async def scene(world: World) -> None:
        world.process(URL)
        worker, _ = await world.control.create_worker(WorkerSpec(URL), Credentials("a"))
        with pytest.raises(TandemError):
            await world.control.create_worker(WorkerSpec(URL), Credentials("b"))
        assert world.control.statistics().credentials == 1
        await world.control.delete_worker(worker.id)
        assert world.control.statistics().credentials == 0

    play(scene)


def test_a_failed_registration_stays_readable_frees_its_url_and_expires() -> None:
    settings = RuntimeSettings(jobs=JobSettings(max_connection_attempts=3))

    async def scene(world: World) -> None:
        worker, job = await world.create(WorkerSpec(URL))
        ended = await world.ended(job.id)
        assert ended.state is JobState.FAILED
        assert ended.steps[0].attempts == 3
        assert ended.steps[0].failure.reason is Reason.WORKER_UNREACHABLE
        assert {step.state for step in ended.steps[1:]} == {StepState.SKIPPED}
        failed = await world.control.get_worker(worker.id)
        assert failed.status is WorkerStatus.FAILED
        assert failed.failure is not None
        assert failed.failure.reason is Reason.WORKER_UNREACHABLE
        successor = await world.ready(URL)
        await asyncio.sleep(settings.jobs.history_ttl_s)
        with pytest.raises(TandemError) as caught:
            await world.control.get_worker(worker.id)
        assert caught.value.reason is Reason.WORKER_NOT_FOUND
        with pytest.raises(TandemError) as caught:
            await world.control.get_job(job.id)
        assert caught.value.reason is Reason.JOB_NOT_FOUND
        assert (await world.control.get_worker(successor.id)).status is WorkerStatus.READY

    play(scene, settings=settings)


def test_expired_records_leave_without_anybody_asking() -> None:
    settings = RuntimeSettings(jobs=JobSettings(max_connection_attempts=1))

    async def scene(world: World) -> None:
        _, job = await world.create(WorkerSpec(URL))
        await world.ended(job.id)
        await asyncio.sleep(settings.jobs.history_ttl_s + 1.0)
        assert world.control.statistics().registry.workers_removed_total == 1
        assert world.control.statistics().registry.jobs == 0

    play(scene, settings=settings)


def test_credentials_reach_the_dialer_and_no_value_that_is_shown() -> None:
    async def scene(world: World) -> None:
        process = world.process(URL)
        worker, _ = await world.control.create_worker(WorkerSpec(URL), Credentials("s3cret"))
        shown = await world.until(worker.id, WorkerStatus.READY)
        assert process.clients[0].credentials == Credentials("s3cret")
        assert shown.has_credentials
        assert "s3cret" not in repr(shown)
        assert "s3cret" not in repr(world.recorder.events)

    play(scene)


def test_a_process_of_another_role_at_an_old_url_is_only_what_it_is_now() -> None:
    """sglang #19909: a pod's address was used again and the worker was in both pools."""

    async def scene(world: World) -> None:
        old = await world.ready(URL, WorkerType.PREFILL)
        await world.ended((await world.control.delete_worker(old.id)).id)
        new = await world.ready(URL, WorkerType.DECODE, facts=replace(FACTS, bootstrap=None))
        assert [(worker.id, worker.worker_type) for worker in await world.control.list_workers()] == [
            (new.id, WorkerType.DECODE)
        ]
        (model,) = world.control.models()
        assert (model.worker_ids, model.ready_prefill, model.ready_decode) == ((new.id,), 0, 1)

    play(scene)
