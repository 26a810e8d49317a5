"""Opening a connection to a worker: canonical URL, its own timeouts, and the credentials that only live here."""

from __future__ import annotations

from dataclasses import replace

from tandem_router.model.ids import WorkerId
from tandem_router.model.settings import RuntimeSettings
from tandem_router.model.worker import Credentials, Worker
from tandem_router.ports import EngineClient, EngineDialer
from tandem_router.runtime.deadline import within

__all__ = ["Dialing"]


class Dialing:
    """Dials workers. Credentials are in memory only, apart from every value that is shown or stored."""

    def __init__(self, dialer: EngineDialer, settings: RuntimeSettings) -> None:
        self._dialer = dialer
        self._settings = settings
        self._credentials: dict[WorkerId, Credentials] = {}

    def keep(self, worker_id: WorkerId, credentials: Credentials | None) -> None:
        """Use these for the worker from now on."""
        if credentials is not None:
            self._credentials[worker_id] = credentials

    def forget(self, worker_id: WorkerId) -> None:
        """Drop a worker's credentials; idempotent."""
        self._credentials.pop(worker_id, None)

    def __len__(self) -> int:
        return len(self._credentials)

    async def dial(self, worker: Worker) -> EngineClient:
        """A fresh connection; raises EngineFailure."""
        stated_s = worker.spec.channel.connect_timeout_s
        timeout_s = self._settings.jobs.connect_timeout_s if stated_s is None else stated_s
        spec = replace(worker.spec, url=worker.url)
        credentials = self._credentials.get(worker.id)
        return await within(
            timeout_s, f"dialling {worker.url}", self._dialer.dial(spec, credentials, timeout_s=timeout_s)
        )
