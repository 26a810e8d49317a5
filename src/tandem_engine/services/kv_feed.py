"""SubscribeKvEvents: what the prefix caches of all ranks store and remove, and between events the load, as one stream.

Both protocols, with the habits of their servicer 0.14.1: each rank has its own sequence numbers; a stream that has told
nothing for a while gets batches that carry a load alone and repeat the rank's last sequence number; a publisher that
was not switched on is UNIMPLEMENTED. Like that servicer's Rust twin it keeps a history to resume from.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack

import grpc
from smg_grpc_proto.generated import common_pb2 as pb

from tandem_engine.engine import KvEvent
from tandem_engine.services.kv_batches import batch, load_batch
from tandem_engine.services.station import Context, Station

__all__ = ["HEARTBEAT_S", "LOAD_TICK_S", "stream_kv_events"]

LOAD_TICK_S = 0.1
"""How often a stream without events looks for a changed load (servicer 0.14.1)."""

HEARTBEAT_S = 1.0
"""Silence after which an unchanged load is sent (servicer 0.14.1)."""


async def stream_kv_events(station: Station, request: pb.SubscribeKvEventsRequest, context: Context) -> None:
    """Events from `start_sequence_number` on (0: from now on) of every rank.

    UNIMPLEMENTED when switched off; OUT_OF_RANGE for a start that is not kept, that was never reached, or that cannot
    be told apart because there are several ranks; DATA_LOSS when the subscriber was too slow. The last two mean resync.
    """
    if not station.options.kv_events:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "KV cache events not enabled; start without --no-kv-events")
    missed = await _missed(station, request.start_sequence_number, context)
    limit = station.options.kv_event_queue + len(missed)
    queue: asyncio.Queue[tuple[int, KvEvent] | None] = asyncio.Queue()
    for event in missed:
        queue.put_nowait((0, event))
    with ExitStack() as subscriptions:
        for rank in range(station.options.dp_size):
            subscriptions.callback(station.engine.kv_events(rank).subscribe(_teller(queue, rank, limit)))
        await context.send_initial_metadata(())
        await _Feed(station, context, admits_zero=request.load_records_before_first_batch).run(queue)


async def _missed(station: Station, start: int, context: Context) -> tuple[KvEvent, ...]:
    if not start:
        return ()
    if station.options.dp_size > 1:
        text = "every rank has its own sequence, which one number cannot resume; subscribe with 0"
        await context.abort(grpc.StatusCode.OUT_OF_RANGE, text)
    log = station.engine.kv_events(0)
    if start > log.last_sequence + 1:
        await context.abort(
            grpc.StatusCode.OUT_OF_RANGE, f"sequence {start} was never reached; {log.last_sequence} was"
        )
    missed = log.since(start - 1)
    if missed is None:
        await context.abort(grpc.StatusCode.OUT_OF_RANGE, f"sequence {start} is gone; oldest {log.oldest_sequence}")
    return missed


def _teller(queue: asyncio.Queue[tuple[int, KvEvent] | None], rank: int, limit: int) -> Callable[[KvEvent], None]:
    """Queues a rank's events; None, once, in place of the first that would be one too many."""
    is_full = False

    def tell(event: KvEvent) -> None:
        nonlocal is_full
        if is_full:
            return
        is_full = queue.qsize() >= limit
        queue.put_nowait(None if is_full else (rank, event))

    return tell


class _Feed:
    """One subscriber's stream: what it has been told last, per rank."""

    def __init__(self, station: Station, context: Context, *, admits_zero: bool) -> None:
        self._station = station
        self._context = context
        self._admits_zero = admits_zero
        self._last: dict[int, int] = {}
        self._told: dict[int, tuple[pb.EngineLoad, float]] = {}
        self._samples = 0

    async def run(self, queue: asyncio.Queue[tuple[int, KvEvent] | None]) -> None:
        """Until the call ends."""
        page_size = self._station.engine.settings.page_size
        while True:
            try:
                async with asyncio.timeout(LOAD_TICK_S):
                    item = await queue.get()
            except TimeoutError:
                await self._tell_loads()
                continue
            if item is None:
                await self._context.abort(
                    grpc.StatusCode.DATA_LOSS, f"more than {self._station.options.kv_event_queue} events unread"
                )
            rank, event = item
            self._last[rank] = event.sequence
            await self._context.write(batch(rank, event, page_size))

    async def _tell_loads(self) -> None:
        for load in self._station.engine.loads():
            sequence = self._last.get(load.rank, 0 if self._admits_zero else None)
            if sequence is None:
                continue  # a number that the subscriber has not seen would move its cursor
            message = load_batch(load, sequence, is_dead=self._station.life.is_dead)
            before, told_s = self._told.get(load.rank, (None, 0.0))
            now_s = time.monotonic()
            if message.load == before and now_s - told_s < HEARTBEAT_S:
                continue
            self._told[load.rank] = (pb.EngineLoad.FromString(message.load.SerializeToString()), now_s)
            self._samples += 1
            message.load.sample = self._samples
            await self._context.write(message)
