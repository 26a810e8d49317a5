"""vLLM's protocol, scripted: counts per message, transfer parameters in JSON, Abort answered with a `complete`."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
from smg_grpc_proto.generated import vllm_engine_pb2 as pb
from smg_grpc_proto.generated import vllm_engine_pb2_grpc as pb_grpc

from tandem_router.model.spec import WorkerType
from tandem_router.testing.grpc_engines.answering import AfterAbort, Answering, Context
from tandem_router.testing.grpc_engines.archives import EOS_TOKEN_ID
from tandem_router.testing.grpc_engines.common_rpcs import CommonRpcs
from tandem_router.testing.grpc_engines.kv_feed import KvFeed
from tandem_router.testing.grpc_engines.logprobs import fill_input, fill_output
from tandem_router.testing.grpc_engines.station import Station
from tandem_router.testing.grpc_engines.work import Step, Work

__all__ = ["ScriptedVllm"]

_ROLES = {WorkerType.PREFILL: "kv_producer", WorkerType.DECODE: "kv_consumer", WorkerType.REGULAR: "kv_both"}


class ScriptedVllm(CommonRpcs, pb_grpc.VllmEngineServicer):
    """`VllmEngine`."""

    service = "vllm.grpc.engine.VllmEngine"

    def __init__(self, station: Station) -> None:
        self._station = station
        self.answering = Answering(station.current, AfterAbort.COMPLETES, "abort")
        self.feed = KvFeed(station.current, refusal=grpc.StatusCode.UNIMPLEMENTED)

    def attach(self, server: grpc.aio.Server) -> None:
        """Serve on it."""
        pb_grpc.add_VllmEngineServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> AsyncIterator[pb.GenerateResponse]:
        station = self._station
        await station.refuse_if_dead(context)
        wrong = self._wrong(request)
        if wrong is not None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, wrong)
        params = json.loads(request.kv_transfer_params_json or "{}")
        failure = await self._fetch(params, context) if params.get("do_remote_prefill") else None
        work = self._work(request)
        if failure is not None:
            yield self._complete(request, Step(0, (), (), failure), work, None)
            return
        async with contextlib.aclosing(self.answering.steps(work, context)) as steps:
            async for step in steps:
                if step.reason is None:
                    yield self._chunk(request, step)
                else:
                    # A prefill whose one token was a stop keeps nothing.
                    is_kept = params.get("do_remote_decode") and step.reason == "length"
                    handle = self._offer(request, params) if is_kept else None
                    yield self._complete(request, step, work, handle)

    async def _fetch(self, params: dict[str, Any], context: Context) -> str | None:
        """Pull the blocks; a finish_reason where that fails under status OK."""
        station = self._station
        transfer_id = params.get("transfer_id")
        if transfer_id is None:
            if not isinstance(params.get("remote_block_ids"), list):
                await station.die("do_remote_prefill without remote_block_ids", context)
            return None if station.meeting.has(str(params.get("remote_request_id"))) else "error"
        if not params.get("remote_engine_id") or not params.get("remote_bootstrap_addr"):
            return "error"
        await station.meeting.fetch(str(transfer_id))
        await asyncio.sleep(station.script.transfer_s)
        return None

    def _offer(self, request: pb.GenerateRequest, params: dict[str, Any]) -> str | None:
        """Keep the prompt's blocks for a decode; what NIXL returns, and nothing from Mooncake."""
        station = self._station
        if station.connector == "MooncakeConnector":
            station.meeting.offer(str(params.get("transfer_id")))
            return None
        if not station.connector:
            return None
        station.meeting.offer(request.request_id)
        # Spelled as nobody else would: what is relayed verbatim is seen to be.
        return json.dumps(
            {
                "do_remote_prefill": True,
                "do_remote_decode": False,
                "remote_block_ids": [3, 1, 4],
                "remote_engine_id": station.engine_id,
                "remote_request_id": request.request_id,
                "remote_host": station.script.host,
                "remote_port": 5600,
            },
            separators=(" ,  ", " :  "),
        )

    def _wrong(self, request: pb.GenerateRequest) -> str | None:
        sampling, prompt, script = request.sampling_params, request.tokenized.input_ids, self._station.script
        if not prompt:
            return "the prompt is empty"
        if max(prompt) >= script.vocab_size:
            return f"token id {max(prompt)} is out of vocabulary"
        if len(prompt) >= script.context_length:
            return "the prompt is longer than the context"
        if sampling.temperature < 0 or not 0 <= sampling.top_p <= 1:
            return "temperature must be at least 0 and top_p in (0, 1]"
        return None

    def _work(self, request: pb.GenerateRequest) -> Work:
        sampling = request.sampling_params
        return Work(
            request_id=request.request_id,
            prompt=tuple(request.tokenized.input_ids),
            is_streaming=request.stream,
            n=sampling.n or 1,
            max_tokens=sampling.max_tokens if sampling.HasField("max_tokens") else None,
            min_tokens=sampling.min_tokens,
            stops=frozenset(sampling.stop_token_ids),
            ignores_eos=sampling.ignore_eos,
        )

    def _chunk(self, request: pb.GenerateRequest, step: Step) -> pb.GenerateResponse:
        chunk = pb.GenerateStreamChunk(
            token_ids=step.ids,
            prompt_tokens=len(request.tokenized.input_ids),
            completion_tokens=len(step.ids),
            index=step.index,
        )
        self._logprobs(request, chunk, step.ids, step.is_first)
        return pb.GenerateResponse(chunk=chunk)

    def _complete(self, request: pb.GenerateRequest, step: Step, work: Work, handle: str | None) -> pb.GenerateResponse:
        ids = step.ids if work.is_streaming else step.all_ids
        complete = pb.GenerateComplete(
            output_ids=ids,
            finish_reason=step.reason,
            prompt_tokens=len(request.tokenized.input_ids),
            completion_tokens=len(ids),
            index=step.index,
            # A stop by the end-of-sequence token names no matched stop.
            matched_token_id=step.matched if step.matched != EOS_TOKEN_ID else None,
            kv_transfer_params_json=handle,
        )
        self._logprobs(request, complete, ids, not work.is_streaming)
        return pb.GenerateResponse(complete=complete)

    def _logprobs(self, request: pb.GenerateRequest, message: Any, ids: tuple[int, ...], is_first: bool) -> None:
        sampling = request.sampling_params
        if sampling.HasField("logprobs"):
            fill_output(message.output_logprobs, ids, sampling.logprobs)
        if sampling.HasField("prompt_logprobs") and is_first:
            fill_input(message.input_logprobs, request.tokenized.input_ids, sampling.prompt_logprobs)

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        await self._station.refuse_if_dead(context)
        ids = request.tokenized.input_ids
        return pb.EmbedResponse(embedding=[len(ids), sum(ids)], embedding_dim=2, prompt_tokens=len(ids))

    async def Abort(self, request: pb.AbortRequest, context: Context) -> pb.AbortResponse:
        for request_id in request.request_ids:
            self.answering.abort(request_id)
        return pb.AbortResponse()

    async def HealthCheck(self, request: pb.HealthCheckRequest, context: Context) -> pb.HealthCheckResponse:
        is_dead = self._station.is_dead
        return pb.HealthCheckResponse(healthy=not is_dead, message="EngineDeadError" if is_dead else "Healthy")

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Context) -> pb.GetModelInfoResponse:
        script = self._station.script
        return pb.GetModelInfoResponse(
            model_path=f"/models/{script.model}",
            served_model_name=script.model,
            is_generation=True,
            max_context_length=script.context_length,
            vocab_size=script.vocab_size,
            eos_token_ids=[EOS_TOKEN_ID],
        )

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        station, script = self._station, self._station.script
        has_connector = bool(station.connector)
        return pb.GetServerInfoResponse(
            uptime_seconds=station.age_s,
            server_type="vllm-grpc",
            kv_connector=station.connector,
            kv_role=_ROLES[script.mode] if has_connector else "",
            kv_engine_id=station.engine_id if has_connector else "",
            data_parallel_size=script.dp_size,
            kv_cache_dtype=script.kv_dtype,
            block_size=script.block_size,
            pairing_protocol=script.pairing_protocol,
            max_num_seqs=script.max_running,
        )

    async def GetLoads(self, request: pb.GetLoadsRequest, context: Context) -> pb.GetLoadsResponse:
        rank = request.dp_rank if request.HasField("dp_rank") else None
        answer: pb.GetLoadsResponse = self._station.loads(pb, self.answering, rank)
        return answer
