"""What the failure of one leg is told as, and which workers another attempt should avoid for it."""

from __future__ import annotations

from tandem_router.errors import Reason
from tandem_router.model.failure import EngineFailure, Failure
from tandem_router.model.ids import WorkerId
from tandem_router.model.pairing import LegRole
from tandem_router.runtime.attempt_values import AttemptLeg
from tandem_router.runtime.block_holder import BlockHolder
from tandem_router.runtime.relay_environment import RelayEnvironment

__all__ = ["judged"]

_OF_THE_ENGINE = (Reason.ENGINE_ERROR, Reason.ENGINE_ABORTED, Reason.KV_TRANSFER_FAILED)
"""How an engine tells of blocks that it could not fetch, among other things that go wrong in it."""


def judged(
    env: RelayEnvironment,
    leg: AttemptLeg,
    failure: EngineFailure,
    prefill: AttemptLeg | None,
    holder: BlockHolder | None,
) -> tuple[Failure, tuple[WorkerId, ...]]:
    """The record of a leg's failure, and who is to blame.

    prefill: of the pair, None where there is none. holder: of the blocks that `leg` may have failed to fetch, None
    where it has them or fetches none.
    """
    own = leg.candidate.worker.id
    if leg.role is LegRole.PREFILL or prefill is None or failure.reason not in _OF_THE_ENGINE:
        return Failure(failure.reason, failure.sentence, leg.where), (own,)
    source = prefill.candidate.worker.id
    loss = None if holder is None else holder.loss(env, decode_failed=True)
    if loss is not None:
        return loss, (source,)
    # Of a transfer decode may merely have been the first to notice.
    blamed = (own, source) if failure.reason is Reason.KV_TRANSFER_FAILED else (own,)
    return Failure(failure.reason, failure.sentence, leg.where), blamed
