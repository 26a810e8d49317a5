"""tandem.engine.v1.LedgerService: the engine's books and its faults."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import grpc

from tandem.engine.v1 import ledger_pb2, ledger_service_pb2, ledger_service_pb2_grpc
from tandem_engine.faults import FaultError, FaultPlan
from tandem_engine.requests import Ledger, RankLedger
from tandem_engine.services.station import Context, Station

__all__ = ["LedgerServicer", "plan_from_proto", "plan_to_proto"]

_DURATIONS = ("step_latency", "transfer_latency_per_page")
_COUNTS = (
    "running",
    "waiting",
    "held_pages",
    "cached_pages",
    "free_pages",
    "recomputed_blocks",
    "pages_sent",
    "pages_received",
    "prompt_tokens",
    "generated_tokens",
    "steps",
    "aborted",
)


class LedgerServicer(ledger_service_pb2_grpc.LedgerServiceServicer):
    """Served beside the engine's own protocol."""

    def __init__(self, station: Station) -> None:
        self._station = station

    async def GetLedger(
        self, request: ledger_service_pb2.GetLedgerRequest, context: Context
    ) -> ledger_service_pb2.GetLedgerResponse:
        ledger = self._station.engine.ledger()
        ranks = [ledger_pb2.RankLedger(dp_rank=rank.rank, counts=_counts(rank)) for rank in ledger.ranks]
        return ledger_service_pb2.GetLedgerResponse(ledger=ledger_pb2.Ledger(ranks=ranks, totals=_counts(ledger)))

    async def SetFaults(
        self, request: ledger_service_pb2.SetFaultsRequest, context: Context
    ) -> ledger_service_pb2.SetFaultsResponse:
        try:
            plan = plan_from_proto(request.plan)
        except FaultError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"plan.{error}")
        self._station.faults.set(plan)
        return ledger_service_pb2.SetFaultsResponse(plan=plan_to_proto(plan))

    async def GetFaults(
        self, request: ledger_service_pb2.GetFaultsRequest, context: Context
    ) -> ledger_service_pb2.GetFaultsResponse:
        return ledger_service_pb2.GetFaultsResponse(plan=plan_to_proto(self._station.faults.plan))


def _counts(row: RankLedger | Ledger) -> ledger_pb2.LedgerCounts:
    return ledger_pb2.LedgerCounts(open_rooms=row.rooms, **{name: getattr(row, name) for name in _COUNTS})


def plan_from_proto(message: ledger_pb2.FaultPlan) -> FaultPlan:
    """Raises FaultError for a value out of range."""
    values: dict[str, Any] = {}
    for descriptor, value in message.ListFields():
        is_duration = descriptor.name in _DURATIONS
        values[descriptor.name] = value.seconds + value.nanos / 1e9 if is_duration else value
    return FaultPlan(**values)


def plan_to_proto(plan: FaultPlan) -> ledger_pb2.FaultPlan:
    """Only what differs from no fault is set."""
    message = ledger_pb2.FaultPlan()
    for field in fields(FaultPlan):
        value = getattr(plan, field.name)
        if value == field.default:
            continue
        if field.name in _DURATIONS:
            getattr(message, field.name).FromNanoseconds(round(value * 1e9))
        else:
            setattr(message, field.name, value)
    return message
