"""How a scripted decode comes by its KV pages: it is written to in a room, pulls a handle, or fetches a named transfer.

A Mooncake fetch has the habit that routers must know of: where prefill is gone, or the transfer never was, it waits for
minutes, and its memory stays taken as long even when its request is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tandem_router.errors import Code, Reason
from tandem_router.model.failure import EngineFailure
from tandem_router.model.pairing import Rendezvous
from tandem_router.testing.scripted_kv import KvFetch
from tandem_router.testing.scripted_kv_messages import (
    Fetch,
    Fetched,
    Knock,
    KvFailed,
    Page,
    PagesDone,
    Pull,
    Release,
)
from tandem_router.testing.scripted_model import MISSING_PAGE, PAGE_TOKENS
from tandem_router.testing.virtual_network import Endpoint, Receiver, Refused

if TYPE_CHECKING:
    from tandem_router.testing.scripted_engine import ScriptedEngine
    from tandem_router.testing.scripted_request import ScriptedRequest

__all__ = ["failed", "fetch_transfer", "pull", "receive_in_room"]


def failed(engine: ScriptedEngine, reason: Reason, sentence: str) -> EngineFailure:
    """How this engine says that a request went wrong."""
    code = Code.OK if engine.faults.is_error_under_ok or not engine.script.is_sglang else Code.INTERNAL
    return EngineFailure(reason, sentence, code=code)


async def _connect(engine: ScriptedEngine, request: ScriptedRequest, address: str, receiver: Receiver) -> Endpoint:
    endpoint = await engine.network.connect(address, receiver)
    engine.endpoints[endpoint] = None

    def disconnect() -> None:
        endpoint.close(keep_hearing=True)
        engine.endpoints.pop(endpoint, None)

    request.resources.callback(disconnect)
    return endpoint


async def receive_in_room(engine: ScriptedEngine, request: ScriptedRequest, meeting: Rendezvous) -> None:
    """Knock, and let prefill write. A prefill that never comes keeps this waiting until the bootstrap timeout."""
    engine.claim_room(request, meeting.room)
    request.fetch = KvFetch(request.leg_id, engine.ledger)
    request.hold([MISSING_PAGE] * (len(request.leg.token_ids) // PAGE_TOKENS))
    try:
        async with asyncio.timeout(engine.script.bootstrap_timeout_s):
            endpoint = await _knock(engine, request, request.fetch, meeting)
            first = await request.fetch.next()
    except TimeoutError:
        raise failed(engine, Reason.KV_TRANSFER_FAILED, "no prefill came to the room") from None
    request.is_receiving_pages = isinstance(first, Page)
    await _write_pages(engine, request, request.fetch, first)
    request.is_receiving_pages = False
    endpoint.send(Fetched())


async def _knock(engine: ScriptedEngine, request: ScriptedRequest, fetch: KvFetch, meeting: Rendezvous) -> Endpoint:
    while True:
        try:
            endpoint = await _connect(engine, request, f"{meeting.host}:{meeting.port}", fetch)
        except Refused:
            await asyncio.sleep(1.0)
            continue
        endpoint.send(Knock(meeting.room))
        return endpoint


async def pull(engine: ScriptedEngine, request: ScriptedRequest, params: Mapping[str, Any]) -> None:
    """Fetch the pages of a handle and give it back; a prefill that cannot be reached is an error after a while."""
    handle, address = params["remote_request_id"], f"{params['remote_host']}:{params['remote_port']}"
    request.fetch = KvFetch(request.leg_id, engine.ledger)
    request.hold([MISSING_PAGE] * (len(request.leg.token_ids) // PAGE_TOKENS))
    try:
        endpoint = await _connect(engine, request, address, request.fetch)
    except Refused:
        await asyncio.sleep(engine.script.unreachable_prefill_s)
        raise failed(engine, Reason.ENGINE_ERROR, "the prefill worker cannot be reached") from None
    endpoint.send(Pull(handle))
    await _write_pages(engine, request, request.fetch, await request.fetch.next())
    if request.leg.sampling.n > 1:
        # vLLM makes one child per choice, and each child fetches with the same parameters.
        endpoint.send(Pull(handle))
    endpoint.send(Release(handle))
    request.has_released_handle = True


async def _write_pages(engine: ScriptedEngine, request: ScriptedRequest, fetch: KvFetch, first: object) -> None:
    if not await _written(engine, request, fetch, first):
        await asyncio.sleep(engine.script.peer_loss_s)
        raise failed(engine, Reason.KV_TRANSFER_FAILED, "the prefill worker is gone")


async def _written(engine: ScriptedEngine, request: ScriptedRequest, fetch: KvFetch, first: object | None) -> bool:
    """Whether all pages came; False when prefill is gone."""
    message = first
    try:
        while message is not None:
            match message:
                case Page(index, content):
                    request.pages[index] = content
                    engine.ledger.pages_received += 1
                case PagesDone():
                    return True
                case KvFailed(why):
                    raise failed(engine, Reason.KV_TRANSFER_FAILED, why)
            message = await fetch.next()
        return False
    finally:
        request.is_receiving_pages = False


async def fetch_transfer(engine: ScriptedEngine, request: ScriptedRequest, params: Mapping[str, Any]) -> None:
    """Ask prefill to write the pages of a transfer; an engine id that nobody has is an error at once."""
    asked = Fetch(params["transfer_id"], params["remote_engine_id"])
    request.fetch = KvFetch(request.leg_id, engine.ledger)
    request.hold([MISSING_PAGE] * (len(request.leg.token_ids) // PAGE_TOKENS))
    times_out_s = engine.network.loop.time() + engine.script.transfer_timeout_s
    request.has_released_handle = True  # from here on prefill knows of it, and frees it when it has written
    try:
        async with asyncio.timeout_at(times_out_s):
            first = await _ask(engine, request, request.fetch, asked, params["remote_bootstrap_addr"])
            request.is_receiving_pages = isinstance(first, Page)
            if await _written(engine, request, request.fetch, first):
                return
            await asyncio.Event().wait()  # prefill is gone: its half of the socket never answers
    except TimeoutError:
        raise failed(engine, Reason.KV_TRANSFER_FAILED, "the transfer never came") from None
    except asyncio.CancelledError:
        engine.strand(len(request.pages), times_out_s)
        raise


async def _ask(
    engine: ScriptedEngine, request: ScriptedRequest, fetch: KvFetch, asked: Fetch, bootstrap_url: str
) -> object | None:
    try:
        endpoint = await _connect(engine, request, bootstrap_url.removeprefix("http://"), fetch)
    except Refused:
        if asked.engine_id in engine.met:
            return None
        raise failed(engine, Reason.KV_TRANSFER_FAILED, f"engine id {asked.engine_id} was not found") from None
    endpoint.send(asked)
    if request.leg.sampling.n > 1:
        endpoint.send(asked)  # one child per choice, and each fetches with the same parameters
    first = await fetch.next()
    if isinstance(first, Page | PagesDone):
        engine.met[asked.engine_id] = None
    return first
