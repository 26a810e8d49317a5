"""Engines that do what operators say, and remember it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from tandem_router.errors import Reason, TandemError
from tandem_router.model.adapters import LoadedAdapter, PlacedAdapter
from tandem_router.model.failure import Failure
from tandem_router.model.ids import WorkerId
from tandem_router.model.operations import LoadAdapter, Operation
from tandem_router.model.selection import WorkerOutcome, WorkerSelection
from tandem_router.wire.status import decode

A, B = (WorkerId(f"00000000-0000-4000-8000-00000000000{n}") for n in (1, 2))
OUTCOMES = (
    WorkerOutcome(A, "flushed"),
    WorkerOutcome(B, failure=Failure(Reason.ENGINE_ERROR, "requests are running")),
)
LOADED = [
    PlacedAdapter(name, ((A, LoadedAdapter(name, f"id-{name}", f"/adapters/{name}", is_pinned=True)),))
    for name in ("de", "fr", "nl")
]


@dataclass
class FakeEngines:
    """services.operators.Engines and Adapters."""

    asked: list[tuple[object, ...]] = field(default_factory=list)
    fault: TandemError | None = None

    async def carry_out(
        self, operation: Operation, selection: WorkerSelection, deadline_s: float | None
    ) -> tuple[WorkerOutcome, ...]:
        self._note(operation, selection, deadline_s)
        return OUTCOMES

    async def load(
        self, adapter: LoadAdapter, selection: WorkerSelection, deadline_s: float | None
    ) -> tuple[PlacedAdapter, tuple[WorkerOutcome, ...]]:
        self._note(adapter, selection, deadline_s)
        return LOADED[0], OUTCOMES

    async def unload(
        self, name: str, selection: WorkerSelection | None, deadline_s: float | None
    ) -> tuple[WorkerOutcome, ...]:
        self._note(name, selection, deadline_s)
        return OUTCOMES

    async def get(self, name: str) -> PlacedAdapter:
        self._note(name)
        return LOADED[0]

    async def list(self, *, model: str = "", worker_id: WorkerId | None = None) -> tuple[PlacedAdapter, ...]:
        self._note(model, worker_id)
        return tuple(LOADED)

    def _note(self, *asked: object) -> None:
        self.asked.append(asked)
        if self.fault is not None:
            raise self.fault


async def refusal(call: Any) -> TandemError:
    """The error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    error = decode([(str(key), value) for key, value in refused.value.trailing_metadata() or ()])
    assert error is not None
    return error
