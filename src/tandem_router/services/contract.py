"""What the servicers ask of the runtime: the shape of `runtime.control.Control` and `runtime.relay.Relay`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from tandem_router.model.explanation import Explanation
from tandem_router.model.failure import Failure
from tandem_router.model.ids import RankKey
from tandem_router.model.job import Job
from tandem_router.model.pairing import PairView
from tandem_router.model.request import GenerateRequest, RequestContext
from tandem_router.model.spec import WorkerSpec
from tandem_router.model.worker import Credentials, Worker
from tandem_router.ports import TokenSink
from tandem_router.runtime.models import ServedModel

__all__ = ["Board", "Call", "InFlight", "Registry", "TokenRelay"]

InFlight = Callable[[RankKey], int]
"""Open legs of ours on a slot."""


class Registry(Protocol):
    """Workers and jobs; every method raises TandemError."""

    async def create_worker(
        self, spec: WorkerSpec, credentials: Credentials | None, request_id: str | None
    ) -> tuple[Worker, Job]:
        """Reserve and begin to register."""

    async def get_worker(self, worker_id: str) -> Worker:
        """By any spelling of its id."""

    async def list_workers(self) -> tuple[Worker, ...]:
        """Oldest first."""

    async def delete_worker(self, worker_id: str, drain_timeout_s: float | None, force: bool) -> Job:
        """Begin to drain and forget."""

    def models(self) -> tuple[ServedModel, ...]:
        """What the workers serve, in the order of registration."""

    @property
    def revision(self) -> int:
        """Store-wide; of the last change."""

    async def get_job(self, job_id: str) -> Job:
        """By any spelling of its id."""

    async def list_jobs(self) -> tuple[Job, ...]:
        """Oldest first."""


class Board(Protocol):
    """What is serving; `offload.health_board.HealthBoard`."""

    def beat(self) -> None:
        """The loop turns."""

    def put(self, serving: Mapping[str, bool]) -> None:
        """Replace the whole table."""

    def serving(self, name: str) -> bool | None:
        """None for an unknown name."""

    def listed(self) -> dict[str, bool] | None:
        """Every name; None when they are more than one answer may hold."""


class Call(Protocol):
    """One live client call."""

    async def result(self) -> None:
        """Its end; raises TandemError on a bad one."""

    def cancel(self, failure: Failure | None = None) -> None:
        """Idempotent and immediate."""


class TokenRelay(Protocol):
    """Client calls."""

    def start(self, request: GenerateRequest, context: RequestContext, sink: TokenSink) -> Call:
        """Take a call; raises TandemError at once where it cannot be taken."""

    def abort(self, principal: str, request_id: str) -> bool:
        """False when no live call has that id."""

    async def explain(self, request: GenerateRequest, assumed_prompt_tokens: int | None) -> Explanation:
        """What would happen to a request now; raises TandemError(MODEL_NOT_FOUND)."""

    def pairs(self) -> tuple[PairView, ...]:
        """Live attempts, oldest first."""
