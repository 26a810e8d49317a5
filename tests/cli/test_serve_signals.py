"""Signals while a request runs: the first lets it run on, the second ends it within a second."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tandem.v1 import generate_pb2, router_service_pb2_grpc
from tandem_router.cli.worker_changes import register_all
from tandem_router.errors import Reason
from tandem_router.wire.status import decode

pytestmark = pytest.mark.e2e


def start(*module: str) -> tuple[subprocess.Popen[str], dict[str, str]]:
    command = [sys.executable, "-m", *module, f"--parent-pid={os.getpid()}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


@pytest.fixture
def running() -> Iterator[tuple[subprocess.Popen[str], dict[str, str], grpc.Channel]]:
    """A router with one slow engine that serves whole requests."""
    free = [f"--{name}=127.0.0.1:0" for name in ("listen", "admin-listen", "health-listen", "metrics-listen")]
    router, at = start("tandem_router", "serve", "--print-ports", "--quiet", *free)
    slow = ("--protocol=vllm", "--mode=aggregated", "--fault=step_latency=20ms", "--listen=127.0.0.1:0")
    engine, engine_at = start("tandem_engine", *slow)
    try:
        with grpc.insecure_channel(at["admin_listen"]) as operators:
            register_all(operators, [(f"grpc://{engine_at['listen']}", "regular")])
        with grpc.insecure_channel(at["listen"]) as clients:
            yield router, at, clients
    finally:
        for process in (router, engine):
            process.kill()
            process.communicate()


def endless() -> generate_pb2.GenerateRequest:
    request = generate_pb2.GenerateRequest(text="count from 1 to 99:")
    request.sampling.max_tokens, request.sampling.ignore_eos, request.sampling.temperature = 3000, True, 0
    return request


def test_first_signal_lets_the_request_run_on_and_the_second_ends_it(
    running: tuple[subprocess.Popen[str], dict[str, str], grpc.Channel],
) -> None:
    router, at, clients = running
    stream = router_service_pb2_grpc.RouterServiceStub(clients).Generate(endless(), timeout=30)
    next(stream)
    router.send_signal(signal.SIGTERM)
    with grpc.insecure_channel(at["health_listen"]) as probes:
        watch = health_pb2_grpc.HealthStub(probes).Watch(health_pb2.HealthCheckRequest(service=""), timeout=10)
        while next(watch).status != health_pb2.HealthCheckResponse.NOT_SERVING:
            pass
        watch.cancel()
    while_draining = [next(stream).WhichOneof("event") for _ in range(10)]
    router.send_signal(signal.SIGTERM)
    asked_s = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        list(stream)
    answered_s = time.monotonic() - asked_s
    code = router.wait(timeout=20)
    error = decode(caught.value.trailing_metadata())  # type: ignore[attr-defined]
    assert (set(while_draining), error and error.reason, answered_s < 1, code) == ({"chunk"}, Reason.DRAINING, True, 0)


def test_health_answers_for_the_engine_s_model(
    running: tuple[subprocess.Popen[str], dict[str, str], grpc.Channel],
) -> None:
    _, at, _ = running
    with grpc.insecure_channel(at["health_listen"]) as probes:
        request = health_pb2.HealthCheckRequest(service="model/tandem-demo")
        for answer in health_pb2_grpc.HealthStub(probes).Watch(request, timeout=10):
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                break
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
