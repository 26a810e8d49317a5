"""The life of a request inside one rank, as a table.

    WAITING --ADMITTED--> COMPUTING --PROMPT_DONE--> RUNNING --COMPLETED--> DONE
       |                      ^                         |
       +--LANDING_ALLOCATED--> TRANSFER                 +--HELD--> HOLDING --RELEASED--> DONE     (prefill)
              (decode)            |  \\--KV_ARRIVED--> COMPUTING
                                  +--ABORT--> LINGERING --TRANSFER_STOPPED--> DONE

LINGERING: the client was answered, but the writer may still write into the pages, so they stay reserved. What the table
does not hold is a caller's mistake (`EngineErrorReason.WRONG_STATE`).
"""

from __future__ import annotations

import enum

__all__ = ["TRANSITIONS", "RequestInput", "RequestState"]


class RequestState(enum.Enum):
    """Where a request is."""

    WAITING = "waiting"  # no pages, no slot
    TRANSFER = "transfer"  # decode: landing pages allocated, KV awaited
    COMPUTING = "computing"  # the prompt is being computed in chunks
    RUNNING = "running"  # choices produce a token per step
    HOLDING = "holding"  # prefill: answered, pages kept for the decode worker
    LINGERING = "lingering"  # decode: answered, pages kept until the writer has stopped
    DONE = "done"  # owns nothing


class RequestInput(enum.Enum):
    """What can happen to a request."""

    ADMITTED = "admitted"
    LANDING_ALLOCATED = "landing_allocated"
    KV_ARRIVED = "kv_arrived"
    PROMPT_DONE = "prompt_done"
    COMPLETED = "completed"  # every choice has ended by itself
    HELD = "held"  # as COMPLETED, but the pages stay
    ABORT = "abort"
    FAILED = "failed"  # bad numbers, failed transfer, engine stop: answered, everything given back
    TRANSFER_STOPPED = "transfer_stopped"
    RELEASED = "released"  # by the caller or by the lease


_S, _I = RequestState, RequestInput

TRANSITIONS: dict[tuple[RequestState, RequestInput], RequestState] = {
    (_S.WAITING, _I.ADMITTED): _S.COMPUTING,
    (_S.WAITING, _I.LANDING_ALLOCATED): _S.TRANSFER,
    (_S.WAITING, _I.ABORT): _S.DONE,
    (_S.WAITING, _I.FAILED): _S.DONE,
    (_S.TRANSFER, _I.KV_ARRIVED): _S.COMPUTING,
    (_S.TRANSFER, _I.ABORT): _S.LINGERING,
    (_S.TRANSFER, _I.FAILED): _S.DONE,
    # A writer that stops by itself before everything arrived leaves nothing to compute with.
    (_S.TRANSFER, _I.TRANSFER_STOPPED): _S.DONE,
    (_S.COMPUTING, _I.PROMPT_DONE): _S.RUNNING,
    (_S.COMPUTING, _I.ABORT): _S.DONE,
    (_S.COMPUTING, _I.FAILED): _S.DONE,
    (_S.RUNNING, _I.COMPLETED): _S.DONE,
    (_S.RUNNING, _I.HELD): _S.HOLDING,
    (_S.RUNNING, _I.ABORT): _S.DONE,
    (_S.RUNNING, _I.FAILED): _S.DONE,
    (_S.HOLDING, _I.RELEASED): _S.DONE,
    (_S.HOLDING, _I.FAILED): _S.DONE,
    (_S.LINGERING, _I.TRANSFER_STOPPED): _S.DONE,
    # Engine stop: nobody will read these pages again.
    (_S.LINGERING, _I.FAILED): _S.DONE,
    # What arrives after an abort changes nothing; only the writer's own word ends the lingering.
    (_S.LINGERING, _I.KV_ARRIVED): _S.LINGERING,
    (_S.LINGERING, _I.ABORT): _S.LINGERING,
}
