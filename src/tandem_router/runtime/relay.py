"""The relay: from one client call to its answer.

`start` refuses at once what cannot be taken; everything slow happens in the call's own task. A client that leaves, a
deadline, Abort and shutdown all come in through `RelayCall.cancel`, which answers at once and leaves the legs to
their attempts.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tandem_router.core.admission import Admission, Entry, Standing, Ticket
from tandem_router.core.ledger import LedgerStatistics
from tandem_router.core.relay_events import (
    RequestAccepted,
    RequestFailed,
    RequestKind,
    RequestRefused,
)
from tandem_router.errors import Reason, TandemError
from tandem_router.model.embedding import EmbedRequest
from tandem_router.model.explanation import Explanation
from tandem_router.model.failure import Failure
from tandem_router.model.ids import WorkerId
from tandem_router.model.pairing import PairState, PairView
from tandem_router.model.request import GenerateRequest, RequestContext
from tandem_router.ports import TokenSink
from tandem_router.runtime.embedding import Embedding
from tandem_router.runtime.explaining import explain_request
from tandem_router.runtime.generation import Generation
from tandem_router.runtime.relay_call import RETRY_AFTER_S, EmbedCall, RelayCall, Work
from tandem_router.runtime.relay_environment import RelayEnvironment
from tandem_router.runtime.turn import Turn

__all__ = ["AbortedCall", "Relay", "RelayStatistics"]

_Request = GenerateRequest | EmbedRequest


@dataclass(frozen=True, slots=True)
class RelayStatistics:
    """A frozen reading: what is live now and how calls have ended."""

    live_requests: int
    """Those in the queue included."""
    queued_requests: int
    live_attempts: int
    live_rooms: int
    tasks: int
    finished_total: int
    failed_total: int
    ledger: LedgerStatistics


@dataclass(frozen=True, slots=True)
class AbortedCall:
    """What an Abort ended."""

    completion_tokens: int
    """Generated until then, over all choices."""


class Relay:
    """All live calls of one router."""

    def __init__(self, env: RelayEnvironment) -> None:
        self.env = env
        self._calls: dict[tuple[str, str], RelayCall] = {}
        self._admission = Admission(max_running=env.settings.max_in_flight, max_queued=env.settings.max_queued)
        self._waiting: dict[Ticket, RelayCall] = {}
        self._is_draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._finished = 0
        self._failed = 0

    def start(self, request: GenerateRequest, context: RequestContext, sink: TokenSink) -> RelayCall:
        """Take a call and begin it, or put it in the queue.

        Raises TandemError at once: DRAINING, REQUEST_ID_IN_USE, TOO_MANY_REQUESTS when the queue is full too.
        """
        turn = self._admit(request, context)
        kind = RequestKind.TEXT if request.messages is None else RequestKind.CHAT
        return self._begin(Generation(self.env, request, context, sink), turn, request, context, kind)

    def embed(self, request: EmbedRequest, context: RequestContext) -> EmbedCall:
        """As `start`: an Embed call is one request, however many inputs it has."""
        turn = self._admit(request, context)
        embedding = Embedding(self.env, request, context)
        return EmbedCall(self._begin(embedding, turn, request, context, RequestKind.EMBEDDINGS), embedding)

    def _begin(
        self, work: Work, turn: Turn, request: _Request, context: RequestContext, kind: RequestKind
    ) -> RelayCall:
        call = RelayCall(self, work, context.principal, turn)
        self._calls[call.key] = call
        if not turn.has_come:
            self._waiting[turn.ticket] = call
        self._idle.clear()
        self.env.observer.observe(
            RequestAccepted(request.request_id, request.model, context.principal, context.traceparent, kind)
        )
        return call

    def _admit(self, request: _Request, context: RequestContext) -> Turn:
        try:
            return self._take(request, context)
        except TandemError as error:
            self.env.observer.observe(RequestRefused(request.request_id, request.model, Failure.of(error)))
            raise

    def _take(self, request: _Request, context: RequestContext) -> Turn:
        if self._is_draining:
            raise TandemError(Reason.DRAINING, "the router is shutting down", retry_after_s=RETRY_AFTER_S)
        if (context.principal, request.request_id) in self._calls:
            raise TandemError(
                Reason.REQUEST_ID_IN_USE,
                f"a live request has the id {request.request_id}",
                field="request_id",
                metadata={"request_id": request.request_id},
            )
        entry, ticket = self._admission.arrive(request.priority)
        if entry is Entry.FULL:
            settings = self.env.settings
            raise TandemError(
                Reason.TOO_MANY_REQUESTS,
                f"{settings.max_in_flight} requests are running and {settings.max_queued} wait, which is the limit",
                metadata={"max_in_flight": str(settings.max_in_flight), "max_queued": str(settings.max_queued)},
                retry_after_s=RETRY_AFTER_S,
            )
        return Turn(ticket, has_come=entry is Entry.RUNS)

    def standing(self, ticket: Ticket) -> Standing | None:
        """Where a call waits in the queue, or None when it does not."""
        return self._admission.standing(ticket)

    def abort(self, principal: str, request_id: str) -> AbortedCall | None:
        """Cancel a principal's live call; None when there is none of that id."""
        call = self._calls.get((principal, request_id))
        if call is None:
            return None
        aborted = AbortedCall(call.completion_tokens)
        call.cancel(Failure(Reason.REQUEST_CANCELLED, "the request was aborted by an Abort call"))
        return aborted

    def end_legs(self, worker_id: WorkerId, failure: Failure) -> int:
        """End every attempt that still needs a worker, whose drain is over; says how many.

        A client that has no token yet is served elsewhere; one that has gets `failure`.
        """
        attempts = [attempt for attempt in self.env.attempts.values() if _needs(attempt.view(), worker_id)]
        for attempt in attempts:
            attempt.cancel(failure)
        embeds = [attempt for attempt in self.env.embeds.values() if attempt.worker_id == worker_id]
        for embed in embeds:
            embed.cancel(failure)
        return len(attempts) + len(embeds)

    def begin_drain(self) -> None:
        """Refuse new calls from now on; running ones go on."""
        self._is_draining = True

    async def drain(self, timeout_s: float | None) -> int:
        """Wait until no call runs; after `timeout_s` (None = for ever) end those that do, and say how many.

        Legs that linger then have what is left of the time, at most the transfer grace: closing a connection under a
        transfer is the abort that they linger to avoid. With a `timeout_s` of 0 nothing is waited for.
        """
        began_s = self.env.clock.monotonic_s()
        self.begin_drain()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            pass
        left = list(self._calls.values())
        for call in left:
            call.cancel(Failure(Reason.DRAINING, "the router shut down before the request ended"))
        grace_s = self.env.settings.transfer_grace_s
        if timeout_s is not None:
            grace_s = min(grace_s, timeout_s - (self.env.clock.monotonic_s() - began_s))
        if grace_s > 0:
            await self.env.scope.settle(grace_s)
        return len(left)

    async def close(self, aborts_within_s: float | None = None) -> None:
        """End everything, lingering legs included; engines get their Abort if they answer in time.

        aborts_within_s: at most this, where it is less than abort_timeout_s.
        """
        await self.drain(0)
        for attempt in list(self.env.attempts.values()):
            attempt.end_lingering()
        timeout_s = self.env.settings.abort_timeout_s
        await self.env.scope.settle(timeout_s if aborts_within_s is None else min(timeout_s, aborts_within_s))
        await self.env.scope.close()

    def ended(self, call: RelayCall, failure: Failure | None) -> None:
        """A call has its answer. Called by the call itself."""
        del self._calls[call.key]
        self._waiting.pop(call.turn.ticket, None)
        following = self._admission.leave(call.turn.ticket)
        if following is not None:
            self._waiting.pop(following).turn.come()
        if not self._calls:
            self._idle.set()
        if failure is None:
            self._finished += 1
        else:
            self._failed += 1
            self.env.observer.observe(RequestFailed(call.key[1], failure))

    async def explain(self, request: GenerateRequest, assumed_prompt_tokens: int | None) -> Explanation:
        """What would happen to a request now; raises TandemError(MODEL_NOT_FOUND)."""
        return await explain_request(self.env, request, assumed_prompt_tokens)

    def pairs(self) -> tuple[PairView, ...]:
        """Attempts with an open leg, oldest first."""
        return tuple(attempt.view() for attempt in self.env.attempts.values())

    def statistics(self) -> RelayStatistics:
        """What is live now and how calls have ended."""
        return RelayStatistics(
            live_requests=len(self._calls),
            queued_requests=self._admission.waiting,
            live_attempts=len(self.env.attempts) + len(self.env.embeds),
            live_rooms=self.env.rooms.live,
            tasks=len(self.env.scope),
            finished_total=self._finished,
            failed_total=self._failed,
            ledger=self.env.ledger.statistics(),
        )

    def __repr__(self) -> str:
        return f"<Relay {len(self._calls)} live, {self._finished} finished, {self._failed} failed>"


def _needs(pair: PairView, worker_id: WorkerId) -> bool:
    if pair.state not in (PairState.RESERVED, PairState.PREFILLING, PairState.DECODING):
        return False
    if pair.decode.worker_id == worker_id:
        return True
    # A prefill that still answers while decode streams is not needed any more.
    return pair.prefill is not None and pair.prefill.worker_id == worker_id and pair.state is not PairState.DECODING
