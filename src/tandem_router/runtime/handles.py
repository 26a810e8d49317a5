"""Giving back a KV handle that nobody will use.

A handoff's prefill worker holds the prompt's blocks until a decode worker has fetched them or the lease ends. The only
verb that every engine has for "let go" is to fetch: so the handle goes to a live decode worker as a request for a
single token, whose answer is thrown away. Until that has happened, or the lease has ended, a ledger row on the prefill
worker counts the blocks that it holds.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from tandem_router.core.relay_events import HandleReleased
from tandem_router.errors import Reason, TandemError
from tandem_router.handshake.contract import prefill_sampling
from tandem_router.model.failure import EngineFailure, Failure
from tandem_router.model.pairing import LegRole
from tandem_router.policies.contract import Candidate
from tandem_router.ports import EngineCall
from tandem_router.runtime.relay_environment import RelayEnvironment

if TYPE_CHECKING:
    from tandem_router.runtime.attempt import PairAttempt

__all__ = ["release_handle"]


async def release_handle(env: RelayEnvironment, attempt: PairAttempt) -> None:
    """Fetch and drop what the attempt's prefill holds; waits out the lease where no decode worker can fetch it."""
    prefill = attempt.plan.prefill
    assert prefill is not None, "only a pair has a handle"
    lease_ends_s = env.clock.monotonic_s() + env.settings.kv_handle_lease_s
    held = env.open_leg(prefill.key, LegRole.PREFILL, attempt.query.prompt_tokens)
    failure: Failure | None = Failure(Reason.NO_READY_WORKER, "no decode worker can fetch the blocks")
    try:
        taker = _taker(env, attempt)
        if taker is not None:
            failure = await _fetch(env, attempt, taker, lease_ends_s)
        env.observer.observe(HandleReleased(attempt.pair_id, failure))
        if failure is not None:
            await asyncio.sleep(max(lease_ends_s - env.clock.monotonic_s(), 0))
    finally:
        env.ledger.close(held)


def _taker(env: RelayEnvironment, attempt: PairAttempt) -> Candidate | None:
    """The attempt's own decode worker while it lives, else another that fits."""
    own = attempt.plan.decode
    worker = env.fleet.workers().get(own.worker.id)
    if worker is not None and worker.epoch == own.worker.epoch and env.fleet.client(own.key) is not None:
        return own
    return env.replace_decode(attempt.plan, attempt.query)


async def _fetch(env: RelayEnvironment, attempt: PairAttempt, taker: Candidate, lease_ends_s: float) -> Failure | None:
    """Ask `taker` for one token of the handle; None when its stream ended well."""
    client = env.fleet.client(taker.key)
    if client is None:
        return Failure(Reason.WORKER_UNREACHABLE, f"worker {taker.worker.id} has gone")
    leg_id = env.open_leg(taker.key, LegRole.DECODE, attempt.query.prompt_tokens)
    request = attempt.leg_request(LegRole.DECODE, leg_id)
    request = replace(request, sampling=prefill_sampling(request.sampling), is_streaming=False)
    timeout_s = max(lease_ends_s - env.clock.monotonic_s(), 0.001)
    call: EngineCall | None = None
    try:
        call = client.generate(request, timeout_s=timeout_s)
        async with asyncio.timeout(timeout_s):
            while await call.receive() is not None:
                pass
    except EngineFailure as error:
        return Failure(error.reason, error.sentence)
    except TandemError as error:
        return Failure.of(error)
    except TimeoutError:
        return Failure(Reason.WORKER_LOST, "the fetch outlived the lease")
    finally:
        if call is not None:
            call.cancel()
        env.ledger.close(leg_id)
    return None
