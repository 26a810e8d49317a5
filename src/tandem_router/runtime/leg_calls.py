"""The call of one leg: what it is opened with (trace, deadline, grace), and both ways of stopping it."""

from __future__ import annotations

from dataclasses import replace

from tandem_router.core.relay_events import LegAborted
from tandem_router.model.failure import EngineFailure, Failure
from tandem_router.model.ids import PairId
from tandem_router.model.pairing import AbortInTransfer
from tandem_router.model.request import LegRequest
from tandem_router.runtime.attempt_values import AttemptLeg
from tandem_router.runtime.relay_environment import RelayEnvironment

__all__ = ["ask_to_stop", "call_timeout_s", "stop", "traced"]


def traced(env: RelayEnvironment, pair_id: PairId, leg: AttemptLeg, request: LegRequest) -> LegRequest:
    """The leg's request, as part of the leg's own span where there is one, else of the client's."""
    if env.traces is None:
        return request
    traceparent = env.traces.begin_leg(pair_id, leg.id, leg.role, leg.candidate.key)
    return request if traceparent is None else replace(request, traceparent=traceparent)


def call_timeout_s(env: RelayEnvironment, deadline_s: float | None, abort: AbortInTransfer) -> float | None:
    """The remaining deadline, plus the grace where a leg may have to outlive it; None where there is no deadline."""
    if deadline_s is None:
        return None
    left_s = max(deadline_s - env.clock.monotonic_s(), 0.001)
    return left_s + env.settings.transfer_grace_s if abort is AbortInTransfer.DEFER else left_s


def stop(env: RelayEnvironment, leg: AttemptLeg) -> None:
    """End the call on our side and tell the engine; nothing where no call was opened. Returns at once."""
    if leg.call is None:
        return
    leg.call.cancel()
    ask_to_stop(env, leg)


def ask_to_stop(env: RelayEnvironment, leg: AttemptLeg) -> None:
    """Tell the engine to stop, and go on reading. Returns at once."""
    env.scope.spawn(_abort(env, leg), f"abort {leg.id}")


async def _abort(env: RelayEnvironment, leg: AttemptLeg) -> None:
    """The Abort rpc, beside the call's cancel: some engines heed only the one, some only the other."""
    client = env.fleet.client(leg.candidate.key)
    failure: Failure | None = None
    if client is not None:
        try:
            await client.abort(leg.id, timeout_s=env.settings.abort_timeout_s)
        except EngineFailure as error:
            failure = Failure(error.reason, error.sentence, leg.where)
    env.observer.observe(LegAborted(leg.id, failure))
