"""The registry under any sequence of commands: a Hypothesis state machine with its own, simpler model.

I1 url -> id and id -> worker are inverse; I3 revisions rise per id; I7 one create of a URL succeeds; ids never return;
late commands change nothing; replaying the events gives the same state.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from tandem_router.core.commands import (
    Activate,
    Command,
    Connect,
    CreateWorker,
    DeleteWorker,
    EndJob,
    Expire,
    MarkNotReady,
    MarkReady,
    RecordFacts,
    StartJob,
)
from tandem_router.core.events import Event
from tandem_router.core.proposals import propose
from tandem_router.core.registry import Registry
from tandem_router.errors import Reason, TandemError
from tandem_router.model.failure import Failure
from tandem_router.model.ids import JobId, WorkerId
from tandem_router.model.job import JobState
from tandem_router.model.settings import JobSettings
from tandem_router.model.spec import RuntimeType, WorkerSpec
from tandem_router.model.worker import Rank, WorkerFacts, WorkerStatus

FAILURE = Failure(Reason.WORKER_UNREACHABLE, "refused")
FACTS = WorkerFacts(runtime_type=RuntimeType.SGLANG, model_id="tiny")
LIVE = (WorkerStatus.PENDING, WorkerStatus.READY, WorkerStatus.NOT_READY, WorkerStatus.DRAINING)
SETTINGS = JobSettings(history_ttl_s=50.0, max_queued=10_000)


class RegistryMachine(RuleBasedStateMachine):
    """Commands arrive in any order, reports of ended jobs and over epochs included."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.registry = Registry(SETTINGS)
        self.history: list[Event] = []
        self.now_s = 1000.0
        self.minted = 0
        self.holders: dict[str, WorkerId] = {}
        self.gone: set[WorkerId] = set()
        self.seen_revision: dict[WorkerId, int] = {}

    def do(self, command: Command) -> bool:
        """Carry a command out; whether it changed anything."""
        changed = False
        for each in (Expire(), command):
            before = self.registry.revision
            proposal = propose(self.registry, each, self.now_s)
            assert self.registry.revision == before, "a proposal must change nothing"
            assert [event.revision for event in proposal.events] == list(
                range(before + 1, before + 1 + len(proposal.events))
            )
            assert not (proposal.is_stale and proposal.events)
            self.registry.apply(proposal.events)
            self.history.extend(proposal.events)
            changed = bool(proposal.events)
        return changed

    @rule(target=ids, port=st.integers(1, 4), upper=st.booleans())
    def create(self, port: int, upper: bool) -> object:
        self.minted += 1
        worker_id, job_id = WorkerId(f"w{self.minted}"), JobId(f"j{self.minted}")
        url = f"grpc://host:{port}"
        self.do(Expire())
        holder = self.registry.at_url(url)
        command = CreateWorker(worker_id, job_id, WorkerSpec(url.upper() if upper else url), False)
        if holder is None:
            self.do(command)
            return (worker_id, job_id)
        with pytest.raises(TandemError) as caught:
            self.do(command)
        is_pending = holder.status is WorkerStatus.PENDING
        expected = Reason.WORKER_CREATE_IN_PROGRESS if is_pending else Reason.WORKER_ALREADY_EXISTS
        assert (caught.value.reason, caught.value.metadata["worker_id"]) == (expected, holder.id)
        return multiple()

    @rule(ids=ids)
    def start(self, ids: tuple[WorkerId, JobId]) -> None:
        self.do(StartJob(ids[1]))

    @rule(ids=ids, behind=st.integers(0, 1))
    def connect(self, ids: tuple[WorkerId, JobId], behind: int) -> None:
        worker = self.registry.worker(ids[0])
        epoch = 0 if worker is None else worker.epoch
        changed = self.do(Connect(ids[0], epoch - behind, ids[1]))
        job = self.registry.jobs.get(ids[1])
        assert not changed or (behind == 0 and job is not None and job.state is JobState.RUNNING)

    @rule(ids=ids, behind=st.integers(0, 1))
    def read_facts(self, ids: tuple[WorkerId, JobId], behind: int) -> None:
        worker = self.registry.worker(ids[0])
        epoch = 0 if worker is None else worker.epoch
        assert not self.do(RecordFacts(ids[0], epoch - behind, FACTS, (Rank(0),))) or behind == 0

    @rule(ids=ids, well=st.booleans())
    def activate(self, ids: tuple[WorkerId, JobId], well: bool) -> None:
        before = self.registry.worker(ids[0])
        if self.do(Activate(ids[0], ids[1], None if well else FAILURE)):
            assert before is not None
            assert before.status is WorkerStatus.PENDING

    @rule(ids=ids)
    def fail(self, ids: tuple[WorkerId, JobId]) -> None:
        self.do(EndJob(ids[1], JobState.FAILED, FAILURE))

    @rule(ids=ids, behind=st.integers(0, 1))
    def sicken(self, ids: tuple[WorkerId, JobId], behind: int) -> None:
        worker = self.registry.worker(ids[0])
        epoch = 0 if worker is None else worker.epoch
        changed = self.do(MarkNotReady(ids[0], epoch - behind, FAILURE))
        assert changed is (worker is not None and worker.status is WorkerStatus.READY and behind == 0)

    @rule(ids=ids, new_life=st.booleans())
    def heal(self, ids: tuple[WorkerId, JobId], new_life: bool) -> None:
        before = self.registry.worker(ids[0])
        epoch = 0 if before is None else before.epoch
        changed = self.do(MarkReady(ids[0], epoch, FACTS, (Rank(0),), new_life))
        after = self.registry.worker(ids[0])
        if changed:
            assert after is not None
            assert after.epoch == epoch + new_life

    @rule(ids=ids, force=st.booleans())
    def delete(self, ids: tuple[WorkerId, JobId], force: bool) -> None:
        self.minted += 1
        job_id = JobId(f"j{self.minted}")
        command = DeleteWorker(ids[0], job_id, 1.0, force)
        self.do(Expire())
        before = self.registry.worker(ids[0])
        if before is None:
            with pytest.raises(TandemError, match="WORKER_NOT_FOUND"):
                self.do(command)
            return
        self.do(command)
        after = self.registry.worker(ids[0])
        is_idle = force or before.status in (WorkerStatus.PENDING, WorkerStatus.FAILED)
        if is_idle:
            assert after is None
        else:
            assert after is not None
            assert after.status is WorkerStatus.DRAINING

    @rule(ids=consumes(ids))
    def finish_removal(self, ids: tuple[WorkerId, JobId]) -> None:
        worker = self.registry.worker(ids[0])
        if worker is None or worker.status is not WorkerStatus.DRAINING or worker.current_job is None:
            return
        self.do(StartJob(worker.current_job))
        self.do(EndJob(worker.current_job, JobState.SUCCEEDED))
        assert self.registry.worker(ids[0]) is None

    @rule(seconds=st.sampled_from([0.0, 1.0, 30.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.do(Expire())
        deadline_s = self.registry.next_deadline_s()
        assert deadline_s is None or deadline_s > self.now_s

    @invariant()
    def urls_and_workers_are_inverse(self) -> None:
        holders = {worker.url: worker.id for worker in self.registry.workers().values() if worker.status in LIVE}
        live = [worker for worker in self.registry.workers().values() if worker.status in LIVE]
        assert len(holders) == len(live), "two live workers share a URL"
        assert self.registry.statistics().reserved_urls == len(holders)
        for url, worker_id in holders.items():
            holder = self.registry.at_url(url)
            assert holder is not None
            assert holder.id == worker_id

    @invariant()
    def revisions_rise_and_the_gone_stay_gone(self) -> None:
        present = self.registry.workers()
        for worker_id in self.seen_revision:
            if worker_id not in present:
                self.gone.add(worker_id)
        for worker in present.values():
            assert worker.id not in self.gone
            assert self.seen_revision.get(worker.id, 0) <= worker.revision <= self.registry.revision
            self.seen_revision[worker.id] = worker.revision

    @invariant()
    def a_pending_worker_has_a_job_that_runs_for_it(self) -> None:
        for worker in self.registry.workers().values():
            if worker.status in (WorkerStatus.PENDING, WorkerStatus.DRAINING):
                assert worker.current_job is not None
                job = self.registry.jobs.get(worker.current_job)
                assert job is not None
                assert not job.state.is_final

    def teardown(self) -> None:
        replayed = Registry(SETTINGS)
        replayed.apply(self.history)
        assert dict(replayed.workers()) == dict(self.registry.workers())
        assert replayed.jobs.all() == self.registry.jobs.all()
        assert replayed.statistics() == self.registry.statistics()


TestRegistryMachine = RegistryMachine.TestCase
TestRegistryMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
