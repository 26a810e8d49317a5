"""SGLang's protocol, scripted: running counts, a `complete` that repeats the last chunk, streams deaf to Abort."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from smg_grpc_proto.generated import sglang_scheduler_pb2 as pb
from smg_grpc_proto.generated import sglang_scheduler_pb2_grpc as pb_grpc

from tandem_router.model.spec import WorkerType
from tandem_router.testing.grpc_engines.answering import AfterAbort, Answering, Context
from tandem_router.testing.grpc_engines.archives import EOS_TOKEN_ID
from tandem_router.testing.grpc_engines.common_rpcs import CommonRpcs
from tandem_router.testing.grpc_engines.kv_feed import KvFeed
from tandem_router.testing.grpc_engines.logprobs import fill_input, fill_output
from tandem_router.testing.grpc_engines.meeting import DuplicateRoomError, TransferFailedError
from tandem_router.testing.grpc_engines.station import Station
from tandem_router.testing.grpc_engines.work import Step, Work

__all__ = ["ScriptedSglang"]

_MODES = {WorkerType.PREFILL: "prefill", WorkerType.DECODE: "decode"}


class ScriptedSglang(CommonRpcs, pb_grpc.SglangSchedulerServicer):
    """`SglangScheduler`."""

    service = "sglang.grpc.scheduler.SglangScheduler"

    def __init__(self, station: Station) -> None:
        self._station = station
        self.answering = Answering(station.current, AfterAbort.STAYS_SILENT, "abort", mixes_ids=True)
        self.feed = KvFeed(station.current, refusal=grpc.StatusCode.FAILED_PRECONDITION)

    def attach(self, server: grpc.aio.Server) -> None:
        """Serve on it."""
        pb_grpc.add_SglangSchedulerServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> AsyncIterator[pb.GenerateResponse]:
        station, mode = self._station, _MODES.get(self._station.script.mode)
        await station.refuse_if_dead(context)
        if not request.tokenized.input_ids:
            await station.die("an empty prompt", context)
        if mode is not None and not request.HasField("disaggregated_params"):
            await station.die(f"a {mode} request without disaggregated_params", context)
        if request.lora_id and request.lora_id not in station.adapters:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"LoRA adapter {request.lora_id} is not loaded")
        if len(request.tokenized.input_ids) >= station.script.context_length:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the input is longer than the context")
        work = self._work(request)
        try:
            async with contextlib.AsyncExitStack() as stack:
                if mode is not None:
                    room = request.disaggregated_params.bootstrap_room
                    wait_s = station.script.bootstrap_timeout_s
                    await stack.enter_async_context(station.meeting.at(room, mode, wait_s))
                    await self._transfer(mode, room)
                steps = await stack.enter_async_context(contextlib.aclosing(self.answering.steps(work, context)))
                async for step in steps:
                    if step.reason is None:
                        yield self._chunk(request, step)
                    else:
                        yield self._complete(request, step, work)
        except DuplicateRoomError as error:
            await station.die(str(error), context)
        except TransferFailedError as error:
            await context.abort(grpc.StatusCode.INTERNAL, f"KV transfer failed: {error}")

    async def _transfer(self, mode: str, room: int) -> None:
        station = self._station
        if mode == "prefill":
            await asyncio.sleep(station.script.transfer_s)
            station.meeting.deliver(room)
        else:
            await station.meeting.delivered(room)

    def _work(self, request: pb.GenerateRequest) -> Work:
        sampling = request.sampling_params
        return Work(
            request_id=request.request_id,
            prompt=tuple(request.tokenized.input_ids),
            is_streaming=request.stream,
            n=sampling.n,
            max_tokens=sampling.max_new_tokens if sampling.HasField("max_new_tokens") else None,
            min_tokens=sampling.min_new_tokens,
            # With ignore_eos SGLang ignores the other stop tokens too.
            stops=frozenset() if sampling.ignore_eos else frozenset(sampling.stop_token_ids),
            ignores_eos=sampling.ignore_eos,
            is_prefill=self._station.script.mode is WorkerType.PREFILL,
        )

    def _chunk(self, request: pb.GenerateRequest, step: Step) -> pb.GenerateResponse:
        chunk = pb.GenerateStreamChunk(
            token_ids=step.ids,
            prompt_tokens=len(request.tokenized.input_ids),
            completion_tokens=len(step.all_ids),
            index=step.index,
        )
        self._logprobs(request, chunk, step.ids, step.is_first)
        return pb.GenerateResponse(request_id=request.request_id, chunk=chunk)

    def _complete(self, request: pb.GenerateRequest, step: Step, work: Work) -> pb.GenerateResponse:
        ids = step.ids if work.is_streaming else step.all_ids
        complete = pb.GenerateComplete(
            output_ids=ids,
            finish_reason=step.reason,
            prompt_tokens=len(request.tokenized.input_ids),
            completion_tokens=len(step.all_ids),
            index=step.index,
            matched_token_id=step.matched,
        )
        self._logprobs(request, complete, ids, not work.is_streaming)
        return pb.GenerateResponse(request_id=request.request_id, complete=complete)

    def _logprobs(self, request: pb.GenerateRequest, message: Any, ids: tuple[int, ...], is_first: bool) -> None:
        if not request.return_logprob:
            return
        fill_output(message.output_logprobs, ids, request.top_logprobs_num)
        if is_first and request.logprob_start_len >= 0:
            fill_input(message.input_logprobs, request.tokenized.input_ids, request.top_logprobs_num)

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        await self._station.refuse_if_dead(context)
        ids = request.tokenized.input_ids
        return pb.EmbedResponse(embedding=[len(ids), sum(ids)], embedding_dim=2, prompt_tokens=len(ids))

    async def Abort(self, request: pb.AbortRequest, context: Context) -> pb.AbortResponse:
        # SGLang takes every id that begins so.
        found = self.answering.abort(request.request_id, by_prefix=True)
        return pb.AbortResponse(success=found, message="" if found else "not found")

    async def HealthCheck(self, request: pb.HealthCheckRequest, context: Context) -> pb.HealthCheckResponse:
        is_dead = self._station.is_dead
        return pb.HealthCheckResponse(healthy=not is_dead, message="engine is dead" if is_dead else "ok")

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
        answer = pb.GetServerInfoResponse(
            uptime_seconds=station.age_s,
            sglang_version="0.5.23-scripted",
            server_type="grpc",
            start_time=Timestamp(seconds=station.start_s),
        )
        args: dict[str, Any] = {
            "dp_size": script.dp_size,
            "page_size": script.block_size,
            "kv_cache_dtype": script.kv_dtype,
            "max_running_requests": script.max_running,
            "load_balance_method": script.load_balance_method,
            "pairing_protocol": script.pairing_protocol,
            "disaggregation_mode": _MODES.get(script.mode, "null"),
            "disaggregation_transfer_backend": script.kv_connector or "mooncake",
        }
        if script.bootstrap_port is not None:
            args["disaggregation_bootstrap_port"] = script.bootstrap_port
        answer.server_args.update(args)
        return answer

    async def GetLoads(self, request: pb.GetLoadsRequest, context: Context) -> pb.GetLoadsResponse:
        rank = request.dp_rank if request.HasField("dp_rank") else None
        answer: pb.GetLoadsResponse = self._station.loads(pb, self.answering, rank)
        return answer

    async def LoadLoRAAdapter(self, request: pb.LoadLoRAAdapterRequest, context: Context) -> pb.LoadLoRAAdapterResponse:
        adapters = self._station.adapters
        if request.lora_name in adapters:
            return pb.LoadLoRAAdapterResponse(success=False, message=f"{request.lora_name} is loaded already")
        adapters.append(request.lora_name)
        return pb.LoadLoRAAdapterResponse(success=True, loaded_lora_ids=adapters)

    async def UnloadLoRAAdapter(
        self, request: pb.UnloadLoRAAdapterRequest, context: Context
    ) -> pb.UnloadLoRAAdapterResponse:
        adapters = self._station.adapters
        if request.lora_name not in adapters:
            return pb.UnloadLoRAAdapterResponse(success=False, message=f"{request.lora_name} is not loaded")
        adapters.remove(request.lora_name)
        return pb.UnloadLoRAAdapterResponse(success=True, loaded_lora_ids=adapters)

    async def ListLoadedLoRAAdapters(
        self, request: pb.ListLoadedLoRAAdaptersRequest, context: Context
    ) -> pb.ListLoadedLoRAAdaptersResponse:
        loaded = [
            pb.LoadedLoRAAdapter(lora_id=name, lora_name=name, lora_path=f"/adapters/{name}")
            for name in self._station.adapters
        ]
        return pb.ListLoadedLoRAAdaptersResponse(loaded_adapters=loaded)
