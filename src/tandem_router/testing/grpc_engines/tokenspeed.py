"""TokenSpeed's protocol, scripted: as SGLang's, but a matched stop token is cut off and an abort is a status."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from smg_grpc_proto.generated import tokenspeed_scheduler_pb2 as pb
from smg_grpc_proto.generated import tokenspeed_scheduler_pb2_grpc as pb_grpc

from tandem_router.model.spec import WorkerType
from tandem_router.testing.grpc_engines.answering import AfterAbort, Answering, Context
from tandem_router.testing.grpc_engines.archives import EOS_TOKEN_ID
from tandem_router.testing.grpc_engines.common_rpcs import CommonRpcs
from tandem_router.testing.grpc_engines.kv_feed import KvFeed
from tandem_router.testing.grpc_engines.logprobs import fill_output
from tandem_router.testing.grpc_engines.meeting import DuplicateRoomError, TransferFailedError
from tandem_router.testing.grpc_engines.station import Station
from tandem_router.testing.grpc_engines.work import Step, Work

__all__ = ["ScriptedTokenspeed"]

_MODES = {WorkerType.PREFILL: "prefill", WorkerType.DECODE: "decode"}


class ScriptedTokenspeed(CommonRpcs, pb_grpc.TokenSpeedSchedulerServicer):
    """`TokenSpeedScheduler`."""

    service = "tokenspeed.grpc.scheduler.TokenSpeedScheduler"

    def __init__(self, station: Station) -> None:
        self._station = station
        self.answering = Answering(station.current, AfterAbort.FAILS, "abort")
        self.feed = KvFeed(station.current, refusal=grpc.StatusCode.FAILED_PRECONDITION)

    def attach(self, server: grpc.aio.Server) -> None:
        """Serve on it."""
        pb_grpc.add_TokenSpeedSchedulerServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> AsyncIterator[pb.GenerateResponse]:
        station, mode = self._station, _MODES.get(self._station.script.mode)
        await station.refuse_if_dead(context)
        if not request.tokenized.input_ids:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "tokenized.input_ids is required")
        if mode is not None and not request.HasField("kv_bootstrap_info"):
            await station.die(f"a {mode} request without kv_bootstrap_info", context)
        work = self._work(request)
        try:
            async with contextlib.AsyncExitStack() as stack:
                if mode is not None:
                    room, wait_s = request.kv_bootstrap_info.bootstrap_room, station.script.bootstrap_timeout_s
                    await stack.enter_async_context(station.meeting.at(room, mode, wait_s))
                    await self._transfer(mode, room)
                steps = await stack.enter_async_context(contextlib.aclosing(self.answering.steps(work, context)))
                async for step in steps:
                    message = self._message(request, step)
                    if message is not None:
                        yield message
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
            n=sampling.n or 1,
            max_tokens=sampling.max_new_tokens if sampling.HasField("max_new_tokens") else None,
            min_tokens=sampling.min_new_tokens,
            stops=frozenset(sampling.stop_token_ids),
            ignores_eos=sampling.ignore_eos,
            is_prefill=self._station.script.mode is WorkerType.PREFILL,
        )

    def _message(self, request: pb.GenerateRequest, step: Step) -> pb.GenerateResponse | None:
        """None: nothing is left of a step but its stop token, so no chunk is sent unless it is the choice's first."""
        matched_at_end = step.reason if step.reason is not None else self._ends(request, step)
        ids = step.ids if request.stream else step.all_ids
        if matched_at_end and not request.sampling_params.no_stop_trim:
            ids = ids[:-1] if step.matched is not None or step.reason is None else ids
        counts: dict[str, Any] = {
            "prompt_tokens": len(request.tokenized.input_ids),
            "completion_tokens": len(step.all_ids),
            "index": step.index,
        }
        if step.reason is None:
            if not ids and not step.is_first:
                return None
            chunk = pb.GenerateStreamChunk(token_ids=ids, **counts)
            self._logprobs(request, chunk, ids)
            return pb.GenerateResponse(request_id=request.request_id, chunk=chunk)
        complete = pb.GenerateComplete(
            output_ids=ids, finish_reason=step.reason, matched_token_id=step.matched, **counts
        )
        self._logprobs(request, complete, ids)
        return pb.GenerateResponse(request_id=request.request_id, complete=complete)

    def _ends(self, request: pb.GenerateRequest, step: Step) -> bool:
        """Whether a chunk's last token is the stop that ends its choice."""
        sampling = request.sampling_params
        last = step.ids[-1] if step.ids else None
        return len(step.all_ids) > sampling.min_new_tokens and (
            last in sampling.stop_token_ids or (last == EOS_TOKEN_ID and not sampling.ignore_eos)
        )

    def _logprobs(self, request: pb.GenerateRequest, message: Any, ids: tuple[int, ...]) -> None:
        if request.return_logprob:
            fill_output(message.output_logprobs, ids, request.top_logprobs_num)

    async def Abort(self, request: pb.AbortRequest, context: Context) -> pb.AbortResponse:
        found = self.answering.abort(request.request_id)
        word = f"Request {request.request_id} not found"
        return pb.AbortResponse(success=found, message="Aborted" if found else word)

    async def HealthCheck(self, request: pb.HealthCheckRequest, context: Context) -> pb.HealthCheckResponse:
        is_dead = self._station.is_dead
        return pb.HealthCheckResponse(healthy=not is_dead, message="engine is dead" if is_dead else "ok")

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Context) -> pb.GetModelInfoResponse:
        script = self._station.script
        return pb.GetModelInfoResponse(
            model_path=f"/models/{script.model}",
            served_model_name=script.model,
            max_context_length=script.context_length,
            vocab_size=script.vocab_size,
            eos_token_ids=[EOS_TOKEN_ID],
        )

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        station, script = self._station, self._station.script
        answer = pb.GetServerInfoResponse(
            uptime_seconds=station.age_s,
            tokenspeed_version="0.1-scripted",
            start_time=Timestamp(seconds=station.start_s),
        )
        args: dict[str, Any] = {
            "page_size": script.block_size,
            "kv_cache_dtype": script.kv_dtype,
            "max_running_requests": script.max_running,
            "load_balance_method": script.load_balance_method,
            "pairing_protocol": script.pairing_protocol,
            "disaggregation_mode": _MODES.get(script.mode, "null"),
            "disaggregation_transfer_backend": script.kv_connector or "mooncake",
        }
        if script.dp_size > 1:
            args["dp_size"] = script.dp_size
        if script.bootstrap_port is not None:
            args["disaggregation_bootstrap_port"] = script.bootstrap_port
        answer.server_args.update(args)
        return answer

    async def GetLoads(self, request: pb.GetLoadsRequest, context: Context) -> pb.GetLoadsResponse:
        rank = request.dp_rank if request.HasField("dp_rank") else None
        answer: pb.GetLoadsResponse = self._station.loads(pb, self.answering, rank)
        return answer
