"""One request inside a scripted engine: its way through rooms, slots, pages and tokens, per kind and role."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from tandem_router.errors import Reason
from tandem_router.model.failure import EngineFailure
from tandem_router.model.pairing import HandshakeKind, LegRole, Rendezvous, TransferParams
from tandem_router.model.spec import WorkerType
from tandem_router.model.stream import EngineChunk, EngineEnd, EngineItem, FinishReason
from tandem_router.testing.scripted_fetch import failed, fetch_transfer, pull, receive_in_room
from tandem_router.testing.scripted_kv import KvFetch
from tandem_router.testing.scripted_model import PAGE_TOKENS, answer, pages_of
from tandem_router.testing.scripted_wire import EngineLedger, Item, OpenCall, StreamEnd
from tandem_router.testing.virtual_network import Endpoint

if TYPE_CHECKING:
    from tandem_router.testing.scripted_engine import ScriptedEngine

__all__ = ["ScriptedRequest", "serve"]


class ScriptedRequest:
    """What the engine keeps of one leg."""

    task: asyncio.Task[None]

    def __init__(self, call: OpenCall, endpoint: Endpoint, ledger: EngineLedger) -> None:
        self.leg = call.leg
        self.leg_id = call.leg.leg_id
        self.pages: list[bytes] = []
        """Its KV memory."""
        self.is_receiving_pages = False
        """Somebody is writing into its memory."""
        self.fetch: KvFetch | None = None
        self.has_released_handle = False
        self.is_corrupted = False
        """Somebody else's pages were written into its memory."""
        self.deadline: asyncio.TimerHandle | None = None
        self.on_stream_end: Callable[[], object] = bool
        self.resources = contextlib.ExitStack()
        """Given back when the task ends, also when it is cancelled before its first step."""
        self._call_id = call.call_id
        self._endpoint = endpoint
        self._ledger = ledger
        self._is_stream_open = True
        ledger.streams += 1

    def emit(self, item: EngineItem) -> None:
        """Send a message of the stream."""
        if self._is_stream_open:
            self._endpoint.send(Item(self._call_id, item))

    def end(self, failure: EngineFailure | None = None) -> None:
        """End the stream from the engine's side; the first end counts."""
        if self._is_stream_open:
            self._endpoint.send(StreamEnd(self._call_id, failure))
            self.close_stream()

    def close_stream(self) -> None:
        """The stream is over, whoever ended it."""
        if not self._is_stream_open:
            return
        self._is_stream_open = False
        self._ledger.streams -= 1
        self.on_stream_end()
        if self.deadline is not None:
            self.deadline.cancel()

    def hold(self, pages: list[bytes]) -> None:
        """Take memory for pages."""
        self.pages = pages
        self._ledger.held_pages += len(pages)
        self.resources.callback(self._free, len(pages))

    def _free(self, count: int) -> None:
        self._ledger.held_pages -= count

    def closed(self, _task: asyncio.Task[None]) -> None:
        """The task has ended: give everything back."""
        self.resources.close()


async def serve(engine: ScriptedEngine, request: ScriptedRequest) -> None:
    """Answer a request to its end, good or bad."""
    try:
        await _serve(engine, request)
    except EngineFailure as failure:
        request.end(failure)
    else:
        request.end()


async def _serve(engine: ScriptedEngine, request: ScriptedRequest) -> None:
    leg = request.leg
    if leg.kind is HandshakeKind.RENDEZVOUS and leg.role is LegRole.PREFILL:
        await _prefill_in_room(engine, request)
    elif leg.kind is HandshakeKind.HANDOFF and leg.role is LegRole.PREFILL:
        await _prefill_for_handle(engine, request)
    elif isinstance(leg.handoff, Rendezvous):
        await receive_in_room(engine, request, leg.handoff)
        await _generate(engine, request)
    elif isinstance(leg.handoff, TransferParams):
        params = json.loads(leg.handoff.json)
        await (fetch_transfer if "transfer_id" in params else pull)(engine, request, params)
        await _generate(engine, request)
    else:
        if engine.script.worker_type is WorkerType.DECODE:
            engine.ledger.recomputed_pages += len(leg.token_ids) // PAGE_TOKENS
        request.hold(pages_of(leg.token_ids, leg.adapters))
        await _generate(engine, request, prefill_tokens=len(leg.token_ids))


# --- prefill


async def _prefill_in_room(engine: ScriptedEngine, request: ScriptedRequest) -> None:
    leg = request.leg
    assert isinstance(leg.handoff, Rendezvous)
    if engine.script.dp_size > 1 and leg.handoff.room % engine.script.dp_size != leg.dp_rank:
        engine.ledger.violations.append(f"room {leg.handoff.room} is not one of rank {leg.dp_rank}")
    room = engine.source.open_room(leg.handoff.room)
    request.resources.callback(engine.source.close_room, room)
    try:
        async with asyncio.timeout(engine.script.bootstrap_timeout_s):
            await room.knocked.wait()
    except TimeoutError:
        raise failed(engine, Reason.KV_TRANSFER_FAILED, "nobody came to the room") from None
    async with engine.slot():
        request.hold(pages_of(leg.token_ids, leg.adapters))
        await engine.pause(engine.script.prefill_token_s * len(leg.token_ids))
    assert room.endpoint is not None
    if not await engine.source.send_pages(room.endpoint, request.pages):
        raise failed(engine, Reason.KV_TRANSFER_FAILED, "the transfer to the decode worker broke off")
    await room.ended.wait()
    if not room.is_fetched:
        raise failed(engine, Reason.KV_TRANSFER_FAILED, "the decode worker left before it had all pages")
    await engine.pause(engine.script.settle_s)
    first = answer(leg.token_ids, request.pages, leg.sampling, 0, leg.adapters).token_ids[:1]
    request.emit(EngineEnd(0, FinishReason.LENGTH, first, len(leg.token_ids), len(first)))


async def _prefill_for_handle(engine: ScriptedEngine, request: ScriptedRequest) -> None:
    leg = request.leg
    async with engine.slot():
        request.hold(pages_of(leg.token_ids, leg.adapters))
        await engine.pause(engine.script.prefill_token_s * len(leg.token_ids))
    first = answer(leg.token_ids, request.pages, leg.sampling, 0, leg.adapters).token_ids[:1]
    if isinstance(leg.handoff, TransferParams):
        # Mooncake: the router named the transfer, so there is nothing to tell it.
        engine.source.offer(
            json.loads(leg.handoff.json)["transfer_id"], list(request.pages), engine.engine_id(leg.dp_rank)
        )
        request.emit(EngineEnd(0, FinishReason.LENGTH, first, len(leg.token_ids), len(first)))
        return
    if engine.script.returns_nothing:
        request.emit(EngineEnd(0, FinishReason.LENGTH, first, len(leg.token_ids), len(first)))
        return
    handle = engine.source.hold(list(request.pages))
    params = {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_engine_id": engine.instance,
        "remote_host": engine.bootstrap.host,
        "remote_port": engine.bootstrap.port,
        "remote_block_ids": list(range(len(request.pages))),
        "remote_request_id": handle,
    }
    end = EngineEnd(0, FinishReason.LENGTH, first, len(leg.token_ids), len(first), transfer_params=json.dumps(params))
    request.emit(end)


async def _generate(engine: ScriptedEngine, request: ScriptedRequest, *, prefill_tokens: int = 0) -> None:
    leg = request.leg
    async with engine.slot():
        await engine.pause(engine.script.prefill_token_s * prefill_tokens)
        answers = [
            answer(leg.token_ids, request.pages, leg.sampling, choice, leg.adapters) for choice in range(leg.sampling.n)
        ]
        limit = engine.faults.error_after_tokens
        cached = 0 if prefill_tokens else len(request.pages) * PAGE_TOKENS
        for position in range(max(len(each.token_ids) for each in answers)):
            if limit is not None and position >= limit:
                raise failed(engine, Reason.ENGINE_ERROR, f"failed after {position} tokens")
            await engine.pause(engine.script.step_s)
            for choice, each in enumerate(answers):
                if position >= len(each.token_ids):
                    continue
                if leg.is_streaming:
                    token = each.token_ids[position] ^ request.is_corrupted
                    request.emit(EngineChunk(choice, (token,), len(leg.token_ids), cached))
                if position + 1 == len(each.token_ids):
                    request.emit(
                        EngineEnd(
                            choice,
                            each.reason,
                            () if leg.is_streaming else each.token_ids,
                            len(leg.token_ids),
                            len(each.token_ids),
                            cached,
                            each.matched_stop,
                        )
                    )
