"""Reaching a worker: what the first steps of its job tell, and with which credentials it is dialled."""

from __future__ import annotations

import pytest
from tests.runtime.control_world import World, play

from tandem_router.errors import Reason, TandemError
from tandem_router.model.detection import Asked
from tandem_router.model.job import Job, JobStep, StepState
from tandem_router.model.spec import RuntimeType, WorkerSpec
from tandem_router.model.spec_patch import SpecPatch
from tandem_router.model.worker import Credentials, CredentialsPatch

URL = "grpc://engine:30000"
S, F = StepState.SUCCEEDED, StepState.FAILED


def steps_of(job: Job) -> dict[str, JobStep]:
    return {step.name: step for step in job.steps}


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("grpc://engine:30000", "scheme grpc (plain text), connection mode GRPC"),
        ("grpcs://engine:30000", "scheme grpcs (TLS), connection mode GRPC"),
    ],
)
def test_the_connect_step_tells_scheme_and_connection_mode(url: str, told: str) -> None:
    async def scene(world: World) -> None:
        world.process(url)
        _, job = await world.create(WorkerSpec(url))
        assert told in steps_of(await world.ended(job.id))["connect"].detail

    play(scene)


ASKED = (Asked(RuntimeType.SGLANG, "UNIMPLEMENTED", 0.002), Asked(RuntimeType.VLLM, "OK", 0.0031))


@pytest.mark.parametrize(
    ("stated", "begins"), [(None, "found by asking SGLANG"), (RuntimeType.VLLM, "stated: VLLM; asked SGLANG")]
)
def test_the_detect_step_tells_which_protocols_were_asked_what_they_answered_and_how_long(
    stated: RuntimeType | None, begins: str
) -> None:
    async def scene(world: World) -> None:
        world.process(URL, trace=ASKED)
        _, job = await world.create(WorkerSpec(URL, runtime_type=stated))
        detail = steps_of(await world.ended(job.id))["detect_runtime"].detail
        assert detail.startswith(begins)
        assert "SGLANG: UNIMPLEMENTED (2 ms), VLLM: OK (3 ms)" in detail

    play(scene)


def test_a_detection_that_finds_nothing_fails_its_own_step_with_the_trace_and_at_once() -> None:
    async def scene(world: World) -> None:
        process = world.process(URL, is_unknown=True, trace=ASKED[:1])
        _, job = await world.create(WorkerSpec(URL))
        ended = await world.ended(job.id)
        connect, detect = (steps_of(ended)[name] for name in ("connect", "detect_runtime"))
        assert (connect.state, detect.state, process.dials) == (S, F, 1)
        assert "SGLANG: UNIMPLEMENTED (2 ms)" in detect.detail
        assert ended.failure.reason is Reason.RUNTIME_NOT_DETECTED
        assert process.open_clients == 0

    play(scene)


def test_a_worker_that_cannot_be_connected_to_has_no_detection() -> None:
    async def scene(world: World) -> None:
        world.process(URL, is_up=False)
        _, job = await world.create(WorkerSpec(URL, max_connection_attempts=1))
        ended = await world.ended(job.id)
        connect, detect = (steps_of(ended)[name] for name in ("connect", "detect_runtime"))
        assert (connect.state, detect.attempts) == (F, 0)

    play(scene)


PAIR = {"tls_certificate_pem": b"c", "tls_private_key_pem": b"k"}


def test_an_update_of_tls_credentials_dials_again_and_keeps_what_it_does_not_name() -> None:
    async def scene(world: World) -> None:
        process = world.process(URL)
        worker, job = await world.create(WorkerSpec(URL), Credentials("key", **PAIR))
        await world.ended(job.id)
        _, update = await world.control.update_worker(worker.id, SpecPatch(), CredentialsPatch(tls_ca_pem=b"ca"))
        assert update is not None
        await world.ended(update.id)
        assert process.clients[-1].credentials == Credentials("key", b"ca", **PAIR)
        assert (await world.control.get_worker(worker.id)).epoch == 2

    play(scene)


def test_credentials_are_left_until_the_last_of_them_is_deleted() -> None:
    async def scene(world: World) -> None:
        world.process(URL)
        worker, job = await world.create(WorkerSpec(URL), Credentials("key", b"ca"))
        await world.ended(job.id)
        shown = []
        for patch in (CredentialsPatch(api_key=""), CredentialsPatch(tls_ca_pem=b"")):
            _, update = await world.control.update_worker(worker.id, SpecPatch(), patch)
            assert update is not None
            await world.ended(update.id)
            shown.append((await world.control.get_worker(worker.id)).has_credentials)
        assert shown == [True, False]

    play(scene)


def test_half_of_a_pair_is_refused_before_anything_changes() -> None:
    async def scene(world: World) -> None:
        world.process(URL)
        worker, job = await world.create(WorkerSpec(URL), Credentials(None, **PAIR))
        await world.ended(job.id)
        before = await world.control.get_worker(worker.id)
        with pytest.raises(TandemError) as caught:
            await world.control.update_worker(worker.id, SpecPatch(), CredentialsPatch(tls_private_key_pem=b""))
        assert (caught.value.reason, caught.value.field) == (
            Reason.INVALID_REQUEST,
            "credentials.tls_private_key_pem",
        )
        assert await world.control.get_worker(worker.id) == before

    play(scene)


def test_a_stated_tls_name_dials_again() -> None:
    async def scene(world: World) -> None:
        process = world.process(URL)
        worker, job = await world.create(WorkerSpec(URL))
        await world.ended(job.id)
        patch = SpecPatch({("channel", "tls_server_name"): "worker.test"})
        _, update = await world.control.update_worker(worker.id, patch)
        assert update is not None
        await world.ended(update.id)
        assert process.clients[-1].spec.channel.tls_server_name == "worker.test"

    play(scene)
