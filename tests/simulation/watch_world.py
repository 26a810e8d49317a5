"""One seed, one history: workers and pairs that change at random, and readers that stall, leave, resume and begin anew.

What is under test is the watch machinery between `WorkerHistory.apply` / `PairTable.show` and a reader's `send`. The
truth is written down on the other side, at the moment of the change.
"""

from __future__ import annotations

import asyncio
import enum
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tandem_router.core.events import (
    ConditionChanged,
    JobCreated,
    JobEnded,
    JobForgotten,
    JobStarted,
    WorkerCreated,
    WorkerRemoved,
    WorkerStatusChanged,
)
from tandem_router.core.registry import Registry
from tandem_router.core.watch_log import WatchLog
from tandem_router.core.watch_pairs import PairTable
from tandem_router.core.watch_workers import WorkerHistory
from tandem_router.errors import Reason, TandemError
from tandem_router.model.ids import JobId, PairId, RankKey, WorkerId
from tandem_router.model.job import JobState, JobType
from tandem_router.model.pairing import HandshakeKind, LegState, PairState, PairView
from tandem_router.model.settings import WatchSettings
from tandem_router.model.spec import WorkerSpec
from tandem_router.model.watch import WatchEvent, WatchEventType
from tandem_router.model.worker import WorkerStatus
from tandem_router.runtime.watch import Watches, WatchOptions
from tandem_router.testing.sim_loop import SimLoop
from tandem_router.testing.watch_checker import Commit, ReaderHistory, Session, Told, check_reader

STATUSES = (WorkerStatus.READY, WorkerStatus.NOT_READY)
DELTAS = ("ADDED", "UPDATED", "REMOVED")
PAIR_STATES = (PairState.PREFILLING, PairState.DECODING, PairState.ABORTING)


class Fault(enum.StrEnum):
    """What a broken watch would do."""

    GAP = "GAP"
    REPEAT = "REPEAT"
    GOING_BACK = "GOING_BACK"


@dataclass
class Kind:
    """Workers, or pairs: what a reader follows and the truth about it."""

    log: WatchLog[Any, Any]
    open: Callable[..., Any]
    key: Callable[[Any], str]
    matches: Callable[[random.Random], Callable[[Any], bool]]
    commits: list[Commit]
    capacity: int
    compacted: int = 0


@dataclass
class Outcome:
    """What a seed gave."""

    problems: list[str]
    counts: dict[str, int]
    is_planted: bool


class Mutator:
    """Changes workers and pairs, one at a time, and writes down each change as it is made."""

    def __init__(self, rng: random.Random, capacity: int, base: int) -> None:
        self.rng = rng
        self.registry = Registry(revision=base)
        self.history = WorkerHistory(self.registry, capacity=capacity)
        self.pairs = PairTable(revision=base, capacity=capacity)
        self.worker_commits: list[Commit] = []
        self.pair_commits: list[Commit] = []
        self._made = 0
        self._views: dict[PairId, PairView] = {}

    def mutate(self) -> None:
        if self.rng.random() < 0.6:
            self._mutate_worker()
        else:
            self._mutate_pair()

    def _apply(self, kind: type, *fields: object, worker_id: WorkerId | None, **more: object) -> None:
        revision = self.registry.revision + 1
        self.history.apply([kind(revision, float(revision), *fields, **more)])
        if worker_id is not None:
            worker = self.registry.worker(worker_id)
            job = None if worker is None or worker.current_job is None else self.registry.jobs.get(worker.current_job)
            thing = None if worker is None else (worker.status, worker.revision, None if job is None else job.state)
            self.worker_commits.append(Commit(revision, worker_id, thing))

    def _mutate_worker(self) -> None:
        rng, workers = self.rng, list(self.registry.workers().values())
        if not workers or (len(workers) < 8 and rng.random() < 0.2):
            self._create()
            return
        worker = rng.choice(workers)
        job = None if worker.current_job is None else self.registry.jobs.get(worker.current_job)
        if rng.random() < 0.12:
            if job is not None and not job.state.is_final:
                self._apply(JobEnded, job.id, JobState.CANCELLED, worker_id=worker.id)
            self._apply(WorkerRemoved, worker.id, "deleted", worker_id=worker.id)
        elif job is not None and job.state is JobState.PENDING:
            self._apply(JobStarted, job.id, worker_id=worker.id)
        elif job is not None and job.state is JobState.RUNNING:
            self._apply(JobEnded, job.id, JobState.SUCCEEDED, worker_id=worker.id)
        elif rng.random() < 0.5:
            self._apply(WorkerStatusChanged, worker.id, rng.choice(STATUSES), worker_id=worker.id)
        elif rng.random() < 0.3:
            ended = [one for one in self.registry.jobs.all() if one.state.is_final]
            if ended:  # a revision that no worker shows
                self._apply(JobForgotten, ended[0].id, worker_id=None)
        else:
            reason = f"R{rng.randrange(3)}"
            self._apply(ConditionChanged, worker.id, "SERVING", True, reason, "", worker_id=worker.id)

    def _create(self) -> None:
        self._made += 1
        worker_id, job_id, url = WorkerId(f"w{self._made}"), JobId(f"j{self._made}"), f"grpc://h:{self._made}"
        self._apply(WorkerCreated, worker_id, url, WorkerSpec(url), False, None, job_id, worker_id=worker_id)
        self._apply(JobCreated, job_id, JobType.REGISTER_WORKER, worker_id, (), worker_id=worker_id)

    def _mutate_pair(self) -> None:
        rng = self.rng
        before = self.pairs.log.revision
        if not self._views or (len(self._views) < 6 and rng.random() < 0.35):
            self._made += 1
            key = RankKey(WorkerId("w"), 1, 0)
            leg = LegState.RESERVED
            kind, state = HandshakeKind.RENDEZVOUS, PairState.RESERVED
            view = PairView(PairId(f"p{self._made}"), "r", 1, kind, state, key, leg, key, leg, self._made, 0.0)
            self._views[view.id] = view
            self.pairs.show(view, now_s=0.0)
            self._note_pair(before, view, gone=False)
            return
        view = replace(rng.choice(list(self._views.values())), state=rng.choice(PAIR_STATES))
        if rng.random() < 0.3:
            view = replace(view, state=PairState.DONE)
            del self._views[view.id]
            self.pairs.end(view, now_s=0.0)
            self._note_pair(before, view, gone=True)
            return
        self._views[view.id] = view
        self.pairs.show(view, now_s=0.0)
        self._note_pair(before, view, gone=False)

    def _note_pair(self, before: int, view: PairView, *, gone: bool) -> None:
        made = self.pairs.log.revision - before
        if made > gone:  # a pair's end is two revisions, unless its last state was shown before
            self.pair_commits.append(Commit(before + 1, view.id, (view.state, before + 1)))
        if gone:
            self.pair_commits.append(Commit(before + made, view.id, None))


class Reader:
    """Follows one kind with one filter, for as long as the world turns."""

    def __init__(self, kind: Kind, rng: random.Random, fault: Fault | None, counts: dict[str, int]) -> None:
        self.kind = kind
        self.rng = rng
        self.fault = fault
        self.is_planted = False
        self.counts = counts
        self.is_patient = False
        """No more leaving and stalling: the end is near."""
        matches = kind.matches(rng)
        self.history = ReaderHistory(lambda thing: matches(thing))
        self._matches = matches
        self._known: int | None = None
        self._gap_in: Session | None = None
        self._deltas = 0

    async def run(self) -> None:
        while True:
            resume = self._known if self.rng.random() < 0.85 else None
            session = Session(resume)
            self.history.sessions.append(session)
            if resume is None:
                self._known = None
            interval_s = 1.0 if self.rng.random() < 0.3 else None
            try:
                call = self.kind.open(
                    WatchOptions(resume, False, interval_s),
                    lambda thing: self._matches(self._thing(thing)),
                    lambda event, into=session: self._send(event, into),
                )
            except TandemError as error:
                if error.reason is not Reason.REVISION_COMPACTED:
                    raise
                session.compacted_below = max(self.kind.compacted, self.kind.log.revision - self.kind.capacity)
                self.counts["compacted"] += 1
                self._known = None
                continue
            try:
                async with asyncio.timeout(None if self.is_patient else self.rng.uniform(0.05, 3.0)):
                    await call.result()
            except TimeoutError:
                self.counts["left"] += 1
            except TandemError as error:
                if error.reason is not Reason.SLOW_CLIENT:
                    raise
                self.counts["slow"] += 1
            finally:
                call.end()
            await asyncio.sleep(self.rng.choice((0.0, 0.01, 0.5)))

    def _thing(self, thing: Any) -> Any:
        if isinstance(thing, PairView):
            return (thing.state, thing.revision)
        return (thing.worker.status, thing.worker.revision, None if thing.job is None else thing.job.state)

    async def _send(self, event: WatchEvent[Any], session: Session) -> None:
        if not self.is_patient:
            # What is being sent when the call ends is lost; so the note comes after the wait.
            await asyncio.sleep(self.rng.choice((0.0, 0.0, 0.0, 0.02, 0.3 if self.rng.random() < 0.2 else 0.0)))
        key = None if event.thing is None else self.kind.key(event.thing)
        told = Told(event.type.value, event.revision, key, None if key is None else self._thing(event.thing))
        written = self._broken(told, session)
        session.told.extend(written)
        if not written:
            return
        if event.type is WatchEventType.SYNCED or self._known is not None:
            self._known = event.revision
        self.counts[event.type.value] = self.counts.get(event.type.value, 0) + 1

    def _broken(self, told: Told, session: Session) -> list[Told]:
        """What a broken watch would have written in place of one message."""
        if self._gap_in is session:
            # Only what follows makes a gap: a reader that left right after it would resume before it.
            self.is_planted = True
        if told.type not in DELTAS or self.fault is None or self.is_planted:
            return [told]
        self._deltas += 1
        if self._deltas < 3 or not session.told or session.told[-1].type not in DELTAS:
            return [told]
        if self.fault is Fault.GAP:
            self._gap_in = session
            return []
        self.is_planted = True
        return [told, told if self.fault is Fault.REPEAT else session.told[-1]]


def play(seed: int, fault: Fault | None = None) -> Outcome:
    """The history of one seed and what the checker says of it."""
    rng = random.Random(seed)
    return SimLoop(seed, max_virtual_s=600.0).run(_play(rng, fault))


async def _play(rng: random.Random, fault: Fault | None) -> Outcome:
    capacity = rng.choice((12, 40, 200))
    mutator = Mutator(rng, capacity, rng.choice((0, 1_000_000)))
    watches = Watches(mutator.history, mutator.pairs, WatchSettings(capacity, max(4, capacity // 4)))
    statuses, states = (*STATUSES, None), (*PAIR_STATES, None)
    workers = Kind(
        mutator.history.log,
        watches.workers,
        lambda reading: str(reading.worker.id),
        lambda chance: _filter(chance.choice(statuses)),
        mutator.worker_commits,
        capacity,
    )
    pairs = Kind(
        mutator.pairs.log,
        watches.pairs,
        lambda view: str(view.id),
        lambda chance: _filter(chance.choice(states)),
        mutator.pair_commits,
        capacity,
    )
    counts = {"left": 0, "slow": 0, "compacted": 0}
    readers = [Reader(rng.choice((workers, pairs)), rng, None, counts) for _ in range(rng.randint(1, 3))]
    readers[0].fault = fault
    tasks = [asyncio.create_task(reader.run(), name=f"reader {number}") for number, reader in enumerate(readers)]
    for _ in range(rng.randint(20, 90)):
        for _ in range(rng.choice((1, 1, 2, 8))):
            mutator.mutate()
        if rng.random() < 0.05:
            for kind in (workers, pairs):
                kind.compacted = rng.randint(kind.log.oldest_revision, kind.log.revision)
                kind.log.compact(kind.compacted)
        await asyncio.sleep(rng.choice((0.0, 0.01, 0.1)))
    for reader in readers:
        reader.is_patient = True
    await asyncio.sleep(5.0)
    for _ in range(6):  # news must wake who waits: nobody calls again from here on
        mutator.mutate()
        await asyncio.sleep(0.01)
    await asyncio.sleep(1.5)
    problems = [
        f"reader {number}: {found}"
        for number, reader in enumerate(readers)
        for found in check_reader(reader.kind.commits, reader.history, reader.kind.log.revision)
    ]
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    problems += [f"a reader ended with {end!r}" for end in ends if not isinstance(end, asyncio.CancelledError)]
    await watches.close()
    if watches.statistics().running:
        problems.append(f"left over: {watches.statistics()}")
    return Outcome(problems, counts, readers[0].is_planted)


def _filter(wanted: object) -> Callable[[Any], bool]:
    return lambda thing: wanted is None or thing[0] is wanted
