"""VllmEngine: handoff by NIXL-like transfer parameters, with vLLM's habits.

A prefill answers at once and keeps the pages for one knock or until the lease ends. A decode request that should fetch
pages but does not say which kills the engine. A transfer that fails ends as `complete` with finish_reason "error" under
status OK. An Abort ends the stream with `complete`, finish_reason "abort".
"""

from __future__ import annotations

import itertools
from typing import Any

from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import vllm_engine_pb2 as pb
from smg_grpc_proto.generated import vllm_engine_pb2_grpc as pb_grpc

from tandem_engine.options import Mode
from tandem_engine.requests import Emission, EngineError, EngineErrorReason, Phase
from tandem_engine.services import vllm_info
from tandem_engine.services.calls import Call
from tandem_engine.services.embedding import embed, refuse_unless_embedding
from tandem_engine.services.flushing import flush_like_vllm
from tandem_engine.services.kv_feed import stream_kv_events
from tandem_engine.services.legs import AggregatedLeg, DecodeLeg, Leg, PrefillLeg, RecomputingLeg
from tandem_engine.services.profile import start_like_vllm, stop_like_vllm
from tandem_engine.services.station import Context, Station, stop_when_gone
from tandem_engine.services.tokenizer_archive import TokenizerArchive
from tandem_engine.services.vllm_codec import VllmReplies, engine_request, handoff, prompt_of, remote, transfer
from tandem_engine.transfer import KvAddress

__all__ = ["VllmServicer"]


class VllmServicer(pb_grpc.VllmEngineServicer):
    """One engine under vLLM's protocol."""

    def __init__(self, station: Station) -> None:
        self._station = station
        self._archive = TokenizerArchive(station.options.model_folder)
        # Counted as open rooms in the ledger; vLLM has no rooms of its own.
        self._rooms = itertools.count(1)

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        station = self._station
        await station.refuse_unless_generating(context)
        try:
            prompt = prompt_of(request, station.engine.model)
            leg = await self._open(request, transfer(request) or {}, context)
        except EngineError as error:
            await station.refuse(error, context)
        call = Call(request.request_id, leg)
        station.calls.add(call)
        stop_when_gone(leg, context)
        try:
            with station.life.call():
                await self._stream(request, prompt, leg, context)
        finally:
            leg.stop("the call ended")
            station.calls.remove(call)

    async def _stream(self, request: pb.GenerateRequest, prompt: tuple[int, ...], leg: Leg, context: Context) -> None:
        station = self._station
        replies = VllmReplies(request, prompt, station.engine.model.config.eos_token_ids)
        async for emission in leg.handle:
            await station.faults.gate()
            if emission.finish in ("abort", "error") and station.life.is_dead:
                await station.dead(context)
            for message in replies.messages(emission, await self._handle_of(emission, leg)):
                await context.write(message)

    async def _open(self, request: pb.GenerateRequest, params: dict[str, Any], context: Context) -> Leg:
        station, mode = self._station, self._station.options.mode
        address: KvAddress | None = None
        phase = Phase.DECODE if mode is Mode.DECODE else Phase.AGGREGATED
        if mode is Mode.PREFILL and params.get("do_remote_decode"):
            phase = Phase.PREFILL
        elif mode is Mode.DECODE and params.get("do_remote_prefill"):
            try:
                address = remote(params)
            except (KeyError, TypeError, ValueError) as error:
                await station.die(f"do_remote_prefill without a usable {error}", context)
        room = None if phase is Phase.AGGREGATED or (phase is Phase.DECODE and address is None) else next(self._rooms)
        engine_id = station.new_id(request.request_id)
        if not request.HasField("data_parallel_rank"):
            request.data_parallel_rank = station.idle_rank()
        model = station.engine.model
        handle = station.engine.submit(engine_request(request, model, engine_id=engine_id, phase=phase, room=room))
        if phase is Phase.AGGREGATED:
            return AggregatedLeg(handle)
        if phase is Phase.PREFILL:
            return PrefillLeg(handle, station.engine, station.scope)
        if address is None:
            return RecomputingLeg(handle, station.scope)
        timeout_s = station.options.bootstrap_timeout_s
        return DecodeLeg(handle, station.engine, station.faults, station.scope, address, timeout_s=timeout_s)

    async def _handle_of(self, emission: Emission, leg: Leg) -> str | None:
        """A finished prefill's transfer parameters. vLLM gives none when the one token was a stop: nothing to go on."""
        if not isinstance(leg, PrefillLeg) or emission.finish != "length":
            return None
        station = self._station
        try:
            held = await leg.pass_on()
        except EngineError as error:
            if error.reason is EngineErrorReason.ABORTED:
                return None
            raise
        station.bootstrap.offers.open_handle(leg.handle.request_id, held, station.options.kv_lease_s)
        return handoff(
            held,
            engine_id=station.engine_id_of(held.rank),
            request_id=leg.handle.request_id,
            host=station.options.kv_host,
            port=station.bootstrap_port,
        )

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        await refuse_unless_embedding(self._station, context)
        emission = await embed(self._station, request.request_id, request.tokenized.input_ids, context)
        return pb.EmbedResponse(
            embedding=emission.embedding, embedding_dim=len(emission.embedding), prompt_tokens=emission.prompt_tokens
        )

    async def Abort(self, request: pb.AbortRequest, context: Context) -> pb.AbortResponse:
        for request_id in request.request_ids:
            self._station.calls.abort(request_id, "aborted by request", by_prefix=False)
        return pb.AbortResponse()

    async def HealthCheck(self, request: pb.HealthCheckRequest, context: Context) -> pb.HealthCheckResponse:
        cause = self._station.life.cause_of_death
        return pb.HealthCheckResponse(healthy=cause is None, message=cause or "Health")

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Context) -> pb.GetModelInfoResponse:
        return vllm_info.model_info(self._station)

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        return vllm_info.server_info(self._station)

    async def GetLoads(self, request: pb.GetLoadsRequest, context: Context) -> pb.GetLoadsResponse:
        return vllm_info.loads(self._station, request)

    async def FlushCache(
        self, request: common_pb2.FlushCacheRequest, context: Context
    ) -> common_pb2.FlushCacheResponse:
        return await flush_like_vllm(self._station, request, context)

    async def StartProfile(
        self, request: common_pb2.StartProfileRequest, context: Context
    ) -> common_pb2.ProfileResponse:
        return await start_like_vllm(self._station, request, context)

    async def StopProfile(self, request: common_pb2.StopProfileRequest, context: Context) -> common_pb2.ProfileResponse:
        return await stop_like_vllm(self._station, request, context)

    async def GetTokenizer(self, request: common_pb2.GetTokenizerRequest, context: Context) -> None:
        async for chunk in self._archive.chunks():
            await context.write(chunk)

    async def SubscribeKvEvents(self, request: common_pb2.SubscribeKvEventsRequest, context: Context) -> None:
        await stream_kv_events(self._station, request, context)
