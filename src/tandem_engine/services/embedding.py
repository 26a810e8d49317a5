"""Embed, the same under both protocols: one prompt, one vector, through the same batch and prefix cache as Generate."""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from tandem_engine.options import Mode
from tandem_engine.requests import Emission, EngineError, EngineRequest, Phase
from tandem_engine.services.calls import Call
from tandem_engine.services.legs import AggregatedLeg
from tandem_engine.services.station import Context, Station, stop_when_gone

__all__ = ["embed", "refuse_unless_embedding"]


async def refuse_unless_embedding(station: Station, context: Context) -> None:
    """Aborts the call when this engine was not started for embeddings: INVALID_ARGUMENT, as vLLM does."""
    await station.refuse_if_unfit(context)
    if not station.options.task.embeds:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "This model does not support pooling")
    if station.options.mode is not Mode.AGGREGATED:
        text = f"a {station.options.mode.value} engine serves one leg of generation, no embeddings"
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)


async def embed(
    station: Station, request_id: str, token_ids: Sequence[int], context: Context, *, dp_rank: int | None = None
) -> Emission:
    """The emission with the vector. Aborts the call for what cannot be served; an Abort rpc ends it with ABORTED."""
    asked = EngineRequest(
        request_id=station.new_id(request_id),
        token_ids=tuple(token_ids),
        phase=Phase.EMBED,
        dp_rank=station.idle_rank() if dp_rank is None else dp_rank,
    )
    try:
        handle = station.engine.submit(asked)
    except EngineError as error:
        await station.refuse(error, context)
    call = Call(request_id, AggregatedLeg(handle))
    station.calls.add(call)
    stop_when_gone(call.leg, context)
    try:
        with station.life.call():
            emission = await anext(handle)
            await station.faults.gate()
    finally:
        call.leg.stop("the call ended")
        station.calls.remove(call)
    if emission.finish != "length":
        if station.life.is_dead:
            await station.dead(context)
        code = grpc.StatusCode.ABORTED if emission.finish == "abort" else grpc.StatusCode.INTERNAL
        await context.abort(code, emission.error or "the request ended without an embedding")
    return emission
