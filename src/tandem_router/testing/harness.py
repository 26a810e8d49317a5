"""A whole runtime in virtual time: control loop, fleet and relay over scripted machines, and a trace of events."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from tandem_router.core.ledger import LegLedger
from tandem_router.core.rooms import RoomAllocator
from tandem_router.errors import Reason, TandemError
from tandem_router.model.ids import JobId
from tandem_router.model.job import Job
from tandem_router.model.settings import RuntimeSettings
from tandem_router.model.tokenizer_source import TokenizerSource
from tandem_router.policies.plan import Planner
from tandem_router.policies.scorers import LeastInFlight
from tandem_router.ports import TextCodec
from tandem_router.runtime.control import Control
from tandem_router.runtime.relay import Relay
from tandem_router.runtime.relay_environment import RelayEnvironment
from tandem_router.store.memory import InMemoryStore
from tandem_router.testing.scripted_fleet import ScriptedFleet
from tandem_router.testing.sim_ports import LoopClock, SeededIds, SeededRng

__all__ = ["NoCodecs", "SimRuntime", "Trace", "build_runtime", "until"]


class Trace:
    """Everything observed, with its virtual time. ports.Observer."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.events: list[tuple[float, object]] = []
        self.listeners: list[Callable[[object], None]] = []
        """Told of each event as it happens."""
        self._loop = loop
        self._hash = hashlib.sha256()

    def observe(self, event: object) -> None:
        """Note an event of the runtime."""
        self.events.append((self._loop.time(), event))
        self._hash.update(f"{self._loop.time()!r} {event!r}\n".encode())
        for listener in self.listeners:
            listener(event)

    def digest(self) -> str:
        """sha256 over all events and their times."""
        return self._hash.hexdigest()


class NoCodecs:
    """No model has a tokenizer: scripted traffic is tokens. ports.TextCodecs."""

    def get(self, model: str) -> TextCodec | None:
        """None."""
        return None

    def source(self, model: str) -> TokenizerSource | None:
        """None."""
        return None

    async def digest(self, archive: bytes) -> str:
        """Refuse."""
        raise TandemError(Reason.TOKENIZER_UNAVAILABLE, "scripted models have no tokenizer")

    async def load(self, model: str, archive: bytes | None, source: TokenizerSource) -> None:
        """Refuse."""
        raise TandemError(Reason.TOKENIZER_UNAVAILABLE, "scripted models have no tokenizer")


@dataclass(slots=True)
class SimRuntime:
    """The parts of a router without its transport and services."""

    machines: ScriptedFleet
    control: Control
    relay: Relay
    ledger: LegLedger
    trace: Trace

    async def register(self, name: str) -> JobId:
        """Create the worker of a machine; the id of its job."""
        _, job = await self.control.create_worker(self.machines.machines[name].spec)
        assert job is not None, "a fresh worker has its job"
        return job.id

    async def job_ended(self, job_id: JobId, timeout_s: float) -> Job:
        """The job once it is final; AssertionError when it does not end in time."""
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + timeout_s
        while True:
            job = await self.control.get_job(job_id)
            if job.state.is_final:
                return job
            assert loop.time() < give_up_s, f"after {timeout_s} s the job is still {job}"
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        """End relay, control and machines, in the order of a shutdown."""
        await self.relay.close()
        await self.control.close()
        await self.machines.close()


def build_runtime(
    loop: asyncio.AbstractEventLoop, seed: int, machines: ScriptedFleet, settings: RuntimeSettings | None = None
) -> SimRuntime:
    """A started runtime whose every source of chance is the seed."""
    settings = settings or RuntimeSettings()
    clock, ids, ledger, trace, codecs = LoopClock(loop), SeededIds(seed), LegLedger(), Trace(loop), NoCodecs()
    control = Control(
        clock=clock,
        ids=ids,
        rng=SeededRng(seed, "control"),
        store=InMemoryStore(),
        dialer=machines,
        codecs=codecs,
        ledger=ledger,
        observer=trace,
        settings=settings,
    )
    relay = Relay(
        RelayEnvironment(
            clock=clock,
            ids=ids,
            rng=SeededRng(seed, "relay"),
            fleet=control.fleet,
            codecs=codecs,
            ledger=ledger,
            rooms=RoomAllocator(settings.rooms, started_at_s=clock.monotonic_s(), started_at_wall_s=clock.wall_s()),
            planner=Planner(settings, LeastInFlight()),
            observer=trace,
            settings=settings,
        )
    )
    control.use(relay.end_legs)
    return SimRuntime(machines, control, relay, ledger, trace)


async def until(claim: Callable[[], bool], timeout_s: float, *, step_s: float = 0.05) -> bool:
    """Whether `claim` became true within that many virtual seconds, looked at every `step_s`."""
    loop = asyncio.get_running_loop()
    give_up_s = loop.time() + timeout_s
    while not claim():
        if loop.time() >= give_up_s:
            return False
        await asyncio.sleep(step_s)
    return True
