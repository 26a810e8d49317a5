"""Who holds the blocks of a handoff after prefill's leg has ended, and whether they can still be fetched.

No call of ours breaks when the prefill process dies before decode has fetched them. Some connectors fail such a decode
within seconds, in words of their own; others let it wait for minutes (`Handshake.decode_outwaits_prefill`). For those
the worker's health stands in: probes see a dead process within `health.check_interval_s`.
"""

from __future__ import annotations

from dataclasses import dataclass

from tandem_router.core.health import health_settings
from tandem_router.errors import Reason
from tandem_router.model.failure import Failure
from tandem_router.model.ids import RankKey
from tandem_router.model.pairing import HandshakeKind
from tandem_router.model.worker import Worker
from tandem_router.policies.contract import Plan
from tandem_router.runtime.relay_environment import RelayEnvironment

__all__ = ["BlockHolder", "fetched_from"]


@dataclass(frozen=True, slots=True)
class BlockHolder:
    """The life of a prefill worker in which it computed the blocks of one prompt."""

    key: RankKey
    instance: str
    """Of its process as it was planned; empty where the engine tells none. An epoch also ends when the connection alone
    is made anew, as for a new certificate: the same process still has the blocks."""
    answered_at_s: float
    """Wall clock, when its leg had ended: it lived then, whatever its probes said."""
    is_outwaited: bool
    """A decode that fetches from it when it is gone waits on and on."""

    @staticmethod
    def of(plan: Plan, *, answered_at_s: float) -> BlockHolder:
        """The prefill of a pair's plan, once its leg has ended."""
        assert plan.prefill is not None, "only a pair has a handle"
        is_outwaited = plan.handshake is not None and plan.handshake.decode_outwaits_prefill
        return BlockHolder(plan.prefill.key, _instance(plan.prefill.worker), answered_at_s, is_outwaited)

    def is_gone(self, env: RelayEnvironment) -> bool:
        """Whether that life has ended for certain: the worker is removed, or another process is in its place."""
        worker = env.fleet.workers().get(self.key.worker_id)
        if worker is None:
            return True
        return worker.epoch != self.key.epoch and not (self.instance and _instance(worker) == self.instance)

    def loss(self, env: RelayEnvironment, *, decode_failed: bool = False) -> Failure | None:
        """What is told where the blocks can no longer be fetched; None while they can, for all that is known.

        Where decode would outwait it, or has failed, a worker that stopped serving after it had answered counts as
        gone. One that had stopped before was merely busy, until it had the time to show it.
        """
        if not self.is_gone(env) and not ((self.is_outwaited or decode_failed) and self._is_silent(env)):
            return None
        worker_id = self.key.worker_id
        where = {"leg": "prefill", "worker_id": worker_id, "dp_rank": str(self.key.dp_rank)}
        sentence = f"prefill worker {worker_id} was lost before its blocks were fetched"
        return Failure(Reason.KV_TRANSFER_FAILED, sentence, where)

    def _is_silent(self, env: RelayEnvironment) -> bool:
        worker = env.fleet.workers().get(self.key.worker_id)
        claims = () if worker is None else worker.conditions
        serving = next((claim for claim in claims if claim.type == "SERVING"), None)
        if worker is None or serving is None or serving.is_true:
            return False
        if serving.changed_at_s >= self.answered_at_s:
            return True
        return env.clock.wall_s() - self.answered_at_s >= _recovers_within_s(env, worker)


def _recovers_within_s(env: RelayEnvironment, worker: Worker) -> float:
    """By when a worker that is well again has passed the probes that make it READY; they come more often than this."""
    health = health_settings(env.settings.health, worker.spec.health)
    return health.success_threshold * (health.check_interval_s + health.timeout_s)


def _instance(worker: Worker) -> str:
    return "" if worker.facts is None else worker.facts.instance or ""


def fetched_from(plan: Plan, *, keeps_blocks: bool, answered_at_s: float) -> BlockHolder | None:
    """Who must live until decode has its first token, now that prefill has ended; None where nobody must.

    In a rendezvous prefill has sent the blocks when its leg ends; in a shared store they are nobody's. keeps_blocks:
    whether prefill said that it keeps some.
    """
    if plan.handshake is None or plan.handshake.kind is not HandshakeKind.HANDOFF:
        return None
    holder = BlockHolder.of(plan, answered_at_s=answered_at_s)
    return holder if keeps_blocks or holder.is_outwaited else None
