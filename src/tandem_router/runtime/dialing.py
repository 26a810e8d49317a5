"""Opening a connection to a worker: canonical URL, its own timeouts, and the credentials that only live here."""

from __future__ import annotations

from dataclasses import replace

from tandem_router.model.detection import OnAsked
from tandem_router.model.ids import JobId, WorkerId
from tandem_router.model.settings import RuntimeSettings
from tandem_router.model.worker import Credentials, CredentialsPatch, Worker
from tandem_router.ports import EngineClient, EngineDialer
from tandem_router.runtime.deadline import within

__all__ = ["Dialing"]


class Dialing:
    """Dials workers. Credentials are in memory only, apart from every value that is shown or stored."""

    def __init__(self, dialer: EngineDialer, settings: RuntimeSettings) -> None:
        self._dialer = dialer
        self._settings = settings
        self._credentials: dict[WorkerId, Credentials] = {}
        self._wanted: dict[WorkerId, tuple[JobId, CredentialsPatch]] = {}

    def keep(self, worker_id: WorkerId, credentials: Credentials | None) -> None:
        """Use these for the worker from now on."""
        if credentials is not None:
            self._credentials[worker_id] = credentials

    def change(self, worker_id: WorkerId, patch: CredentialsPatch | None) -> None:
        """Use the changed ones for the worker from now on."""
        credentials = None if patch is None else patch.onto(self._credentials.get(worker_id))
        if credentials is not None:
            self._credentials[worker_id] = credentials
        elif patch is not None:
            self._credentials.pop(worker_id, None)

    def want(self, worker_id: WorkerId, job_id: JobId, patch: CredentialsPatch | None) -> None:
        """Use the changed ones where a job dials, and for all once it has succeeded; instead of what was wanted."""
        self._wanted[worker_id] = (job_id, patch or CredentialsPatch())

    def wanted(self, worker_id: WorkerId) -> CredentialsPatch | None:
        """The change that a job is to bring into effect."""
        entry = self._wanted.get(worker_id)
        return None if entry is None else entry[1]

    def has_any_after(self, worker_id: WorkerId, patch: CredentialsPatch | None, *, is_whole: bool) -> bool | None:
        """Whether credentials are left after a change, or None where it changes nothing.

        is_whole: it is made instead of what a job is to bring into effect, not after that.
        Raises TandemError INVALID_REQUEST where half of a pair would be left.
        """
        if patch is None or patch.is_empty:
            return None
        earlier = None if is_whole else self.wanted(worker_id)
        left = patch.over(earlier).onto(self._credentials.get(worker_id))
        if left is not None:
            left.check()
        return left is not None

    def promote(self, worker_id: WorkerId, job_id: JobId) -> None:
        """The job has succeeded: what it dialled with is used from now on."""
        entry = self._wanted.get(worker_id)
        if entry is not None and entry[0] == job_id:
            del self._wanted[worker_id]
            self.change(worker_id, entry[1])

    def drop(self, worker_id: WorkerId, job_id: JobId) -> None:
        """The job is over: what it was to bring into effect is not wanted any more; idempotent."""
        entry = self._wanted.get(worker_id)
        if entry is not None and entry[0] == job_id:
            del self._wanted[worker_id]

    def forget(self, worker_id: WorkerId) -> None:
        """Drop a worker's credentials; idempotent."""
        self._credentials.pop(worker_id, None)
        self._wanted.pop(worker_id, None)

    def __len__(self) -> int:
        return len(self._credentials)

    async def dial(self, worker: Worker, job_id: JobId | None = None, on_asked: OnAsked | None = None) -> EngineClient:
        """A fresh connection, with the credentials that `job_id` is to bring into effect; raises EngineFailure.

        on_asked: told of each question of the detection.
        """
        stated_s = worker.spec.channel.connect_timeout_s
        timeout_s = self._settings.jobs.connect_timeout_s if stated_s is None else stated_s
        spec = replace(worker.spec, url=worker.url)
        credentials = self._credentials.get(worker.id)
        entry = self._wanted.get(worker.id)
        if entry is not None and entry[0] == job_id:
            credentials = entry[1].onto(credentials)
        return await within(
            timeout_s,
            f"dialling {worker.url}",
            self._dialer.dial(spec, credentials, timeout_s=timeout_s, on_asked=on_asked),
        )
