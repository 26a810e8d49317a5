"""SglangScheduler: rendezvous at a bootstrap room, with SGLang's habits.

Both legs get the same room at once; the prefill's stream says nothing until the pages were taken. A request without an
input, a prefill or decode request without disaggregated_params, and a second live request in one room kill the engine.
An Abort stops the work and leaves the stream silent.
"""

from __future__ import annotations

import asyncio

import grpc
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import sglang_scheduler_pb2 as pb
from smg_grpc_proto.generated import sglang_scheduler_pb2_grpc as pb_grpc

from tandem_engine.offers import DuplicateRoomError
from tandem_engine.options import Mode
from tandem_engine.requests import Emission, EngineError, Phase
from tandem_engine.services import sglang_info
from tandem_engine.services.calls import Call
from tandem_engine.services.embedding import embed, refuse_unless_embedding
from tandem_engine.services.flushing import flush_like_sglang
from tandem_engine.services.kv_feed import stream_kv_events
from tandem_engine.services.legs import AggregatedLeg, DecodeLeg, Leg, PrefillLeg
from tandem_engine.services.profile import start_like_sglang, stop_like_sglang
from tandem_engine.services.sglang_adapters import list_adapters, load_adapter, unload_adapter, wanted_adapter
from tandem_engine.services.sglang_codec import SglangReplies, engine_request
from tandem_engine.services.station import Context, Station, stop_when_gone
from tandem_engine.services.tokenizer_archive import TokenizerArchive
from tandem_engine.transfer import KvAddress

__all__ = ["SglangServicer"]

_PHASES = {Mode.PREFILL: Phase.PREFILL, Mode.DECODE: Phase.DECODE, Mode.AGGREGATED: Phase.AGGREGATED}

HEALTH_DEADLINE_S = 20.0
"""How long SGLang's HealthCheck waits for its one-token generation (servicer 0.14.1)."""


class SglangServicer(pb_grpc.SglangSchedulerServicer):
    """One engine under SGLang's protocol."""

    def __init__(self, station: Station) -> None:
        self._station = station
        self._phase = _PHASES[station.options.mode]
        self._decode_rooms: set[int] = set()
        self._archive = TokenizerArchive(station.options.model_folder)

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        station = self._station
        await station.refuse_unless_generating(context)
        if not request.tokenized.input_ids:
            await station.die("a request without input ids", context)
        if self._phase is not Phase.AGGREGATED and not request.HasField("disaggregated_params"):
            await station.die(f"a {self._phase.value} request without disaggregated_params", context)
        leg = await self._open(request, context)
        call = Call(request.request_id, leg)
        station.calls.add(call)
        stop_when_gone(leg, context)
        try:
            with station.life.call():
                await self._stream(request, call, context)
        finally:
            leg.stop("the call ended")
            station.calls.remove(call)
            if self._phase is Phase.DECODE:
                self._decode_rooms.discard(request.disaggregated_params.bootstrap_room)

    async def _open(self, request: pb.GenerateRequest, context: Context) -> Leg:
        station, phase = self._station, self._phase
        params = request.disaggregated_params
        adapter = await wanted_adapter(station, request, context)
        room, offer = params.bootstrap_room, None
        try:
            if phase is Phase.PREFILL:
                offer = station.bootstrap.offers.open(room)
            elif phase is Phase.DECODE and room in self._decode_rooms:
                raise DuplicateRoomError(f"bootstrap_room {room} is in use")
            engine_id = station.new_id(request.request_id)
            handle = station.engine.submit(engine_request(request, engine_id=engine_id, phase=phase, adapter=adapter))
        except DuplicateRoomError as error:
            await station.die(str(error), context)
        except EngineError as error:
            if offer is not None:
                offer.settle(error.message)
            await station.refuse(error, context)
        if phase is Phase.AGGREGATED:
            return AggregatedLeg(handle)
        if phase is Phase.PREFILL:
            return PrefillLeg(handle, station.engine, station.scope, offer)
        self._decode_rooms.add(room)
        address = KvAddress(params.bootstrap_host, params.bootstrap_port, room=room)
        timeout_s = station.options.bootstrap_timeout_s
        return DecodeLeg(handle, station.engine, station.faults, station.scope, address, timeout_s=timeout_s)

    async def _stream(self, request: pb.GenerateRequest, call: Call, context: Context) -> None:
        replies = SglangReplies(request)
        async for emission in call.leg.handle:
            failure = None
            if emission.finish in ("stop", "length") and isinstance(call.leg, PrefillLeg):
                failure = await call.leg.delivered(self._station.options.kv_lease_s)
            if failure is not None or emission.finish in ("abort", "error"):
                await self._failed(request, call, emission, failure, context)
            await self._station.faults.gate()
            if not call.is_shadowed:
                for message in replies.messages(emission):
                    await context.write(message)
        if call.is_shadowed:
            await self._station.silence()

    async def _failed(
        self, request: pb.GenerateRequest, call: Call, emission: Emission, failure: str | None, context: Context
    ) -> None:
        station, leg = self._station, call.leg
        await station.faults.gate()
        if station.life.is_dead:
            await station.dead(context)
        if call.is_aborted:
            await station.silence()
        side = "Prefill" if self._phase is Phase.PREFILL else "Decode"
        if isinstance(leg, DecodeLeg):
            failure = leg.transfer_failure
        elif isinstance(leg, PrefillLeg):
            failure = failure or leg.transfer_failure
        if failure is not None:
            room = request.disaggregated_params.bootstrap_room
            text = f"{side} transfer failed for request {request.request_id} in bootstrap_room {room}: {failure}"
            await context.abort(grpc.StatusCode.INTERNAL, text)
        if emission.finish == "error":
            await context.abort(grpc.StatusCode.INTERNAL, emission.error or "the engine reports an error")
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the engine is stopping")

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        station = self._station
        await refuse_unless_embedding(station, context)
        if not request.tokenized.input_ids:
            await station.die("a request without input ids", context)
        # The field has no presence, so 0 cannot pin.
        pinned = request.data_parallel_rank or None
        emission = await embed(station, request.request_id, request.tokenized.input_ids, context, dp_rank=pinned)
        return pb.EmbedResponse(
            embedding=emission.embedding, embedding_dim=len(emission.embedding), prompt_tokens=emission.prompt_tokens
        )

    async def Abort(self, request: pb.AbortRequest, context: Context) -> pb.AbortResponse:
        # SGLang matches by prefix; an empty id would match every request, so it matches none.
        reason = request.reason or "aborted by request"
        found = request.request_id and self._station.calls.abort(request.request_id, reason, by_prefix=True)
        return pb.AbortResponse(success=bool(found), message="" if found else f"{request.request_id}: not found")

    async def HealthCheck(self, request: pb.HealthCheckRequest, context: Context) -> pb.HealthCheckResponse:
        station = self._station
        if station.faults.is_hung:
            # The real one waits for a token that it generates itself.
            await asyncio.sleep(HEALTH_DEADLINE_S)
            return pb.HealthCheckResponse(healthy=False, message=f"no output within {HEALTH_DEADLINE_S:g} s")
        cause = station.life.cause_of_death
        return pb.HealthCheckResponse(healthy=cause is None, message=cause or "Health check passed")

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Context) -> pb.GetModelInfoResponse:
        return sglang_info.model_info(self._station)

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        return sglang_info.server_info(self._station)

    async def GetLoads(self, request: pb.GetLoadsRequest, context: Context) -> pb.GetLoadsResponse:
        unknown = sorted(set(request.include) - sglang_info.SECTIONS)
        if unknown:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"include: unknown sections {', '.join(unknown)}")
        return sglang_info.loads(self._station, request)

    async def FlushCache(
        self, request: common_pb2.FlushCacheRequest, context: Context
    ) -> common_pb2.FlushCacheResponse:
        return await flush_like_sglang(self._station, request, context)

    async def StartProfile(
        self, request: common_pb2.StartProfileRequest, context: Context
    ) -> common_pb2.ProfileResponse:
        return await start_like_sglang(self._station, request, context)

    async def StopProfile(self, request: common_pb2.StopProfileRequest, context: Context) -> common_pb2.ProfileResponse:
        return await stop_like_sglang(self._station, request, context)

    async def GetTokenizer(self, request: common_pb2.GetTokenizerRequest, context: Context) -> None:
        async for chunk in self._archive.chunks():
            await context.write(chunk)

    async def LoadLoRAAdapter(self, request: pb.LoadLoRAAdapterRequest, context: Context) -> pb.LoadLoRAAdapterResponse:
        return await load_adapter(self._station, request, context)

    async def UnloadLoRAAdapter(
        self, request: pb.UnloadLoRAAdapterRequest, context: Context
    ) -> pb.UnloadLoRAAdapterResponse:
        return await unload_adapter(self._station, request, context)

    async def ListLoadedLoRAAdapters(
        self, request: pb.ListLoadedLoRAAdaptersRequest, context: Context
    ) -> pb.ListLoadedLoRAAdaptersResponse:
        return list_adapters(self._station)

    async def SubscribeKvEvents(self, request: common_pb2.SubscribeKvEventsRequest, context: Context) -> None:
        await stream_kv_events(self._station, request, context)
