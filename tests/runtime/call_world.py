"""Calls in virtual time: a relay with its settings over scripted machines, and clients that read at once or not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from tandem_router.model.job import JobState
from tandem_router.model.pairing import HandshakeKind
from tandem_router.model.request import GenerateRequest, Output, Sampling, Timeouts
from tandem_router.model.settings import RuntimeSettings
from tandem_router.model.spec import WorkerType
from tandem_router.testing.harness import SimRuntime, build_runtime
from tandem_router.testing.scenario import ClientPlan
from tandem_router.testing.scripted_fleet import ScriptedFleet
from tandem_router.testing.scripted_wire import EngineScript
from tandem_router.testing.sim_client import ClientRecord, run_client
from tandem_router.testing.sim_loop import Order, SimLoop
from tandem_router.testing.sim_quiet import check_idle

ALONE = {"alone": EngineScript()}
REQUEST = GenerateRequest(
    "r",
    "scripted",
    token_ids=tuple(range(10, 50)),
    sampling=Sampling(temperature=0.0, max_tokens=20, ignore_eos=True),
    output=Output.TOKENS,
)
T = TypeVar("T")


def pair_of(kind: HandshakeKind, decodes: int = 1) -> dict[str, EngineScript]:
    script = EngineScript(kind=kind)
    machines = {"prefill": replace(script, worker_type=WorkerType.PREFILL)}
    return machines | {f"decode{n}": replace(script, worker_type=WorkerType.DECODE) for n in range(decodes)}


def play(
    scene: Callable[[SimRuntime], Awaitable[T]],
    machines: Mapping[str, EngineScript] = ALONE,
    settings: RuntimeSettings | None = None,
    seed: int = 0,
    order: Order = Order.FIFO,
) -> T:
    """Play a scene on registered machines; nothing may be left when the graces are over.

    FIFO by default: a run with a limit is then the same as one without, up to the limit.
    """
    loop = SimLoop(seed, order=order)

    async def main() -> T:
        fleet = ScriptedFleet(loop, seed)
        runtime = build_runtime(loop, seed, fleet, settings)
        try:
            for name, script in machines.items():
                fleet.add(name, script)
                job = await runtime.job_ended(await runtime.register(name), 10.0)
                assert job.state is JobState.SUCCEEDED
            result = await scene(runtime)
            await asyncio.sleep(36.0)
            assert check_idle(runtime) == []
            assert fleet.violations() == []
            statistics = runtime.relay.statistics()
            assert (statistics.live_requests, statistics.queued_requests, statistics.tasks) == (0, 0, 0)
        finally:
            await runtime.close()
        return result

    return loop.run(main())


def ask(name: str = "r", **changes: object) -> GenerateRequest:
    return replace(REQUEST, request_id=name, **changes)  # type: ignore[arg-type]


async def call(runtime: SimRuntime, request: GenerateRequest, **plan: object) -> ClientRecord:
    """Make a call and wait for its end; `plan`: fields of ClientPlan."""
    record = ClientRecord(ClientPlan(request, 0.0, **plan))  # type: ignore[arg-type]
    await run_client(runtime.relay, record)
    assert record.problems == []
    return record


def took_s(record: ClientRecord) -> float:
    assert record.started_s is not None
    assert record.ended_s is not None
    return record.ended_s - record.started_s


def limited(**limits: float) -> Timeouts:
    return Timeouts(**limits)
