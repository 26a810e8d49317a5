"""A live pair to protobuf."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from tandem.v1 import kv_pb2, pair_pb2, worker_rank_pb2
from tandem_router.model.ids import RankKey
from tandem_router.model.pairing import LegRole, LegState, LegTimes, PairView
from tandem_router.wire.connector import connector_pb
from tandem_router.wire.scalars import failure_pb, timestamp_pb

__all__ = ["pair_pb"]


def pair_pb(pair: PairView) -> pair_pb2.Pair:
    """The message of a pair; an aggregated request has a decode leg only."""
    message = pair_pb2.Pair(
        id=pair.id,
        request_id=pair.request_id,
        attempt=pair.attempt,
        model=pair.model,
        state=pair_pb2.PairState.Value(f"PAIR_STATE_{pair.state.value}"),
        decode=_leg_pb(LegRole.DECODE, pair.decode, pair.decode_state, pair.decode_leg_id, pair.decode_times),
        connector=connector_pb(pair.kind, pair.connector),
        failure=None if pair.failure is None else failure_pb(pair.failure),
        create_time=timestamp_pb(pair.started_at_s),
        commit_time=_time_pb(pair.committed_at_s),
        end_time=_time_pb(pair.ended_at_s),
        revision=pair.revision,
    )
    if pair.prefill is not None:
        leg = _leg_pb(LegRole.PREFILL, pair.prefill, pair.prefill_state, pair.prefill_leg_id, pair.prefill_times)
        message.prefill.CopyFrom(leg)
    if pair.abort_in_transfer is not None:
        name = f"ABORT_IN_TRANSFER_{pair.abort_in_transfer.value}"
        message.abort_in_transfer = kv_pb2.AbortInTransfer.Value(name)
    if pair.room is not None:
        message.handoff.rendezvous.room.CopyFrom(kv_pb2.BootstrapRoom(number=pair.room))
    return message


def _leg_pb(role: LegRole, key: RankKey, state: LegState | None, leg_id: str, times: LegTimes) -> pair_pb2.Leg:
    return pair_pb2.Leg(
        role=pair_pb2.LegRole.Value(f"LEG_ROLE_{role.value}"),
        worker=worker_rank_pb2.WorkerRank(worker_id=key.worker_id, dp_rank=key.dp_rank),
        epoch=key.epoch,
        state=pair_pb2.LegState.Value(f"LEG_STATE_{state.value if state is not None else 'UNSPECIFIED'}"),
        worker_request_id=leg_id,
        sent_time=_time_pb(times.sent_at_s),
        first_item_time=_time_pb(times.first_item_at_s),
        closed_time=_time_pb(times.closed_at_s),
    )


def _time_pb(at_s: float | None) -> Timestamp | None:
    return None if at_s is None else timestamp_pb(at_s)
