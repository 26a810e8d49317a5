"""A worker registered with more ranks than its engine has costs no client an answer, and says what is wrong with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from tests.e2e.processes import EngineProcess, RouterProcess, eventually

from tandem.v1 import worker_pb2, worker_service_pb2, worker_spec_pb2

pytestmark = pytest.mark.e2e

TEXT = "repeat “one two” : "


@pytest.fixture(scope="module", params=["sglang", "vllm"])
def fleet(request: pytest.FixtureRequest) -> Iterator[tuple[RouterProcess, str]]:
    """A router with two engines of one rank each, and the id of the worker that is said to have two."""
    with contextlib.ExitStack() as stack:
        router = RouterProcess()
        stack.callback(router.stop)
        engines = [EngineProcess(request.param, "aggregated") for _ in range(2)]
        for engine in engines:
            stack.callback(engine.stop)
        router.add(engines[0])
        spec = worker_spec_pb2.WorkerSpec(url=f"grpc://{engines[1].address}", dp_size=2)
        worker = router.workers.CreateWorker(worker_service_pb2.CreateWorkerRequest(spec=spec)).worker
        eventually(lambda: router.is_ready(worker.id), within_s=30, what="the worker is READY")
        yield router, worker.id


def worker_of(router: RouterProcess, worker_id: str) -> worker_pb2.Worker:
    return router.workers.GetWorker(worker_service_pb2.GetWorkerRequest(worker_id=worker_id)).worker


def test_every_request_is_answered_and_the_rank_that_is_not_there_goes_out(fleet: tuple[RouterProcess, str]) -> None:
    router, worker_id = fleet
    attempts = []
    for _ in range(60):  # of three ranks one is drawn each time; three of its failures take it out
        answer = router.generate(router.request(text=TEXT, temperature=0, max_tokens=8))
        assert answer.error is None, answer.error
        assert answer.finished is not None
        attempts.append(len(answer.finished.attempts))
    assert max(attempts) > 1, "the rank was never asked, so nothing was shown"
    there, absent = worker_of(router, worker_id).ranks
    assert there.routable
    assert not absent.healthy
    assert not absent.routable
    assert "rank" in absent.failure.message
    assert absent.HasField("trial_time")


def test_the_worker_says_that_its_ranks_are_not_those_stated(fleet: tuple[RouterProcess, str]) -> None:
    router, worker_id = fleet
    [claim] = [one for one in worker_of(router, worker_id).conditions if one.type == "FACTS_MATCH"]
    assert claim.status == worker_pb2.CONDITION_STATUS_FALSE
    assert claim.failure.reason == "CONFLICT_DP_SIZE"
