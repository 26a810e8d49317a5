"""The registration job, step by step."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from tests.runtime.control_world import FACTS, World, play

from tandem_router.errors import Reason
from tandem_router.model.job import JobState, StepState
from tandem_router.model.pairing import BootstrapEndpoint
from tandem_router.model.settings import HealthSettings, JobSettings, RuntimeSettings
from tandem_router.model.spec import HealthOverrides, ModelCard, WorkerSpec, WorkerType
from tandem_router.model.worker import WorkerStatus

URL = "grpc://engine:30000"
S, X, F = StepState.SUCCEEDED, StepState.SKIPPED, StepState.FAILED


def test_a_regular_worker_goes_through_every_step_and_becomes_ready_in_epoch_1() -> None:
    async def scene(world: World) -> None:
        world.process(URL)
        worker, job = await world.create(WorkerSpec(URL))
        ended = await world.ended(job.id)
        assert ended.state is JobState.SUCCEEDED
        assert [(step.name, step.state) for step in ended.steps] == [
            ("connect", S),
            ("detect_runtime", S),
            ("read_facts", S),
            ("check_pairing", X),
            ("probe_bootstrap", X),
            ("load_tokenizer", S),
            ("activate", S),
        ]
        ready = await world.control.get_worker(worker.id)
        assert (ready.status, ready.epoch, ready.current_job) == (WorkerStatus.READY, 1, None)
        assert [rank.dp_rank for rank in ready.ranks] == [0]
        assert world.control.fleet.client(ready.rank_key(0)) is not None
        assert world.codecs.archives == {"tiny": b"archive"}

    play(scene)


def test_every_try_is_visible_while_the_job_runs() -> None:
    async def scene(world: World) -> None:
        _, job = await world.create(WorkerSpec(URL))
        await asyncio.sleep(1.0)
        running = await world.control.get_job(job.id)
        step = running.steps[0]
        assert (running.state, step.state) == (JobState.RUNNING, StepState.RUNNING)
        assert step.attempts >= 2
        assert step.failure is not None
        assert "failed; next in" in step.detail

    play(scene)


def test_a_worker_that_starts_late_is_found_by_a_later_try() -> None:
    async def scene(world: World) -> None:
        worker, _ = await world.control.create_worker(WorkerSpec(URL))
        await asyncio.sleep(30)
        world.process(URL)
        await world.until(worker.id, WorkerStatus.READY, within_s=13)

    play(scene)


def test_a_process_that_restarts_during_its_registration_is_registered_on_a_new_connection() -> None:
    async def scene(world: World) -> None:
        process = world.process(URL, is_serving=False)
        worker, _ = await world.control.create_worker(WorkerSpec(URL))
        await asyncio.sleep(3)
        process.restart()
        process.is_serving = True
        ready = await world.until(worker.id, WorkerStatus.READY, within_s=13)
        assert ready.facts is not None
        assert ready.facts.instance == "life 2"
        assert process.open_clients == 1

    play(scene)


def test_the_spec_states_how_often_to_try() -> None:
    async def scene(world: World) -> None:
        process = world.process(URL, is_up=False)
        _, job = await world.create(WorkerSpec(URL, max_connection_attempts=4))
        await world.ended(job.id)
        assert process.dials == 4

    play(scene)


def test_a_worker_that_takes_connections_and_never_answers_does_not_hold_its_job_for_ever() -> None:
    settings = RuntimeSettings(jobs=JobSettings(max_connection_attempts=2), health=HealthSettings(timeout_s=2.0))

    async def scene(world: World) -> None:
        process = world.process(URL, is_stuck=True)
        _, job = await world.create(WorkerSpec(URL))
        ended = await world.ended(job.id, within_s=20)
        assert ended.failure.reason is Reason.WORKER_UNREACHABLE
        assert [step.state for step in ended.steps[:3]] == [S, S, F]
        assert process.open_clients == 0

    play(scene, settings=settings)


def test_facts_are_waited_for_as_long_as_the_spec_says_of_probes() -> None:
    async def scene(world: World) -> None:
        world.process(URL, is_stuck=True)
        began_s = asyncio.get_running_loop().time()
        spec = WorkerSpec(URL, max_connection_attempts=1, health=HealthOverrides(timeout_s=30.0))
        _, job = await world.create(spec)
        assert (await world.ended(job.id)).steps[2].state is F
        assert 30.0 <= asyncio.get_running_loop().time() - began_s < 32.0

    play(scene)


def test_a_worker_that_is_not_serving_yet_is_not_ready_yet() -> None:
    async def scene(world: World) -> None:
        process = world.process(URL, is_serving=False)
        worker, _ = await world.control.create_worker(WorkerSpec(URL))
        await asyncio.sleep(20)
        assert (await world.control.get_worker(worker.id)).status is WorkerStatus.PENDING
        process.is_serving = True
        await world.until(worker.id, WorkerStatus.READY, within_s=13)

    play(scene)


@pytest.mark.parametrize(
    ("stated", "found", "expected"),
    [
        ({}, BootstrapEndpoint("10.0.0.1", 9000), ("10.0.0.1", 9000)),
        ({}, None, ("engine", 8998)),
        ({}, BootstrapEndpoint("0.0.0.0", 9000), ("engine", 9000)),
        ({"bootstrap_port": 7}, BootstrapEndpoint("10.0.0.1", 9000), ("10.0.0.1", 7)),
        ({"bootstrap_host": "h"}, None, ("h", 8998)),
        ({"bootstrap_host": "h", "bootstrap_port": 7}, BootstrapEndpoint("10.0.0.1", 9000), ("h", 7)),
    ],
)
def test_the_bootstrap_endpoint_is_stated_else_found_else_derived(
    stated: dict[str, object], found: BootstrapEndpoint | None, expected: tuple[str, int]
) -> None:
    async def scene(world: World) -> None:
        world.process(URL, facts=replace(FACTS, bootstrap=found))
        spec = WorkerSpec(URL, worker_type=WorkerType.PREFILL, **stated)  # type: ignore[arg-type]
        worker, _ = await world.control.create_worker(spec)
        ready = await world.until(worker.id, WorkerStatus.READY)
        assert ready.facts is not None
        assert ready.facts.bootstrap == BootstrapEndpoint(*expected)
        assert world.dialer.knocks == [expected]

    play(scene)


def test_a_decode_worker_has_no_bootstrap_endpoint() -> None:
    async def scene(world: World) -> None:
        ready = await world.ready(URL, WorkerType.DECODE)
        assert ready.facts is not None
        assert ready.facts.bootstrap is None
        assert world.dialer.knocks == []

    play(scene)


def test_a_prefill_worker_whose_bootstrap_is_unreachable_is_not_ready_until_it_answers() -> None:
    async def scene(world: World) -> None:
        process = world.process(URL, is_bootstrap_up=False)
        worker, job = await world.create(WorkerSpec(URL, worker_type=WorkerType.PREFILL))
        ended = await world.ended(job.id)
        assert (ended.state, ended.steps[4].state) == (JobState.SUCCEEDED, F)
        shown = await world.control.get_worker(worker.id)
        assert shown.status is WorkerStatus.NOT_READY
        assert not world.condition(shown, "BOOTSTRAP_REACHABLE").is_true
        process.is_bootstrap_up = True
        ready = await world.until(worker.id, WorkerStatus.READY, within_s=10)
        assert world.condition(ready, "BOOTSTRAP_REACHABLE").is_true
        assert ready.epoch == 1

    play(scene)


def test_what_is_stated_wins_over_what_is_found_and_the_difference_is_told() -> None:
    async def scene(world: World) -> None:
        world.process(URL, facts=replace(FACTS, kv_block_size=64, kv_connector="NixlConnector"))
        worker, _ = await world.control.create_worker(WorkerSpec(URL, kv_block_size=16, kv_connector="NixlConnector"))
        ready = await world.until(worker.id, WorkerStatus.READY)
        assert ready.facts is not None
        assert ready.facts.kv_block_size == 16
        claim = world.condition(ready, "FACTS_MATCH")
        assert (claim.is_true, claim.reason, claim.message) == (
            False,
            "CONFLICT_KV_BLOCK_SIZE",
            "kv_block_size: stated 16, found 64",
        )

    play(scene)


def test_a_worker_without_a_tokenizer_is_ready_and_says_so() -> None:
    async def scene(world: World) -> None:
        ready = await world.ready(URL, tokenizer=None)
        claim = world.condition(ready, "TOKENIZER")
        assert (claim.is_true, claim.reason) == (False, "NOT_OFFERED")

    play(scene)


def test_a_tokenizer_is_loaded_under_every_stated_model_and_once() -> None:
    async def scene(world: World) -> None:
        world.process(URL)
        spec = WorkerSpec(URL, models=(ModelCard("a"), ModelCard("b")))
        worker, _ = await world.control.create_worker(spec)
        await world.until(worker.id, WorkerStatus.READY)
        assert sorted(world.codecs.archives) == ["a", "b"]
        _, job = await world.create(replace(spec, url="grpc://two:1"))
        world.process("grpc://two:1")
        assert (await world.ended(job.id)).steps[5].detail == "already loaded"

    play(scene)


def test_dp_size_makes_as_many_ranks_and_a_pinned_rank_one() -> None:
    async def scene(world: World) -> None:
        wide = await world.ready(URL, facts=replace(FACTS, dp_size=3))
        assert [rank.dp_rank for rank in wide.ranks] == [0, 1, 2]
        world.process("grpc://pinned:1", facts=replace(FACTS, dp_size=3))
        worker, _ = await world.control.create_worker(WorkerSpec("grpc://pinned:1", dp_rank=2, dp_size=3))
        pinned = await world.until(worker.id, WorkerStatus.READY)
        assert [rank.dp_rank for rank in pinned.ranks] == [2]

    play(scene)


def test_a_half_of_a_pair_says_whether_it_fits_somebody_as_peers_come_and_go() -> None:
    async def scene(world: World) -> None:
        prefill = await world.ready(URL, WorkerType.PREFILL)
        assert world.condition(prefill, "PAIRABLE").reason == "NO_PEER"
        odd = await world.ready("grpc://odd:1", WorkerType.DECODE, facts=replace(FACTS, model_id="other"))
        await asyncio.sleep(0.1)
        claim = world.condition(await world.control.get_worker(prefill.id), "PAIRABLE")
        assert (claim.is_true, claim.reason) == (False, Reason.NO_COMPATIBLE_PAIR)
        assert odd.id in claim.message
        fitting = await world.ready("grpc://fitting:1", WorkerType.DECODE)
        await asyncio.sleep(0.1)
        assert world.condition(await world.control.get_worker(prefill.id), "PAIRABLE").is_true
        await world.ended((await world.control.delete_worker(fitting.id)).id)
        await asyncio.sleep(0.1)
        assert not world.condition(await world.control.get_worker(prefill.id), "PAIRABLE").is_true

    play(scene)


def test_a_worker_that_is_leaving_makes_nobody_pairable() -> None:
    async def scene(world: World) -> None:
        prefill = await world.ready(URL, WorkerType.PREFILL)
        decode = await world.ready("grpc://decode:1", WorkerType.DECODE)
        world.open_leg(decode, "a")
        await world.control.delete_worker(decode.id)
        await asyncio.sleep(1)
        assert (await world.control.get_worker(decode.id)).status is WorkerStatus.DRAINING
        assert world.condition(await world.control.get_worker(prefill.id), "PAIRABLE").reason == "NO_PEER"
        world.ledger.close("a")

    play(scene)


class Panic(BaseException):
    """As an extension module raises one."""


@pytest.mark.parametrize("fault", [ZeroDivisionError("ours"), Panic("of a library")], ids=["exception", "panic"])
def test_a_fault_inside_a_job_ends_the_job_and_is_logged(fault: BaseException) -> None:
    async def scene(world: World) -> None:
        heard: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context["exception"]))

        async def load(*_: object) -> None:
            raise fault

        world.codecs.load = load  # type: ignore[method-assign, assignment]
        world.process(URL)
        _, job = await world.create(WorkerSpec(URL))
        ended = await world.ended(job.id)
        assert ended.state is JobState.FAILED
        assert ended.failure is not None
        assert ended.failure.reason is Reason.INTERNAL_ERROR
        assert heard == [fault]

    play(scene)
