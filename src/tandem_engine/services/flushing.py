"""FlushCache: forget every cached block, once nobody refers to a page. The engines differ in how they say no."""

from __future__ import annotations

import asyncio
import math

import grpc
from smg_grpc_proto.generated import common_pb2 as pb

from tandem_engine.services.station import Context, Station

__all__ = ["flush_like_sglang", "flush_like_vllm"]

POLL_S = 0.02
"""How often a waiting flush looks; vLLM's servicer tries every 0.1 s."""

_BUSY = "requests may be in flight"


async def flush_like_sglang(station: Station, request: pb.FlushCacheRequest, context: Context) -> pb.FlushCacheResponse:
    """success=false under status OK when requests are in flight, at once or after `timeout_s`."""
    if station.life.is_dead:
        await station.dead(context)
    if not await _idle_within(station, request.timeout_s, context):
        return pb.FlushCacheResponse(success=False, message=f"Flush cache failed; {_BUSY}")
    return _flushed(station)


async def flush_like_vllm(station: Station, request: pb.FlushCacheRequest, context: Context) -> pb.FlushCacheResponse:
    """Success=false at once without a timeout, DEADLINE_EXCEEDED after one; INVALID_ARGUMENT for a timeout below 0.

    vLLM refuses while any block is not freed, those held for a decode engine included.
    """
    if station.life.is_dead:
        await station.dead(context)
    if not math.isfinite(request.timeout_s) or request.timeout_s < 0:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "timeout_s must be finite and non-negative")
    if not await _idle_within(station, request.timeout_s, context):
        if request.timeout_s:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"Flush cache timed out; {_BUSY}")
        return pb.FlushCacheResponse(success=False, message=f"KV prefix cache reset refused; {_BUSY}")
    return _flushed(station)


async def _idle_within(station: Station, timeout_s: float, context: Context) -> bool:
    """Whether nobody refers to a page, now or before the timeout is over. Aborts the call when the engine dies."""
    if not timeout_s > 0:
        return station.engine.is_idle
    try:
        async with asyncio.timeout(timeout_s):
            while not station.engine.is_idle:  # noqa: ASYNC110 - pages come free without an event
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        return False
    if station.life.is_dead:
        await station.dead(context)
    return True


def _flushed(station: Station) -> pb.FlushCacheResponse:
    freed = station.engine.clear_cache()
    return pb.FlushCacheResponse(success=True, message=f"Cache flushed successfully; {freed} pages freed")
