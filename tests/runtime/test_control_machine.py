"""The whole control loop in virtual time under any sequence of wishes and mishaps: a Hypothesis state machine.

I1 url -> id and id -> worker are inverse; I2 what is derived from workers says what the workers say; I3 revisions rise
per id; I4 events come in the order of their revisions, without a gap; I5 in-flight is the number of open legs; I6 only
READY workers are picked; I7 of any number of creates of one URL one succeeds. And nothing that is gone comes back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.runtime.control_world import World

from tandem_router.errors import Reason, TandemError
from tandem_router.model.ids import RankKey, WorkerId
from tandem_router.model.settings import JobSettings, RuntimeSettings
from tandem_router.model.spec import WorkerSpec, WorkerType
from tandem_router.model.spec_patch import SpecPatch
from tandem_router.model.worker import CredentialsPatch, Worker, WorkerStatus
from tandem_router.policies.contract import Plan, Query
from tandem_router.policies.plan import Planner
from tandem_router.policies.scorers import LeastInFlight
from tandem_router.runtime.pairing import pairable
from tandem_router.testing.sim_loop import SimLoop

T = TypeVar("T")

SETTINGS = RuntimeSettings(jobs=JobSettings(max_connection_attempts=3, history_ttl_s=120.0))
PORTS = (1, 2, 3)
TYPES = (WorkerType.REGULAR, WorkerType.PREFILL, WorkerType.DECODE)
PICK = st.integers(0, 10)


class ControlMachine(RuleBasedStateMachine):
    """Calls to the real Control over processes that live and die; time passes only where a rule lets it."""

    @initialize(seed=st.integers(0, 2**16))
    def begin(self, seed: int) -> None:
        self.loop = SimLoop(seed, max_virtual_s=1e9)
        self.legs: dict[str, RankKey] = {}
        self.minted = 0
        self.known: list[WorkerId] = []
        self.gone: set[WorkerId] = set()
        self.revisions: dict[WorkerId, int] = {}
        self.seen_events = 0

        async def build() -> World:
            world = World(SETTINGS, seed)
            for port in PORTS:
                world.process(f"grpc://host:{port}")
            world.control.use(self.end_legs)
            await world.control.start()
            return world

        self.world = self.do(build())

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        result: T = self.loop.run_until_complete(work)
        return result

    def attempt(self, call: Callable[[], Awaitable[T]]) -> T | Reason:
        async def tried() -> T | Reason:
            try:
                return await call()
            except TandemError as error:
                return error.reason

        return self.do(tried())

    def end_legs(self, worker_id: WorkerId, failure: object) -> int:
        legs = [leg for leg, key in self.legs.items() if key.worker_id == worker_id]
        for leg in legs:
            del self.legs[leg]
            self.world.ledger.close(leg)
        return len(legs)

    def workers(self) -> list[Worker]:
        return list(self.world.control.fleet.workers().values())

    def one(self, index: int) -> WorkerId | None:
        return self.known[index % len(self.known)] if self.known else None

    @rule(port=st.sampled_from(PORTS), kind=st.sampled_from(TYPES), count=st.sampled_from([1, 1, 5]))
    def create(self, port: int, kind: WorkerType, count: int) -> None:
        spellings = (f"grpc://host:{port}", f"GRPC://Host:0{port}", f"grpc://HOST.:{port}/")
        holders = [w for w in self.workers() if w.url == spellings[0] and w.status is not WorkerStatus.FAILED]

        async def create(number: int) -> WorkerId | Reason:
            try:
                spec = WorkerSpec(spellings[number % 3], worker_type=kind)
                return (await self.world.control.create_worker(spec))[0].id
            except TandemError as error:
                return error.reason

        async def race() -> list[WorkerId | Reason]:
            return await asyncio.gather(*(create(number) for number in range(count)))

        answers = self.do(race())
        made = [answer for answer in answers if not isinstance(answer, Reason)]
        refusals = (Reason.WORKER_ALREADY_EXISTS, Reason.WORKER_CREATE_IN_PROGRESS)
        assert all(answer in refusals for answer in answers if isinstance(answer, Reason))
        assert len(made) <= 1, "I7"
        # A holder that is leaving, or is about to fail, may have gone when the creates have their turn.
        may_go = any(holder.leaving or holder.status is WorkerStatus.PENDING for holder in holders)
        assert may_go or len(made) == (0 if holders else 1), "I7"
        self.known += made

    @rule(index=PICK, kind=st.sampled_from(TYPES), key=st.sampled_from([None, "", "k"]))
    def replace(self, index: int, kind: WorkerType, key: str | None) -> None:
        if (worker_id := self.one(index)) is not None:
            worker = self.world.control.fleet.workers().get(worker_id)
            spec = WorkerSpec(worker.url if worker else "grpc://host:1", worker_type=kind)
            self.attempt(lambda: self.world.control.replace_worker(worker_id, spec, CredentialsPatch(key)))

    @rule(index=PICK, kind=st.sampled_from([None, *TYPES]), label=st.sampled_from("ab"))
    def update(self, index: int, kind: WorkerType | None, label: str) -> None:
        if (worker_id := self.one(index)) is not None:
            values: dict[tuple[str, ...], Any] = {} if kind is None else {("worker_type",): kind}
            answer = self.attempt(lambda: self.world.control.update_worker(worker_id, SpecPatch(values, {label: "1"})))
            if kind is None and not isinstance(answer, Reason):
                assert answer[0].spec.labels[label] == "1", "a label acts at once"

    @rule(index=PICK, timeout_s=st.sampled_from([None, 0.0, 5.0]))
    def drain(self, index: int, timeout_s: float | None) -> None:
        if (worker_id := self.one(index)) is not None:
            answer = self.attempt(lambda: self.world.control.drain_worker(worker_id, timeout_s, "because"))
            if not isinstance(answer, Reason):
                assert answer[0].status is not WorkerStatus.READY, "cordoned at once"

    @rule(index=PICK)
    def undrain(self, index: int) -> None:
        if (worker_id := self.one(index)) is not None:
            answer = self.attempt(lambda: self.world.control.undrain_worker(worker_id))
            if not isinstance(answer, Reason):
                assert answer.drain is None

    @rule(index=PICK, drain_s=st.sampled_from([None, 0.0, 30.0]), force=st.booleans())
    def delete(self, index: int, drain_s: float | None, force: bool) -> None:
        if (worker_id := self.one(index)) is not None:
            self.attempt(lambda: self.world.control.delete_worker(worker_id, drain_s, force))

    @rule(index=PICK)
    def act_on_what_was_read_too_long_ago(self, index: int) -> None:
        if (worker_id := self.one(index)) is not None and (worker := self.find(worker_id)) is not None:
            control = self.world.control
            stale = worker.generation - 1
            for call in (
                lambda: control.replace_worker(worker_id, WorkerSpec(worker.url), None, stale),
                lambda: control.update_worker(worker_id, SpecPatch(labels={"z": "1"}), None, stale),
                lambda: control.drain_worker(worker_id, None, "", stale),
                lambda: control.undrain_worker(worker_id, stale),
                lambda: control.delete_worker(worker_id, None, False, stale),
            ):
                answer = self.attempt(call)
                assert answer in (Reason.GENERATION_MISMATCH, Reason.WORKER_NOT_FOUND)
            after = self.find(worker_id)
            assert after is None or after.generation == worker.generation

    @rule(index=PICK)
    def cancel_a_job(self, index: int) -> None:
        jobs = self.do(self.world.control.list_jobs())
        if jobs:
            job = jobs[index % len(jobs)]
            answer = self.attempt(lambda: self.world.control.cancel_job(job.id, "enough"))
            assert answer is Reason.JOB_FINISHED or not job.state.is_final

    @rule(port=st.sampled_from(PORTS), happening=st.sampled_from(["dies", "restarts", "hangs", "recovers"]))
    def something_happens_to_a_process(self, port: int, happening: str) -> None:
        process = self.world.dialer.processes[f"grpc://host:{port}"]
        if happening == "dies":
            process.is_up = False
        elif happening == "restarts":
            process.restart()
        else:
            process.is_stuck = happening == "hangs"

    @rule()
    def open_a_leg(self) -> None:
        planner = Planner(SETTINGS, LeastInFlight())
        fleet = self.world.control.fleet.workers()
        plan = planner.plan(Query("tiny", 4), fleet, self.world.ledger.in_flight, random=0.5)
        if isinstance(plan, Plan):
            for candidate in filter(None, (plan.prefill, plan.decode)):
                assert self.workers_by_id()[candidate.worker.id].status is WorkerStatus.READY, "I6"
                self.minted += 1
                self.legs[f"leg {self.minted}"] = self.world.open_leg(candidate.worker, f"leg {self.minted}")

    @precondition(lambda self: self.legs)
    @rule(index=PICK)
    def close_a_leg(self, index: int) -> None:
        leg = list(self.legs)[index % len(self.legs)]
        del self.legs[leg]
        self.world.ledger.close(leg)

    @rule(seconds=st.sampled_from([0.0, 0.002, 0.01, 0.5, 5.0, 130.0]))
    def wait(self, seconds: float) -> None:
        self.do(asyncio.sleep(seconds))

    def workers_by_id(self) -> dict[WorkerId, Worker]:
        return {worker.id: worker for worker in self.workers()}

    def find(self, worker_id: WorkerId) -> Worker | None:
        return self.workers_by_id().get(worker_id)

    @invariant()
    def urls_and_ids_are_inverse(self) -> None:
        live = [worker for worker in self.workers() if worker.status is not WorkerStatus.FAILED]
        assert len({worker.url for worker in live}) == len(live), "I1"
        assert self.world.control.statistics().registry.reserved_urls == len(live), "I1"

    @invariant()
    def events_come_in_order_and_revisions_rise_per_id(self) -> None:
        events = [event for event in self.world.recorder.events[self.seen_events :] if hasattr(event, "revision")]
        self.seen_events = len(self.world.recorder.events)
        if events:
            first = events[0].revision
            assert [event.revision for event in events] == list(range(first, first + len(events))), "I4"
        present = self.workers_by_id()
        self.gone |= {worker_id for worker_id in self.revisions if worker_id not in present}
        for worker in present.values():
            assert worker.id not in self.gone, "what is gone stays gone"
            assert self.revisions.get(worker.id, 0) <= worker.revision, "I3"
            self.revisions[worker.id] = worker.revision

    @invariant()
    def counts_are_open_legs(self) -> None:
        for worker in self.workers():
            legs = sum(key.worker_id == worker.id for key in self.legs.values())
            assert self.world.control.open_legs(worker.id) == legs, "I5"

    @invariant()
    def what_is_derived_says_what_the_workers_say(self) -> None:
        serving = {worker.id for worker in self.workers() if worker.models}
        assert {worker_id for model in self.world.control.models() for worker_id in model.worker_ids} <= serving, "I2"
        for worker in self.workers():
            drained = worker.leaving is not None
            assert (worker.status is WorkerStatus.DRAINING) <= drained
            assert not (drained and worker.status in (WorkerStatus.READY, WorkerStatus.NOT_READY))
            if worker.status is WorkerStatus.READY:
                assert self.world.control.fleet.client(worker.rank_key(0)) is not None

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        for leg in list(self.legs):
            self.world.ledger.close(leg)
        self.legs.clear()
        for process in self.world.dialer.processes.values():
            process.is_stuck = False
            if not process.is_up:
                process.restart()
        self.do(asyncio.sleep(100.0))
        now = self.world.control.statistics()
        assert now.registry.open_jobs == 0, "every job ends once nothing stands in its way"
        assert all(worker.status is not WorkerStatus.PENDING for worker in self.workers())
        for worker in self.workers():
            claim = pairable(worker, self.workers()) if worker.status is not WorkerStatus.FAILED else None
            if claim is not None:
                shown = self.world.condition(worker, "PAIRABLE")
                assert (shown.is_true, shown.reason) == (claim.is_true, claim.reason), "I2"
        assert sum(p.open_clients for p in self.world.dialer.processes.values()) == now.open_clients
        assert now.open_clients <= len(self.workers())
        self.do(self.world.control.close())
        self.do(asyncio.sleep(0))
        assert self.loop.pending_tasks() == ()
        assert self.loop.faults() == ()


TestControlMachine = ControlMachine.TestCase
TestControlMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
