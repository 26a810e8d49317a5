"""Vectors through the router over real processes: those of the engine asked directly, many, stopped, and outlived."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from smg_grpc_proto.generated import (
    sglang_scheduler_pb2,
    sglang_scheduler_pb2_grpc,
    vllm_engine_pb2,
    vllm_engine_pb2_grpc,
)
from tests.e2e.processes import EngineProcess, RouterProcess, eventually

from tandem.v1 import embed_pb2, message_pb2, router_service_pb2, worker_service_pb2
from tandem_router.errors import Reason, TandemError
from tandem_router.wire.status import decode

pytestmark = pytest.mark.e2e

TEXTS = ["count from 7 to 12:", "12 + 34 =", "repeat “hello 🙂” :", "a b c"]
MOST = 2048
ENGINE_FLAGS = {"sglang": (), "vllm": ("--task", "embed")}
"""vLLM serves vectors or tokens, as it was started; SGLang's protocol can say that an engine serves both."""


def ids_of(*token_ids: Sequence[int]) -> list[embed_pb2.EmbedInput]:
    return [embed_pb2.EmbedInput(token_ids=message_pb2.TokenIds(ids=each)) for each in token_ids]


def texts(*said: str) -> list[embed_pb2.EmbedInput]:
    return [embed_pb2.EmbedInput(text=each) for each in said]


def refusal(error: Any) -> TandemError:
    found = decode([(str(key), value) for key, value in error.trailing_metadata() or ()])
    assert found is not None, error
    return found


class Embedders:
    """A router and engines of one protocol that serve alone."""

    def __init__(self, protocol: str, count: int, stack: contextlib.ExitStack) -> None:
        self.protocol = protocol
        self.engines = []
        for _ in range(count):
            self.engines.append(EngineProcess(protocol, "aggregated", *ENGINE_FLAGS[protocol]))
            stack.callback(self.engines[-1].stop)
        self.router = RouterProcess()
        stack.callback(self.router.stop)
        self.ids = [self.router.add(engine) for engine in self.engines]

    def embed(self, inputs: Sequence[embed_pb2.EmbedInput], *, timeout_s: float = 60.0, **fields: Any) -> Any:
        return self.router.router.Embed(embed_pb2.EmbedRequest(inputs=inputs, **fields), timeout=timeout_s)

    def tokens(self, text: str) -> list[int]:
        return list(self.router.router.Tokenize(router_service_pb2.TokenizeRequest(text=text)).token_ids)

    def asked_directly(self, token_ids: Sequence[int]) -> list[float]:
        """The vector of the first engine, without a router."""
        channel = self.engines[0].channel(self.engines[0].address)
        if self.protocol == "sglang":
            asked: Any = sglang_scheduler_pb2.EmbedRequest(request_id="direct")
            stub: Any = sglang_scheduler_pb2_grpc.SglangSchedulerStub(channel)
        else:
            asked = vllm_engine_pb2.EmbedRequest(request_id="direct")
            stub = vllm_engine_pb2_grpc.VllmEngineStub(channel)
        asked.tokenized.input_ids.extend(token_ids)
        return list(stub.Embed(asked, timeout=30).embedding)

    def slow_down(self, seconds: float) -> None:
        for engine in self.engines:
            engine.set_faults(**({"step_latency": {"nanos": int(seconds * 1e9)}} if seconds else {}))

    def are_idle(self) -> bool:
        return all(engine.is_idle() for engine in self.engines if engine.process.poll() is None)


@pytest.fixture(scope="module", params=["sglang", "vllm"])
def embedders(request: pytest.FixtureRequest) -> Iterator[Embedders]:
    with contextlib.ExitStack() as stack:
        yield Embedders(request.param, 2, stack)


def test_a_vector_of_the_router_is_that_of_the_engine_asked_directly(embedders: Embedders) -> None:
    tokens = [embedders.tokens(text) for text in TEXTS]
    direct = [embedders.asked_directly(each) for each in tokens]
    answer = embedders.embed(texts(*TEXTS))
    assert [list(one.values) for one in answer.embeddings] == direct
    assert [one.index for one in answer.embeddings] == list(range(len(TEXTS)))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (sum(map(len, tokens)), 0)
    assert answer.served_model == embedders.embed(ids_of(*tokens)).served_model != ""
    assert [list(one.values) for one in embedders.embed(ids_of(*tokens), normalize=False).embeddings] == direct
    assert {attempt.served_by.decode.worker_id for attempt in answer.attempts} <= set(embedders.ids)


def test_dimensions_cut_a_vector_which_then_has_length_one_again(embedders: Embedders) -> None:
    whole = embedders.asked_directly([5, 6, 7])
    [cut] = embedders.embed(ids_of([5, 6, 7]), dimensions=16).embeddings
    length = math.hypot(*whole[:16])
    assert list(cut.values) == pytest.approx([value / length for value in whole[:16]], abs=1e-6)
    [raw] = embedders.embed(ids_of([5, 6, 7]), dimensions=16, normalize=False).embeddings
    assert list(raw.values) == whole[:16]
    with pytest.raises(grpc.RpcError) as caught:
        embedders.embed(ids_of([5, 6, 7]), dimensions=len(whole) + 1)
    assert (refusal(caught.value).reason, refusal(caught.value).field) == (Reason.INVALID_REQUEST, "dimensions")


def test_as_many_inputs_as_may_be_are_all_answered(embedders: Embedders) -> None:
    prompts = [[5 + number % 400, 6 + number // 400] for number in range(MOST)]
    began = time.monotonic()
    answer = embedders.embed(ids_of(*prompts), timeout_s=120)
    print(f"{embedders.protocol}: {MOST} inputs in {time.monotonic() - began:.2f} s, {answer.ByteSize()} bytes")
    assert [one.index for one in answer.embeddings] == list(range(MOST))
    for number in (0, 1, 1000, MOST - 1):
        assert list(answer.embeddings[number].values) == embedders.asked_directly(prompts[number])
    assert {attempt.served_by.decode.worker_id for attempt in answer.attempts} == set(embedders.ids)
    assert len(answer.attempts) == MOST


REFUSED: list[tuple[list[embed_pb2.EmbedInput], Reason, str]] = [
    ([*texts("a"), embed_pb2.EmbedInput()], Reason.INVALID_REQUEST, "inputs[1]"),
    (ids_of([5], []), Reason.EMPTY_PROMPT, "inputs[1].token_ids.ids"),
    (ids_of([5], [512]), Reason.TOKEN_OUT_OF_VOCABULARY, "inputs[1]"),
    (ids_of([5] * 4097), Reason.PROMPT_TOO_LONG, "inputs[0]"),
    (texts("x") * (MOST + 1), Reason.INVALID_REQUEST, "inputs"),
]


@pytest.mark.parametrize(("inputs", "reason", "path"), REFUSED, ids=[f"{row[1]}-{len(row[0])}" for row in REFUSED])
def test_an_input_that_would_hurt_an_engine_is_refused_by_name(
    embedders: Embedders, inputs: list[embed_pb2.EmbedInput], reason: Reason, path: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        embedders.embed(inputs)
    assert (refusal(caught.value).reason, refusal(caught.value).field) == (reason, path)
    assert list(embedders.embed(ids_of([5])).embeddings[0].values) == embedders.asked_directly([5])


@pytest.mark.parametrize("way", ["cancel", "deadline", "abort"])
def test_a_call_that_is_stopped_stops_the_engines(embedders: Embedders, way: str) -> None:
    embedders.slow_down(0.2)
    try:
        request = embed_pb2.EmbedRequest(inputs=ids_of(*([number] for number in range(5, 205))), request_id=way)
        call = embedders.router.router.Embed.future(request, timeout=0.7 if way == "deadline" else 60)
        eventually(
            lambda: sum(engine.ledger().running for engine in embedders.engines) > 0, within_s=5, what="engines work"
        )
        if way == "cancel":
            call.cancel()
        elif way == "abort":
            embedders.router.router.Abort(router_service_pb2.AbortRequest(request_id=request.request_id))
            assert call.exception(5).code() is grpc.StatusCode.CANCELLED
        took = eventually(embedders.are_idle, within_s=5, what="the engines are idle")
        print(f"{embedders.protocol} {way}: idle after {took:.2f} s")
        if way == "deadline":
            assert call.exception(5).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    finally:
        embedders.slow_down(0)
    eventually(lambda: sum(in_flight(embedders, one) for one in embedders.ids) == 0, within_s=5, what="no leg is open")


def in_flight(embedders: Embedders, worker_id: str) -> int:
    request = worker_service_pb2.GetWorkerRequest(worker_id=worker_id, include_load=True)
    worker = embedders.router.workers.GetWorker(request).worker
    return sum(rank.in_flight for rank in worker.ranks)


def test_operators_see_running_inputs_as_load_and_a_drain_waits_for_them(embedders: Embedders) -> None:
    embedders.slow_down(0.05)
    try:
        call = embedders.router.router.Embed.future(
            embed_pb2.EmbedRequest(inputs=ids_of(*([number] for number in range(5, 305)))), timeout=60
        )
        first, second = embedders.ids
        eventually(lambda: in_flight(embedders, first) > 0, within_s=5, what="load is seen")
        embedders.router.workers.DrainWorker(worker_service_pb2.DrainWorkerRequest(worker_id=first))
        eventually(lambda: in_flight(embedders, first) == 0, within_s=10, what="the drained worker is left alone")
        answer = call.result(60)
        assert len(answer.embeddings) == 300
        assert all(not attempt.HasField("failure") for attempt in answer.attempts)
        assert answer.attempts[-1].served_by.decode.worker_id == second
    finally:
        embedders.slow_down(0)
        embedders.router.workers.UndrainWorker(worker_service_pb2.UndrainWorkerRequest(worker_id=first))
        eventually(lambda: embedders.router.is_ready(first), within_s=15, what="the worker is READY again")


@pytest.mark.parametrize("protocol", ["sglang", "vllm"])
def test_a_worker_that_dies_in_the_middle_costs_no_vector(protocol: str) -> None:
    prompts = [[5 + number] for number in range(400)]
    with contextlib.ExitStack() as stack:
        embedders = Embedders(protocol, 2, stack)
        whole = [list(one.values) for one in embedders.embed(ids_of(*prompts)).embeddings]
        embedders.slow_down(0.05)
        victim = embedders.engines[1]
        killer = threading.Timer(0.5, victim.kill)
        killer.start()
        answer = embedders.embed(ids_of(*prompts))
        killer.join()
        assert victim.process.poll() is not None
        assert [list(one.values) for one in answer.embeddings] == whole
        lost = [attempt for attempt in answer.attempts if attempt.HasField("failure")]
        print(f"{protocol}: {len(lost)} tries lost: {sorted({attempt.failure.reason for attempt in lost})}")
        assert lost
        assert {attempt.served_by.decode.worker_id for attempt in lost} == {embedders.ids[1]}
        assert len(answer.attempts) == 400 + len(lost)
        eventually(embedders.are_idle, within_s=5, what="the engine that is left is idle")


def shown(router: RouterProcess, worker_id: str) -> tuple[bool, bool]:
    worker = router.workers.GetWorker(worker_service_pb2.GetWorkerRequest(worker_id=worker_id)).worker
    return worker.facts.capabilities.generate, worker.facts.capabilities.embed


@pytest.mark.parametrize("protocol", ["sglang", "vllm"])
def test_under_one_model_id_tokens_and_vectors_each_come_from_who_makes_them(protocol: str) -> None:
    with contextlib.ExitStack() as stack:
        router = RouterProcess()
        stack.callback(router.stop)
        engines = {}
        for task in ("embed", "generate"):
            engines[task] = EngineProcess(protocol, "aggregated", "--task", task)
            stack.callback(engines[task].stop)
        embedder = router.add(engines["embed"])
        asked = router.request(text="a b c", max_tokens=2)
        error = refusal(router.generate(asked).error)
        assert (error.reason, error.field) == (Reason.RUNTIME_CANNOT_GENERATE, "model")
        generator = router.add(engines["generate"])
        assert [shown(router, one) for one in (embedder, generator)] == [(False, True), (True, False)]
        for _ in range(20):
            finished = router.generate(asked).finished
            assert finished is not None
            assert [one.served_by.decode.worker_id for one in finished.attempts] == [generator]
            answer = router.router.Embed(embed_pb2.EmbedRequest(inputs=texts("a b c")), timeout=30)
            assert [one.served_by.decode.worker_id for one in answer.attempts] == [embedder]


def test_halves_of_a_pair_are_asked_for_no_vectors() -> None:
    with contextlib.ExitStack() as stack:
        router = RouterProcess()
        stack.callback(router.stop)
        for mode in ("prefill", "decode"):
            engine = EngineProcess("sglang", mode)
            stack.callback(engine.stop)
            router.add(engine)
        with pytest.raises(grpc.RpcError) as caught:
            router.router.Embed(embed_pb2.EmbedRequest(inputs=texts("hi")), timeout=30)
        assert refusal(caught.value).reason is Reason.RUNTIME_CANNOT_EMBED


def test_buf_curl_gets_vectors(embedders: Embedders, tmp_path: Path) -> None:
    buf, address = Path(sys.executable).parent / "buf", embedders.router.where["listen"]
    data = json.dumps({"inputs": [{"text": "12 + 34 ="}, {"token_ids": {"ids": [5, 6]}}], "dimensions": 4})
    command = [buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "-d", data]
    url = f"http://{address}/tandem.v1.RouterService/Embed"
    done = subprocess.run([*command, url], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [len(one["values"]) for one in answer["embeddings"]] == [4, 4]


def test_tandem_embed_prints_a_line_of_numbers_per_text(embedders: Embedders) -> None:
    command = [sys.executable, "-m", "tandem_router", "embed", "--router", embedders.router.where["listen"]]
    done = subprocess.run([*command, "", *TEXTS[:2]], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    lines = [[float(value) for value in line.split()] for line in done.stdout.splitlines()]
    direct = [embedders.asked_directly(embedders.tokens(text)) for text in TEXTS[:2]]
    assert lines == [pytest.approx(vector, abs=1e-6) for vector in direct]
    assert "2 vectors" in done.stderr
