"""Scripted gRPC engines have the habits of the real ones, and the faults that their script says."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from smg_grpc_proto.generated import (
    common_pb2,
    mlx_engine_pb2,
    mlx_engine_pb2_grpc,
    sglang_scheduler_pb2,
    sglang_scheduler_pb2_grpc,
    tokenspeed_scheduler_pb2,
    tokenspeed_scheduler_pb2_grpc,
    trtllm_service_pb2,
    trtllm_service_pb2_grpc,
    vllm_engine_pb2,
    vllm_engine_pb2_grpc,
)

from tandem_router.model.spec import RuntimeType, WorkerType
from tandem_router.testing.grpc_engines import Archive, Failing, GrpcScript, Listening, ScriptedGrpcEngine
from tandem_router.testing.grpc_engines.meeting import DuplicateRoomError, Meeting, TransferFailedError
from tandem_router.text.archive import open_archive
from tandem_router.text.tokenizer import Tokenizer

ENGINES = (RuntimeType.SGLANG, RuntimeType.VLLM, RuntimeType.TRTLLM, RuntimeType.TOKENSPEED, RuntimeType.MLX)
PROTOCOLS: dict[RuntimeType, tuple[Any, Any]] = {
    RuntimeType.SGLANG: (sglang_scheduler_pb2, sglang_scheduler_pb2_grpc.SglangSchedulerStub),
    RuntimeType.VLLM: (vllm_engine_pb2, vllm_engine_pb2_grpc.VllmEngineStub),
    RuntimeType.TRTLLM: (trtllm_service_pb2, trtllm_service_pb2_grpc.TrtllmServiceStub),
    RuntimeType.TOKENSPEED: (tokenspeed_scheduler_pb2, tokenspeed_scheduler_pb2_grpc.TokenSpeedSchedulerStub),
    RuntimeType.MLX: (mlx_engine_pb2, mlx_engine_pb2_grpc.MlxEngineStub),
}
INVALID = grpc.StatusCode.INVALID_ARGUMENT
INTERNAL = grpc.StatusCode.INTERNAL


class Wire:
    """A client of one engine in the engine's own messages."""

    def __init__(self, engine: ScriptedGrpcEngine, channel: grpc.aio.Channel) -> None:
        self.engine, self.channel = engine, channel
        self.pb, stub = PROTOCOLS[engine.script.runtime]
        self.stub = stub(channel)

    def request(self, *ids: int, request_id: str = "r", stream: bool = True, **sampling: Any) -> Any:
        """A Generate request; max_tokens, n, stop_token_ids and ignore_eos by the common names."""
        pb = self.pb
        sampling.setdefault("max_tokens", 3)
        if self.engine.script.runtime is RuntimeType.TRTLLM:
            config = pb.SamplingConfig(num_return_sequences=sampling.pop("n", 1))
            tokens = pb.TokenizedInput(input_token_ids=ids)
            return pb.GenerateRequest(
                request_id=request_id, tokenized=tokens, sampling_config=config, streaming=stream, **sampling
            )
        if "max_new_tokens" in pb.SamplingParams.DESCRIPTOR.fields_by_name:
            sampling["max_new_tokens"] = sampling.pop("max_tokens")
        if self.engine.script.runtime is not RuntimeType.MLX:
            sampling.setdefault("n", 1)
        params = pb.SamplingParams(**sampling)
        tokens = pb.TokenizedInput(input_ids=ids)
        return pb.GenerateRequest(request_id=request_id, tokenized=tokens, sampling_params=params, stream=stream)

    async def generate(self, request: Any) -> tuple[list[Any], grpc.StatusCode]:
        """The messages inside the responses, and the status."""
        found = []
        call = self.stub.Generate(request, timeout=20)
        try:
            while (response := await call.read()) is not grpc.aio.EOF:
                found.append(getattr(response, response.WhichOneof("response")))
        except grpc.aio.AioRpcError as error:
            return found, error.code()
        return found, grpc.StatusCode.OK


@pytest.fixture(params=ENGINES)
async def wire(request: pytest.FixtureRequest) -> AsyncIterator[Wire]:
    engine = ScriptedGrpcEngine(GrpcScript(request.param))
    async with engine, grpc.aio.insecure_channel(engine.address) as channel:
        yield Wire(engine, channel)


async def until(claim: Callable[[], bool]) -> None:
    """Let the loop run until a claim holds, at most ten seconds."""
    async with asyncio.timeout(10):
        while not claim():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


def ids_of(message: Any) -> list[int]:
    for name in ("token_ids", "output_ids", "output_token_ids"):
        if name in message.DESCRIPTOR.fields_by_name:
            return list(getattr(message, name))
    raise LookupError(message.DESCRIPTOR.name)


HABITS = {
    # (counts of three chunks of one token, ids and count of the streamed end)
    RuntimeType.SGLANG: ([1, 2, 3], 1, 3),
    RuntimeType.VLLM: ([1, 1, 1], 1, 1),
    RuntimeType.TRTLLM: ([1, 2, 3], 3, 3),
    RuntimeType.TOKENSPEED: ([1, 2, 3], 1, 3),
    RuntimeType.MLX: ([1, 2, 3], 0, 3),
}


async def test_streamed_counts_and_last_ids_are_those_of_the_protocol(wire: Wire) -> None:
    (*chunks, end), status = await wire.generate(wire.request(5, 6))
    assert status is grpc.StatusCode.OK
    counts, end_ids, end_count = HABITS[wire.engine.script.runtime]
    assert [chunk.completion_tokens for chunk in chunks] == counts
    assert (len(ids_of(end)), end.completion_tokens, end.finish_reason) == (end_ids, end_count, "length")
    tokens = [token for chunk in chunks for token in ids_of(chunk)]
    assert end_ids == 0 or tokens[-end_ids:] == ids_of(end)


async def test_answer_that_is_not_streamed_is_one_complete_with_everything(wire: Wire) -> None:
    streamed, _ = await wire.generate(wire.request(5, 6))
    whole, _ = await wire.generate(wire.request(5, 6, stream=False))
    assert len(whole) == 1
    assert ids_of(whole[0]) == [token for chunk in streamed[:-1] for token in ids_of(chunk)]


AFTER_ABORT = {
    RuntimeType.VLLM: ("abort", grpc.StatusCode.OK),
    RuntimeType.TRTLLM: ("cancelled", grpc.StatusCode.OK),
    RuntimeType.TOKENSPEED: (None, INTERNAL),
    RuntimeType.MLX: (None, grpc.StatusCode.OK),
}


async def test_abort_ends_the_stream_as_the_protocol_does(wire: Wire) -> None:
    wire.engine.turn(token_s=0.01)
    running = asyncio.create_task(wire.generate(wire.request(5, 6, max_tokens=4000)))
    await until(lambda: wire.engine.running == 1)
    names = wire.pb.AbortRequest.DESCRIPTOR.fields_by_name
    await wire.stub.Abort(
        wire.pb.AbortRequest(**({"request_id": "r"} if "request_id" in names else {"request_ids": ["r"]}))
    )
    if wire.engine.script.runtime is RuntimeType.SGLANG:
        done, _ = await asyncio.wait([running], timeout=0.3)
        assert not done
        running.cancel()
        return
    messages, status = await running
    word, expected = AFTER_ABORT[wire.engine.script.runtime]
    assert status is expected
    assert [message.finish_reason for message in messages if hasattr(message, "finish_reason")] == [word] * bool(word)
    assert wire.engine.aborted == ["r"]


EMPTY_PROMPT = {
    RuntimeType.SGLANG: (INTERNAL, 1),
    RuntimeType.VLLM: (INVALID, 0),
    RuntimeType.TRTLLM: (INVALID, 0),
    RuntimeType.TOKENSPEED: (INVALID, 0),
    RuntimeType.MLX: (grpc.StatusCode.DEADLINE_EXCEEDED, 1),
}


async def test_empty_prompt_harms_whom_it_harms(wire: Wire) -> None:
    call = wire.stub.Generate(wire.request(), timeout=0.5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert (caught.value.code(), len(wire.engine.deaths)) == EMPTY_PROMPT[wire.engine.script.runtime]


async def test_requests_are_written_down_with_metadata_deadline_and_presence(wire: Wire) -> None:
    await wire.stub.HealthCheck(wire.pb.HealthCheckRequest())
    call = wire.stub.Generate(wire.request(5, 6), timeout=30, metadata=(("x-request-id", "mine"),))
    async for _ in call:
        pass
    (seen,) = wire.engine.seen("Generate")
    assert seen.metadata["x-request-id"] == "mine"
    assert seen.time_left_s is not None
    assert 20 < seen.time_left_s < 31  # grpc rounds up on the wire
    assert "tokenized" in seen.fields
    assert wire.engine.seen("HealthCheck")[0].time_left_s is None
    await until(lambda: wire.engine.open_calls == 0)


async def test_health_and_reflection_are_served_and_follow_the_engine(wire: Wire) -> None:
    health: Any = health_pb2_grpc.HealthStub(wire.channel)
    statuses = health_pb2.HealthCheckResponse
    for name in ("", wire.engine.service):
        assert (await health.Check(health_pb2.HealthCheckRequest(service=name))).status == statuses.SERVING
    wire.engine.turn(is_dead=True)
    assert (await health.Check(health_pb2.HealthCheckRequest())).status == statuses.NOT_SERVING
    reflect: Any = reflection_pb2_grpc.ServerReflectionStub(wire.channel)
    call = reflect.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    answer = await call.read()
    assert wire.engine.service in {service.name for service in answer.list_services_response.service}
    call.cancel()


async def test_dead_engine_fails_requests_and_tells_zeros(wire: Wire) -> None:
    wire.engine.turn(is_dead=True)
    _, status = await wire.generate(wire.request(5))
    assert status is INTERNAL
    if hasattr(wire.pb, "GetLoadsRequest"):
        loads = await wire.stub.GetLoads(wire.pb.GetLoadsRequest())
        assert [(row.num_running_reqs, row.max_total_num_tokens) for row in loads.loads] == [(0, 0)]


@pytest.mark.parametrize("after_tokens", [0, 2])
async def test_script_fails_generate_by_status_or_under_ok(wire: Wire, after_tokens: int) -> None:
    wire.engine.turn(failing=Failing(grpc.StatusCode.UNAVAILABLE, after_tokens=after_tokens, times=1))
    messages, status = await wire.generate(wire.request(5))
    assert (len(messages), status) == (after_tokens, grpc.StatusCode.UNAVAILABLE)
    wire.engine.turn(failing=Failing(None, after_tokens=after_tokens, times=2))
    messages, status = await wire.generate(wire.request(5))
    assert (messages[-1].finish_reason, status) == ("error", grpc.StatusCode.OK)
    messages, status = await wire.generate(wire.request(5))
    assert (messages[-1].finish_reason, status) == ("length", grpc.StatusCode.OK)


async def test_script_takes_an_rpc_away_or_lets_it_hang(wire: Wire) -> None:
    wire.engine.turn(unimplemented=frozenset({"GetModelInfo"}), hangs=frozenset({"GetServerInfo"}))
    for rpc, code in (
        ("GetModelInfo", grpc.StatusCode.UNIMPLEMENTED),
        ("GetServerInfo", grpc.StatusCode.DEADLINE_EXCEEDED),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(wire.stub, rpc)(getattr(wire.pb, f"{rpc}Request")(), timeout=0.3)
        assert caught.value.code() is code


async def test_good_archive_is_a_tokenizer_whose_vocabulary_the_engine_tells(wire: Wire) -> None:
    chunks = [chunk async for chunk in wire.stub.GetTokenizer(common_pb2.GetTokenizerRequest())]
    data = b"".join(chunk.data for chunk in chunks)
    assert chunks[-1].sha256 == hashlib.sha256(data).hexdigest()
    tokenizer = Tokenizer(open_archive(data))
    assert tokenizer.vocab_size == wire.engine.script.vocab_size
    assert tokenizer.decode(tokenizer.encode("añ 🦜"), skip_special_tokens=False) == "añ 🦜"


@pytest.mark.parametrize("runtime", ENGINES)
async def test_restarted_engine_is_another_process_at_the_same_address(runtime: RuntimeType) -> None:
    async with ScriptedGrpcEngine(GrpcScript(runtime)) as engine:
        infos: list[Message] = []
        address, name = engine.address, engine.engine_id
        for _ in range(2):
            async with grpc.aio.insecure_channel(address) as channel:
                wire = Wire(engine, channel)
                infos.append(await wire.stub.GetServerInfo(wire.pb.GetServerInfoRequest(), wait_for_ready=True))
            await engine.restart()
        assert engine.address == address
        assert engine.engine_id != name
        # TensorRT-LLM tells nothing by which its lives could be told apart.
        assert (infos[0] == infos[1]) is (runtime is RuntimeType.TRTLLM)


async def test_silent_listener_takes_connections_and_says_nothing() -> None:
    async with ScriptedGrpcEngine(GrpcScript(RuntimeType.VLLM, listening=Listening.SILENT)) as engine:
        host, _, port = engine.address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await reader.read(1)
        writer.close()


async def test_refusing_engine_serves_after_a_restart() -> None:
    async with ScriptedGrpcEngine(GrpcScript(RuntimeType.VLLM, listening=Listening.REFUSING)) as engine:
        host, _, port = engine.address.partition(":")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, int(port))
        await engine.restart(listening=Listening.SERVING)
        async with grpc.aio.insecure_channel(engine.address) as channel:
            _, status = await Wire(engine, channel).generate(Wire(engine, channel).request(5))
        assert status is grpc.StatusCode.OK


@pytest.mark.parametrize("field", ["disaggregated_params", "kv_bootstrap_info"])
async def test_pair_request_without_a_room_kills_its_engine(field: str) -> None:
    runtime = RuntimeType.SGLANG if field == "disaggregated_params" else RuntimeType.TOKENSPEED
    async with ScriptedGrpcEngine(GrpcScript(runtime, mode=WorkerType.DECODE)) as engine:
        async with grpc.aio.insecure_channel(engine.address) as channel:
            _, status = await Wire(engine, channel).generate(Wire(engine, channel).request(5))
        assert status is INTERNAL
        assert field in engine.deaths[0]


async def test_fetch_without_block_ids_kills_a_vllm_decode() -> None:
    async with ScriptedGrpcEngine(GrpcScript(RuntimeType.VLLM, mode=WorkerType.DECODE)) as engine:
        async with grpc.aio.insecure_channel(engine.address) as channel:
            wire = Wire(engine, channel)
            request = wire.request(5)
            request.kv_transfer_params_json = '{"do_remote_prefill": true}'
            _, status = await wire.generate(request)
        assert (status, engine.deaths) == (INTERNAL, ["do_remote_prefill without remote_block_ids"])


async def test_kv_events_are_numbered_kept_and_lost_as_told() -> None:
    async with ScriptedGrpcEngine(GrpcScript(RuntimeType.VLLM, kv_batches_kept=2)) as engine:
        async with grpc.aio.insecure_channel(engine.address) as channel:
            stub = Wire(engine, channel).stub
            for block in (1, 2, 3):
                engine.feed.store(block)
            kept = stub.SubscribeKvEvents(common_pb2.SubscribeKvEventsRequest(start_sequence_number=2))
            assert [(await kept.read()).sequence_number for _ in range(2)] == [2, 3]
            engine.feed.tell_load()
            assert (await kept.read()).load.load_only
            engine.feed.lose()
            with pytest.raises(grpc.aio.AioRpcError) as lost:
                await kept.read()
            gone = stub.SubscribeKvEvents(common_pb2.SubscribeKvEventsRequest(start_sequence_number=1))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await gone.read()
        codes = (lost.value.code(), caught.value.code())
        assert codes == (grpc.StatusCode.DATA_LOSS, grpc.StatusCode.OUT_OF_RANGE)


async def test_room_holds_one_leg_of_each_side_and_tells_when_one_leaves() -> None:
    meeting = Meeting()

    async def leg(side: str, leaves: bool) -> None:
        async with meeting.at(1024, side, 5):
            if not leaves:
                await meeting.delivered(1024)

    async with asyncio.TaskGroup() as legs:
        other = legs.create_task(leg("prefill", True))
        with pytest.raises(TransferFailedError):
            await leg("decode", False)
    assert other.done()
    assert meeting.is_empty
    waiting = asyncio.create_task(leg("prefill", False))
    await asyncio.sleep(0)
    with pytest.raises(DuplicateRoomError):
        await leg("prefill", False)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert meeting.is_empty


def test_script_is_a_value() -> None:
    script = GrpcScript(RuntimeType.MLX)
    assert replace(script, archive=Archive.NONE) != script == GrpcScript(RuntimeType.MLX)
