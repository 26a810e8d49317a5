"""The service config that docs/clients.md hands out, carried out by grpcio: what it repeats, and whom it avoids."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.e2e.processes import EngineProcess, RouterProcess, eventually, system

from tandem.v1 import generate_pb2, router_service_pb2, router_service_pb2_grpc, sampling_pb2, worker_service_pb2

pytestmark = pytest.mark.e2e

CONFIG: dict[str, Any] = json.loads((Path(__file__).parents[2] / "examples/service_config.json").read_text())


@contextlib.contextmanager
def client(config: dict[str, Any], *addresses: str, **options: int) -> Iterator[Any]:
    """A stub whose channel knows all addresses."""
    settings: list[tuple[str, Any]] = [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.use_local_subchannel_pool", 1),
        *((f"grpc.{name}", value) for name, value in options.items()),
    ]
    with grpc.insecure_channel(f"ipv4:{','.join(addresses)}", options=settings) as channel:
        yield router_service_pb2_grpc.RouterServiceStub(channel)


def ask(text: str, **sampling: Any) -> generate_pb2.GenerateRequest:
    return generate_pb2.GenerateRequest(text=text, sampling=sampling_pb2.SamplingParams(temperature=0, **sampling))


def answer(stub: Any, text: str = "repeat “hello” :", **sampling: Any) -> str:
    """The whole answer; raises grpc.RpcError."""
    messages = stub.Generate(ask(text, **sampling), timeout=30)
    return "".join(piece for message in messages for piece in message.chunk.text)


Fleet = tuple[RouterProcess, list[EngineProcess], list[EngineProcess]]


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with system("sglang") as fleet:
        yield fleet


@contextlib.contextmanager
def without_decode(router: RouterProcess, *, for_s: float = float("inf")) -> Iterator[None]:
    """The fleet cannot serve, for a time at most."""
    worker_id = next(key for key, engine in router.engines.items() if engine.mode == "decode")

    def back() -> None:
        router.workers.UndrainWorker(worker_service_pb2.UndrainWorkerRequest(worker_id=worker_id))

    router.workers.DrainWorker(worker_service_pb2.DrainWorkerRequest(worker_id=worker_id))
    timer = threading.Timer(min(for_s, 3600), back)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        back()
        eventually(lambda: router.is_ready(worker_id), within_s=15, what="the worker is READY again")


def test_a_call_that_failed_before_its_headers_is_repeated(fleet: Fleet) -> None:
    router = fleet[0]
    with client(CONFIG, router.where["listen"]) as stub:
        assert answer(stub) == "hello"
        with without_decode(router, for_s=0.5):
            began = time.monotonic()
            assert answer(stub) == "hello"
    # NO_READY_WORKER says 1 s in grpc-retry-pushback-ms, which goes before the policy's own 0.1 s.
    assert time.monotonic() - began > 0.95


def test_without_the_policy_the_same_call_fails_at_once(fleet: Fleet) -> None:
    router = fleet[0]
    plain = {key: value for key, value in CONFIG.items() if key != "methodConfig"}
    with (
        client(plain, router.where["listen"]) as stub,
        without_decode(router),
        pytest.raises(grpc.RpcError, match="NO_READY_WORKER"),
    ):
        answer(stub)


def test_a_call_whose_request_outgrows_the_retry_buffer_is_not_repeated(fleet: Fleet) -> None:
    router = fleet[0]
    with without_decode(router):
        for size, is_repeated in ((4096, False), (1 << 20, True)):
            with client(CONFIG, router.where["listen"], per_rpc_retry_buffer_size=size) as stub:
                began = time.monotonic()
                request = ask("hello")
                request.metadata.update({f"filler-{number}": "x" * 512 for number in range(16)})  # 8 KB in all
                with pytest.raises(grpc.RpcError, match="NO_READY_WORKER"):
                    list(stub.Generate(request, timeout=30))
                assert (time.monotonic() - began > 2) is is_repeated


def test_a_call_that_failed_after_a_message_is_not_repeated() -> None:
    with system("sglang", decode=2) as (router, _, decodes):
        for engine in decodes:
            engine.set_faults(crash_at_token=5)
        with client(CONFIG, router.where["listen"]) as stub:
            messages = stub.Generate(ask("count from 20 to 30:"), timeout=30)
            assert next(messages).chunk.next_text_offset > 0
            with pytest.raises(grpc.RpcError, match="WORKER_LOST"):
                list(messages)
        # Each engine dies of the request that it serves: a second try would have cost the other one its life.
        assert sum(engine.process.poll() is not None for engine in decodes) == 1


def test_a_router_that_shuts_down_is_avoided_before_it_refuses(fleet: Fleet) -> None:
    # No retry: a refusal by the one that drains would be seen.
    config = {key: value for key, value in CONFIG.items() if key != "methodConfig"}
    router = fleet[0]
    with contextlib.ExitStack() as stack:
        leaving = RouterProcess("--set", "shutdown_grace_s=20")
        stack.callback(leaving.stop)
        engine = EngineProcess("sglang", "aggregated")
        stack.callback(engine.stop)
        leaving.add(engine)
        engine.set_faults(step_latency={"nanos": 200_000_000})
        addresses = leaving.where["listen"], router.where["listen"]
        with client(config, *addresses) as stub, client(config, addresses[0]) as only:
            running = only.Generate(ask("count from 20 to 30:", max_tokens=200, ignore_eos=True), timeout=60)
            assert next(running).chunk.next_text_offset > 0

            def seen() -> set[int]:
                asked = router_service_pb2.GetModelRequest(model="tandem-demo")
                return {stub.GetModel(asked, timeout=5).model.capacity.regular_workers for _ in range(8)}

            eventually(lambda: seen() == {0, 1}, within_s=10, what="calls go to both routers")
            leaving.process.send_signal(signal.SIGTERM)
            # A watch of health hears of it at once; one call may be on its way meanwhile.
            time.sleep(2)
            assert leaving.process.poll() is None
            assert seen() == {0}
            running.cancel()
