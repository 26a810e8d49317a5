"""Engines that die. Runs last, in this order: what is ended here is missing, or starting, in what follows."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tests.e2e.processes import EngineProcess, eventually
from tests.real_engines.house import ALONE, PAIR, House, System
from tests.real_engines.prompts import PROMPTS, fair, fresh

from tandem.v1 import generate_pb2, pair_pb2, worker_pb2

pytestmark = pytest.mark.e2e

ANSWER_WITHIN_S = 1.0
NOTICED_WITHIN_S = 20.0
"""Three probes a second apart, each with three seconds, on a machine that is busy."""
RESTART_S = 240.0
FREE_WITHIN_S = 45.0
"""vLLM keeps what nobody fetches for 30 s."""


def endless(system: System, model: str) -> generate_pb2.GenerateRequest:
    asked = {"temperature": 0.0, "max_tokens": 4000, "ignore_eos": True}
    return system.router.request(token_ids=PROMPTS["alphabet"], model=model, **asked)


def reason_of(error: grpc.RpcError | None) -> error_details_pb2.ErrorInfo:
    assert error is not None
    status = rpc_status.from_call(error)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info


def killed_in_mid_stream(system: System, name: str, model: str) -> error_details_pb2.ErrorInfo:
    """Kill an engine at the first token of its request; what the client is told, within a second."""
    killed_at: list[float] = []
    answer = system.router.generate(
        endless(system, model), on_first=lambda: killed_at.append(system.engines[name].kill())
    )
    assert answer.ended_at - killed_at[0] < ANSWER_WITHIN_S
    assert answer.error is not None
    assert answer.error.code() is grpc.StatusCode.UNAVAILABLE
    return reason_of(answer.error)


@pytest.mark.mlx
def test_a_killed_mlx_is_told_within_a_second_and_comes_back_in_another_epoch(fleet: House, mlx_system: System) -> None:
    before = mlx_system.epoch("mlx")
    assert killed_in_mid_stream(mlx_system, "mlx", ALONE).reason == "WORKER_LOST"
    fleet.restart("mlx").wait_until_serving()
    eventually(
        lambda: mlx_system.epoch("mlx") > before and mlx_system.router.is_ready(mlx_system.ids["mlx"]),
        within_s=30,
        what="the new process is READY in a higher epoch",
    )
    ids = PROMPTS["count"]
    answer = mlx_system.router.generate(
        mlx_system.router.request(token_ids=ids, model=ALONE, temperature=0.0, max_tokens=32)
    )
    assert answer.tokens[0] == fair(mlx_system.router, ids)


@pytest.fixture(scope="module")
def stand_in(vllm_system: System) -> Iterator[str]:
    """Another worker of the model that vLLM serves alone; its id."""
    engine = EngineProcess("vllm", "aggregated")
    yield vllm_system.router.add(engine, model=ALONE)
    engine.stop()


@pytest.mark.vllm
class TestVllm:
    """One story."""

    epoch = 0

    def test_a_killed_decode_worker_is_told_within_a_second_and_the_other_half_is_free(
        self, fleet: House, vllm_system: System
    ) -> None:
        type(self).epoch = vllm_system.epoch("vllm-decode")
        info = killed_in_mid_stream(vllm_system, "vllm-decode", PAIR)
        assert (info.reason, info.domain, info.metadata["leg"]) == ("WORKER_LOST", "tandem", "decode")
        eventually(lambda: vllm_system.router.live_pairs() == [], within_s=FREE_WITHIN_S, what="no pair is left")
        prefill = vllm_system.engines["vllm-prefill"]
        eventually(lambda: prefill.loads() == (0, 0, 0), within_s=FREE_WITHIN_S, what="prefill holds nothing")
        fleet.restart("vllm-decode")

    def test_an_engine_that_dies_behind_a_living_process_gets_no_more_requests(
        self, vllm_system: System, stand_in: str
    ) -> None:
        router, engine, dead = vllm_system.router, vllm_system.engines["vllm"], vllm_system.ids["vllm"]
        request = endless(vllm_system, ALONE)
        request.target_worker.worker_id = dead
        killed_at: list[float] = []
        answer = router.generate(request, on_first=lambda: killed_at.append(engine.kill_core()))
        print(f"told {answer.ended_at - killed_at[0]:.2f} s after the kill: {answer.error}")
        assert answer.error is not None
        assert reason_of(answer.error).domain == "tandem"
        took_s = eventually(
            lambda: router.status(dead) == worker_pb2.WORKER_STATUS_NOT_READY,
            within_s=NOTICED_WITHIN_S,
            what="the worker is NOT_READY",
        )
        print(f"NOT_READY {took_s:.1f} s later")
        os.kill(engine.pid, 0)  # the process that serves lives
        stale = engine.loads()  # and goes on answering, with what its engine said last
        assert engine.loads() == stale
        [rank] = vllm_system.worker("vllm", include_load=True).ranks
        assert not rank.routable
        assert not rank.HasField("load") or rank.load.running_requests > 0, "a dead engine looks idle"
        for _ in range(8):
            elsewhere = router.generate(
                router.request(token_ids=PROMPTS["count"], model=ALONE, temperature=0.0, max_tokens=4)
            )
            assert elsewhere.error is None, elsewhere.error
            assert elsewhere.finished is not None
            assert elsewhere.finished.served_by.decode.worker_id == stand_in
        refused = router.generate(request)
        assert refused.error is not None
        assert refused.error.code() is grpc.StatusCode.UNAVAILABLE

    def test_a_restarted_decode_worker_is_ready_in_a_higher_epoch_and_pairs_again(self, vllm_system: System) -> None:
        vllm_system.engines["vllm-decode"].wait_until_serving(RESTART_S)
        eventually(
            lambda: vllm_system.router.is_ready(vllm_system.ids["vllm-decode"]),
            within_s=30,
            what="the restarted worker is READY",
        )
        assert vllm_system.epoch("vllm-decode") > type(self).epoch
        ids = PROMPTS["three blocks"]
        answer = vllm_system.router.generate(
            vllm_system.router.request(token_ids=ids, model=PAIR, temperature=0.0, max_tokens=32)
        )
        assert answer.error is None, answer.error
        assert answer.tokens[0] == fair(vllm_system.router, ids)

    def test_a_prefill_worker_killed_before_the_first_token_is_a_clear_failure_where_it_was_the_only_one(
        self, vllm_system: System
    ) -> None:
        router, engine = vllm_system.router, vllm_system.engines["vllm-prefill"]
        ids = fresh(4001, 3000)
        call = router.router.Generate(router.request(token_ids=ids, model=PAIR, temperature=0.0, max_tokens=8))
        eventually(
            lambda: pair_pb2.PAIR_STATE_PREFILLING in [pair.state for pair in router.live_pairs()],
            within_s=10,
            what="it prefills",
        )
        os.kill(engine.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        with pytest.raises(grpc.RpcError) as ended:
            list(call)
        print(f"told {time.monotonic() - killed_at:.2f} s after the kill: {ended.value.details()}")  # type: ignore[attr-defined]
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
        assert reason_of(ended.value).domain == "tandem"
        decode = vllm_system.engines["vllm-decode"]
        eventually(lambda: decode.loads() == (0, 0, 0), within_s=10, what="decode holds nothing")
        eventually(lambda: router.live_pairs() == [], within_s=FREE_WITHIN_S, what="no pair is left")
