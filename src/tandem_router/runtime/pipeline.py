"""The one way in which workers and jobs change: propose -> commit -> apply -> reply, one command at a time.

Nothing slow happens under the lock but the Store's commit: no probe, no dial (a rival held its registry's lock while it
awaited /health, and one slow worker stopped all registrations).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tandem_router.core.commands import Command, Directive, Expire, Outcome, Proposal
from tandem_router.core.proposals import propose
from tandem_router.core.registry import Registry
from tandem_router.core.watch_workers import WorkerHistory
from tandem_router.errors import Reason, TandemError
from tandem_router.ports import Clock, Observer, Store
from tandem_router.runtime.scope import TaskScope

__all__ = ["Pipeline", "Settle"]

Settle = Callable[[Outcome | None], None]
"""Takes what a command needs to hand over; must return at once and not raise."""


_MIN_EXPIRY_DELAY_S = 0.01
"""Between two looks at a deadline that a wall clock has not quite reached."""


class Pipeline:
    """Carries commands out in the order in which their callers got the lock (first come, first served)."""

    def __init__(
        self,
        registry: Registry,
        store: Store,
        clock: Clock,
        observer: Observer,
        carry_out: Callable[[Directive], None],
        history: WorkerHistory,
    ) -> None:
        """carry_out: takes a directive after its events were applied; must return at once."""
        self.registry = registry
        self.history = history
        self._store = store
        self._clock = clock
        self._observer = observer
        self._carry_out = carry_out
        self._lock = asyncio.Lock()
        self._commits = TaskScope("pipeline")
        self._expiries = TaskScope("expiry")
        self._expiry: asyncio.TimerHandle | None = None
        self._is_closed = False

    async def submit(self, command: Command, settle: Settle | None = None) -> Outcome:
        """Carry a command out; raises TandemError when it is refused and DRAINING once the pipeline is closed.

        A caller that is cancelled while its command is being committed leaves it to be completed: events that the Store
        has kept are always applied.
        settle: called exactly once, whatever happens to the caller: with the outcome in the same step in which the
        events were applied, so that whoever sees the change also sees what settle did; or with None when the command
        was not carried out. What belongs to the command (a connection, credentials) is handed over there.
        """
        try:
            await self._lock.acquire()
        except BaseException:
            _settle(settle, None)
            raise
        try:
            self._check_open()
            task = self._commits.spawn(self._run(command, settle), type(command).__name__)
        except BaseException:
            self._lock.release()
            _settle(settle, None)
            raise
        task.add_done_callback(lambda _: self._lock.release())
        return await asyncio.shield(task)

    async def expire(self) -> None:
        """Drop records whose time is over, if there are any; cheap when there are none."""
        deadline_s = self.registry.next_deadline_s()
        if deadline_s is not None and deadline_s <= self._clock.wall_s() and not self._is_closed:
            await self.submit(Expire())

    async def close(self) -> None:
        """Finish the command that is being committed and refuse the rest; idempotent."""
        self._is_closed = True
        if self._expiry is not None:
            self._expiry.cancel()
        await self._expiries.close()
        async with self._lock:
            pass

    def _check_open(self) -> None:
        if self._is_closed:
            raise TandemError(Reason.DRAINING, "the control loop is closed")

    async def _run(self, command: Command, settle: Settle | None) -> Outcome:
        now_s = self._clock.wall_s()
        try:
            expiry = propose(self.registry, Expire(), now_s)
            await self._commit(expiry)
            for directive in expiry.directives:
                self._carry_out(directive)
            proposal = propose(self.registry, command, now_s)
            await self._commit(proposal)
        except BaseException:
            _settle(settle, None)
            raise
        finally:
            self._arm_expiry()
        worker_id, job_id = proposal.worker_id, proposal.job_id
        outcome = Outcome(
            worker=None if worker_id is None else self.registry.worker(worker_id),
            job=None if job_id is None else self.registry.jobs.get(job_id),
            revision=self.registry.revision,
            is_stale=proposal.is_stale,
        )
        _settle(settle, outcome)
        for directive in proposal.directives:
            self._carry_out(directive)
        return outcome

    async def _commit(self, proposal: Proposal) -> None:
        if not proposal.events:
            return
        await self._store.commit(proposal.events)
        self.history.apply(proposal.events)
        for event in proposal.events:
            self._observer.observe(event)

    def _arm_expiry(self) -> None:
        """Wake at the next expiry, so that records and tombstones do not wait for a caller."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        deadline_s = self.registry.next_deadline_s()
        if deadline_s is not None and not self._is_closed:
            loop = asyncio.get_running_loop()
            delay_s = max(_MIN_EXPIRY_DELAY_S, deadline_s - self._clock.wall_s())
            self._expiry = loop.call_later(delay_s, self._expire_later)

    def _expire_later(self) -> None:
        if not self._is_closed:
            self._expiries.spawn(self._expire_now(), "records")

    async def _expire_now(self) -> None:
        await self.expire()
        self._arm_expiry()  # the wall clock may lag the timer that woke us


def _settle(settle: Settle | None, outcome: Outcome | None) -> None:
    if settle is not None:
        settle(outcome)
