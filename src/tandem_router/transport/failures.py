"""Reads grpc's errors: did the engine answer so, or did the connection break, and had the request left us?"""

from __future__ import annotations

import asyncio

import grpc.aio

from tandem_router.errors import Code, Reason
from tandem_router.model.failure import EngineFailure

__all__ = ["code_of", "connection_failure", "details_of", "is_late", "rpc_failure", "seconds", "unsent"]

_NEVER_CONNECTED = "failed to connect to all addresses"
"""Written by grpc's load balancer, which had no transport to give the call to: no byte of it left. With
grpc.enable_retries=0 the call cannot have been on an earlier transport either."""
_BROKEN = (
    "stream removed",
    "socket closed",
    "connection reset",
    "connection aborted",
    "broken pipe",
    "recvmsg",
    "sendmsg",
    "keepalive watchdog",
    "ping timeout",
    "goaway",
    "transport closed",
    "cancelling all calls",
    "endpoint closing",
)
"""What grpc (1.81 .. 1.85) writes when a transport breaks; the channel's state alone may already be READY again."""
_DEADLINE_SLACK_S = 0.1
"""An engine counts a deadline of ours from when the request reached it, and rounds it; within this it is still ours."""
_BREAKING_CODES = (Code.UNAVAILABLE, Code.CANCELLED, Code.INTERNAL, Code.UNKNOWN)


def code_of(error: grpc.aio.AioRpcError) -> Code:
    """The status code; UNKNOWN for a number that grpc does not define."""
    try:
        return Code(error.code().value[0])
    except (ValueError, AttributeError):
        return Code.UNKNOWN


def details_of(error: grpc.aio.AioRpcError) -> str:
    """The status message, cut to 500 characters: it goes into logs and conditions."""
    return (error.details() or "no details")[:500]


def seconds(duration_s: float) -> str:
    """A duration as sentences tell it: what is left of a deadline has no end of digits."""
    return f"{duration_s:.0f} s" if duration_s >= 100 else f"{duration_s:.3g} s"


def is_late(code: Code, deadline_s: float | None) -> bool:
    """Whether a DEADLINE_EXCEEDED is that of our own deadline, and not an answer that the engine chose to give.

    deadline_s: loop clock; None = the call was sent without one.
    """
    if code is not Code.DEADLINE_EXCEEDED or deadline_s is None:
        return False
    return asyncio.get_running_loop().time() >= deadline_s - _DEADLINE_SLACK_S


def connection_failure(error: grpc.aio.AioRpcError, *, is_connected: bool, where: str) -> EngineFailure | None:
    """The failure when the connection broke or never was; None when the engine itself sent the status.

    is_connected: the channel's state right after the error.
    """
    code, details = code_of(error), details_of(error)
    lowered = details.lower()
    if code is Code.UNAVAILABLE and lowered.startswith(_NEVER_CONNECTED):
        return EngineFailure(
            Reason.WORKER_UNREACHABLE, f"{where}: {details}", code=code, was_sent=False, connection_lost=True
        )
    is_broken = any(word in lowered for word in _BROKEN)
    if code in _BREAKING_CODES and (is_broken or (not is_connected and code is Code.UNAVAILABLE)):
        return EngineFailure(Reason.WORKER_LOST, f"{where}: {details}", code=code, connection_lost=True)
    return None


def rpc_failure(
    error: grpc.aio.AioRpcError,
    *,
    rpc: str,
    timeout_s: float | None,
    deadline_s: float | None,
    is_connected: bool,
    where: str,
) -> EngineFailure:
    """The failure of a unary rpc; a late answer is no news about the connection (a long prefill delays HealthCheck).

    timeout_s: what the call was given. deadline_s: when that was over, loop clock. None: neither.
    """
    lost = connection_failure(error, is_connected=is_connected, where=where)
    if lost is not None:
        return lost
    code, details = code_of(error), details_of(error)
    if timeout_s is not None and is_late(code, deadline_s):
        sentence = f"{where}: {rpc} was not answered within {seconds(timeout_s)}"
        return EngineFailure(Reason.ENGINE_ERROR, sentence, code=code)
    reason = Reason.ENGINE_ERROR
    if code is Code.UNIMPLEMENTED:
        reason = Reason.ENGINE_PROTOCOL_ERROR
    elif code in (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.UNAUTHENTICATED, Code.PERMISSION_DENIED):
        reason = Reason.WORKER_REFUSED
    return EngineFailure(reason, f"{where}: {rpc} answered {code.name}: {details}", code=code)


def unsent(failure: EngineFailure) -> EngineFailure:
    """The failure of a request that was still to be written: whatever else was sent before it, it was not this one."""
    return EngineFailure(
        failure.reason, failure.sentence, code=failure.code, was_sent=False, connection_lost=failure.connection_lost
    )
