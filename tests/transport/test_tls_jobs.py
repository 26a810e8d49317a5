"""TLS mismatches through the control loop: the job ends and says which, and new credentials mend it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from certificates import Authority, Folder, serving
from scripted_server import ScriptedServer

from tandem_router.clock import LoopClock, SystemIds, SystemRng
from tandem_router.core.ledger import LegLedger
from tandem_router.errors import Reason
from tandem_router.model.job import Job, JobState
from tandem_router.model.spec import WorkerSpec
from tandem_router.model.spec_patch import SpecPatch
from tandem_router.model.worker import Credentials, CredentialsPatch, WorkerStatus
from tandem_router.offload.tokenizers import TokenizerPool
from tandem_router.runtime.control import Control
from tandem_router.store.memory import InMemoryStore
from tandem_router.transport.dialer import GrpcDialer
from tandem_router.transport.tls import TlsFiles

TIMEOUT_S = 20.0


class _Deaf:
    """ports.Observer that nobody reads."""

    def observe(self, event: object) -> None:
        """Let it pass."""


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
async def control(folder: Folder, authority: Authority) -> AsyncIterator[Control]:
    """A control loop whose own files trust another authority, and show its certificate."""
    stranger = Authority()
    files: TlsFiles = folder.write(stranger.pem, stranger.router())
    loop = Control(
        clock=LoopClock(asyncio.get_running_loop()),
        ids=SystemIds(),
        rng=SystemRng(),
        store=InMemoryStore(),
        dialer=GrpcDialer(files),
        codecs=TokenizerPool(),
        ledger=LegLedger(),
        observer=_Deaf(),
    )
    await loop.start()
    yield loop
    await loop.close()


@pytest.fixture
async def secured(authority: Authority) -> AsyncIterator[ScriptedServer]:
    """A worker that asks for client certificates."""
    server = ScriptedServer(credentials=serving(authority.worker(), clients_of=authority))
    await server.start()
    yield server
    await server.stop()


async def ended(control: Control, job: Job | None) -> Job:
    assert job is not None
    async with asyncio.timeout(TIMEOUT_S):
        while not (found := await control.get_job(job.id)).state.is_final:  # noqa: ASYNC110 - a record is polled
            await asyncio.sleep(0.005)
        return found


async def test_job_of_an_untrusted_worker_fails_and_says_so(control: Control, secured: ScriptedServer) -> None:
    _, job = await control.create_worker(WorkerSpec(secured.url, max_connection_attempts=1))
    found = await ended(control, job)
    assert found.state is JobState.FAILED
    assert found.failure is not None
    assert found.failure.reason is Reason.WORKER_TLS_FAILED
    assert "not signed by a trusted authority" in found.failure.sentence


async def test_job_of_a_tls_port_given_as_plain_fails_and_says_so(control: Control, secured: ScriptedServer) -> None:
    url = secured.url.replace("grpcs://", "grpc://")
    _, job = await control.create_worker(WorkerSpec(url, max_connection_attempts=1))
    found = await ended(control, job)
    assert found.failure is not None
    assert found.failure.reason is Reason.WORKER_TLS_FAILED
    assert "use grpcs://" in found.failure.sentence


async def test_credentials_given_later_mend_a_worker(
    control: Control, secured: ScriptedServer, authority: Authority
) -> None:
    worker, job = await control.create_worker(WorkerSpec(secured.url, max_connection_attempts=1))
    await ended(control, job)
    pair = authority.router()
    patch = CredentialsPatch(None, authority.pem, pair.certificate, pair.key)
    _, update = await control.update_worker(worker.id, SpecPatch(), patch)
    assert (await ended(control, update)).state is JobState.SUCCEEDED
    assert (await control.get_worker(worker.id)).status is WorkerStatus.READY


async def test_rotated_files_let_a_waiting_job_in_without_a_restart(
    control: Control, secured: ScriptedServer, authority: Authority, folder: Folder
) -> None:
    worker, job = await control.create_worker(WorkerSpec(secured.url))
    assert job is not None
    async with asyncio.timeout(TIMEOUT_S):
        while (await control.get_job(job.id)).steps[0].failure is None:  # noqa: ASYNC110 - a record is polled
            await asyncio.sleep(0.005)
    folder.write(authority.pem, authority.router())
    assert (await ended(control, job)).state is JobState.SUCCEEDED
    assert (await control.get_worker(worker.id)).status is WorkerStatus.READY


async def test_update_to_wrong_credentials_fails_and_the_worker_serves_on(
    control: Control, secured: ScriptedServer, authority: Authority
) -> None:
    pair = authority.router()
    good = Credentials(None, authority.pem, pair.certificate, pair.key)
    worker, job = await control.create_worker(WorkerSpec(secured.url, max_connection_attempts=1), good)
    await ended(control, job)
    _, update = await control.update_worker(worker.id, SpecPatch(), CredentialsPatch(tls_ca_pem=Authority().pem))
    found = await ended(control, update)
    assert found.failure is not None
    assert found.failure.reason is Reason.WORKER_TLS_FAILED
    serving_on = await control.get_worker(worker.id)
    assert (serving_on.status, serving_on.epoch) == (WorkerStatus.READY, 1)
