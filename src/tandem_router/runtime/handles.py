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
from tandem_router.runtime.block_holder import BlockHolder
from tandem_router.runtime.leg_requests import sent_rank
from tandem_router.runtime.relay_environment import RelayEnvironment

if TYPE_CHECKING:
    from tandem_router.runtime.attempt import PairAttempt

__all__ = ["release_handle"]

_LOOK_EVERY_S = 5.0
"""Between two looks whether a worker that holds blocks still lives."""


async def release_handle(env: RelayEnvironment, attempt: PairAttempt) -> None:
    """Fetch and drop what the attempt's prefill holds; waits out the lease where no decode worker can fetch it.

    A prefill worker whose life has ended holds nothing any more, and where decode would wait for it, is not asked.
    """
    prefill, pair_id = attempt.plan.prefill, attempt.pair_id
    assert prefill is not None, "only a pair has a handle"
    key, lease_s = prefill.key, _lease_s(env, attempt)
    # Since ever: nothing is lost where one that may only be busy is not asked.
    holder = BlockHolder.of(attempt.plan, answered_at_s=0.0)
    lease_ends_s = env.clock.monotonic_s() + lease_s
    held = env.open_leg(key, LegRole.PREFILL, attempt.query.prompt_tokens)
    failure: Failure | None = Failure(Reason.NO_READY_WORKER, "no decode worker can fetch the blocks")
    try:
        taker = _taker(env, attempt)
        if (loss := holder.loss(env)) is not None:
            failure = loss
        elif taker is not None:
            failure = await _fetch(env, attempt, taker, min(lease_s, env.settings.transfer_grace_s))
        env.observer.observe(HandleReleased(pair_id, failure))
        del attempt, taker  # a lease may last minutes; a prompt must not
        while failure is not None and not holder.is_gone(env):
            left_s = lease_ends_s - env.clock.monotonic_s()
            if left_s <= 0:
                break
            await asyncio.sleep(min(left_s, _LOOK_EVERY_S))
    finally:
        env.ledger.close(held)


def _lease_s(env: RelayEnvironment, attempt: PairAttempt) -> float:
    """How long this connector's prefill holds what nobody fetches."""
    stated = None if attempt.plan.handshake is None else attempt.plan.handshake.handle_lease_s
    return env.settings.kv_handle_lease_s if stated is None else stated


def _taker(env: RelayEnvironment, attempt: PairAttempt) -> Candidate | None:
    """The attempt's own decode worker while it lives, else another that fits."""
    own = attempt.plan.decode
    worker = env.fleet.workers().get(own.worker.id)
    if worker is not None and worker.epoch == own.worker.epoch and env.fleet.client(own.key) is not None:
        return own
    return env.replace_decode(attempt.plan, attempt.query)


async def _fetch(env: RelayEnvironment, attempt: PairAttempt, taker: Candidate, timeout_s: float) -> Failure | None:
    """Ask `taker` for one token of the handle; None when its stream ended well."""
    client = env.fleet.client(taker.key)
    if client is None:
        return Failure(Reason.WORKER_UNREACHABLE, f"worker {taker.worker.id} has gone")
    leg_id = env.open_leg(taker.key, LegRole.DECODE, attempt.query.prompt_tokens)
    call: EngineCall | None = None
    try:
        request = attempt.leg_request(LegRole.DECODE, leg_id)
        sampling = prefill_sampling(request.sampling)
        request = replace(request, dp_rank=sent_rank(taker), sampling=sampling, is_streaming=False)
        call = client.generate(request, timeout_s=timeout_s)
        async with asyncio.timeout(timeout_s):
            while await call.receive() is not None:
                pass
    except EngineFailure as error:
        return Failure(error.reason, error.sentence)
    except TandemError as error:
        return Failure.of(error)
    except TimeoutError:
        return Failure(Reason.WORKER_LOST, "the fetch was not over in time")
    finally:
        if call is not None:
            call.cancel()
        env.ledger.close(leg_id)
    return None
