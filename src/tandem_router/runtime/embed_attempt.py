"""One try of one input of an Embed call: a slot, a unary rpc on it, and how it ended.

There is no pair, no stream and no transfer: the leg is that of an aggregated request, a DECODE leg without a sibling,
so load, drains and telemetry count it like any other.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from tandem_router.core.relay_events import AttemptPlanned, LegClosed, LegSent
from tandem_router.errors import Reason, TandemError
from tandem_router.model.embedding import EmbedLeg, Vector
from tandem_router.model.failure import EngineFailure, Failure
from tandem_router.model.ids import PairId, WorkerId
from tandem_router.model.pairing import AbortInTransfer, HandshakeKind, LegRole, LegState
from tandem_router.model.stream import Attempt, ServedBy
from tandem_router.policies.contract import Candidate
from tandem_router.runtime.attempt_values import AttemptLeg
from tandem_router.runtime.leg_calls import ask_to_stop, call_timeout_s
from tandem_router.runtime.leg_requests import sent_rank, who_serves
from tandem_router.runtime.relay_environment import RelayEnvironment

__all__ = ["EmbedAttempt"]


class EmbedAttempt:
    """`run` once, `cancel` at any time; the ledger's row is closed exactly once, whatever happens."""

    def __init__(
        self,
        env: RelayEnvironment,
        request_id: str,
        number: int,
        candidate: Candidate,
        leg: EmbedLeg,
        deadline_s: float | None,
    ) -> None:
        """Args:
        leg: its id, rank and trace are filled in here.
        """
        self._env = env
        self._candidate = candidate
        self._number = number
        self._deadline_s = deadline_s
        self._pair_id = PairId(env.ids.uuid())
        self._leg = AttemptLeg(
            LegRole.DECODE, candidate, env.open_leg(candidate.key, LegRole.DECODE, len(leg.token_ids))
        )
        self._request = replace(leg, leg_id=self._leg.id, dp_rank=sent_rank(candidate))
        self._call: asyncio.Task[Vector] | None = None
        self._stopped: Failure | None = None
        env.embeds[self._leg.id] = self
        env.observer.observe(
            AttemptPlanned(request_id, self._pair_id, number, HandshakeKind.AGGREGATE, None, candidate.key, None)
        )

    @property
    def pair_id(self) -> PairId:
        """Its id in events; there is no pair."""
        return self._pair_id

    @property
    def worker_id(self) -> WorkerId:
        """Where it runs."""
        return self._candidate.worker.id

    def told(self, failure: Failure | None) -> Attempt:
        """The try as the client is told of it."""
        return Attempt(self._number, self.served_by(), failure)

    def served_by(self) -> ServedBy:
        """Who works on it."""
        return who_serves(self._pair_id, HandshakeKind.AGGREGATE, None, self._candidate, None)

    async def run(self) -> Vector | Failure:
        """The vector, or why there is none. Cancelling the caller stops the engine too."""
        try:
            vector = await self._ask()
        except EngineFailure as error:
            self._env.fleet.leg_failed(self._candidate.key, error)
            return self._failed(Failure(error.reason, error.sentence, self._leg.where))
        except TandemError as error:  # the dialect refuses to write what its wire cannot carry
            return self._failed(Failure.of(error))
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if self._stopped is None or (current is not None and current.cancelling()):
                self.cancel(Failure(Reason.REQUEST_CANCELLED, "the rest of the request failed"))
                raise
            return self._stopped
        self._env.fleet.leg_succeeded(self._candidate.key)
        self._close(LegState.DONE, None)
        return vector

    def cancel(self, failure: Failure) -> None:
        """End it now: `run` answers with `failure`. Idempotent, returns at once."""
        if self._leg.is_closed:
            return
        self._stopped = failure
        self._close(LegState.CLOSED, failure)
        if self._call is not None:
            self._call.cancel()
            if not self._env.scope.is_closed:
                ask_to_stop(self._env, self._leg)

    async def _ask(self) -> Vector:
        env, key = self._env, self._candidate.key
        client = env.fleet.client(key)
        if client is None:
            raise EngineFailure(Reason.WORKER_UNREACHABLE, f"worker {key.worker_id} has gone", was_sent=False)
        request = self._request
        if env.traces is not None:
            traceparent = env.traces.begin_leg(self._pair_id, self._leg.id, self._leg.role, key)
            request = request if traceparent is None else replace(request, traceparent=traceparent)
        timeout_s = call_timeout_s(env, self._deadline_s, AbortInTransfer.SAFE)
        env.observer.observe(LegSent(self._pair_id, self._leg.id, self._leg.role, key))
        self._call = env.scope.spawn(client.embed(request, timeout_s=timeout_s), f"embed {self._leg.id}")
        return await self._call

    def _failed(self, failure: Failure) -> Failure:
        self._close(LegState.FAILED, failure)
        return failure

    def _close(self, state: LegState, failure: Failure | None) -> None:
        if self._leg.is_closed:
            return
        self._leg.is_closed = True
        del self._env.embeds[self._leg.id]
        self._env.ledger.close(self._leg.id)
        self._env.observer.observe(LegClosed(self._pair_id, self._leg.id, self._leg.role, state, failure))
