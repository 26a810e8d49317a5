"""One leg of a pair: the life of one call to one engine.

                 WRITTEN            ITEM             FINISHED
    RESERVED ------------> SENT ------------> RUNNING ---------> DONE ----.
        |                   |  \\               |   \\                       | RELEASED
        | ABORT             |   \\ BROKEN       |    \\ BROKEN -> FAILED ----+------> CLOSED
        |                   |    `-> FAILED     | ABORT (cancel)           |
        |                   | ABORT_DEFERRED    v                          |
        |                   `------> LINGERING --- ITEM | GRACE_OVER (cancel), FINISHED, BROKEN
        `---------------------------------------------------------------> CLOSED

The table is the truth; every (state, input) is in it. A leg is *open*, and counted in the ledger, while it is in
RESERVED, SENT, RUNNING or LINGERING.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from tandem_router.model.pairing import LegState

__all__ = ["OPEN_STATES", "TRANSITIONS", "LegEffect", "LegInput", "step"]


class LegInput(enum.StrEnum):
    """What happened to a leg, or is wanted of it."""

    WRITTEN = "WRITTEN"
    """The request was handed to the transport."""
    ITEM = "ITEM"
    """The engine sent something that is not the end."""
    FINISHED = "FINISHED"
    """The engine ended the stream well."""
    BROKEN = "BROKEN"
    """The call failed."""
    ABORT = "ABORT"
    """Stop it now; wanted where that is safe."""
    ABORT_AND_DRAIN = "ABORT_AND_DRAIN"
    """Stop it now, but hear it out: its answer may hand over something that must be given back."""
    ABORT_DEFERRED = "ABORT_DEFERRED"
    """Stop it when no KV page can be on its way to it."""
    GRACE_OVER = "GRACE_OVER"
    """A lingering leg has lingered long enough."""
    RELEASED = "RELEASED"
    """The pair is done with an ended leg."""


class LegEffect(enum.StrEnum):
    """What the runtime must do because of a transition."""

    NONE = "NONE"
    CANCEL = "CANCEL"
    """Abort rpc and cancel of the call."""
    ASK = "ASK"
    """Abort rpc, and linger."""
    LINGER = "LINGER"
    """Keep draining; arm the grace timer."""


OPEN_STATES = frozenset({LegState.RESERVED, LegState.SENT, LegState.RUNNING, LegState.LINGERING})
"""States in which the worker may be working, or may be asked to, for this leg."""

_S = LegState
_I = LegInput
_E = LegEffect

TRANSITIONS: Mapping[tuple[LegState, LegInput], tuple[LegEffect, LegState]] = {
    (_S.RESERVED, _I.WRITTEN): (_E.NONE, _S.SENT),
    (_S.RESERVED, _I.ITEM): (_E.NONE, _S.FAILED),  # an answer to nothing: our fault, fail closed
    (_S.RESERVED, _I.FINISHED): (_E.NONE, _S.FAILED),
    (_S.RESERVED, _I.BROKEN): (_E.NONE, _S.FAILED),
    (_S.RESERVED, _I.ABORT): (_E.NONE, _S.CLOSED),
    (_S.RESERVED, _I.ABORT_AND_DRAIN): (_E.NONE, _S.CLOSED),
    (_S.RESERVED, _I.ABORT_DEFERRED): (_E.NONE, _S.CLOSED),
    (_S.RESERVED, _I.GRACE_OVER): (_E.NONE, _S.RESERVED),
    (_S.RESERVED, _I.RELEASED): (_E.NONE, _S.CLOSED),
    (_S.SENT, _I.WRITTEN): (_E.NONE, _S.SENT),
    (_S.SENT, _I.ITEM): (_E.NONE, _S.RUNNING),
    (_S.SENT, _I.FINISHED): (_E.NONE, _S.DONE),
    (_S.SENT, _I.BROKEN): (_E.NONE, _S.FAILED),
    (_S.SENT, _I.ABORT): (_E.CANCEL, _S.CLOSED),
    (_S.SENT, _I.ABORT_AND_DRAIN): (_E.ASK, _S.LINGERING),
    (_S.SENT, _I.ABORT_DEFERRED): (_E.LINGER, _S.LINGERING),
    (_S.SENT, _I.GRACE_OVER): (_E.NONE, _S.SENT),
    (_S.SENT, _I.RELEASED): (_E.CANCEL, _S.CLOSED),
    (_S.RUNNING, _I.WRITTEN): (_E.NONE, _S.RUNNING),
    (_S.RUNNING, _I.ITEM): (_E.NONE, _S.RUNNING),
    (_S.RUNNING, _I.FINISHED): (_E.NONE, _S.DONE),
    (_S.RUNNING, _I.BROKEN): (_E.NONE, _S.FAILED),
    (_S.RUNNING, _I.ABORT): (_E.CANCEL, _S.CLOSED),
    (_S.RUNNING, _I.ABORT_AND_DRAIN): (_E.ASK, _S.LINGERING),
    # Its first item has come, so its pages have arrived: nothing is in transfer any more.
    (_S.RUNNING, _I.ABORT_DEFERRED): (_E.CANCEL, _S.CLOSED),
    (_S.RUNNING, _I.GRACE_OVER): (_E.NONE, _S.RUNNING),
    (_S.RUNNING, _I.RELEASED): (_E.CANCEL, _S.CLOSED),
    (_S.LINGERING, _I.WRITTEN): (_E.NONE, _S.LINGERING),
    (_S.LINGERING, _I.ITEM): (_E.CANCEL, _S.CLOSED),
    (_S.LINGERING, _I.FINISHED): (_E.NONE, _S.CLOSED),
    (_S.LINGERING, _I.BROKEN): (_E.NONE, _S.CLOSED),
    (_S.LINGERING, _I.ABORT): (_E.CANCEL, _S.CLOSED),
    (_S.LINGERING, _I.ABORT_AND_DRAIN): (_E.NONE, _S.LINGERING),
    (_S.LINGERING, _I.ABORT_DEFERRED): (_E.NONE, _S.LINGERING),
    (_S.LINGERING, _I.GRACE_OVER): (_E.CANCEL, _S.CLOSED),
    (_S.LINGERING, _I.RELEASED): (_E.NONE, _S.LINGERING),
    (_S.DONE, _I.WRITTEN): (_E.NONE, _S.DONE),
    (_S.DONE, _I.ITEM): (_E.NONE, _S.DONE),
    (_S.DONE, _I.FINISHED): (_E.NONE, _S.DONE),
    (_S.DONE, _I.BROKEN): (_E.NONE, _S.DONE),
    (_S.DONE, _I.ABORT): (_E.NONE, _S.CLOSED),
    (_S.DONE, _I.ABORT_AND_DRAIN): (_E.NONE, _S.CLOSED),
    (_S.DONE, _I.ABORT_DEFERRED): (_E.NONE, _S.CLOSED),
    (_S.DONE, _I.GRACE_OVER): (_E.NONE, _S.DONE),
    (_S.DONE, _I.RELEASED): (_E.NONE, _S.CLOSED),
    (_S.FAILED, _I.WRITTEN): (_E.NONE, _S.FAILED),
    (_S.FAILED, _I.ITEM): (_E.NONE, _S.FAILED),
    (_S.FAILED, _I.FINISHED): (_E.NONE, _S.FAILED),
    (_S.FAILED, _I.BROKEN): (_E.NONE, _S.FAILED),
    (_S.FAILED, _I.ABORT): (_E.NONE, _S.CLOSED),
    (_S.FAILED, _I.ABORT_AND_DRAIN): (_E.NONE, _S.CLOSED),
    (_S.FAILED, _I.ABORT_DEFERRED): (_E.NONE, _S.CLOSED),
    (_S.FAILED, _I.GRACE_OVER): (_E.NONE, _S.FAILED),
    (_S.FAILED, _I.RELEASED): (_E.NONE, _S.CLOSED),
    **{(_S.CLOSED, late): (_E.NONE, _S.CLOSED) for late in LegInput},
}


def step(state: LegState, happened: LegInput) -> tuple[LegEffect, LegState]:
    """The effect and next state of a leg; total, never raises."""
    return TRANSITIONS[state, happened]
