"""The attempt loop of one choice: try, and on a failure that another worker may not share, try again elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from tandem_router.core.relay_events import AttemptLost, AttemptPlanned
from tandem_router.core.retry import AttemptLoop, GiveUp
from tandem_router.core.rooms import RoomsExhausted
from tandem_router.errors import Reason, TandemError
from tandem_router.model.failure import Failure
from tandem_router.model.ids import PairId
from tandem_router.model.request import LegRequest
from tandem_router.model.stream import Attempt, EngineItem
from tandem_router.policies.contract import Plan, Query, Refusal
from tandem_router.runtime.attempt import PairAttempt
from tandem_router.runtime.attempt_values import Won
from tandem_router.runtime.delivery import StreamBuffer
from tandem_router.runtime.relay_environment import RelayEnvironment

__all__ = ["Tries"]


class Tries:
    """One budget of attempts. `run` once; `cancel` at any time."""

    def __init__(
        self,
        env: RelayEnvironment,
        request_id: str,
        query: Query,
        common: LegRequest,
        deadline_s: float | None,
        buffer: StreamBuffer,
    ) -> None:
        self._env = env
        self._buffer = buffer
        self._request_id = request_id
        self._query = query
        self._common = common
        self._deadline_s = deadline_s
        self._loop = AttemptLoop(env.settings.retry)
        self._current: PairAttempt | None = None
        self.attempts: list[Attempt] = []
        """Every try that has ended, in order."""
        self.winner: PairAttempt | None = None

    def cancel(self, failure: Failure) -> None:
        """End the running attempt."""
        if self._current is not None:
            self._current.cancel(failure)

    @property
    def is_committed(self) -> bool:
        """Whether the running attempt's decode has sent something."""
        return self._current is not None and self._current.is_committed

    @property
    def silent_since_s(self) -> float | None:
        """When the choice that has been silent longest last sent something; None while no begun choice is running."""
        return None if self._current is None else min(self._current.last_items_s.values(), default=None)

    @property
    def pending_tokens(self) -> int:
        """Tokens that the client has not been sent."""
        return 0 if self._current is None else self._current.pending_tokens

    def finish_early(self) -> None:
        """The client has all that it gets of this attempt: end it well. Idempotent."""
        if self._current is not None:
            self._current.finish_early()

    async def run(self, plan: Plan, deliver: Callable[[EngineItem], Awaitable[None]]) -> None:
        """Return when an attempt is won; raise TandemError when no further one makes sense."""
        while True:
            attempt = self._current = self._attempt(plan, deliver)
            outcome = await attempt.run()
            if isinstance(outcome, Won):
                self.winner = attempt
                self.attempts.append(Attempt(attempt.number, attempt.served_by()))
                return
            failure = outcome.failure
            self.attempts.append(Attempt(attempt.number, attempt.served_by(), failure))
            self._env.observer.observe(AttemptLost(self._request_id, attempt.pair_id, attempt.number, failure))
            decision = self._loop.decide(
                failure,
                blamed=outcome.blamed,
                is_committed=outcome.is_committed,
                now_s=self._env.clock.monotonic_s(),
                deadline_s=self._deadline_s,
                random=self._env.rng.random(),
            )
            if isinstance(decision, GiveUp):
                raise self._explained(decision.failure)
            await asyncio.sleep(decision.after_s)
            again = self._replan()
            if isinstance(again, Refusal):
                raise self._explained(failure)
            plan = again

    def _attempt(self, plan: Plan, deliver: Callable[[EngineItem], Awaitable[None]]) -> PairAttempt:
        env = self._env
        number = self._loop.begin()
        room = self._mint_room(plan)
        attempt = PairAttempt(
            env,
            request_id=self._request_id,
            pair_id=PairId(env.ids.uuid()),
            number=number,
            plan=plan,
            query=replace(self._query, avoid=tuple(self._loop.avoid)),
            leg=self._common,
            room=room,
            deadline_s=self._deadline_s,
            deliver=deliver,
            buffer=self._buffer,
        )
        prefill = None if plan.prefill is None else plan.prefill.key
        env.observer.observe(
            AttemptPlanned(self._request_id, attempt.pair_id, number, plan.kind, prefill, plan.decode.key, room)
        )
        return attempt

    def _mint_room(self, plan: Plan) -> int | None:
        if plan.handshake is None or plan.prefill is None or not plan.handshake.needs_room:
            return None
        facts = plan.prefill.worker.facts
        dp_size = 1 if facts is None else facts.dp_size
        try:
            return self._env.rooms.mint(
                prefill_rank=plan.prefill.dp_rank, dp_size=dp_size, now_s=self._env.clock.monotonic_s()
            )
        except RoomsExhausted as error:
            raise TandemError(
                Reason.TOO_MANY_REQUESTS, f"no bootstrap room is free: {error}", retry_after_s=1.0
            ) from error

    def _replan(self) -> Plan | Refusal:
        env = self._env
        query = replace(self._query, avoid=tuple(self._loop.avoid))
        return env.planner.plan(query, env.fleet.workers(), env.ledger.in_flight, random=env.rng.random())

    def _explained(self, failure: Failure) -> TandemError:
        """The failure with what a person at three in the morning asks next: how often, and where."""
        metadata = {**failure.metadata, "request_id": self._request_id, "attempts": str(self._loop.attempts)}
        return TandemError(failure.reason, failure.sentence, field=failure.field, metadata=metadata)
