"""Generate over a real connection: order, headers, cancel, deadline."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from tests.services.fakes import House, two_tokens
from tests.services.test_services_guard import refused

from tandem.v1 import generate_pb2, generate_result_pb2, router_service_pb2, router_service_pb2_grpc
from tandem_router.errors import Reason, TandemError
from tandem_router.model.failure import Failure
from tandem_router.model.stream import OutputChunk, QueueStatus
from tandem_router.ports import TokenSink
from tandem_router.services.sink import GrpcTokenSink

ASK = generate_pb2.GenerateRequest(text="hi")


async def ask(house: House, **fields: str) -> list[generate_result_pb2.GenerateResponse]:
    stub = router_service_pb2_grpc.RouterServiceStub(house.public)
    return [message async for message in stub.Generate(generate_pb2.GenerateRequest(text="hi", **fields))]


async def test_chunks_come_in_order_and_finished_last(house: House) -> None:
    messages = await ask(house)
    assert [message.WhichOneof("event") for message in messages] == ["chunk", "chunk", "finished"]


async def test_text_offsets_count_utf8_bytes(house: House) -> None:
    assert [message.chunk.next_text_offset for message in (await ask(house))[:2]] == [2, 3]


async def test_request_id_is_in_the_first_message_only_and_minted_where_absent(house: House) -> None:
    assert [message.request_id for message in await ask(house)] == ["id-1", "", ""]


async def test_client_s_request_id_is_kept_and_sent_as_header(house: House) -> None:
    call = router_service_pb2_grpc.RouterServiceStub(house.public).Generate(
        generate_pb2.GenerateRequest(text="hi", request_id="mine")
    )
    headers = dict(await call.initial_metadata())
    async for _ in call:
        pass
    assert (headers["tandem-request-id"], house.relay.started[0][0].request_id) == ("mine", "mine")


async def test_finished_says_which_model_was_asked_for(house: House) -> None:
    finished = (await ask(house, model="tiny-alias"))[-1].finished
    assert (finished.requested_model, finished.served_model) == ("tiny-alias", "tiny")


async def test_empty_model_is_refused_unless_exactly_one_is_served(house: House) -> None:
    house.registry.workers.clear()
    _, error, _ = await refused(router_service_pb2_grpc.RouterServiceStub(house.public).Generate(ASK))
    assert error is not None
    assert (error.reason, error.field) == (Reason.INVALID_REQUEST, "model")


async def test_failure_before_the_first_token_sends_no_headers_of_ours(house: House) -> None:
    house.relay.refusal = TandemError(Reason.TOO_MANY_REQUESTS, "full", retry_after_s=0.5)
    call = router_service_pb2_grpc.RouterServiceStub(house.public).Generate(ASK)
    code, error, _ = await refused(call)
    headers = dict(await call.initial_metadata() or ())
    assert (code, error and error.retry_after_s, "tandem-request-id" in headers) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED, 0.5, False,
    )  # fmt: skip


async def test_failure_names_the_request_in_a_trailer(house: House) -> None:
    house.relay.refusal = TandemError(Reason.DRAINING, "down")
    call = router_service_pb2_grpc.RouterServiceStub(house.public).Generate(ASK)
    await refused(call)
    trailers = dict(await call.trailing_metadata())
    assert trailers["tandem-request-id"] == "id-1"


async def test_failure_in_mid_stream_keeps_the_tokens_before_it(house: House) -> None:
    async def breaks(sink: TokenSink) -> None:
        await sink.chunk(OutputChunk(0, 1, (5,), "a"))
        raise TandemError(Reason.WORKER_LOST, "gone")

    house.relay.script = breaks
    call = router_service_pb2_grpc.RouterServiceStub(house.public).Generate(ASK)
    first = await call.read()
    _, error, _ = await refused(call)
    assert isinstance(first, generate_result_pb2.GenerateResponse)
    assert (first.chunk.next_offset, error and error.reason) == (1, Reason.WORKER_LOST)


async def never_ends(sink: TokenSink) -> None:
    await asyncio.Event().wait()


async def floods(sink: TokenSink) -> None:
    offset = 0
    while True:
        offset += 1
        await sink.chunk(OutputChunk(0, offset, (5,), "x" * 10_000))


@pytest.mark.parametrize("script", [never_ends, floods], ids=["silent", "stalled"])
async def test_client_s_cancel_reaches_the_relay_at_once(house: House, script: object) -> None:
    house.relay.script = script  # type: ignore[assignment]
    call = router_service_pb2_grpc.RouterServiceStub(house.public).Generate(ASK)
    async with asyncio.timeout(5):
        if script is floods:
            await call.read()
            stuck = house.relay.calls[0]
            sink_is_blocked = asyncio.create_task(stuck.result())
            await asyncio.wait({sink_is_blocked}, timeout=0.05)
        while not house.relay.calls:  # noqa: ASYNC110 - the server takes the call on its own time
            await asyncio.sleep(0)
        call.cancel()
    async with asyncio.timeout(1):
        await house.relay.calls[0].cancelled.wait()
    if script is floods:
        sink_is_blocked.cancel()
        await asyncio.gather(sink_is_blocked, return_exceptions=True)


async def test_deadline_of_the_call_reaches_the_relay_on_its_clock(house: House) -> None:
    call = router_service_pb2_grpc.RouterServiceStub(house.public).Generate(ASK, timeout=60)
    async for _ in call:
        pass
    deadline_s = house.relay.started[0][1].deadline_s
    assert deadline_s is not None
    assert 1050 < deadline_s <= 1061  # grpc-timeout is rounded up on the wire


async def test_no_deadline_is_none(house: House) -> None:
    await ask(house)
    assert house.relay.started[0][1].deadline_s is None


async def test_traceparent_is_taken_from_metadata(house: House) -> None:
    call = router_service_pb2_grpc.RouterServiceStub(house.public).Generate(ASK, metadata=(("traceparent", "00-abc"),))
    async for _ in call:
        pass
    assert house.relay.started[0][1].traceparent == "00-abc"


async def test_abort_of_a_live_request_answers_with_its_id_and_tokens(house: House) -> None:
    await ask(house, request_id="mine")
    stub = router_service_pb2_grpc.RouterServiceStub(house.public)
    answer = await stub.Abort(router_service_pb2.AbortRequest(request_id="mine"))
    assert (answer.request_id, answer.completion_tokens) == ("mine", 3)


async def test_caller_is_anonymous_and_listed_metadata_goes_on_without_credentials(house: House) -> None:
    metadata = (("authorization", "Bearer x"), ("tracestate", "a=1"), ("x-other", "y"))
    call = router_service_pb2_grpc.RouterServiceStub(house.public).Generate(ASK, metadata=metadata)
    async for _ in call:
        pass
    context = house.relay.started[0][1]
    assert (context.principal, context.forwarded) == ("anonymous", (("x-request-id", "id-1"), ("tracestate", "a=1")))


async def waits_first(sink: TokenSink) -> None:
    await sink.queued(QueueStatus(2, 3, 0.25))
    await two_tokens(sink)


async def test_queue_status_comes_before_chunks_and_commits_the_call(house: House) -> None:
    house.relay.script = waits_first
    call = router_service_pb2_grpc.RouterServiceStub(house.public).Generate(ASK)
    messages = [message async for message in call]
    headers = dict(await call.initial_metadata())
    assert [message.WhichOneof("event") for message in messages] == ["queue", "chunk", "chunk", "finished"]
    assert [message.request_id for message in messages] == ["id-1", "", "", ""]
    assert headers["tandem-request-id"] == "id-1"


async def test_queue_status_says_position_length_and_time(house: House) -> None:
    house.relay.script = waits_first
    queue = (await ask(house))[0].queue
    assert (queue.position, queue.length, queue.waited.ToMilliseconds()) == (2, 3, 250)


async def test_abort_of_an_unknown_request_is_not_found(house: House) -> None:
    stub = router_service_pb2_grpc.RouterServiceStub(house.public)
    code, error, _ = await refused(stub.Abort(router_service_pb2.AbortRequest(request_id="x")))
    assert (code, error and error.reason) == (grpc.StatusCode.NOT_FOUND, Reason.REQUEST_NOT_FOUND)


class StuckContext:
    """A context whose client reads nothing."""

    async def send_initial_metadata(self, metadata: object) -> None:
        return

    async def write(self, message: object) -> None:
        await asyncio.Event().wait()


async def test_write_that_waits_too_long_ends_the_call_as_slow_client() -> None:
    sink = GrpcTokenSink(StuckContext(), "r", "m")  # type: ignore[arg-type]
    ended: asyncio.Future[Failure] = asyncio.get_running_loop().create_future()
    sink.watch(0.01, ended.set_result)
    writing = asyncio.create_task(sink.chunk(OutputChunk(0, 1, (5,))))
    async with asyncio.timeout(5):
        failure = await ended
    writing.cancel()
    assert failure.reason is Reason.SLOW_CLIENT


class GoneContext:
    """A context whose client is gone."""

    async def send_initial_metadata(self, metadata: object) -> None:
        return

    async def write(self, message: object) -> None:
        raise RuntimeError("private to grpcio")


async def test_write_to_a_client_that_is_gone_is_a_cancel() -> None:
    sink = GrpcTokenSink(GoneContext(), "r", "m")  # type: ignore[arg-type]
    with pytest.raises(TandemError, match="REQUEST_CANCELLED"):
        await sink.chunk(OutputChunk(0, 1, (5,)))
