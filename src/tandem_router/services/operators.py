"""What the services of operators ask of the runtime: `runtime.operations` and `runtime.adapter_control` by shape."""

from __future__ import annotations

from typing import Protocol

import grpc

from tandem_router.model.adapters import PlacedAdapter
from tandem_router.model.ids import WorkerId
from tandem_router.model.operations import LoadAdapter, Operation
from tandem_router.model.selection import WorkerOutcome, WorkerSelection
from tandem_router.ports import Clock

__all__ = ["Adapters", "Engines", "deadline_of"]


class Engines(Protocol):
    """Has engines do things; raises TandemError where none of them did."""

    async def carry_out(
        self, operation: Operation, selection: WorkerSelection, deadline_s: float | None
    ) -> tuple[WorkerOutcome, ...]:
        """One outcome per selected worker."""


class Adapters(Protocol):
    """The adapters of the fleet; raises TandemError."""

    async def load(
        self, adapter: LoadAdapter, selection: WorkerSelection, deadline_s: float | None
    ) -> tuple[PlacedAdapter, tuple[WorkerOutcome, ...]]:
        """Where it is then, and one outcome per selected worker."""

    async def unload(
        self, name: str, selection: WorkerSelection | None, deadline_s: float | None
    ) -> tuple[WorkerOutcome, ...]:
        """One outcome per selected worker; None = wherever it is."""

    async def get(self, name: str) -> PlacedAdapter:
        """One adapter."""

    async def list(self, *, model: str = "", worker_id: WorkerId | None = None) -> tuple[PlacedAdapter, ...]:
        """By name."""


def deadline_of(context: grpc.aio.ServicerContext[object, object], clock: Clock) -> float | None:
    """The caller's deadline on the router's monotonic clock; None where it set none."""
    remaining_s = context.time_remaining()
    return None if remaining_s is None else clock.monotonic_s() + remaining_s
