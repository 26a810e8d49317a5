"""A router among scripted machines in virtual time, and everything that its engines were sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace

from tandem_router.model.job import JobState
from tandem_router.model.pairing import HandshakeKind, LegRole, TransferParams
from tandem_router.model.request import GenerateRequest, LegRequest, Output, Sampling
from tandem_router.model.settings import RuntimeSettings
from tandem_router.model.spec import RuntimeType, WorkerType
from tandem_router.testing.harness import SimRuntime, build_runtime
from tandem_router.testing.scenario import ClientPlan
from tandem_router.testing.scripted_engine import ScriptedEngine
from tandem_router.testing.scripted_fleet import ScriptedFleet
from tandem_router.testing.scripted_request import ScriptedRequest
from tandem_router.testing.scripted_wire import EngineScript, OpenCall
from tandem_router.testing.sim_checks import check_events
from tandem_router.testing.sim_client import ClientRecord, run_client
from tandem_router.testing.sim_loop import SimLoop
from tandem_router.testing.sim_quiet import check_idle
from tandem_router.testing.virtual_network import Endpoint

__all__ = [
    "MOONCAKE",
    "NIXL",
    "REQUEST",
    "ROOMY",
    "STORE",
    "UNKNOWN",
    "Sent",
    "World",
    "call",
    "pair_of",
    "params_of",
    "play",
]

NIXL = EngineScript(kind=HandshakeKind.HANDOFF)
MOONCAKE = EngineScript(kind=HandshakeKind.HANDOFF, connector="MooncakeConnector", handle_lease_s=480.0)
UNKNOWN = EngineScript(kind=HandshakeKind.HANDOFF, connector="SomethingNew")
STORE = EngineScript(kind=HandshakeKind.HANDOFF, connector="MooncakeStoreConnector")
ROOMY = EngineScript(kind=HandshakeKind.RENDEZVOUS, runtime=RuntimeType.SGLANG)
REQUEST = GenerateRequest(
    "r",
    "scripted",
    token_ids=tuple(range(10, 50)),
    sampling=Sampling(temperature=0.0, max_tokens=12, ignore_eos=True),
    output=Output.TOKENS,
)


@dataclass(frozen=True, slots=True)
class Sent:
    """One leg as an engine got it."""

    instance: str
    """The machine's name, "#" and the number of its life."""
    leg: LegRequest


@dataclass(slots=True)
class World:
    """The router, its machines, and what they were sent in order."""

    runtime: SimRuntime
    sent: list[Sent] = field(default_factory=list)

    def legs(self, role: LegRole) -> list[LegRequest]:
        """What was sent to the legs of that role."""
        return [each.leg for each in self.sent if each.leg.role is role]


def pair_of(script: EngineScript, *, prefills: int = 1, decodes: int = 1) -> dict[str, EngineScript]:
    """Machines named prefill0, decode0 and so on."""
    made = {f"prefill{number}": replace(script, worker_type=WorkerType.PREFILL) for number in range(prefills)}
    return made | {f"decode{n}": replace(script, worker_type=WorkerType.DECODE, dp_size=1) for n in range(decodes)}


def params_of(leg: LegRequest) -> dict[str, object]:
    """The kv_transfer_params that a leg carries."""
    assert isinstance(leg.handoff, TransferParams)
    params = json.loads(leg.handoff.json)
    assert isinstance(params, dict)
    return params


async def call(world: World, request: GenerateRequest = REQUEST) -> ClientRecord:
    """One client call to its end."""
    record = ClientRecord(ClientPlan(request, 0.0))
    await run_client(world.runtime.relay, record)
    return record


def play(
    machines: Mapping[str, EngineScript],
    scene: Callable[[World], Awaitable[None]],
    *,
    seed: int = 1,
    rest_s: float = 36.0,
    settings: RuntimeSettings | None = None,
) -> World:
    """Play a scene on registered machines; after `rest_s` nothing may be left and no engine may have been hurt."""
    loop = SimLoop(seed)

    async def main() -> World:
        fleet = ScriptedFleet(loop, seed)
        world = World(build_runtime(loop, seed, fleet, settings))
        taken = ScriptedEngine.open

        def note(self: ScriptedEngine, call: OpenCall, endpoint: Endpoint) -> ScriptedRequest | None:
            world.sent.append(Sent(self.instance, call.leg))
            return taken(self, call, endpoint)

        ScriptedEngine.open = note  # type: ignore[method-assign]
        try:
            for name, script in machines.items():
                fleet.add(name, script)
                job = await world.runtime.job_ended(await world.runtime.register(name), 10.0)
                assert job.state is JobState.SUCCEEDED, job
            await scene(world)
            await asyncio.sleep(rest_s)
            assert check_idle(world.runtime) == []
            assert fleet.violations() == []
            assert check_events(world.runtime.trace.events) == []
        finally:
            ScriptedEngine.open = taken  # type: ignore[method-assign]
            await world.runtime.close()
        return world

    return loop.run(main())
