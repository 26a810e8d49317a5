"""What must hold once all traffic is over and everything has been put right."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tandem_router.errors import TandemError
from tandem_router.model.job import JobState
from tandem_router.model.request import GenerateRequest, Output, Sampling
from tandem_router.model.worker import Worker, WorkerStatus
from tandem_router.testing.harness import SimRuntime
from tandem_router.testing.scenario import ClientPlan, Scenario
from tandem_router.testing.sim_checks import check_client
from tandem_router.testing.sim_client import ClientRecord, run_client

__all__ = ["check_deleted", "check_idle", "check_recovered"]


def check_idle(runtime: SimRuntime) -> list[str]:
    """The router owes nothing to anybody, and neither does an engine."""
    now = runtime.relay.statistics()
    counts = {
        "live requests": now.live_requests,
        "live attempts": now.live_attempts,
        "live rooms": now.live_rooms,
        "tasks": now.tasks,
    }
    problems = [f"the relay still has {count} {name}" for name, count in counts.items() if count]
    if now.ledger.open:
        problems.append(f"open legs in the ledger: {runtime.ledger.rows()}")
    if now.ledger.opened_total != now.ledger.closed_total:
        problems.append(f"{now.ledger.opened_total} legs opened, {now.ledger.closed_total} closed")
    problems += [f"live pair {pair}" for pair in runtime.relay.pairs()]
    problems += [f"shown pair {pair}" for pair in runtime.relay.env.pairs.log.current()]
    problems += [f"engine {name} holds {held}" for name, held in runtime.machines.held().items()]
    return problems


async def check_recovered(runtime: SimRuntime, scenario: Scenario) -> list[str]:
    """Every registered worker is READY again with its ranks and adapters, and every model that is served answers."""
    problems = _forgotten(runtime, await runtime.control.list_workers())
    problems += [
        f"worker {worker.url} is {worker.status} after everything was put right: {worker.conditions}"
        for worker in await runtime.control.list_workers()
        if worker.status is not WorkerStatus.READY
    ]
    for model in sorted({machine.script.model for machine in scenario.machines}):
        sampling = Sampling(temperature=0.0, max_tokens=4)
        request = GenerateRequest(
            f"last {model}", model, token_ids=tuple(range(3, 20)), sampling=sampling, output=Output.TOKENS
        )
        record = ClientRecord(ClientPlan(request, 0.0))
        await run_client(runtime.relay, record)
        if record.error is not None:
            problems.append(f"model {model} does not answer: {record.error}")
        problems += [f"{request.request_id}: {found}" for found in check_client(record)]
    # The prefill leg of a rendezvous may end after its decode's answer.
    await asyncio.sleep(1.0)
    return problems + check_idle(runtime)


def _forgotten(runtime: SimRuntime, workers: Sequence[Worker]) -> list[str]:
    """Ranks that are still out although nothing is wrong with them, and adapters that are not known as they are."""
    machines = {machine.spec.url: machine for machine in runtime.machines.machines.values()}
    problems = []
    for worker in workers:
        problems += [
            f"rank {rank.dp_rank} of {worker.url} is still out" for rank in worker.ranks if not rank.is_healthy
        ]
        engine, facts = machines[worker.url].engine, worker.facts
        if engine is not None and facts is not None and set(facts.adapters) != set(engine.adapters.loaded.values()):
            problems.append(f"{worker.url} holds {list(engine.adapters.loaded)} and is known for {facts.adapters}")
    return problems


async def check_deleted(runtime: SimRuntime) -> list[str]:
    """Every worker can be deleted, and then nothing of it is left."""
    problems = []
    for worker in await runtime.control.list_workers():
        try:
            job = await runtime.control.delete_worker(worker.id, 5.0)
            job = await runtime.job_ended(job.id, 60.0)
        except TandemError as error:
            problems.append(f"deleting {worker.url}: {error}")
            continue
        if job.state is not JobState.SUCCEEDED:
            problems.append(f"deleting {worker.url} ended as {job}")
    await asyncio.sleep(1.0)
    left = await runtime.control.list_workers()
    if left:
        problems.append(f"workers left: {left}")
    now = runtime.control.statistics()
    if now.probes or now.open_clients or now.tasks:
        problems.append(f"the control loop still has {now}")
    return problems
