"""A pair is a transaction: two legs that live and die as one.

The state of a pair is derived from its legs; nothing sets it. The commit point is decode's first token. Before it,
either leg's failure ends both; after it, losing prefill is recorded and the stream goes on, losing decode ends the
request (DESIGN 4). An aggregated request is a pair whose prefill leg is CLOSED from the start.

A KV handle (what a handoff's prefill returns) is single use: once the decode request was written it counts as consumed,
whatever came of it. Only a decode request that provably never left leaves the handle whole; it then goes to another
decode worker (REPLACE_DECODE), and if there is none it is given back (RELEASE_HANDLE).

`PairMachine.step` takes what happened and returns what the runtime must do, in order. It does no I/O and reads no
clock, so `tests/core/test_pair_table.py` runs every cell of (kind x legs x committed x ended x input).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from tandem_router.core import leg
from tandem_router.core.leg import LegEffect, LegInput
from tandem_router.model.failure import Failure
from tandem_router.model.pairing import AbortInTransfer, HandshakeKind, LegRole, LegState, PairState

__all__ = ["Directive", "Do", "PairInput", "PairMachine", "shown_state"]


class PairInput(enum.StrEnum):
    """What happened to a pair."""

    START = "START"
    PREFILL_ITEM = "PREFILL_ITEM"
    PREFILL_FINISHED = "PREFILL_FINISHED"
    PREFILL_BROKEN = "PREFILL_BROKEN"
    DECODE_ITEM = "DECODE_ITEM"
    DECODE_FINISHED = "DECODE_FINISHED"
    DECODE_BROKEN = "DECODE_BROKEN"
    DECODE_UNSENT = "DECODE_UNSENT"
    """The decode request failed and the transport proves that it never left."""
    DECODE_REPLACED = "DECODE_REPLACED"
    """Another decode worker has been reserved after REPLACE_DECODE."""
    DECODE_ENOUGH = "DECODE_ENOUGH"
    """The client has all that it gets (a stop text was found here), whatever the engine still makes."""
    CANCEL = "CANCEL"
    """The client left, a deadline passed, or an operator aborted."""
    PREFILL_GRACE_OVER = "PREFILL_GRACE_OVER"
    DECODE_GRACE_OVER = "DECODE_GRACE_OVER"


class Do(enum.StrEnum):
    """What the runtime must do."""

    SEND = "SEND"
    """Write this leg's request. For a handoff's decode it carries prefill's transfer params."""
    CANCEL = "CANCEL"
    """Abort rpc and cancel of this leg's call."""
    ASK = "ASK"
    """Abort rpc of this leg; its call goes on. LINGER follows."""
    LINGER = "LINGER"
    """Keep draining this leg and arm its grace timer."""
    CLOSE = "CLOSE"
    """This leg is no longer open: take it out of the ledger. Exactly once per leg that was reserved."""
    COMMIT = "COMMIT"
    """From now on the client has tokens: no other attempt may follow."""
    NOTE_PREFILL_LOST = "NOTE_PREFILL_LOST"
    """Record it; the stream goes on."""
    REPLACE_DECODE = "REPLACE_DECODE"
    """Reserve another decode worker for the unused handle, then say DECODE_REPLACED; or CANCEL when there is none."""
    RELEASE_HANDLE = "RELEASE_HANDLE"
    """Prefill holds blocks that nobody will fetch."""
    FINISH = "FINISH"
    """Answer the client: the stream ended well. Once, and never with FAIL."""
    FAIL = "FAIL"
    """Answer the client, or try again if not committed. Once, and never with FINISH."""


@dataclass(frozen=True, slots=True)
class Directive:
    """One thing to do; `role` where it concerns a leg, `failure` with FAIL, REPLACE_DECODE and NOTE_PREFILL_LOST."""

    do: Do
    role: LegRole | None = None
    failure: Failure | None = None


_PREFILL = LegRole.PREFILL
_DECODE = LegRole.DECODE


def shown_state(
    prefill: LegState, decode: LegState, *, is_committed: bool, is_ended: bool, failure: Failure | None
) -> PairState:
    """What an operator is shown for a pair; total over the product of leg states."""
    open_legs = (prefill in leg.OPEN_STATES) or (decode in leg.OPEN_STATES)
    if is_ended and open_legs:
        return PairState.ABORTING
    if is_ended:
        return PairState.FAILED if failure is not None else PairState.DONE
    if is_committed:
        return PairState.DECODING
    if prefill is LegState.RESERVED or (prefill is LegState.CLOSED and decode is LegState.RESERVED):
        return PairState.RESERVED
    return PairState.PREFILLING


class PairMachine:
    """The two legs of one attempt. `step` is the only way in."""

    __slots__ = ("_has_handle", "abort_in_transfer", "decode", "failure", "is_committed", "is_ended", "kind", "prefill")

    def __init__(self, kind: HandshakeKind, abort_in_transfer: AbortInTransfer = AbortInTransfer.SAFE) -> None:
        """Args:
        kind: how the legs meet; AGGREGATE has a decode leg only.
        abort_in_transfer: what the handshake declares for a decode leg whose pages may be on their way.
        """
        self.kind = kind
        self.abort_in_transfer = abort_in_transfer
        self.prefill = LegState.CLOSED if kind is HandshakeKind.AGGREGATE else LegState.RESERVED
        self.decode = LegState.RESERVED
        self.is_committed = False
        """Decode's first token has come."""
        self.is_ended = False
        """The client has its FINISH or FAIL; only closing remains."""
        self.failure: Failure | None = None
        self._has_handle = False

    @property
    def state(self) -> PairState:
        """The shown state."""
        return shown_state(
            self.prefill,
            self.decode,
            is_committed=self.is_committed,
            is_ended=self.is_ended,
            failure=self.failure,
        )

    @property
    def is_closed(self) -> bool:
        """No leg is open: nothing of this pair is owed to anybody."""
        return self.prefill not in leg.OPEN_STATES and self.decode not in leg.OPEN_STATES

    def step(self, happened: PairInput, failure: Failure | None = None) -> list[Directive]:
        """What to do because of `happened`, in order.

        failure: required with *_BROKEN, DECODE_UNSENT and CANCEL: what the client would be told.
        Total: an input that has no meaning any more (a late item, a second cancel) returns [].
        """
        match happened:
            case PairInput.START:
                return self._start()
            case PairInput.PREFILL_ITEM:
                return self._move(_PREFILL, LegInput.ITEM)
            case PairInput.PREFILL_FINISHED:
                return self._prefill_finished()
            case PairInput.PREFILL_BROKEN:
                return self._prefill_broken(_required(failure))
            case PairInput.DECODE_ITEM:
                return self._decode_item()
            case PairInput.DECODE_FINISHED:
                return self._decode_finished()
            case PairInput.DECODE_BROKEN:
                return self._decode_broken(_required(failure))
            case PairInput.DECODE_UNSENT:
                return self._decode_unsent(_required(failure))
            case PairInput.DECODE_REPLACED:
                return self._decode_replaced()
            case PairInput.DECODE_ENOUGH:
                return self._decode_enough()
            case PairInput.CANCEL:
                return self._end(_required(failure))
            case PairInput.PREFILL_GRACE_OVER:
                return self._move(_PREFILL, LegInput.GRACE_OVER)
            case PairInput.DECODE_GRACE_OVER:
                return self._move(_DECODE, LegInput.GRACE_OVER)

    def _start(self) -> list[Directive]:
        if self.is_ended:
            return []
        todo: list[Directive] = []
        if self.prefill is LegState.RESERVED:
            todo += self._send(_PREFILL)
        if self.kind is not HandshakeKind.HANDOFF and self.decode is LegState.RESERVED:
            todo += self._send(_DECODE)
        return todo

    def _prefill_finished(self) -> list[Directive]:
        was_working = self.prefill in (LegState.SENT, LegState.RUNNING)
        was_open = self.prefill in leg.OPEN_STATES
        todo = self._move(_PREFILL, LegInput.FINISHED)
        if self.kind is not HandshakeKind.HANDOFF or not was_open:
            return todo
        if self.is_ended or not was_working:
            # It lingered, or nobody wants it any more: its blocks wait for a decode that will not come.
            return [*todo, Directive(Do.RELEASE_HANDLE)]
        self._has_handle = True
        if self.decode is LegState.RESERVED:
            todo += self._send(_DECODE)
        return todo

    def _prefill_broken(self, failure: Failure) -> list[Directive]:
        was_open = self.prefill in leg.OPEN_STATES
        todo = self._move(_PREFILL, LegInput.BROKEN)
        if self.is_ended or not was_open:
            return todo
        if self.is_committed:
            return [*todo, Directive(Do.NOTE_PREFILL_LOST, _PREFILL, failure)]
        return todo + self._end(failure)

    def _decode_item(self) -> list[Directive]:
        todo = self._move(_DECODE, LegInput.ITEM)
        if self.decode is not LegState.RUNNING or self.is_committed or self.is_ended:
            return todo
        self.is_committed = True
        return [*todo, Directive(Do.COMMIT)]

    def _decode_finished(self) -> list[Directive]:
        was_working = self.decode in (LegState.SENT, LegState.RUNNING)
        todo = self._move(_DECODE, LegInput.FINISHED)
        if self.is_ended or not was_working:
            return todo
        if not self.is_committed:
            # A good end without a chunk (a request that is not streamed) commits as well: it carries the tokens.
            self.is_committed = True
            todo.append(Directive(Do.COMMIT))
        self.is_ended = True
        todo.append(Directive(Do.FINISH))
        # Prefill's own end may still be on its way: drain it for a while rather than abort what has succeeded.
        return todo + self._move(_PREFILL, LegInput.ABORT_DEFERRED)

    def _decode_enough(self) -> list[Directive]:
        if self.is_ended or not self.is_committed:
            return []  # what is enough came from an item, so the pair is committed
        self.is_ended = True
        todo = [*self._move(_DECODE, self._decode_abort), Directive(Do.FINISH)]
        return todo + self._move(_PREFILL, LegInput.ABORT_DEFERRED)

    def _decode_broken(self, failure: Failure) -> list[Directive]:
        was_open = self.decode in leg.OPEN_STATES
        todo = self._move(_DECODE, LegInput.BROKEN)
        if self.is_ended or not was_open:
            return todo
        return todo + self._end(failure)

    def _decode_unsent(self, failure: Failure) -> list[Directive]:
        if self.kind is not HandshakeKind.HANDOFF or self.is_ended or self.decode is not LegState.SENT:
            return self._decode_broken(failure)
        self._has_handle = True
        return [*self._move(_DECODE, LegInput.BROKEN), Directive(Do.REPLACE_DECODE, _DECODE, failure)]

    def _decode_replaced(self) -> list[Directive]:
        if self.is_ended or not self._has_handle or self.decode is not LegState.FAILED:
            return []
        self.decode = LegState.RESERVED
        return self._send(_DECODE)

    def _end(self, failure: Failure) -> list[Directive]:
        """End both legs and answer.

        Prefill is told at once: that also ends a transfer cleanly from its source. A handoff's prefill is heard out,
        because it may have finished in the same moment, and its answer is the only trace of the blocks that it holds.
        """
        if self.is_ended:
            return []
        self.is_ended = True
        self.failure = failure
        is_handoff = self.kind is HandshakeKind.HANDOFF
        todo = self._move(_PREFILL, LegInput.ABORT_AND_DRAIN if is_handoff else LegInput.ABORT)
        todo += self._move(_DECODE, self._decode_abort)
        if self._has_handle:
            todo.append(Directive(Do.RELEASE_HANDLE))
            self._has_handle = False
        return [*todo, Directive(Do.FAIL, failure=failure)]

    @property
    def _decode_abort(self) -> LegInput:
        """How decode may be stopped while its pages are perhaps on their way."""
        is_deferred = self.abort_in_transfer is AbortInTransfer.DEFER and self.kind is not HandshakeKind.AGGREGATE
        return LegInput.ABORT_DEFERRED if is_deferred else LegInput.ABORT

    def _send(self, role: LegRole) -> list[Directive]:
        if role is _DECODE:
            self._has_handle = False
        return [Directive(Do.SEND, role), *self._move(role, LegInput.WRITTEN)]

    def _move(self, role: LegRole, happened: LegInput) -> list[Directive]:
        before = self.prefill if role is _PREFILL else self.decode
        effect, after = leg.step(before, happened)
        if role is _PREFILL:
            self.prefill = after
        else:
            self.decode = after
        todo: list[Directive] = []
        if effect is LegEffect.CANCEL:
            todo.append(Directive(Do.CANCEL, role))
        elif effect is LegEffect.ASK:
            todo += [Directive(Do.ASK, role), Directive(Do.LINGER, role)]
        elif effect is LegEffect.LINGER:
            todo.append(Directive(Do.LINGER, role))
        if before in leg.OPEN_STATES and after not in leg.OPEN_STATES:
            todo.append(Directive(Do.CLOSE, role))
        return todo

    def __repr__(self) -> str:
        return f"<PairMachine {self.kind} {self.state}: prefill {self.prefill}, decode {self.decode}>"


def _required(failure: Failure | None) -> Failure:
    if failure is None:
        raise ValueError("this input needs a failure: what the client would be told")
    return failure
