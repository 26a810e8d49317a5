"""A fleet whose engines carry operations out as a test tells them, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from tests.policies.fleet import fleet

from tandem_router.core.commands import Outcome, SetAdapters
from tandem_router.errors import Code, Reason
from tandem_router.model.adapters import LoadedAdapter
from tandem_router.model.failure import EngineFailure
from tandem_router.model.ids import RankKey, WorkerId
from tandem_router.model.operations import CANNOT, ListAdapters, LoadAdapter, Operated, Operation, UnloadAdapter
from tandem_router.model.worker import Worker
from tandem_router.runtime.adapter_control import AdapterControl
from tandem_router.runtime.operations import Operations
from tandem_router.testing.sim_loop import SimLoop
from tandem_router.testing.sim_ports import LoopClock

T = TypeVar("T")


@dataclass
class OperatedEngine:
    """Holds adapters by name and remembers what it was asked, with the limits it was given."""

    adapters: dict[str, LoadedAdapter] = field(default_factory=dict)
    asked: list[Operation] = field(default_factory=list)
    limits_s: list[float] = field(default_factory=list)
    takes_s: float = 0.01
    fails: EngineFailure | None = None
    manages_adapters: bool = True
    running: int = 0
    most_running: int = 0

    async def operate(self, operation: Operation, *, timeout_s: float) -> Operated:
        self.asked.append(operation)
        self.limits_s.append(timeout_s)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(self.takes_s)
        finally:
            self.running -= 1
        if self.fails is not None:
            raise self.fails
        if isinstance(operation, ListAdapters | LoadAdapter | UnloadAdapter) and not self.manages_adapters:
            raise EngineFailure(CANNOT[type(operation)], "no such rpc", code=Code.UNIMPLEMENTED)
        match operation:
            case ListAdapters():
                return Operated(adapters=tuple(self.adapters.values()))
            case LoadAdapter(name, path, is_pinned):
                if name in self.adapters:
                    raise EngineFailure(Reason.ENGINE_ERROR, f"{name} is loaded", code=Code.OK)
                self.adapters[name] = LoadedAdapter(name, f"id-{name}", path, is_pinned)
                return Operated("loaded")
            case UnloadAdapter(name, engine_id):
                assert self.adapters.pop(name).engine_id == engine_id
                return Operated("unloaded")
        return Operated("done")

    @property
    def verbs(self) -> list[str]:
        return [type(operation).__name__ for operation in self.asked]


class OperatedFleet:
    """ports.Fleet, and the registry as far as adapters go."""

    def __init__(self, *workers: Worker) -> None:
        self.loop = SimLoop(5)
        self.snapshot: dict[WorkerId, Worker] = fleet(*workers)
        self.engines = {worker_id: OperatedEngine() for worker_id in self.snapshot}
        self.submitted: list[SetAdapters] = []
        self.lost: list[WorkerId] = []
        self.took_s = 0.0
        self.operations = Operations(self, LoopClock(self.loop))  # type: ignore[arg-type]  # no legs here
        self.adapters = AdapterControl(self.operations, self.submit)

    def play(self, scene: Coroutine[Any, Any, T]) -> T:
        """Run a scene once, and note how long it took."""

        async def timed() -> T:
            began_s = self.loop.time()
            try:
                return await scene
            finally:
                self.took_s = self.loop.time() - began_s

        return self.loop.run(timed())

    def workers(self) -> Mapping[WorkerId, Worker]:
        return self.snapshot

    def client(self, key: RankKey) -> Any:
        return self.engines.get(key.worker_id)

    def leg_failed(self, key: RankKey, failure: EngineFailure) -> None:
        self.lost.append(key.worker_id)

    def engine(self, number: int) -> OperatedEngine:
        return self.engines[list(self.snapshot)[number]]

    def hold(self, number: int, *names: str) -> None:
        """Let an engine have adapters that were loaded past the router."""
        engine = self.engine(number)
        engine.adapters.update({name: LoadedAdapter(name, f"id-{name}", f"/a/{name}") for name in names})

    def known(self, number: int) -> list[str]:
        """Names in the worker's facts."""
        facts = list(self.snapshot.values())[number].facts
        assert facts is not None
        return [adapter.name for adapter in facts.adapters]

    async def submit(self, command: SetAdapters) -> Outcome:
        await asyncio.sleep(0.001)
        self.submitted.append(command)
        worker = self.snapshot[command.worker_id]
        assert worker.facts is not None
        assert command.epoch == worker.epoch
        self.snapshot[worker.id] = replace(worker, facts=replace(worker.facts, adapters=command.adapters))
        return Outcome(self.snapshot[worker.id], None, 1)
