"""Reaching a worker: connected, and what it speaks found out, each a step of the job with what was seen on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tandem_router.model.detection import Asked, told
from tandem_router.model.failure import EngineFailure
from tandem_router.model.ids import JobId
from tandem_router.model.spec import ConnectionMode
from tandem_router.model.worker import Worker
from tandem_router.ports import EngineClient
from tandem_router.runtime.dialing import Dialing
from tandem_router.runtime.fleet import WorkerFleet
from tandem_router.runtime.steps import JobSteps
from tandem_router.runtime.subjects import Subject

__all__ = ["Reaching"]


@dataclass(slots=True)
class _Reached:
    """One dialling: detection is part of it, and yet a step of its own in the record."""

    client: EngineClient | None = None
    trace: list[Asked] = field(default_factory=list)
    """What was asked; not empty means that the connection stood."""
    undetected: EngineFailure | None = None
    """Why detection failed over a connection that stood; told in the second step."""


class Reaching:
    """The first two steps of every registration."""

    def __init__(self, steps: JobSteps, dialing: Dialing, fleet: WorkerFleet) -> None:
        self._steps = steps
        self._dialing = dialing
        self._fleet = fleet

    async def reach(self, job_id: JobId, subject: Subject) -> EngineClient:
        """The connection, which is the subject's from now on.

        Raises StepFailed, ConnectionBroke, JobOver.
        """
        worker, reached = subject.worker(), _Reached()

        async def connect() -> str:
            await self._dial(worker, job_id, reached)
            return _connected(worker)

        async def detect() -> str:
            failure, reached.undetected = reached.undetected, None
            if failure is None and reached.client is None:
                await self._dial(worker, job_id, reached)
                failure, reached.undetected = reached.undetected, None
            if failure is not None:
                raise failure
            stated = worker.spec.runtime_type
            asked = told(reached.trace)
            return f"found by asking {asked}" if stated is None else f"stated: {stated}; asked {asked}"

        try:
            await self._steps.attempt(job_id, "connect", worker, connect)
            await self._steps.attempt(
                job_id, "detect_runtime", worker, detect, trace=lambda: f"asked {told(reached.trace)}"
            )
            client, reached.client = reached.client, None
            assert client is not None
            await subject.connected(client)
            return client
        finally:
            if reached.client is not None:
                self._fleet.close_client(reached.client)

    async def _dial(self, worker: Worker, job_id: JobId, reached: _Reached) -> None:
        """Raises EngineFailure where no connection stood; what came after that is kept for the next step."""
        reached.trace.clear()
        try:
            reached.client = await self._dialing.dial(worker, job_id, reached.trace.append)
        except EngineFailure as failure:
            if not reached.trace or failure.connection_lost:
                raise
            reached.undetected = failure


def _connected(worker: Worker) -> str:
    """Scheme and connection mode, which the URL states."""
    scheme = urlsplit(worker.url).scheme
    secured = "TLS" if scheme == "grpcs" else "plain text"
    mode = worker.spec.connection_mode or ConnectionMode.GRPC
    return f"connected to {worker.url}: scheme {scheme} ({secured}), connection mode {mode}"
