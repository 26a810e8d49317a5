"""TensorRT-LLM's protocol, scripted: sequence_index, a `complete` with every token again, aborted = "cancelled"."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence

import grpc
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import trtllm_service_pb2 as pb
from smg_grpc_proto.generated import trtllm_service_pb2_grpc as pb_grpc

from tandem_router.testing.grpc_engines.answering import AfterAbort, Answering, Context
from tandem_router.testing.grpc_engines.kv_feed import KvFeed
from tandem_router.testing.grpc_engines.logprobs import top_ids
from tandem_router.testing.grpc_engines.station import Station
from tandem_router.testing.grpc_engines.work import Step, Work, logprob

__all__ = ["ScriptedTrtllm"]


class ScriptedTrtllm(pb_grpc.TrtllmServiceServicer):
    """`TrtllmService`. It has no GetLoads, and its Embed is UNIMPLEMENTED in the releases that there are."""

    service = "trtllm.TrtllmService"

    def __init__(self, station: Station) -> None:
        self._station = station
        self.answering = Answering(station.current, AfterAbort.COMPLETES, "cancelled")
        self.feed = KvFeed(station.current, refusal=grpc.StatusCode.FAILED_PRECONDITION)

    def attach(self, server: grpc.aio.Server) -> None:
        """Serve on it."""
        pb_grpc.add_TrtllmServiceServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> AsyncIterator[pb.GenerateResponse]:
        station, prompt = self._station, request.tokenized.input_token_ids
        await station.refuse_if_dead(context)
        if not prompt:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "Missing tokenized input")
        if len(prompt) >= station.script.context_length:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the prompt is longer than max_seq_len")
        work = Work(
            request_id=request.request_id,
            prompt=tuple(prompt),
            is_streaming=request.streaming,
            n=max(1, request.sampling_config.num_return_sequences),
            max_tokens=request.max_tokens or None,
            min_tokens=request.sampling_config.min_tokens,
            stops=frozenset(request.stop_token_ids),
            ignores_eos=request.ignore_eos,
        )
        async with contextlib.aclosing(self.answering.steps(work, context)) as steps:
            async for step in steps:
                yield _chunk(request, step) if step.reason is None else _complete(request, step)

    async def HealthCheck(self, request: pb.HealthCheckRequest, context: Context) -> pb.HealthCheckResponse:
        return pb.HealthCheckResponse(status="LLM executor is dead" if self._station.is_dead else "OK")

    async def Abort(self, request: pb.AbortRequest, context: Context) -> pb.AbortResponse:
        found = self.answering.abort(request.request_id)
        word = "aborted" if found else "not found"
        return pb.AbortResponse(success=found, message=f"Request {request.request_id} {word}")

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Context) -> pb.GetModelInfoResponse:
        script = self._station.script
        return pb.GetModelInfoResponse(
            model_id=script.model,
            max_input_len=script.context_length,
            max_seq_len=script.context_length,
            max_batch_size=script.max_running,
            vocab_size=script.vocab_size,
        )

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        return pb.GetServerInfoResponse(
            version="1.2-scripted",
            backend="tensorrt-llm",
            tensor_parallel_size=1,
            pipeline_parallel_size=1,
            context_parallel_size=1,
            world_size=1,
        )

    async def GetTokenizer(
        self, request: common_pb2.GetTokenizerRequest, context: Context
    ) -> AsyncIterator[common_pb2.GetTokenizerChunk]:
        async for chunk in self._station.tokenizer(context):
            yield chunk

    async def SubscribeKvEvents(
        self, request: common_pb2.SubscribeKvEventsRequest, context: Context
    ) -> AsyncIterator[common_pb2.KvEventBatch]:
        async with contextlib.aclosing(self.feed.stream(request, context)) as batches:
            async for batch in batches:
                yield batch


def _chunk(request: pb.GenerateRequest, step: Step) -> pb.GenerateResponse:
    chunk = pb.GenerateStreamChunk(
        token_ids=step.ids,
        sequence_index=step.index,
        prompt_tokens=len(request.tokenized.input_token_ids),
        completion_tokens=len(step.all_ids),
    )
    if request.output_config.HasField("logprobs"):
        chunk.logprobs.extend(_rows(step.ids, request.output_config.logprobs))
    return pb.GenerateResponse(request_id=request.request_id, chunk=chunk)


def _complete(request: pb.GenerateRequest, step: Step) -> pb.GenerateResponse:
    complete = pb.GenerateComplete(
        output_token_ids=step.all_ids,
        sequence_index=step.index,
        finish_reason=step.reason,
        matched_token_id=step.matched,
        prompt_tokens=len(request.tokenized.input_token_ids),
        completion_tokens=len(step.all_ids),
    )
    output = request.output_config
    if output.HasField("logprobs"):
        complete.logprobs.extend(_rows(step.all_ids, output.logprobs))
    if output.HasField("prompt_logprobs"):
        complete.prompt_logprobs.extend(_rows(request.tokenized.input_token_ids, output.prompt_logprobs))
    return pb.GenerateResponse(request_id=request.request_id, complete=complete)


def _rows(ids: Sequence[int], top: int) -> list[pb.TokenLogprob]:
    tops = [pb.TopLogprob(token_id=token, logprob=logprob(token)) for token in top_ids(top)]
    return [pb.TokenLogprob(token_id=token, logprob=logprob(token), top_logprobs=tops) for token in ids]
