"""Machines on which scripted engines live and die, and the dialer that finds them (ports.EngineDialer)."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from tandem_router.errors import Code, Reason
from tandem_router.model.detection import OnAsked
from tandem_router.model.failure import EngineFailure
from tandem_router.model.pairing import BootstrapEndpoint
from tandem_router.model.spec import WorkerSpec, WorkerType
from tandem_router.model.worker import Credentials
from tandem_router.ports import EngineClient
from tandem_router.testing.scripted_client import ScriptedClient
from tandem_router.testing.scripted_engine import ScriptedEngine
from tandem_router.testing.scripted_kv import KvFetch
from tandem_router.testing.scripted_wire import EngineLedger, EngineScript, Faults
from tandem_router.testing.sim_ports import SeededRng
from tandem_router.testing.virtual_network import Refused, VirtualNetwork

__all__ = ["Machine", "ScriptedFleet"]

_GRPC_PORT = 30000
"""SGLang's default."""
_BOOTSTRAP_PORT = 8998


class Machine:
    """A place where one engine runs; the engine's lives come and go."""

    def __init__(self, fleet: ScriptedFleet, name: str, script: EngineScript) -> None:
        self.name = name
        self.script = script
        self.faults = Faults()
        self.address = f"{name}:{_GRPC_PORT}"
        self.bootstrap = BootstrapEndpoint(name, _BOOTSTRAP_PORT)
        self.engine: ScriptedEngine | None = None
        self.lives: list[ScriptedEngine] = []
        """Every process that ever ran here, oldest first."""
        self._fleet = fleet

    @property
    def spec(self) -> WorkerSpec:
        """What an operator would register."""
        return WorkerSpec(
            url=f"grpc://{self.address}",
            worker_type=self.script.worker_type,
            bootstrap_port=_BOOTSTRAP_PORT if self.script.worker_type is WorkerType.PREFILL else None,
        )

    def start(self) -> ScriptedEngine:
        """A new process; the one before must be dead."""
        if self.engine is not None and not self.engine.is_dead:
            raise ValueError(f"{self.name} is running")
        instance = f"{self.name}#{len(self.lives) + 1}"
        self.engine = ScriptedEngine(
            self._fleet.network,
            SeededRng(self._fleet.seed, instance),
            self.script,
            self.faults,
            address=self.address,
            bootstrap=self.bootstrap,
            instance=instance,
        )
        self.lives.append(self.engine)
        return self.engine

    def start_if_dead(self) -> None:
        """A new process, unless one runs."""
        if self.engine is None or self.engine.is_dead:
            self.start()

    def kill(self) -> None:
        """SIGKILL of the process; idempotent."""
        if self.engine is not None:
            self.engine.kill()

    @property
    def ledger(self) -> EngineLedger:
        """Of the present or last process."""
        return self.lives[-1].ledger

    def __repr__(self) -> str:
        return f"<Machine {self.name} {self.engine!r}>"


class ScriptedFleet:
    """All machines, their network, and the dialer to be given to the runtime. ports.EngineDialer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seed: int) -> None:
        self.seed = seed
        self.network = VirtualNetwork(loop, SeededRng(seed, "network"))
        self.machines: dict[str, Machine] = {}
        self.clients: list[ScriptedClient] = []
        """Every client ever dialled."""

    def add(self, name: str, script: EngineScript | None = None) -> Machine:
        """A machine with a running engine."""
        if name in self.machines:
            raise ValueError(f"{name} exists")
        machine = Machine(self, name, script or EngineScript())
        self.machines[name] = machine
        machine.start()
        return machine

    def violations(self) -> list[str]:
        """What went wrong in any life of any engine, with its name."""
        found = [
            f"{life.instance}: {violation}"
            for machine in self.machines.values()
            for life in machine.lives
            for violation in life.ledger.violations
        ]
        return found + [f"client: {violation}" for client in self.clients for violation in client.violations]

    def held(self) -> dict[str, dict[str, int]]:
        """What living engines hold; empty when all are idle."""
        return {
            machine.name: machine.ledger.held()
            for machine in self.machines.values()
            if machine.engine is not None and not machine.engine.is_dead and machine.ledger.held()
        }

    async def close(self) -> None:
        """Kill everything and let its tasks end."""
        for machine in self.machines.values():
            machine.kill()
        await asyncio.sleep(1.0)

    # --- ports.EngineDialer

    async def dial(
        self,
        spec: WorkerSpec,
        credentials: Credentials | None,
        *,
        timeout_s: float,
        on_asked: OnAsked | None = None,
    ) -> EngineClient:
        """Connect; raises EngineFailure(WORKER_UNREACHABLE)."""
        parts = urlsplit(spec.url)
        client = ScriptedClient(self.network, f"{parts.hostname}:{parts.port}")
        try:
            async with asyncio.timeout(timeout_s):
                await client.connect()
        except TimeoutError:
            raise EngineFailure(
                Reason.WORKER_UNREACHABLE, "no connection in time", code=Code.DEADLINE_EXCEEDED, was_sent=False
            ) from None
        self.clients.append(client)
        return client

    async def probe_bootstrap(self, host: str, port: int, *, timeout_s: float) -> None:
        """Return if a prefill listens there; raises EngineFailure."""
        try:
            async with asyncio.timeout(timeout_s):
                endpoint = await self.network.connect(f"{host}:{port}", KvFetch("", EngineLedger()))
        except (Refused, TimeoutError):
            raise EngineFailure(
                Reason.WORKER_UNREACHABLE, f"nothing accepts connections at {host}:{port}", was_sent=False
            ) from None
        endpoint.close()
