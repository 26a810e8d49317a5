"""One attempt of one choice: drives a PairMachine and owns everything the attempt holds.

Calls, ledger rows, the bootstrap room and the grace timers belong to the attempt and are let go exactly once. What
must be done comes from `core.pair`; this file only does it. Legs that linger go on in the relay's scope after the
attempt has answered; the attempt leaves the relay's table when neither leg is open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from tandem_router.core.pair import Directive, Do, PairInput, PairMachine
from tandem_router.core.relay_events import FirstToken, LegClosed, LegSent, PrefillLost
from tandem_router.errors import Reason, TandemError
from tandem_router.model.failure import EngineFailure, Failure
from tandem_router.model.ids import PairId, WorkerId
from tandem_router.model.pairing import LegRole, PairView
from tandem_router.model.request import LegRequest
from tandem_router.model.stream import EngineChunk, EngineEnd, EngineItem, ServedBy
from tandem_router.policies.contract import Candidate, Plan, Query
from tandem_router.ports import EngineCall
from tandem_router.runtime.attempt_values import AttemptLeg, Boundaries, Lost, Won
from tandem_router.runtime.block_holder import BlockHolder, fetched_from
from tandem_router.runtime.delivery import Delivery, StreamBuffer
from tandem_router.runtime.handles import release_handle
from tandem_router.runtime.leg_calls import ask_to_stop, call_timeout_s, stop, traced
from tandem_router.runtime.leg_failures import judged
from tandem_router.runtime.leg_requests import defaulted, leg_request, link_of, who_serves
from tandem_router.runtime.prefill_watch import PrefillWatch
from tandem_router.runtime.prompt_logprobs import PromptLogprobs
from tandem_router.runtime.relay_environment import RelayEnvironment

__all__ = ["PairAttempt"]

_BROKEN = {LegRole.PREFILL: PairInput.PREFILL_BROKEN, LegRole.DECODE: PairInput.DECODE_BROKEN}
_ITEM = {LegRole.PREFILL: PairInput.PREFILL_ITEM, LegRole.DECODE: PairInput.DECODE_ITEM}
_FINISHED = {LegRole.PREFILL: PairInput.PREFILL_FINISHED, LegRole.DECODE: PairInput.DECODE_FINISHED}
_GRACE_OVER = {LegRole.PREFILL: PairInput.PREFILL_GRACE_OVER, LegRole.DECODE: PairInput.DECODE_GRACE_OVER}


class PairAttempt:
    """One try: `run` until it is won or lost; `cancel` at any time."""

    def __init__(
        self,
        env: RelayEnvironment,
        *,
        request_id: str,
        pair_id: PairId,
        number: int,
        plan: Plan,
        query: Query,
        leg: LegRequest,
        room: int | None,
        deadline_s: float | None,
        deliver: Callable[[EngineItem], Awaitable[None]],
        buffer: StreamBuffer,
    ) -> None:
        """Args:
        leg: the common part of both legs; its leg_id is replaced per leg.
        room: minted by the caller for a handshake that needs one; retired by the attempt.
        deliver: given every item of the decode leg, in order; may wait, may raise TandemError.
        buffer: of the whole request; items that wait to be delivered are counted there.
        """
        self._env = env
        self._request_id = request_id
        self.pair_id = pair_id
        self.number = number
        self.plan = plan
        self.query = query
        self._common = defaulted(leg, plan.decode, query.model, env.default_sampling)
        self._room = room
        names_transfer = plan.handshake is not None and plan.handshake.needs_transfer_id
        self._transfer_id = f"xfer-{env.ids.uuid()}" if names_transfer else None
        self._deadline_s = deadline_s
        self._prompt = PromptLogprobs(deliver) if leg.prompt_logprobs and plan.prefill is not None else None
        self._delivery = Delivery(deliver if self._prompt is None else self._prompt.deliver, buffer)
        self._machine = PairMachine(plan.kind, plan.abort_in_transfer)
        self._prefill = None if plan.prefill is None else self._reserve(LegRole.PREFILL, plan.prefill)
        self._decode = self._reserve(LegRole.DECODE, plan.decode)
        self._inbox: list[tuple[PairInput, Failure | None]] = []
        self._is_pumping = False
        self._blamed: list[WorkerId] = []
        self._outcome: asyncio.Future[Won | Lost] = asyncio.get_running_loop().create_future()
        self.prefill_end: EngineEnd | None = None
        self._holder: BlockHolder | None = None
        self.last_items_s: dict[int, float] = {}
        """When decode last sent something of a choice, by the engine's number; those that have ended are not in it."""
        self.boundaries = Boundaries(planned_s=env.clock.monotonic_s())
        self._started_wall_s = env.clock.wall_s()
        env.attempts[pair_id] = self
        self._env.pairs.show(self.view(), now_s=self._started_wall_s)

    async def run(self) -> Won | Lost:
        """Start both legs as the handshake says and wait for the end. Cancelling the caller ends the pair."""
        self._feed(PairInput.START)
        try:
            await self._delivery.run()
        except asyncio.CancelledError:
            self.cancel(Failure(Reason.REQUEST_CANCELLED, "the request was cancelled"))
            raise
        except TandemError as error:
            self._feed(PairInput.CANCEL, Failure.of(error))
            if isinstance(self._outcome.result(), Won):
                raise  # the engine had ended well, but its last items could not be delivered
        return self._outcome.result()

    def cancel(self, failure: Failure) -> None:
        """End the pair now; the machine decides which leg is stopped and which must linger. Idempotent."""
        self._feed(PairInput.CANCEL, failure)

    def finish_early(self) -> None:
        """End well although the engine may go on: the client has all that it gets. Idempotent."""
        self._feed(PairInput.DECODE_ENOUGH)

    def end_lingering(self) -> None:
        """Stop waiting for legs that linger: the router is about to close their connections."""
        self._feed(PairInput.PREFILL_GRACE_OVER)
        self._feed(PairInput.DECODE_GRACE_OVER)

    @property
    def is_committed(self) -> bool:
        """Whether decode's first item has come."""
        return self._machine.is_committed

    @property
    def pending_tokens(self) -> int:
        """Tokens from decode that the client has not been sent."""
        return self._delivery.pending_tokens

    def served_by(self) -> ServedBy:
        """Who works on it."""
        prefill = None if self._prefill is None else self._prefill.candidate
        return who_serves(self.pair_id, self.plan.kind, prefill, self._decode.candidate, self._room)

    def view(self) -> PairView:
        """The pair as operators see it."""
        machine = self._machine
        return PairView(
            id=self.pair_id,
            request_id=self._request_id,
            attempt=self.number,
            model=self.query.model,
            kind=self.plan.kind,
            connector=self.served_by().connector,
            state=machine.state,
            prefill=None if self._prefill is None else self._prefill.candidate.key,
            prefill_state=None if self._prefill is None else machine.prefill,
            decode=self._decode.candidate.key,
            decode_state=machine.decode,
            room=self._room,
            started_at_s=self._started_wall_s,
            failure=machine.failure,
            abort_in_transfer=self.plan.abort_in_transfer,
            prefill_leg_id="" if self._prefill is None else self._prefill.id,
            decode_leg_id=self._decode.id,
        )

    # The machine's inputs go through one inbox, because doing a directive may at once cause the next input.

    def _feed(self, happened: PairInput, failure: Failure | None = None) -> None:
        self._inbox.append((happened, failure))
        if self._is_pumping:
            return
        self._is_pumping = True
        try:
            while self._inbox:
                for directive in self._machine.step(*self._inbox.pop(0)):
                    self._do(directive)
        finally:
            self._is_pumping = False
        if self._machine.is_ended and self._machine.is_closed:
            self._let_go()
        elif self._prefill is not None:
            self._env.pairs.show(self.view(), now_s=self._env.clock.wall_s())

    def _do(self, directive: Directive) -> None:
        match directive.do:
            case Do.SEND:
                self._send(self._leg(directive.role))
            case Do.CANCEL:
                stop(self._env, self._leg(directive.role))
            case Do.ASK:
                ask_to_stop(self._env, self._leg(directive.role))
            case Do.LINGER:
                self._linger(self._leg(directive.role))
            case Do.CLOSE:
                self._close(self._leg(directive.role))
            case Do.COMMIT:
                self._decode.end_timers()  # its pages have come: no loss of prefill concerns it any more
                self._env.ledger.end_fetch(self._decode.id)
                self.boundaries.first_token_s = self._env.clock.monotonic_s()
                self._env.observer.observe(FirstToken(self._request_id, self.pair_id))
            case Do.NOTE_PREFILL_LOST:
                self._env.observer.observe(PrefillLost(self.pair_id, _known(directive.failure)))
            case Do.REPLACE_DECODE:
                self._replace_decode(_known(directive.failure))
            case Do.RELEASE_HANDLE:
                if self._holds_blocks():
                    self._env.scope.spawn(release_handle(self._env, self), f"release {self.pair_id}")
            case Do.FINISH:
                self._answer(Won())
            case Do.FAIL:
                lost = Lost(_known(directive.failure), tuple(self._blamed), self._machine.is_committed)
                self._answer(lost)

    def _holds_blocks(self) -> bool:
        """Whether prefill keeps blocks for a decode: not where it said so of none, as with a shared store."""
        names_transfer = self._transfer_id is not None
        return names_transfer or (self.prefill_end is not None and self.prefill_end.transfer_params is not None)

    def _reserve(self, role: LegRole, candidate: Candidate) -> AttemptLeg:
        return AttemptLeg(role, candidate, self._env.open_leg(candidate.key, role, len(self._common.token_ids)))

    def leg_request(self, role: LegRole, leg_id: str) -> LegRequest:
        """What goes to the engine for one leg; for a handoff's decode, prefill must have ended."""
        leg = self._leg(role)
        returned = None if self.prefill_end is None else self.prefill_end.transfer_params
        link = link_of(self.plan, self._room, self._transfer_id, returned)
        return leg_request(replace(self._common, leg_id=leg_id), role, self.plan.handshake, leg.candidate, link)

    def _send(self, leg: AttemptLeg) -> None:
        client = self._env.fleet.client(leg.candidate.key)
        if client is None:
            failure = EngineFailure(
                Reason.WORKER_UNREACHABLE, f"worker {leg.candidate.worker.id} has gone", was_sent=False
            )
            self._broken(leg, failure)
            return
        holder = self._holder if leg.role is LegRole.DECODE else None
        if holder is not None and (loss := holder.loss(self._env)) is not None:
            self._prefill_lost(loss, PairInput.DECODE_BROKEN)
            return
        if self.boundaries.sent_s is None:
            self.boundaries.sent_s = self._env.clock.monotonic_s()
        timeout_s = call_timeout_s(self._env, self._deadline_s, self._machine.abort_in_transfer)
        try:
            request = self.leg_request(leg.role, leg.id)
            leg.call = client.generate(traced(self._env, self.pair_id, leg, request), timeout_s=timeout_s)
        except TandemError as error:  # the dialect refuses to build what would kill the engine
            if error.reason is Reason.KV_TRANSFER_FAILED and self._prefill is not None:
                self._blamed.append(self._prefill.candidate.worker.id)
            self._feed(_BROKEN[leg.role], Failure.of(error))
            return
        self._env.observer.observe(LegSent(self.pair_id, leg.id, leg.role, leg.candidate.key))
        if holder is not None:
            self._env.ledger.begin_fetch(leg.id, holder.key.worker_id)
            if holder.is_outwaited:
                tell = partial(self._prefill_lost, happened=PairInput.CANCEL)
                leg.prefill_watch = PrefillWatch(self._env, holder, tell)
        leg.task = self._env.scope.spawn(self._read(leg, leg.call), f"{leg.role.lower()} {leg.id}")
        leg.task.add_done_callback(self._reader_ended)

    def _prefill_lost(self, loss: Failure, happened: PairInput) -> None:
        if not self._machine.is_ended and self._prefill is not None:
            self._blamed.append(self._prefill.candidate.worker.id)
        self._feed(happened, loss)

    def _reader_ended(self, task: asyncio.Task[None]) -> None:
        """A reader that died of a fault of ours must not leave its pair hanging."""
        if not task.cancelled() and (error := task.exception()) is not None:
            task.get_loop().call_exception_handler({"message": f"{task.get_name()} failed", "exception": error})
            self.cancel(Failure(Reason.INTERNAL_ERROR, f"a fault of the router in request {self._request_id}"))

    async def _read(self, leg: AttemptLeg, call: EngineCall) -> None:
        """Drain one leg. Kept tiny: this loop runs once per token."""
        try:
            while (item := await call.receive()) is not None:
                if leg.role is LegRole.PREFILL:
                    self._prefill_item(item)
                elif self._machine.is_ended:
                    if isinstance(item, EngineChunk):
                        self._feed(PairInput.DECODE_ITEM)
                else:
                    if isinstance(item, EngineChunk):
                        self.last_items_s[item.choice] = self._env.clock.monotonic_s()
                    else:
                        self.last_items_s.pop(item.choice, None)
                    if not self._machine.is_committed:
                        self._feed(PairInput.DECODE_ITEM)
                    if not self._delivery.put(item):
                        self._feed(PairInput.CANCEL, Failure(Reason.SLOW_CLIENT, "the stream's buffer is full"))
                if leg.is_closed:
                    return
        except EngineFailure as failure:
            self._broken(leg, failure)
            return
        except TandemError as error:
            self._feed(PairInput.CANCEL, Failure.of(error))
            return
        self._finished(leg)

    def _prefill_item(self, item: EngineItem) -> None:
        if self._prompt is not None and (item.prompt_logprobs or isinstance(item, EngineEnd)):
            self._prompt.known(item.prompt_logprobs)
        if isinstance(item, EngineEnd):
            self.prefill_end = item
        else:
            self._feed(PairInput.PREFILL_ITEM)

    def _finished(self, leg: AttemptLeg) -> None:
        self._env.fleet.leg_succeeded(leg.candidate.key)
        if leg.role is LegRole.PREFILL:
            self.boundaries.prefill_ended_s = self._env.clock.monotonic_s()
            handshake = self.plan.handshake
            returned = None if self.prefill_end is None else self.prefill_end.transfer_params
            if handshake is not None and handshake.returns_params and returned is None:
                # Going on would make decode compute the prompt again, silently (smg 3.5): say that it failed instead.
                self._blamed.append(leg.candidate.worker.id)
                self._feed(
                    PairInput.PREFILL_BROKEN,
                    Failure(Reason.KV_TRANSFER_FAILED, "prefill returned no kv_transfer_params", leg.where),
                )
                return
            now_s = self._env.clock.wall_s()
            self._holder = fetched_from(self.plan, keeps_blocks=self._holds_blocks(), answered_at_s=now_s)
        self._feed(_FINISHED[leg.role])

    def _broken(self, leg: AttemptLeg, failure: EngineFailure) -> None:
        if failure.connection_lost or not self._machine.is_ended:  # after the end, engines answer to our own abort
            self._env.fleet.leg_failed(leg.candidate.key, failure)
        holder = None if self._machine.is_committed else self._holder
        record, blamed = judged(self._env, leg, failure, self._prefill, holder)
        if not self._machine.is_ended:
            self._blamed += blamed
        if leg.role is LegRole.PREFILL and self._prompt is not None:
            self._prompt.lost(record)
        if leg.role is LegRole.DECODE and not failure.was_sent:
            self._feed(PairInput.DECODE_UNSENT, record)
        else:
            self._feed(_BROKEN[leg.role], record)

    def _linger(self, leg: AttemptLeg) -> None:
        loop = asyncio.get_running_loop()
        leg.grace = loop.call_later(self._env.settings.transfer_grace_s, self._feed, _GRACE_OVER[leg.role])

    def _close(self, leg: AttemptLeg) -> None:
        leg.is_closed = True
        leg.end_timers()
        if leg.role is LegRole.PREFILL and self._prompt is not None:
            self._prompt.lost(Failure(Reason.WORKER_LOST, "prefill ended without its answer", leg.where))
        state = self._machine.prefill if leg.role is LegRole.PREFILL else self._machine.decode
        self._env.ledger.close(leg.id)
        self._env.observer.observe(LegClosed(self.pair_id, leg.id, leg.role, state, self._machine.failure))
        if leg.task is not None and leg.task is not asyncio.current_task():
            leg.task.cancel()

    def _replace_decode(self, failure: Failure) -> None:
        avoid = (*self.query.avoid, *self._blamed)
        candidate = self._env.replace_decode(self.plan, replace(self.query, avoid=avoid))
        if candidate is None:
            self._feed(PairInput.CANCEL, failure)
            return
        self._decode = self._reserve(LegRole.DECODE, candidate)
        self._feed(PairInput.DECODE_REPLACED)

    def _answer(self, outcome: Won | Lost) -> None:
        if self._outcome.done():
            return
        self._outcome.set_result(outcome)
        if isinstance(outcome, Won):
            self._delivery.finish()
        else:
            self._delivery.stop()

    def _let_go(self) -> None:
        if self._env.attempts.pop(self.pair_id, None) is None:
            return
        self._env.pairs.end(self.view(), now_s=self._env.clock.wall_s())
        if self._room is not None:
            self._env.rooms.retire(self._room, now_s=self._env.clock.monotonic_s())

    def _leg(self, role: LegRole | None) -> AttemptLeg:
        leg = self._prefill if role is LegRole.PREFILL else self._decode
        assert leg is not None, "the machine speaks of a leg that was never reserved"
        return leg


def _known(failure: Failure | None) -> Failure:
    assert failure is not None
    return failure
