"""How pairs are shown."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from tandem.v1 import kv_pb2, pair_pb2, pair_service_pb2
from tandem_router.cli.text import STATE_ROOM, UUID_ROOM, Column, Table, pairs
from tandem_router.cli.words import kind, rank, short_rank, since, state

__all__ = ["PAIRS", "reservation_text"]

Pair = pair_pb2.Pair


def _legs(pair: Pair) -> str:
    return "/".join(state(pair_pb2.LegState, leg.state) or "-" for leg in (pair.prefill, pair.decode))


def _room(pair: Pair) -> str:
    return str(pair.handoff.rendezvous.room.number) if pair.handoff.HasField("rendezvous") else ""


PAIRS: Table[Pair] = Table(
    (
        Column("ID", lambda pair: pair.id, room=UUID_ROOM),
        Column("MODEL", lambda pair: pair.model),
        Column("STATE", lambda pair: state(pair_pb2.PairState, pair.state), is_state=True, room=STATE_ROOM),
        Column("PREFILL", lambda pair: short_rank(pair.prefill.worker), room=10),
        Column("DECODE", lambda pair: short_rank(pair.decode.worker), room=10),
        Column("CONNECTOR", lambda pair: kind(kv_pb2.KvConnector, pair.connector), room=10),
        Column("AGE", lambda pair: since(pair, "create_time")),
        Column("REQUEST", lambda pair: pair.request_id),
        Column("ATTEMPT", lambda pair: str(pair.attempt), is_wide=True),
        Column("LEGS", _legs, is_wide=True),
        Column("ROOM", _room, is_wide=True),
        Column("ABORT", lambda pair: kind(kv_pb2.AbortInTransfer, pair.abort_in_transfer), is_wide=True),
        Column("REASON", lambda pair: pair.failure.reason, is_wide=True),
        Column("MESSAGE", lambda pair: pair.failure.message, is_wide=True),
    )
)
"""PREFILL and DECODE are the beginning of the worker's id, which every command takes, and its rank."""


def reservation_text(reserved: pair_service_pb2.ReservePairResponse) -> str:
    """What a client needs to make both calls itself."""
    return "\n".join(pairs(_reservation(reserved), sys.stdout))


def _reservation(reserved: pair_service_pb2.ReservePairResponse) -> Iterable[tuple[str, str]]:
    yield "pair", reserved.pair.id
    yield "state", state(pair_pb2.PairState, reserved.pair.state)
    yield "connector", kind(kv_pb2.KvConnector, reserved.pair.connector)
    yield "room", _room(reserved.pair)
    for name, leg in (("prefill", reserved.prefill), ("decode", reserved.decode)):
        yield name, f"{rank(leg.worker)} at {leg.url}, request id {leg.worker_request_id}"
