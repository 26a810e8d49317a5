"""SIGKILL of either engine before and after decode's first token: the client is answered, the survivors are free."""

from __future__ import annotations

import string
import threading
import time
from collections.abc import Iterator

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tests.e2e.processes import Answer, EngineProcess, RouterProcess, eventually, system

from tandem.v1 import pair_pb2

pytestmark = pytest.mark.e2e

PROMPT = "alphabet from a to z:"
RIGHT = "".join(f" {letter}" for letter in string.ascii_lowercase)
ANSWER_WITHIN_S = 1.0
GRACE_S = 5.0
"""The survivors' leases and grace in this fleet."""

Fleet = tuple[RouterProcess, list[EngineProcess], list[EngineProcess]]


@pytest.fixture(params=["sglang", "vllm"])
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    with system(request.param, prefill=2, decode=2, engine_flags=("--kv-lease", "3s")) as running:
        yield running


def in_background(router: RouterProcess, **more: object) -> tuple[threading.Thread, list[Answer]]:
    """Begin a greedy request; its answer is in the list once the thread has ended."""
    request = router.request(text=PROMPT, temperature=0.0, max_tokens=40)
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(router.generate(request, **more)))  # type: ignore[arg-type]
    thread.start()
    return thread, answers


def worker_of(leg: pair_pb2.Leg, engines: dict[str, EngineProcess]) -> EngineProcess:
    return engines[leg.worker.worker_id]


def by_id(router: RouterProcess, engines: list[EngineProcess]) -> dict[str, EngineProcess]:
    from tandem.v1 import worker_service_pb2

    listed = router.workers.ListWorkers(worker_service_pb2.ListWorkersRequest()).workers
    addresses = {engine.address: engine for engine in engines}
    return {worker.id: addresses[worker.spec.url.removeprefix("grpc://")] for worker in listed}


def live_pair(router: RouterProcess, state: int) -> pair_pb2.Pair:
    found: list[pair_pb2.Pair] = []

    def seen() -> bool:
        found[:] = [pair for pair in router.live_pairs() if pair.state == state]
        return bool(found)

    eventually(seen, within_s=10, what=f"a pair in state {pair_pb2.PairState.Name(state)}")
    return found[0]


def survivors_are_free(router: RouterProcess, engines: list[EngineProcess], dead: EngineProcess) -> None:
    for engine in engines:
        if engine is not dead:
            eventually(engine.is_idle, within_s=GRACE_S, what=f"{engine.mode} {engine.address} owes nothing")
    eventually(lambda: router.live_pairs() == [], within_s=GRACE_S, what="no pair is left")


def error_info(error: grpc.RpcError) -> error_details_pb2.ErrorInfo:
    status = rpc_status.from_call(error)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info


@pytest.mark.parametrize("victim", ["prefill", "decode"])
def test_killed_before_the_first_token_the_client_still_gets_the_right_answer(fleet: Fleet, victim: str) -> None:
    router, prefills, decodes = fleet
    engines = [*prefills, *decodes]
    for engine in prefills:
        engine.set_faults(step_latency={"nanos": 400_000_000})
    thread, answers = in_background(router)
    pair = live_pair(router, pair_pb2.PAIR_STATE_PREFILLING)
    leg = pair.prefill if victim == "prefill" else pair.decode
    dead = worker_of(leg, by_id(router, engines))
    dead.kill()
    for engine in prefills:
        if engine is not dead:
            engine.set_faults()
    killed_at = time.monotonic()
    thread.join(20)
    [answer] = answers
    assert answer.error is None
    assert answer.text == RIGHT
    assert answer.first_token_at is not None
    assert answer.first_token_at - killed_at < ANSWER_WITHIN_S
    survivors_are_free(router, engines, dead)


def test_prefill_killed_after_the_first_token_the_stream_completes(fleet: Fleet) -> None:
    router, prefills, decodes = fleet
    engines = [*prefills, *decodes]
    for engine in decodes:
        engine.set_faults(step_latency={"nanos": 20_000_000})
    killed: list[EngineProcess] = []

    def kill_prefill() -> None:
        pair = live_pair(router, pair_pb2.PAIR_STATE_DECODING)
        killed.append(worker_of(pair.prefill, by_id(router, engines)))
        killed[0].kill()

    answer = router.generate(router.request(text=PROMPT, temperature=0.0, max_tokens=40), on_first=kill_prefill)
    assert answer.error is None
    assert answer.text == RIGHT
    assert answer.finished is not None
    assert len(answer.finished.attempts) == 1
    survivors_are_free(router, engines, killed[0])


def test_decode_killed_after_the_first_token_the_client_is_told_why_within_a_second(fleet: Fleet) -> None:
    router, prefills, decodes = fleet
    engines = [*prefills, *decodes]
    for engine in decodes:
        engine.set_faults(step_latency={"nanos": 20_000_000})
    killed: list[tuple[EngineProcess, float]] = []

    def kill_decode() -> None:
        pair = live_pair(router, pair_pb2.PAIR_STATE_DECODING)
        dead = worker_of(pair.decode, by_id(router, engines))
        dead.kill()
        killed.append((dead, time.monotonic()))

    answer = router.generate(router.request(text=PROMPT, temperature=0.0, max_tokens=40), on_first=kill_decode)
    [(dead, killed_at)] = killed
    assert answer.error is not None
    assert answer.ended_at - killed_at < ANSWER_WITHIN_S
    assert RIGHT.startswith(answer.text)
    assert answer.error.code() is grpc.StatusCode.UNAVAILABLE
    info = error_info(answer.error)
    assert (info.reason, info.domain) == ("WORKER_LOST", "tandem")
    assert info.metadata["leg"] == "decode"
    survivors_are_free(router, engines, dead)
