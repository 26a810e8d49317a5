"""One request's trace, read back: client, router, prefill and decode under one id, with real engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from tests.e2e.processes import EngineProcess
from tests.telemetry.documented import documented_attributes

from tandem.v1 import generate_pb2, router_service_pb2_grpc, worker_pb2, worker_service_pb2, worker_service_pb2_grpc
from tandem.v1 import worker_spec_pb2 as spec_pb2
from tandem_router.model.request import LegRequest
from tandem_router.server import RouterServer
from tandem_router.settings import ServerSettings
from tandem_router.transport.grpc_engine import GrpcEngine

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("telemetry")]

FREE = ServerSettings(
    listen="127.0.0.1:0", admin_listen="127.0.0.1:0", health_listen="127.0.0.1:0", metrics_listen="127.0.0.1:0"
)
MODES = (("prefill", spec_pb2.WORKER_TYPE_PREFILL), ("decode", spec_pb2.WORKER_TYPE_DECODE))
ASK = generate_pb2.GenerateRequest(text="count from 7 to 12:", request_id="traced")
SPANS = ["client", "decode", "prefill", "tandem.v1.RouterService/Generate"]


@dataclass
class Traced:
    """What one request left behind."""

    spans: dict[str, ReadableSpan]
    legs: list[LegRequest]
    """As they were given to the transport."""
    finished: Any

    def context(self, name: str) -> trace.SpanContext:
        context = self.spans[name].get_span_context()
        assert context is not None
        return context

    def attributes(self, name: str) -> dict[str, Any]:
        return dict(self.spans[name].attributes or {})


@pytest.fixture(scope="module", params=["sglang", "vllm"])
def engines(request: pytest.FixtureRequest) -> Iterator[list[EngineProcess]]:
    started = [EngineProcess(request.param, mode) for mode, _ in MODES]
    yield started
    for engine in started:
        engine.stop()


@pytest.fixture
async def traced(engines: list[EngineProcess], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Traced]:
    legs: list[LegRequest] = []
    real = GrpcEngine.generate

    def noted(self: GrpcEngine, leg: LegRequest, *, timeout_s: float | None) -> Any:
        legs.append(leg)
        return real(self, leg, timeout_s=timeout_s)

    monkeypatch.setattr(GrpcEngine, "generate", noted)
    exporter = InMemorySpanExporter()
    clients = TracerProvider(shutdown_on_exit=False)
    clients.add_span_processor(SimpleSpanProcessor(exporter))
    server = RouterServer(FREE, span_processors=[SimpleSpanProcessor(exporter)])
    try:
        addresses = await server.start()
        await register(addresses.admin_listen, engines)
        with clients.get_tracer("client").start_as_current_span("client"):
            finished = await ask(addresses.listen)
        async with asyncio.timeout(5):
            while len(exporter.get_finished_spans()) < len(SPANS):  # noqa: ASYNC110 - an exporter sets no event
                await asyncio.sleep(0.01)
        spans = {span.name: span for span in exporter.get_finished_spans()}
        yield Traced(spans, legs, finished)
    finally:
        await server.close()


async def register(admin: str, engines: list[EngineProcess]) -> None:
    async with grpc.aio.insecure_channel(admin) as channel:
        workers: Any = worker_service_pb2_grpc.WorkerServiceStub(channel)
        for engine, (_, kind) in zip(engines, MODES, strict=True):
            spec = spec_pb2.WorkerSpec(url=f"grpc://{engine.address}", worker_type=kind)
            await workers.CreateWorker(worker_service_pb2.CreateWorkerRequest(spec=spec))
        async with asyncio.timeout(30):
            while True:
                listed = (await workers.ListWorkers(worker_service_pb2.ListWorkersRequest())).workers
                if all(worker.status == worker_pb2.WORKER_STATUS_READY for worker in listed):
                    return
                await asyncio.sleep(0.05)


async def ask(listen: str) -> Any:
    metadata: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(metadata)
    async with grpc.aio.insecure_channel(listen) as channel:
        call: Any = router_service_pb2_grpc.RouterServiceStub(channel).Generate(ASK, metadata=tuple(metadata.items()))
        return [response async for response in call][-1].finished


async def test_client_router_prefill_and_decode_are_one_trace(traced: Traced) -> None:
    assert sorted(traced.spans) == SPANS
    assert len({traced.context(name).trace_id for name in SPANS}) == 1


async def test_legs_are_children_of_the_call_and_the_call_of_the_client(traced: Traced) -> None:
    parents = {name: None if span.parent is None else span.parent.span_id for name, span in traced.spans.items()}
    call, client = traced.context(SPANS[3]).span_id, traced.context("client").span_id
    assert parents == {"client": None, SPANS[3]: client, "prefill": call, "decode": call}


async def test_each_worker_is_sent_its_own_legs_span(traced: Traced) -> None:
    sent = {leg.role.lower(): leg.traceparent for leg in traced.legs}
    spans = {name: traced.context(name) for name in ("prefill", "decode")}
    assert sent == {
        name: f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}" for name, span in spans.items()
    }


async def test_phases_of_the_span_sum_to_its_total(traced: Traced) -> None:
    phases = {name: value for name, value in traced.attributes(SPANS[3]).items() if name.startswith("tandem.phase.")}
    total_s = phases.pop("tandem.phase.total_s")
    assert sum(phases.values()) == pytest.approx(total_s, abs=1e-9)


async def test_the_total_is_the_spans_length(traced: Traced) -> None:
    span = traced.spans[SPANS[3]]
    assert span.start_time is not None
    assert span.end_time is not None
    total_s = traced.attributes(SPANS[3])["tandem.phase.total_s"]
    assert (span.end_time - span.start_time) / 1e9 == pytest.approx(total_s, abs=0.05)


async def test_legs_name_pair_worker_and_attempt_as_the_client_was_told(traced: Traced) -> None:
    served = traced.finished.served_by
    prefill, decode = traced.attributes("prefill"), traced.attributes("decode")
    assert {prefill["tandem.pair.id"], decode["tandem.pair.id"]} == {served.pair_id}
    assert (prefill["tandem.worker.id"], decode["tandem.worker.id"]) == (
        served.prefill.worker_id,
        served.decode.worker_id,
    )
    assert (prefill["tandem.attempt"], decode["tandem.attempt"]) == (1, 1)


async def test_decode_has_the_event_of_its_first_token(traced: Traced) -> None:
    assert [event.name for event in traced.spans["decode"].events] == ["first_token"]


async def test_every_attribute_of_the_spans_is_documented(traced: Traced) -> None:
    found = {name for span in SPANS[1:] for name in traced.attributes(span)}
    assert found <= documented_attributes()
    assert documented_attributes() - found <= {"error.type", "tandem.room"}
