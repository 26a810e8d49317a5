"""Adapters of the fleet: loaded, unloaded and listed by asking engines; what they say becomes their worker's facts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from weakref import WeakValueDictionary

from tandem_router.core.commands import Outcome, SetAdapters
from tandem_router.errors import Reason, TandemError
from tandem_router.model.adapters import LoadedAdapter, PlacedAdapter
from tandem_router.model.ids import WorkerId
from tandem_router.model.operations import ListAdapters, LoadAdapter, UnloadAdapter
from tandem_router.model.selection import WorkerOutcome, WorkerSelection
from tandem_router.model.worker import Worker, WorkerStatus
from tandem_router.ports import EngineClient
from tandem_router.runtime.operations import DEFAULT_TIMEOUT_S, Operations, refuse_all_failed, selected

__all__ = ["AdapterControl"]

LIST_TIMEOUT_S = 5.0
"""An engine answers from memory; one that does not by then is shown as it was when it last answered."""


class AdapterControl:
    """Which adapters there are. On one worker one thing is done at a time, so a slow list hides no later load."""

    def __init__(self, operations: Operations, submit: Callable[[SetAdapters], Awaitable[Outcome]]) -> None:
        """submit: has the registry take what an engine said."""
        self._operations = operations
        self._submit = submit
        self._turns: WeakValueDictionary[WorkerId, asyncio.Lock] = WeakValueDictionary()

    async def load(
        self, adapter: LoadAdapter, selection: WorkerSelection, deadline_s: float | None
    ) -> tuple[PlacedAdapter, tuple[WorkerOutcome, ...]]:
        """Load an adapter where it is not loaded yet from the same path; where it is then, and how each worker did.

        Raises what `Operations.carry_out` raises.
        """

        async def piece(worker: Worker, client: EngineClient, timeout_s: float) -> str:
            async with self._turn(worker):
                loaded = _named(adapter.name, await self._read(worker, client, timeout_s))
                if loaded is not None and loaded.path == adapter.path:
                    return ""
                message = (await client.operate(adapter, timeout_s=timeout_s)).message
                await self._read(worker, client, timeout_s)
                return message

        chosen = selected(selection, self._operations.fleet.workers())
        limit_s = self._operations.limit_s(deadline_s, DEFAULT_TIMEOUT_S)
        outcomes = await self._operations.on_each(chosen, piece, limit_s)
        refuse_all_failed(outcomes)
        return self._placed(adapter.name), outcomes

    async def unload(
        self, name: str, selection: WorkerSelection | None, deadline_s: float | None
    ) -> tuple[WorkerOutcome, ...]:
        """Unload an adapter; None = wherever it is. A worker without it has nothing to do.

        Raises what `Operations.carry_out` raises, and ADAPTER_NOT_FOUND where no selected worker has it.
        """
        found: set[WorkerId] = set()

        async def piece(worker: Worker, client: EngineClient, timeout_s: float) -> str:
            async with self._turn(worker):
                loaded = _named(name, await self._read(worker, client, timeout_s))
                if loaded is None:
                    return ""
                found.add(worker.id)
                message = (await client.operate(UnloadAdapter(name, loaded.engine_id), timeout_s=timeout_s)).message
                await self._read(worker, client, timeout_s)
                return message

        if selection is None:
            # One that cannot be asked now and had it when last asked is told of, not passed over.
            chosen = tuple(
                worker
                for worker in self._holders()
                if worker.status is WorkerStatus.READY
                or (worker.facts is not None and _named(name, worker.facts.adapters) is not None)
            )
        else:
            chosen = selected(selection, self._operations.fleet.workers())
        outcomes = await self._operations.on_each(
            chosen, piece, self._operations.limit_s(deadline_s, DEFAULT_TIMEOUT_S)
        )
        if selection is None:
            outcomes = tuple(one for one in outcomes if one.worker_id in found or _is_unclear(one))
        refuse_all_failed(outcomes)
        if not found and not any(_is_unclear(one) for one in outcomes):
            raise _not_found(name)
        return outcomes

    async def get(self, name: str) -> PlacedAdapter:
        """One adapter, as its engines say now; raises ADAPTER_NOT_FOUND."""
        found = next((adapter for adapter in await self.list() if adapter.name == name), None)
        if found is None:
            raise _not_found(name)
        return found

    async def list(self, *, model: str = "", worker_id: WorkerId | None = None) -> tuple[PlacedAdapter, ...]:
        """The adapters by name, as their engines say now; of an engine that does not answer, what it said last.

        model, worker_id: only those of such workers, with these placements alone; empty and None: all.
        """

        async def piece(worker: Worker, client: EngineClient, timeout_s: float) -> str:
            async with self._turn(worker):
                await self._read(worker, client, timeout_s)
            return ""

        def is_meant(worker: Worker) -> bool:
            return (not model or worker.serves(model)) and worker_id in (None, worker.id)

        asked = [worker for worker in self._holders() if worker.status is WorkerStatus.READY and is_meant(worker)]
        await self._operations.on_each(asked, piece, LIST_TIMEOUT_S)
        placed: dict[str, list[tuple[WorkerId, LoadedAdapter]]] = {}
        for worker in self._holders():
            if worker.facts is not None and is_meant(worker):
                for adapter in worker.facts.adapters:
                    placed.setdefault(adapter.name, []).append((worker.id, adapter))
        return tuple(PlacedAdapter(name, tuple(placed[name])) for name in sorted(placed))

    def _holders(self) -> tuple[Worker, ...]:
        """Workers whose engines can say which adapters they hold."""
        return tuple(
            worker
            for worker in self._operations.fleet.workers().values()
            if worker.facts is not None and worker.facts.applies_adapters and worker.facts.lists_adapters
        )

    def _placed(self, name: str) -> PlacedAdapter:
        found = []
        for worker in self._operations.fleet.workers().values():
            adapter = None if worker.facts is None else _named(name, worker.facts.adapters)
            if adapter is not None:
                found.append((worker.id, adapter))
        return PlacedAdapter(name, tuple(found))

    async def _read(self, worker: Worker, client: EngineClient, timeout_s: float) -> tuple[LoadedAdapter, ...]:
        """What the engine holds, told to the registry; stale news of a former life change nothing there."""
        adapters = (await client.operate(ListAdapters(), timeout_s=timeout_s)).adapters
        now = self._operations.fleet.workers().get(worker.id)
        if now is not None and now.facts is not None and now.facts.adapters != adapters:
            await self._submit(SetAdapters(worker.id, worker.epoch, adapters))
        return adapters

    def _turn(self, worker: Worker) -> asyncio.Lock:
        turn = self._turns.get(worker.id)
        if turn is None:
            turn = self._turns[worker.id] = asyncio.Lock()
        return turn


def _named(name: str, adapters: tuple[LoadedAdapter, ...]) -> LoadedAdapter | None:
    return next((adapter for adapter in adapters if adapter.name == name), None)


def _is_unclear(outcome: WorkerOutcome) -> bool:
    """Whether the worker failed before it said what it has."""
    return outcome.failure is not None and outcome.failure.reason is not Reason.RUNTIME_CANNOT_MANAGE_ADAPTERS


def _not_found(name: str) -> TandemError:
    return TandemError(
        Reason.ADAPTER_NOT_FOUND, f"no worker has the adapter {name}", field="name", metadata={"adapter": name}
    )
