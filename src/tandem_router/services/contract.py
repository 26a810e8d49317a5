"""What the servicers ask of the runtime: the shape of `runtime.control.Control` and `runtime.relay.Relay`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from tandem_router.model.embedding import Embedded, EmbedRequest
from tandem_router.model.explanation import Explanation
from tandem_router.model.failure import Failure
from tandem_router.model.ids import RankKey, WorkerId
from tandem_router.model.job import Job
from tandem_router.model.request import GenerateRequest, RequestContext
from tandem_router.model.spec import WorkerSpec
from tandem_router.model.spec_patch import SpecPatch
from tandem_router.model.worker import Credentials, CredentialsPatch, Worker
from tandem_router.ports import TokenSink
from tandem_router.runtime.models import ServedModel
from tandem_router.runtime.relay import AbortedCall

__all__ = ["Board", "Call", "InFlight", "Registry", "TokenRelay", "VectorCall"]

InFlight = Callable[[RankKey], int]
"""Open legs of ours on a slot."""


class Registry(Protocol):
    """Workers and jobs; every method raises TandemError."""

    async def create_worker(
        self, spec: WorkerSpec, credentials: Credentials | None, request_id: str | None
    ) -> tuple[Worker, Job | None]:
        """Reserve and begin to register."""

    async def replace_worker(
        self, worker_id: str, spec: WorkerSpec, credentials: CredentialsPatch | None, expected_generation: int | None
    ) -> tuple[Worker, Job]:
        """Begin to register anew."""

    async def update_worker(
        self, worker_id: str, patch: SpecPatch, credentials: CredentialsPatch | None, expected_generation: int | None
    ) -> tuple[Worker, Job | None]:
        """Change some fields; no job where all is in effect."""

    async def drain_worker(
        self, worker_id: str, timeout_s: float | None, reason: str, expected_generation: int | None
    ) -> tuple[Worker, Job]:
        """Take out of routing and wait."""

    async def undrain_worker(self, worker_id: str, expected_generation: int | None) -> Worker:
        """Take back."""

    async def get_worker(self, worker_id: str) -> Worker:
        """By any spelling of its id."""

    async def list_workers(self) -> tuple[Worker, ...]:
        """Oldest first."""

    async def with_loads(self, workers: Sequence[Worker]) -> tuple[Worker, ...]:
        """The same workers with the load of their ranks; never raises."""

    async def delete_worker(
        self, worker_id: str, drain_timeout_s: float | None, force: bool, expected_generation: int | None
    ) -> Job:
        """Begin to drain and forget."""

    def open_legs(self, worker_id: WorkerId) -> int:
        """Legs of ours on a worker."""

    def models(self) -> tuple[ServedModel, ...]:
        """What the workers serve, in the order of registration."""

    @property
    def revision(self) -> int:
        """Store-wide; of the last change."""

    async def get_job(self, job_id: str) -> Job:
        """By any spelling of its id."""

    async def list_jobs(self) -> tuple[Job, ...]:
        """Oldest first."""

    async def cancel_job(self, job_id: str, reason: str) -> Job:
        """Ask it to stop."""


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


class VectorCall(Protocol):
    """One live Embed call."""

    async def result(self) -> Embedded:
        """The vectors; raises TandemError."""

    def cancel(self, failure: Failure | None = None) -> None:
        """Idempotent and immediate."""


class TokenRelay(Protocol):
    """Client calls."""

    def start(self, request: GenerateRequest, context: RequestContext, sink: TokenSink) -> Call:
        """Take a call; raises TandemError at once where it cannot be taken."""

    def embed(self, request: EmbedRequest, context: RequestContext) -> VectorCall:
        """The same of an Embed call."""

    def abort(self, principal: str, request_id: str) -> AbortedCall | None:
        """What was ended; None when no live call has that id."""

    async def explain(self, request: GenerateRequest, assumed_prompt_tokens: int | None) -> Explanation:
        """What would happen to a request now; raises TandemError(MODEL_NOT_FOUND)."""
