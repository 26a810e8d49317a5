"""How telemetry leaves the process: the Prometheus listener, the log's thread, a collector."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from tests.telemetry.observing import begin, finished
from tests.telemetry.scraping import scrape

from tandem_router.core.relay_events import RequestFinished
from tandem_router.telemetry.access_log import AccessLog
from tandem_router.telemetry.readings import Readings
from tandem_router.telemetry.telemetry import Telemetry

ANYWHERE = "127.0.0.1:0"


def start(telemetry: Telemetry, address: str = ANYWHERE) -> str:
    return telemetry.start(address, lambda: Readings(live_requests=3), lambda: MappingProxyType({}))


async def test_readings_are_scraped_from_another_thread() -> None:
    telemetry = Telemetry("i")
    try:
        where = start(telemetry)
        await asyncio.sleep(0)
        found = await asyncio.to_thread(scrape, where)
        assert found["tandem_requests_live", ()] == 3
    finally:
        await telemetry.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:http", "127.0.0.1:99999", "256.0.0.1:0"])
async def test_an_address_that_cannot_be_had_is_an_os_error(address: str) -> None:
    telemetry = Telemetry("i")
    with pytest.raises(OSError, match="cannot listen on"):
        start(telemetry, address)
    await telemetry.close()


async def test_a_taken_port_is_an_os_error() -> None:
    one, other = Telemetry("one"), Telemetry("other")
    try:
        where = start(one)
        with pytest.raises(OSError, match="cannot listen on"):
            start(other, where)
    finally:
        await one.close()
        await other.close()


async def test_closing_twice_is_closing_once() -> None:
    telemetry = Telemetry("i")
    start(telemetry)
    await telemetry.close()
    await telemetry.close()


async def test_without_a_receiver_no_span_is_made() -> None:
    telemetry = Telemetry("i")
    assert not telemetry.makes_spans
    await telemetry.close()


@pytest.fixture
def access_logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("tandem.access")
    level = logger.level
    logger.setLevel(logging.INFO)
    yield logger
    logger.setLevel(level)


@pytest.mark.usefixtures("access_logger")
def test_a_log_reader_that_stands_still_costs_lines_and_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            free.wait(30)
            return super().write(text)

    free, stream = threading.Event(), Stuck()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr("tandem_router.telemetry.access_log._MAX_WAITING", 10)
    log = AccessLog()
    log.start()
    for number in range(50):  # returns although nothing is written
        log.write({"number": number})
    free.set()
    log.close()
    written = [json.loads(line)["number"] for line in stream.getvalue().splitlines()]
    assert written == list(range(len(written)))
    assert 10 <= len(written) <= 11


@pytest.mark.usefixtures("access_logger")
def test_the_next_line_says_how_many_were_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    log = AccessLog()
    log.start()
    monkeypatch.setattr(log._handler, "_dropped", 4)
    log.write({"number": 1})
    log.close()
    assert json.loads(stream.getvalue()) == {"number": 1, "dropped_lines": 4}


class Collector(trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer):
    """Takes both kinds of export: the rpc of each is called Export, so one class answers by the request's type."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        if isinstance(request, trace_service_pb2.ExportTraceServiceRequest):
            for group in request.resource_spans:
                self.names |= {span.name for scope in group.scope_spans for span in scope.spans}
            return trace_service_pb2.ExportTraceServiceResponse()
        for group in request.resource_metrics:
            self.names |= {metric.name for scope in group.scope_metrics for metric in scope.metrics}
        return metrics_service_pb2.ExportMetricsServiceResponse()


async def test_a_collector_gets_spans_and_metrics_before_the_close_returns() -> None:
    server, collector = grpc.server(ThreadPoolExecutor(2)), Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(collector, server)
    port = server.add_insecure_port(ANYWHERE)
    server.start()
    try:
        telemetry = Telemetry("i", otlp_endpoint=f"http://127.0.0.1:{port}")
        start(telemetry)
        pair_id = begin(telemetry.observer, "r")
        telemetry.observer.observe(RequestFinished("r", finished(pair_id)))
        await telemetry.close()
    finally:
        server.stop(None)
    assert {"tandem.v1.RouterService/Generate", "tandem.requests"} <= collector.names
