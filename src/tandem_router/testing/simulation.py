"""Deterministic simulation: one seed is one life of a router among failing engines, checked to the end.

    python -m tandem_router.testing.simulation --seeds 0:200

A run creates workers, sends concurrent calls, kills, hangs and deletes while they run, puts everything right, and then
looks: every call has one end that is right and in time, nothing is left anywhere, and no engine was asked what it does
not survive. The same seed gives the same trace under any PYTHONHASHSEED.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tandem_router.model.settings import RuntimeSettings
from tandem_router.testing.harness import SimRuntime, build_runtime
from tandem_router.testing.mishaps import Mishaps
from tandem_router.testing.scenario import Scenario, draw_scenario
from tandem_router.testing.scripted_fleet import ScriptedFleet
from tandem_router.testing.sim_checks import check_client, check_events, check_no_failure, check_promises
from tandem_router.testing.sim_client import ClientRecord, run_client
from tandem_router.testing.sim_loop import Order, SimLoop
from tandem_router.testing.sim_quiet import check_deleted, check_idle, check_recovered

__all__ = ["SimReport", "SimulationFailed", "main", "simulate"]


@dataclass(frozen=True, slots=True)
class SimReport:
    """A run that was good."""

    seed: int
    digest: str
    """sha256 over every observed event with its virtual time, and the number of steps of the loop."""
    events: int
    statistics: Mapping[str, int]
    """How calls ended, attempts made, mishaps that struck."""


class SimulationFailed(AssertionError):
    """A run that was not; the message holds the seed and what was wrong, one line each."""


def simulate(seed: int, order: Order = Order.SHUFFLED, settings: RuntimeSettings | None = None) -> SimReport:
    """Run one seed; raises SimulationFailed, SimDeadlock and its like, or whatever broke."""
    loop = SimLoop(seed, order=order, max_virtual_s=3600.0)
    scenario = draw_scenario(seed)
    statistics: Counter[str] = Counter()
    runtime, problems = loop.run(_run(loop, scenario, settings or RuntimeSettings(), statistics))
    if problems:
        lines = "\n  ".join(problems)
        raise SimulationFailed(f"seed {seed}: {len(problems)} problems\n  {lines}")
    runtime.trace.observe(loop.steps)
    return SimReport(seed, runtime.trace.digest(), len(runtime.trace.events), dict(sorted(statistics.items())))


async def _run(
    loop: SimLoop, scenario: Scenario, settings: RuntimeSettings, statistics: Counter[str]
) -> tuple[SimRuntime, list[str]]:
    machines = ScriptedFleet(loop, scenario.seed)
    runtime = build_runtime(loop, scenario.seed, machines, settings)
    records = {plan.request.request_id: ClientRecord(plan) for plan in scenario.clients}
    mishaps = Mishaps(runtime, records, loop)
    problems: list[str] = []
    try:
        await runtime.control.start()
        await _register_all(runtime, scenario)
        async with asyncio.TaskGroup() as traffic:
            for record in records.values():
                traffic.create_task(_client(runtime, record), name=f"client {record.request_id}")
            for number, mishap in enumerate(scenario.mishaps):
                traffic.create_task(mishaps.strike(mishap), name=f"mishap {number}")
        problems += [f"{name}: {found}" for name, record in records.items() for found in check_client(record)]
        problems += check_promises(mishaps.victims, records)
        if scenario.waits_for_workers and not scenario.mishaps:
            problems += check_no_failure(records)
        mishaps.heal()
        # Grace of lingering legs, lease of handles nobody pulled: what is left after the longer of them stays.
        await asyncio.sleep(max(settings.transfer_grace_s, settings.kv_handle_lease_s, scenario.longest_hold_s) + 6.0)
        problems += check_idle(runtime)
        problems += await check_recovered(runtime, scenario)
        problems += await check_deleted(runtime)
        problems += [f"violation at {found}" for found in machines.violations()]
        problems += check_events(runtime.trace.events)
    finally:
        await runtime.close()
    _count(mishaps, statistics)
    return runtime, problems


async def _register_all(runtime: SimRuntime, scenario: Scenario) -> None:
    """Machines come up one after another; all are registered at once, and in some runs traffic does not wait."""
    loop = asyncio.get_running_loop()
    jobs = []
    for plan in scenario.machines:
        machine = runtime.machines.add(plan.name, plan.script)
        if plan.starts_at_s:
            machine.kill()
            loop.call_later(plan.starts_at_s, machine.start_if_dead)
        jobs.append(await runtime.register(plan.name))
    if scenario.waits_for_workers:
        for job in jobs:
            await runtime.job_ended(job, 60.0)


async def _client(runtime: SimRuntime, record: ClientRecord) -> None:
    await asyncio.sleep(record.plan.starts_at_s)
    await run_client(runtime.relay, record)


def _count(mishaps: Mishaps, statistics: Counter[str]) -> None:
    for record in mishaps.records.values():
        if record.finished is not None:
            statistics["finished"] += 1
            statistics[f"served {record.finished.served_by.kind}"] += 1
            statistics["attempts lost on the way"] += sum(each.failure is not None for each in record.finished.attempts)
        elif record.error is not None:
            statistics[f"failed {record.error.reason}"] += 1
    statistics["holders killed before the fetch"] += mishaps.holders_killed
    for reason in mishaps.refusals:
        statistics[f"operator told {reason}"] += 1
    for kind in mishaps.struck:
        statistics[f"mishap {kind}"] += 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a range of seeds; one line per failure, one of sums. The number of failures, at most 1, is the exit code."""
    parser = argparse.ArgumentParser(prog="simulation", description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--seeds", default="0:200", help="first:end, end excluded, or one seed (default %(default)s)")
    parser.add_argument("--fifo", action="store_true", help="asyncio's own order instead of a shuffled one")
    parser.add_argument("--digests", action="store_true", help="print the digest of every seed")
    options = parser.parse_args(arguments)
    first, _, end = str(options.seeds).partition(":")
    seeds = range(int(first), int(end) if end else int(first) + 1)
    order = Order.FIFO if options.fifo else Order.SHUFFLED
    failures = 0
    total: Counter[str] = Counter()
    for seed in seeds:
        try:
            report = simulate(seed, order)
        except Exception as failure:  # each seed is a verdict of its own
            failures += 1
            message = str(failure) if isinstance(failure, SimulationFailed) else f"seed {seed}: {failure!r}"
            print(message, file=sys.stderr)
            continue
        total.update(report.statistics)
        if options.digests:
            print(seed, report.digest)
    print(f"{len(seeds)} seeds, {failures} failed; {', '.join(f'{name} {n}' for name, n in sorted(total.items()))}")
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
