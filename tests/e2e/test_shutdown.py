"""SIGTERM under load: what runs ends well, what is new is refused, and nobody meets a broken connection."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.e2e.processes import Answer, EngineProcess, RouterProcess, eventually

from tandem.v1 import worker_service_pb2
from tandem_router.errors import Reason, TandemError
from tandem_router.wire.status import decode

pytestmark = pytest.mark.e2e

STREAMS = 8
STEP_S = 0.02
BRIEF, ENDLESS = 100, 500
"""Tokens: two seconds' worth, and ten: all streams must fit into the engine's pages together."""
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def engines() -> Iterator[list[EngineProcess]]:
    with contextlib.ExitStack() as stack:
        started = []
        for mode in ("prefill", "decode"):
            started.append(EngineProcess("sglang", mode, f"--fault=step_latency={STEP_S * 1000:g}ms"))
            stack.callback(started[-1].stop)
        yield started


@dataclass
class Load:
    """Streams through a router, each in a thread of its own."""

    router: RouterProcess
    threads: list[threading.Thread]
    answers: list[Answer]

    def join(self, timeout_s: float) -> None:
        until_s = time.monotonic() + timeout_s
        for thread in self.threads:
            thread.join(max(0.0, until_s - time.monotonic()))
        assert not any(thread.is_alive() for thread in self.threads), "a stream has no end"

    def reasons(self) -> list[Reason | None]:
        """How each stream ended: its reason, or None for a good end."""
        return [None if answer.finished is not None else reason_of(answer.error) for answer in self.answers]


@contextlib.contextmanager
def loaded(engines: list[EngineProcess], tokens: int, *settings: str) -> Iterator[Load]:
    """A router with every stream past its first token."""
    router = RouterProcess("--quiet", *(part for one in settings for part in ("--set", one)))
    try:
        for engine in engines:
            router.add(engine)
        began = threading.Semaphore(0)
        answers: list[Answer] = []

        def stream() -> None:
            request = router.request(text="count from 1 to 99:", temperature=0.0, max_tokens=tokens, ignore_eos=True)
            answers.append(router.generate(request, on_first=began.release))

        threads = [threading.Thread(target=stream) for _ in range(STREAMS)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert began.acquire(timeout=30), "a stream has not begun"
        yield Load(router, threads, answers)
    finally:
        router.stop()


def error_of(error: grpc.RpcError | None) -> TandemError | None:
    return None if error is None else decode(error.trailing_metadata())  # type: ignore[attr-defined]


def reason_of(error: grpc.RpcError | None) -> Reason | None:
    found = error_of(error)
    assert found is not None, f"not one of our own errors: {error}"
    return found.reason


def health(router: RouterProcess, listener: str = "health_listen") -> int:
    stub = health_pb2_grpc.HealthStub(router.channel(router.where[listener]))
    return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=5).status)


def terminated(router: RouterProcess) -> float:
    """Send SIGTERM and wait until health tells; when it was sent."""
    sent_s = time.monotonic()
    router.process.send_signal(signal.SIGTERM)
    eventually(lambda: health(router) == NOT_SERVING, within_s=2, what="health says NOT_SERVING")
    return sent_s


def test_running_streams_end_well_after_sigterm_and_the_router_exits_with_0(engines: list[EngineProcess]) -> None:
    with loaded(engines, BRIEF) as load:
        terminated(load.router)
        load.join(30)
        code = load.router.process.wait(10)
    tokens = {len(answer.tokens[0]) for answer in load.answers}
    assert (load.reasons(), tokens, code) == ([None] * STREAMS, {BRIEF}, 0)


def test_new_requests_and_mutations_are_told_to_come_back_while_reads_go_on(engines: list[EngineProcess]) -> None:
    with loaded(engines, ENDLESS) as load:
        router = load.router
        terminated(router)
        new = error_of(router.generate(router.request(text="a")).error)
        with pytest.raises(grpc.RpcError) as caught:
            router.workers.DeleteWorker(worker_service_pb2.DeleteWorkerRequest(worker_id="x"))
        mutation = error_of(caught.value)
        workers = len(router.workers.ListWorkers(worker_service_pb2.ListWorkersRequest()).workers)
        listeners = {name: health(router, name) for name in ("listen", "admin_listen", "health_listen")}
        router.process.send_signal(signal.SIGTERM)
        load.join(10)
    assert new is not None
    assert mutation is not None
    assert (new.reason, new.retry_after_s, mutation.reason, mutation.retry_after_s) == (
        Reason.DRAINING, 1.0, Reason.DRAINING, 1.0,
    )  # fmt: skip
    assert (workers, set(listeners.values())) == (2, {NOT_SERVING})


@pytest.mark.parametrize("grace_s", [0.0, 1.0])
def test_streams_that_outlast_the_grace_are_told_draining(engines: list[EngineProcess], grace_s: float) -> None:
    with loaded(engines, ENDLESS, f"shutdown_grace_s={grace_s:g}") as load:
        sent_s = time.monotonic()
        load.router.process.send_signal(signal.SIGTERM)
        load.join(grace_s + 5)
        code = load.router.process.wait(5)
    told_s = [answer.ended_at - sent_s for answer in load.answers]
    print(f"told after {min(told_s):.3f} to {max(told_s):.3f} s")
    assert (load.reasons(), code) == ([Reason.DRAINING] * STREAMS, 0)
    assert grace_s <= min(told_s) <= max(told_s) < grace_s + 1


def test_grace_for_ever_outlasts_every_stream(engines: list[EngineProcess]) -> None:
    with loaded(engines, BRIEF, f"shutdown_grace_s={math.inf}") as load:
        terminated(load.router)
        load.join(30)
        code = load.router.process.wait(10)
    assert (load.reasons(), code) == ([None] * STREAMS, 0)


def test_second_signal_ends_within_a_second_even_when_engines_hang(engines: list[EngineProcess]) -> None:
    with loaded(engines, ENDLESS, "shutdown_grace_s=inf") as load:
        watch = load.router.workers.WatchWorkers(worker_service_pb2.WatchWorkersRequest(), timeout=30)
        next(watch)
        terminated(load.router)
        for engine in engines:
            engine.process.send_signal(signal.SIGSTOP)
        try:
            sent_s = time.monotonic()
            load.router.process.send_signal(signal.SIGTERM)
            code = load.router.process.wait(10)
            took_s = time.monotonic() - sent_s
            load.join(5)
        finally:
            for engine in engines:
                engine.process.send_signal(signal.SIGCONT)
        with pytest.raises(grpc.RpcError) as caught:
            list(watch)
    print(f"gone after {took_s:.3f} s")
    assert (load.reasons(), reason_of(caught.value), code) == ([Reason.DRAINING] * STREAMS, Reason.DRAINING, 0)
    assert took_s < 1
