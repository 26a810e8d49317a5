"""MLX's protocol, scripted: an empty `complete`, an abort that ends the stream with OK and nothing, one choice only."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import mlx_engine_pb2 as pb
from smg_grpc_proto.generated import mlx_engine_pb2_grpc as pb_grpc

from tandem_router.testing.grpc_engines.answering import AfterAbort, Answering, Context
from tandem_router.testing.grpc_engines.archives import EOS_TOKEN_ID
from tandem_router.testing.grpc_engines.kv_feed import KvFeed
from tandem_router.testing.grpc_engines.logprobs import fill_output
from tandem_router.testing.grpc_engines.station import Station
from tandem_router.testing.grpc_engines.work import Step, Work

__all__ = ["ScriptedMlx"]


class ScriptedMlx(pb_grpc.MlxEngineServicer):
    """`MlxEngine`. It hangs on an empty prompt and its process dies of a token outside the vocabulary."""

    service = "mlx.grpc.engine.MlxEngine"

    def __init__(self, station: Station) -> None:
        self._station = station
        self.answering = Answering(station.current, AfterAbort.ENDS, "")
        self.feed: KvFeed | None = None

    def attach(self, server: grpc.aio.Server) -> None:
        """Serve on it."""
        pb_grpc.add_MlxEngineServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> AsyncIterator[pb.GenerateResponse]:
        station, prompt, sampling = self._station, request.tokenized.input_ids, request.sampling_params
        await station.refuse_if_dead(context)
        if not prompt:
            station.deaths.append("an empty prompt hangs it")
            await asyncio.Event().wait()
        if max(prompt) >= station.script.vocab_size:
            await station.die("a token id outside the vocabulary", context)
        work = Work(
            request_id=request.request_id,
            prompt=tuple(prompt),
            is_streaming=request.stream,
            max_tokens=sampling.max_tokens if sampling.HasField("max_tokens") else None,
            stops=frozenset(sampling.stop_token_ids),
            ignores_eos=sampling.ignore_eos,
        )
        async with contextlib.aclosing(self.answering.steps(work, context)) as steps:
            async for step in steps:
                yield _chunk(request, step) if step.reason is None else _complete(request, step)

    async def HealthCheck(self, request: pb.HealthCheckRequest, context: Context) -> pb.HealthCheckResponse:
        is_dead = self._station.is_dead
        return pb.HealthCheckResponse(healthy=not is_dead, message="generation thread exited" if is_dead else "OK")

    async def Abort(self, request: pb.AbortRequest, context: Context) -> pb.AbortResponse:
        for request_id in request.request_ids:
            self.answering.abort(request_id)
        return pb.AbortResponse()

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Context) -> pb.GetModelInfoResponse:
        script = self._station.script
        return pb.GetModelInfoResponse(
            model_path=f"/models/{script.model}",
            is_generation=True,
            max_context_length=script.context_length,
            vocab_size=script.vocab_size,
            served_model_name=script.model,
            eos_token_ids=[EOS_TOKEN_ID],
        )

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        return pb.GetServerInfoResponse(
            server_type="mlx-grpc", active_requests=self.answering.running, uptime_seconds=self._station.age_s
        )

    async def GetTokenizer(
        self, request: common_pb2.GetTokenizerRequest, context: Context
    ) -> AsyncIterator[common_pb2.GetTokenizerChunk]:
        async for chunk in self._station.tokenizer(context):
            yield chunk


def _chunk(request: pb.GenerateRequest, step: Step) -> pb.GenerateResponse:
    chunk = pb.GenerateStreamChunk(
        token_ids=step.ids,
        prompt_tokens=len(request.tokenized.input_ids),
        completion_tokens=len(step.all_ids),
        index=step.index,
    )
    if request.sampling_params.HasField("logprobs"):
        fill_output(chunk.output_logprobs, step.ids, request.sampling_params.logprobs)
    return pb.GenerateResponse(chunk=chunk)


def _complete(request: pb.GenerateRequest, step: Step) -> pb.GenerateResponse:
    ids = () if request.stream else step.all_ids
    complete = pb.GenerateComplete(
        output_ids=ids,
        finish_reason=step.reason,
        prompt_tokens=len(request.tokenized.input_ids),
        completion_tokens=len(step.all_ids),
        index=step.index,
        matched_stop_token_id=step.matched,
    )
    if ids and request.sampling_params.HasField("logprobs"):
        fill_output(complete.output_logprobs, ids, request.sampling_params.logprobs)
    return pb.GenerateResponse(complete=complete)
