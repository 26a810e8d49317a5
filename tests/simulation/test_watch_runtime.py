"""Watches over the whole runtime: registration, traffic, a kill and a delete, as a reader with reconnects sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.simulation.test_scenes import HANDY, REQUEST, ROOMY, pair_of, play

from tandem_router.core.registry import Registry
from tandem_router.core.relay_events import AttemptPlanned, LegClosed
from tandem_router.model.pairing import PairState
from tandem_router.model.watch import WatchEvent
from tandem_router.model.worker import WorkerStatus
from tandem_router.runtime.watch import Watches, WatchOptions
from tandem_router.testing.harness import SimRuntime
from tandem_router.testing.scenario import ClientPlan
from tandem_router.testing.scripted_wire import EngineScript
from tandem_router.testing.sim_client import ClientRecord, run_client
from tandem_router.testing.watch_checker import Commit, ReaderHistory, Session, Told, check_reader

SEEDS = range(4)
CALLS = 6
LAST_STATES = (PairState.DONE, PairState.FAILED)


class Reader:
    """Follows, leaves after every few messages, and resumes."""

    def __init__(self, open_watch: Callable[..., Any], view: Callable[[Any], tuple[str, Any]], most: int) -> None:
        self.history = ReaderHistory(lambda thing: True)
        self._open = open_watch
        self._view = view
        self._most = most

    async def run(self) -> None:
        known = None
        while True:
            session, full = Session(known), asyncio.Event()
            self.history.sessions.append(session)

            async def send(event: WatchEvent[Any], into: Session = session, full: asyncio.Event = full) -> None:
                key, thing = (None, None) if event.thing is None else self._view(event.thing)
                into.told.append(Told(event.type.value, event.revision, key, thing))
                if len(into.told) >= self._most and any(told.type == "SYNCED" for told in into.told):
                    full.set()
                    await asyncio.Event().wait()  # the call ends before anything more is written

            call = self._open(WatchOptions(known), lambda _: True, send)
            try:
                await full.wait()
            finally:
                call.end()
            known = session.told[-1].revision

    @property
    def told(self) -> list[Told]:
        return [told for session in self.history.sessions for told in session.told]


def workers_by_replay(runtime: SimRuntime) -> list[Commit]:
    """What is true of workers, from the events that the Observer was given, in a registry of our own."""
    registry, commits = Registry(), []
    for _, event in runtime.trace.events:
        if not hasattr(event, "revision"):
            continue
        registry.apply((event,))  # type: ignore[arg-type]  # the only observed events with a revision
        worker_id = getattr(event, "worker_id", None)
        job = registry.jobs.get(getattr(event, "job_id", None) or "")  # type: ignore[arg-type]
        key = worker_id or (None if job is None else job.worker_id)
        if key is not None:
            worker = registry.worker(key)
            commits.append(Commit(event.revision, key, None if worker is None else (worker.status, worker.revision)))
    return commits


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("script", [ROOMY, HANDY], ids=["rendezvous", "handoff"])
def test_a_reader_sees_workers_and_pairs_as_they_were(script: EngineScript, seed: int) -> None:
    async def scene(runtime: SimRuntime) -> None:
        watches = Watches(runtime.control.history, runtime.relay.env.pairs)
        workers = Reader(
            watches.workers, lambda one: (one.worker.id, (one.worker.status, one.worker.revision)), 5 + seed
        )
        pairs = Reader(watches.pairs, lambda one: (one.id, one), 3 + seed)
        tasks = [asyncio.create_task(one.run(), name=name) for one, name in ((workers, "workers"), (pairs, "pairs"))]
        records = [ClientRecord(ClientPlan(replace(REQUEST, request_id=f"r{number}"), 0.0)) for number in range(CALLS)]
        async with asyncio.TaskGroup() as group:
            for record in records:
                group.create_task(run_client(runtime.relay, record))
            await asyncio.sleep(0.3)
            runtime.machines.machines["decode0"].kill()
        deleted = next(iter(runtime.control.fleet.workers()))
        await runtime.control.delete_worker(deleted, force=True)
        await asyncio.sleep(40.0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await watches.close()
        check_workers(runtime, workers)
        check_pairs(runtime, pairs)
        assert watches.statistics().running == 0

    play(seed, pair_of(script, decodes=2), scene)


def check_workers(runtime: SimRuntime, reader: Reader) -> None:
    commits = workers_by_replay(runtime)
    assert check_reader(commits, reader.history, runtime.control.revision) == []
    assert [told.type for told in reader.told].count("REMOVED") == 1
    assert any(told.thing is not None and told.thing[0] is WorkerStatus.NOT_READY for told in reader.told)  # type: ignore[index]
    assert len(reader.history.sessions) > 1


def check_pairs(runtime: SimRuntime, reader: Reader) -> None:
    """Every planned pair is added, goes through its states to a last one and is removed; revisions have no gap."""
    deltas = [told for told in reader.told if told.type != "SYNCED"]
    assert [told.revision for told in deltas] == list(range(1, runtime.relay.env.pairs.log.revision + 1))
    planned = [str(event.pair_id) for _, event in runtime.trace.events if isinstance(event, AttemptPlanned)]
    closed = [str(event.pair_id) for _, event in runtime.trace.events if isinstance(event, LegClosed)]
    lives: dict[str, list[Told]] = {}
    for told in deltas:
        lives.setdefault(str(told.key), []).append(told)
    assert sorted(lives) == sorted(planned)
    assert set(closed) == set(planned)
    for life in lives.values():
        kinds = [told.type for told in life]
        assert kinds == ["ADDED", *["UPDATED"] * (len(life) - 2), "REMOVED"]
        states = [told.thing.state for told in life]  # type: ignore[union-attr]
        assert states[0] is PairState.RESERVED
        assert states[-1] in LAST_STATES
        assert PairState.RESERVED not in states[1:-1]
    assert runtime.relay.env.pairs.log.current() == ()
