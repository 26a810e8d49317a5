"""Carrying out what a scenario does to machines and workers, and remembering whom it hit."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from tandem_router.core.relay_events import AttemptPlanned, FirstToken, LegClosed, LegSent
from tandem_router.errors import Reason, TandemError
from tandem_router.model.ids import PairId, WorkerId
from tandem_router.model.operations import LoadAdapter
from tandem_router.model.pairing import LegRole
from tandem_router.model.selection import WorkerSelection
from tandem_router.runtime.adapter_control import LIST_TIMEOUT_S, AdapterControl
from tandem_router.runtime.operations import Operations
from tandem_router.testing.harness import SimRuntime
from tandem_router.testing.scenario import ADAPTERS, Mishap, MishapKind
from tandem_router.testing.scripted_fleet import Machine
from tandem_router.testing.sim_client import ClientRecord
from tandem_router.testing.sim_ports import LoopClock

__all__ = ["Mishaps"]


class Mishaps:
    """All mishaps of one run."""

    def __init__(
        self, runtime: SimRuntime, records: Mapping[str, ClientRecord], loop: asyncio.AbstractEventLoop
    ) -> None:
        self.records = records
        self.struck: list[MishapKind] = []
        self.victims: list[tuple[str, float]] = []
        """(request_id, when) of calls whose decode process died under them after their first token."""
        self.refusals: list[Reason] = []
        """What operators were told."""
        self._runtime = runtime
        self._loop = loop
        self._requests: dict[PairId, str] = {}
        self.holders_killed = 0
        self._doomed: dict[str, Machine] = {}
        self._prefills: dict[PairId, WorkerId] = {}
        self._decodes: dict[PairId, WorkerId] = {}
        self._committed: dict[PairId, None] = {}
        runtime.trace.listeners.append(self._note)

    async def strike(self, mishap: Mishap) -> None:
        """Let it happen at its time, and put it right after it has lasted."""
        await asyncio.sleep(mishap.at_s)
        machine = self._runtime.machines.machines[mishap.machine]
        self.struck.append(mishap.kind)
        if mishap.kind is MishapKind.DELETE:
            await self._delete(machine, mishap)
            return
        if mishap.kind is MishapKind.MOVE_ADAPTERS:
            await self._move_adapters(mishap)
            return
        if mishap.kind is MishapKind.KILL_HOLDER:
            self._doomed[machine.spec.url] = machine
        self._begin(machine, mishap.kind)
        await asyncio.sleep(mishap.lasts_s)
        self._end(machine, mishap.kind)

    def heal(self) -> None:
        """Put everything right: every machine runs, nothing is wrong with it."""
        for machine in self._runtime.machines.machines.values():
            for kind in MishapKind:
                self._end(machine, kind)

    def _begin(self, machine: Machine, kind: MishapKind) -> None:
        faults = machine.faults
        match kind:
            case MishapKind.KILL:
                self._note_victims(machine)
                machine.kill()
            case MishapKind.CUT if machine.engine is not None:
                self._note_victims(machine)
                machine.engine.cut()
            case MishapKind.HANG:
                faults.is_hung = True
            case MishapKind.REFUSE:
                faults.is_refusing = True
            case MishapKind.ZOMBIE:
                faults.is_zombie = True
            case MishapKind.BREAK_TRANSFERS:
                faults.is_transfer_failing = True
            case MishapKind.FAIL_RANK:
                faults.failing_rank = 0
            case MishapKind.FORGET_ADAPTERS if machine.engine is not None:
                machine.engine.adapters.loaded.clear()
            case MishapKind.FAIL_EARLY:
                faults.error_after_tokens = 0
            case MishapKind.FAIL_LATE:
                faults.error_after_tokens = 3

    def _end(self, machine: Machine, kind: MishapKind) -> None:
        faults = machine.faults
        match kind:
            case MishapKind.KILL | MishapKind.KILL_HOLDER:
                self._doomed.pop(machine.spec.url, None)
                machine.start_if_dead()
            case MishapKind.HANG:
                faults.is_hung = False
            case MishapKind.REFUSE:
                faults.is_refusing = False
            case MishapKind.ZOMBIE:
                faults.is_zombie = False
            case MishapKind.BREAK_TRANSFERS:
                faults.is_transfer_failing = False
            case MishapKind.FAIL_EARLY | MishapKind.FAIL_LATE:
                faults.error_after_tokens = None
            case MishapKind.FAIL_RANK:
                faults.failing_rank = None
            case MishapKind.FORGET_ADAPTERS if machine.engine is not None:
                for name in machine.script.adapters or ():
                    machine.engine.adapters.load(name)

    async def _delete(self, machine: Machine, mishap: Mishap) -> None:
        control = self._runtime.control
        for worker in await control.list_workers():
            if worker.url == machine.spec.url:
                try:
                    job = await control.delete_worker(worker.id, mishap.drain_timeout_s)
                except TandemError:
                    return  # another mishap was faster
                await self._runtime.job_ended(job.id, mishap.drain_timeout_s + 40.0)
                await asyncio.sleep(mishap.lasts_s)
                try:
                    await self._runtime.register(machine.name)
                except TandemError:
                    return

    async def _move_adapters(self, mishap: Mishap) -> None:
        """Whatever engines and other operators do meanwhile: each call ends, well or with a reason."""
        control = self._runtime.control
        operations = Operations(control.fleet, LoopClock(self._loop))
        adapters = AdapterControl(operations, control.pipeline.submit)
        name = ADAPTERS[0]
        for verb in ("unload", "load"):
            model = self._runtime.machines.machines[mishap.machine].script.model
            began_s = self._loop.time()
            try:
                if verb == "unload":
                    await adapters.unload(name, None, began_s + 5.0)
                else:
                    await adapters.load(
                        LoadAdapter(name, f"/adapters/{name}"), WorkerSelection(model=model), began_s + 5.0
                    )
            except TandemError as error:
                self.refusals.append(error.reason)
            await adapters.list()
            if self._loop.time() > began_s + 5.0 + LIST_TIMEOUT_S:
                raise AssertionError(f"to {verb} an adapter and list all took {self._loop.time() - began_s:.3f} s")
            await asyncio.sleep(mishap.lasts_s)

    # --- who is hit

    def _note(self, event: object) -> None:
        match event:
            case AttemptPlanned(request_id, pair_id, prefill=prefill):
                self._requests[pair_id] = request_id
                if prefill is not None:
                    self._prefills[pair_id] = prefill.worker_id
            case LegSent(pair_id, role=LegRole.DECODE, key=key):
                self._decodes[pair_id] = key.worker_id
                self._kill_holder(self._prefills.get(pair_id))
            case FirstToken(pair_id=pair_id):
                self._committed[pair_id] = None
            case LegClosed(pair_id, role=LegRole.DECODE):
                self._decodes.pop(pair_id, None)
                self._committed.pop(pair_id, None)

    def _kill_holder(self, worker_id: WorkerId | None) -> None:
        worker = None if worker_id is None else self._runtime.control.fleet.workers().get(worker_id)
        machine = None if worker is None else self._doomed.pop(worker.url, None)
        if machine is not None:
            self.holders_killed += 1
            self._loop.call_soon(machine.kill)

    def _note_victims(self, machine: Machine) -> None:
        if machine.engine is None or machine.engine.is_dead:
            return
        ids = {
            worker.id: None
            for worker in self._runtime.control.fleet.workers().values()
            if worker.url == machine.spec.url
        }
        for pair_id in self._committed:
            request_id = self._requests[pair_id]
            if self._decodes.get(pair_id) in ids and request_id in self.records and self.records[request_id].is_live:
                self.victims.append((request_id, self._loop.time()))
